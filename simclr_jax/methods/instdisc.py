"""Instance discrimination: every image is a class of its own (Wu et al. 2018, arXiv 1805.01978).

As zhirongw/lemniscate.pytorch runs it: one view of an image a step, embedded on the unit sphere,
must find the row that the image has in a bank; after the loss that row moves towards it. The bank
starts from uniform numbers, not from unit vectors. Three losses (`losses/instance.py`): NCE with a
Z that the first batch fixes, the softmax over a sample, the softmax over the whole bank.

Every device holds the whole bank, as it does all of the state: a row of 128 numbers takes 512
bytes, ImageNet's 1.28 million 656 MB. Divided among devices it would be smaller, but the rows that
are drawn for an image would have to be fetched from other devices, in every step 4096 for each.
What crosses devices so is one embedding and one number of each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from simclr_jax import parallel
from simclr_jax.declaration import Chart, Declaration, Field, Unread
from simclr_jax.errors import UserError
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net, project
from simclr_jax.losses import instance
from simclr_jax.losses.unit import l2_normalize
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Update

LOSSES: dict[str, Callable[..., instance.Found]] = {
    "nce": instance.nce,
    "sampled_softmax": instance.sampled_softmax,
    "softmax": instance.softmax,
}
NODES = 32  # of the mean over first rows in `chance_at`
EPOCHS = 10_000  # after which no row turns any more
FOUND = "How often no row of the bank that an image is compared with is nearer than its own."


def recipe(config: ConfigDict) -> None:
    """Set head, view and optimiser of the official `main.py`, for ImageNet.

    But for the epochs at which its rate drops, which go with its 200.
    """
    config.head.kind, config.head.layers, config.head.dim = "mlp", 1, 128
    config.head.bias, config.head.norm = "all", "none"
    config.model.input = "normalised"
    config.loss.temperature = 0.07
    config.optim.name, config.optim.base_lr, config.optim.lr_scaling = "sgd", 0.03, "none"
    config.optim.nesterov, config.optim.decayed = False, "all"
    config.optim.weight_decay, config.optim.warmup_epochs = 1e-4, 0.0
    config.train.batch_size, config.train.epochs = 256, 200.0
    with config.unlocked():
        del config.augment.views["second"]
    view = config.augment.views.first
    config.augment.crop_law = "area"
    view.area_min, view.blur = 0.2, 0.0
    view.jitter, view.grayscale_first = 1.0, True
    view.brightness = view.contrast = view.saturation = view.hue = 0.4


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return the fields of other losses than that of a recipe."""
    loss = config.instdisc.loss
    why = Unread(f"instdisc.loss={loss}", "--config.instdisc.loss=nce")
    readers = {"negatives": ("nce", "sampled_softmax"), "partition": ("nce",)}
    return {f"instdisc.{name}": why for name, losses in readers.items() if loss not in losses}


def check(config: ConfigDict) -> None:
    """Raise `UserError` where nothing is embedded."""
    if config.head.kind == "none":
        raise UserError(
            "head.kind is none, but instdisc keeps what the head makes of every image: set "
            "--config.head.kind=mlp"
        )


def _others(config: ConfigDict, examples: int) -> int:
    """Return how many rows an image is compared with beside its own."""
    return examples - 1 if config.instdisc.loss == "softmax" else config.instdisc.negatives


def chance(config: ConfigDict, examples: int) -> float | None:
    """Return the loss of embeddings that are all equal, once the bank's rows are equal too.

    None for NCE: there the probability of each row would be e^(1/t)/Z, with a Z of the bank's first
    rows, and the loss in the thousands, which says nothing about a run that has learned little.

    Args:
      config: a whole recipe.
      examples: images to learn from.
    """
    return None if config.instdisc.loss == "nce" else math.log1p(_others(config, examples))


def chance_at(config: ConfigDict, steps: np.ndarray, examples: int) -> np.ndarray:
    """Return the loss of embeddings that are all equal while the bank still holds its first rows.

    In epoch e the row of an image that comes has had e visits, and of all others the part that was
    met in this epoch one more. Each visit turns a row towards the embedding c; the cosine of a
    first row with c is nearly normal, of variance 1/d. The mean is over that.

    Args:
      config: a whole recipe, whose loss is one of the two softmaxes.
      steps: finished steps, `[n]`.
      examples: images to learn from.
    """
    t, momentum = config.loss.temperature, config.instdisc.momentum
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights, cosines = weights / weights.sum(), nodes / math.sqrt(config.head.dim)
    cosines = np.clip(cosines, -0.999, 0.999)
    epoch, met = np.divmod(steps * config.train.batch_size / examples, 1)
    epoch = np.minimum(epoch, EPOCHS).astype(int)
    score, likely = [], []  # by visits: the mean of cos/t, and the logarithm of that of e^(cos/t)
    for _ in range(int(epoch.max(initial=0)) + 2):
        score.append(cosines @ weights / t)
        most = cosines.max() / t
        likely.append(most + math.log(np.exp(cosines / t - most) @ weights))
        along = momentum * cosines + (1 - momentum)
        cosines = along / np.hypot(along, momentum * np.sqrt(np.maximum(1 - cosines**2, 0)))
    own, same, more = np.array(score)[epoch], np.array(likely)[epoch], np.array(likely)[epoch + 1]
    with np.errstate(divide="ignore"):
        other = np.logaddexp(np.log1p(-met) + same, np.log(met) + more)  # of one other row
    return np.logaddexp(same, math.log(max(_others(config, examples), 1e-9)) + other) - own


