"""From a recipe to the parts that every stage is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from simclr_jax import validation
from simclr_jax.augment.policy import Policy
from simclr_jax.data.sources import NO_LABEL, Images, Source
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.optim import optimizers, schedules
from simclr_jax.stages.memory import Memory
from simclr_jax.train.stage import Params, Stats
from simclr_jax.train.timetable import Timetable


def first_parts(
    config: ConfigDict, channels: int, classifier: tuple[str, int, int] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the first values of encoder, head and a classifier, as `{params, batch_stats}`.

    Args:
      config: a recipe.
      channels: of the images.
      classifier: its part (`probe` or `classifier`), the layer of the head it reads, and classes.

    Returns:
      For each of `params` and `batch_stats` the trees of the parts that have any.
    """
    parts, keys = (
        (modules.encoder(config), modules.projection_head(config)),
        first_keys(config.seed),
    )
    side = config.data.image_size
    images = jnp.zeros((1, side, side, channels), config.train.dtype)
    made: dict[str, Any] = {"encoder": parts[0].init(keys[0], images, train=True)}
    h: Any = parts[0].apply(made["encoder"], images, train=False)
    hiddens, made["head"] = parts[1].init_with_output(keys[1], h["h"], train=True)
    if classifier:
        part, tap, classes = classifier
        made[part] = modules.classifier(config, classes).init(keys[2], hiddens[tap])
    kinds = ("params", "batch_stats")
    return {kind: {part: v[kind] for part, v in made.items() if kind in v} for kind in kinds}


def first_variables(config: ConfigDict, channels: int) -> dict[str, dict[str, Any]]:
    """Return the first values of encoder and head on the host, see `first_parts`."""
    return jax.device_get(jax.jit(lambda: first_parts(config, channels))())


def first_keys(seed: int) -> jax.Array:
    """Return the keys that encoder, projection head and classifier start from."""
    return jax.random.split(jax.random.key(seed), 3)


def memory(config: ConfigDict) -> Memory | None:
    """Build the memory of more negatives, if the recipe has one."""
    if not config.memory.size:
        return None
    return Memory(
        size=config.memory.size,
        momentum=config.memory.momentum,
        parts=("encoder", "head"),
        normalize=config.loss.normalize,
    )


def in_training(
    module: Any, name: str, params: Params, batch_stats: Stats, x: jax.Array
) -> tuple[Any, Stats]:
    """Apply a part in train mode; return its outputs and, under its name, moved statistics."""
    variables = {"params": params.get(name, {}), "batch_stats": batch_stats.get(name, {})}
    outputs, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
    statistics = moved.get("batch_stats")  # empty, not missing, where the part has none
    return outputs, {name: statistics} if statistics else {}


def policies(config: ConfigDict) -> tuple[Policy, ...]:
    """Return the augmentation of each view."""
    return tuple(
        Policy(
            size=config.data.image_size,
            crop=view.crop,
            area=(view.area_min, view.area_max),
            aspect=(view.aspect_min, view.aspect_max),
            min_object_covered=view.min_object_covered,
            grid=config.augment.grid,
            flip=view.flip,
            jitter=view.jitter,
            brightness=view.strength * view.brightness,
            contrast=view.strength * view.contrast,
            saturation=view.strength * view.saturation,
            hue=view.strength * view.hue,
            brightness_mode=config.augment.brightness_mode,
            grayscale=view.grayscale,
            blur=view.blur,
            blur_sigma=(view.blur_sigma_min, view.blur_sigma_max),
        )
        for _, view in sorted(config.augment.views.items())  # first, second
    )


def optimizer(
    config: ConfigDict, timetable: Timetable, learns: Callable[[Params], Any] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimiser and the learning-rate schedule in it.

    Args:
      config: a recipe.
      timetable: the run in numbers.
      learns: from parameters to a tree of booleans; the others stay as they are. None: all learn.
    """
    o = config.optim
    schedule = schedules.warmup_cosine(
        timetable.peak_rate, timetable.warmup_steps, timetable.total_steps
    )
    if o.name == "lars":
        made = optimizers.lars(
            schedule,
            momentum=o.momentum,
            weight_decay=o.weight_decay,
            trust_coefficient=o.trust_coefficient,
            adapted=optimizers.ADAPT_CLASSIFIER_TOO if o.adapt_classifier else optimizers.ADAPT,
        )
    elif o.name == "sgd":
        made = optimizers.sgd(
            schedule,
            momentum=o.momentum,
            weight_decay=o.weight_decay,
            rate_in_momentum=o.rate_in_momentum,
        )
    else:
        make = {"adam": optimizers.adam, "adamw": optimizers.adamw}[o.name]
        made = make(schedule, weight_decay=o.weight_decay)
    if learns:
        made = optax.partition({True: made, False: optax.set_to_zero()}, learns)
    return made, schedule


def check_images(config: ConfigDict, train: Source, test: Source) -> None:
    """Check that a data set has what the recipe asks of it.

    Raises:
      UserError: if labels are missing, images are too small to crop, or the splits do not match.
    """
    policies(config)  # its own checks, before anything is written
    wanted = [name for name in ("probe", "knn") if config.eval[name]]
    if wanted and not (train.classes and test.classes):
        fields = " ".join(f"--config.eval.{name}=False" for name in wanted)
        raise UserError(f"the images have no labels, which eval.{wanted[0]} needs: set {fields}")
    if wanted and (train.multi_label or test.multi_label):
        fields = " ".join(f"--config.eval.{name}=False" for name in wanted)
        raise UserError(
            f"images may have several labels, for which eval.{wanted[0]} is not made: set {fields}"
        )
    if train.channels != test.channels:
        raise UserError(
            f"training images have {train.channels} channel(s), evaluation images "
            f"{test.channels}: give both the same"
        )
    if len(test) < 2:
        raise UserError(f"there is {len(test)} image to evaluate on: raise data.holdout_fraction")
    compared = config.stage == "pretrain" and config.eval.compare
    if compared and train.classes and test.classes and not train.multi_label:
        _check_few_labels(config.eval.few_labels, train)
    if isinstance(train, Images) and isinstance(test, Images):
        _check_sizes(config, train, test)


def _check_few_labels(few: int, train: Source) -> None:
    labels = train.labels
    assert labels is not None  # there are classes
    counts = np.bincount(labels[labels != NO_LABEL])
    fewest = counts[counts > 0].min()
    if fewest < few:
        raise UserError(
            f"eval.few_labels is {few}, but a class has only {fewest} training images: "
            f"set --config.eval.few_labels={fewest}"
        )


def _check_sizes(config: ConfigDict, train: Images, test: Images) -> None:
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise UserError(
            f"training images are {train.pixels.shape[1:]}, evaluation images "
            f"{test.pixels.shape[1:]}: give both the same size"
        )
    validation.smallest_crop(config, *train.pixels.shape[1:3])