def floor(config: ConfigDict, examples: int) -> float:
    """Return the loss of embeddings equal to their rows, all other rows being at right angles."""
    return math.log1p(_others(config, examples) * math.exp(-1 / config.loss.temperature))


DECLARATION = Declaration(
    title="Instance discrimination",
    views={"views": (1, 1)},
    recipe=recipe,
    reads=("head", "loss.temperature"),
    fields={
        "loss": Field("nce", "over which rows", f"one of {', '.join(LOSSES)}", LOSSES.__contains__),
        "negatives": Field(4096, "rows drawn for an image", "1 or more", lambda x: x > 0),
        "momentum": Field(0.5, "share of its old row", "in [0, 1)", lambda x: 0 <= x < 1),
        "partition": Field(
            0.0,
            "Z of nce; 0: as the first batch has it",
            "a number, 0 or more",
            lambda x: 0 <= x < math.inf,
        ),
    },
    unread=unread,
    check=check,
    of_images=True,
    chance=chance,
    chance_at=chance_at,
    floor=floor,
    charts=(Chart("Own row found", {"instance_accuracy": "own row found"}, True, FOUND),),
)


def draw(keys: Keys, count: int, examples: int) -> jax.Array:
    """Return rows drawn for each image, uniformly and with replacement, int32 `[n, count]`."""

    def of_image(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (count,), 0, examples, jnp.int32)

    return jax.vmap(of_image)(keys.of_rows("negatives"))


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build instance discrimination.

    Raises:
      UserError: if more rows are drawn than there are.
    """
    c, temperature, examples = config.instdisc, config.loss.temperature, setting.examples
    sampled = c.loss != "softmax"
    if sampled and c.negatives > examples:
        raise UserError(
            f"instdisc.negatives is {c.negatives}, but there are {examples} images to draw from: "
            f"draw fewer, or compare with all by --config.instdisc.loss=softmax "
            f"--config.instdisc.negatives={DECLARATION.fields['negatives'].default}"
        )

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, views["views"])  # [n, 1, d] each
        z = taps[-1][:, 0]
        z = l2_normalize(z.astype(jnp.promote_types(z.dtype, jnp.float32)))
        outputs = {"taps": taps, "z": z, "example": batch["example"]}
        if sampled:
            outputs["sampled"] = draw(keys, c.negatives, examples)  # [n, negatives]
        return outputs

    def compared(outputs: Outputs, extra: Extra) -> tuple[jax.Array, ...]:
        drawn = (outputs["sampled"],) if sampled else ()
        return outputs["z"], extra["bank"], outputs["example"], *drawn

    def log_partition(outputs: Outputs, extra: Extra, step: jax.Array) -> jax.Array:
        if c.partition:
            return jnp.log(jnp.asarray(c.partition, extra["bank"].dtype))

        def of_batch() -> jax.Array:
            return instance.log_partition(
                *compared(outputs, extra), temperature=temperature, axis_name=parallel.AXIS
            )

        return lax.cond(step == 0, of_batch, lambda: extra["log_partition"])

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        how = {"temperature": temperature, "axis_name": axis_name}
        if c.loss == "nce":
            how["log_partition"] = log_partition(outputs, extra, keys.step)
        return LOSSES[c.loss](*compared(outputs, extra), **how)

    def first(outputs: Outputs, key: jax.Array) -> Extra:
        z = outputs["z"]
        most = 1 / math.sqrt(z.shape[1] / 3)
        bank = jax.random.uniform(key, (examples, z.shape[1]), z.dtype, -most, most)
        fixed = c.loss == "nce" and not c.partition
        return {"bank": bank} | ({"log_partition": jnp.zeros((), z.dtype)} if fixed else {})

    def next_extra(extra: Extra, update: Update) -> Extra:
        outputs, made = update.outputs, {}
        z, example = (parallel.everyone(outputs[name]) for name in ("z", "example"))
        if "log_partition" in extra:
            made["log_partition"] = log_partition(outputs, extra, update.step)
        return made | {"bank": instance.moved(extra["bank"], z, example, momentum=c.momentum)}

    return Method(
        forward=forward,
        loss=loss,
        formats={"loss": "loss {:.3f}", "instance_accuracy": "own row found {:.1%}"},
        first=first,
        next=next_extra,
    )
