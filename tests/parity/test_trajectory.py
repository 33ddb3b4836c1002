"""Whole training steps, one after another, against the official ones: the code that users run.

The views are those of the recording, so everything behind them is compared: encoder, head, probe,
loss, gradients over devices, optimiser, statistics, and the features in the end. Numbers that
TensorFlow rounds to float32, also in a float64 program, are rounded here: the learning rates (the
recorded ones are fed), the rate of the moving averages, and TensorFlow 1's momentum of SGD and
factor of a mean.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sections

from simclr_jax import config as recipes
from simclr_jax import parallel, validation
from simclr_jax.data.sources import Images
from simclr_jax.interop import official_names as official
from simclr_jax.optim import schedules
from simclr_jax.stages import build, pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import plan as plans
from simclr_jax.train.stage import TrainState
from simclr_jax.train.step import make_step

# In float64 these steps run longer than they compile, unlike other tests: the cheap settings of
# tests/conftest.py would make them take two to three times as long.
OPTIMISED = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": False}
BLUR = 16 * golden.EPS64  # relative; about what a layer's sums lose by rounding


def cases() -> list:
    """All of them under SIMCLR_PARITY=all; otherwise one a flavour, since a step compiles long."""
    parameters = golden.cases("trajectory", lambda r: golden.waits_for(r) is None)
    if parameters[0].values[0] is None:
        return parameters

    def cost(parameter):
        flags = parameter.values[0].flags
        size = flags["resnet_depth"], flags["image_size"], flags["train_batch_size"]
        return (*size, parameter.values[0].settings["steps"], parameter.id)

    by_flavour: dict[bool, list] = {}
    for parameter in parameters:
        by_flavour.setdefault(parameter.values[0].tf1, []).append(parameter)
    cheapest = [min(some, key=cost) for some in by_flavour.values()]
    return golden.only(parameters, [parameter.values[0].name for parameter in cheapest])


def round32(x: float) -> float:
    return float(np.float32(x))


def recipe(recording: golden.Recording) -> recipes.ConfigDict:
    """Return the recipe of the official flags; what a recording leaves out is their default."""
    flags, tf1, c = recording.flags, recording.tf1, recipes.base()
    c.bn.sync = flags.get("global_bn", True)
    recipes.official(c, recording.spec["flavour"])
    c.augment.placement = "host"  # which is how finished views come in
    c.data.image_size = flags["image_size"]
    c.model.depth, c.model.width = flags["resnet_depth"], float(flags["width_multiplier"])
    c.model.stem = "cifar" if flags["image_size"] <= 32 else "imagenet"
    c.model.sk_ratio = float(flags.get("sk_ratio", 0))
    c.model.se_ratio = float(flags.get("se_ratio", 0))
    c.bn.momentum = 1 - round32(1 - flags.get("batch_norm_decay", 0.9))
    c.head.layers, c.head.dim = flags.get("num_proj_layers", 3), flags.get("proj_out_dim", 128)
    c.loss.temperature = flags.get("temperature", 0.1)
    c.optim.name = {"lars": "lars", "momentum": "sgd"}[flags.get("optimizer", "lars")]
    if tf1 and c.optim.name == "sgd":
        c.optim.momentum = round32(c.optim.momentum)
    c.optim.base_lr = flags.get("learning_rate", 0.3)
    c.optim.lr_scaling = flags.get("learning_rate_scaling", "linear")
    c.optim.weight_decay = flags.get("weight_decay", 1e-4 if tf1 else 1e-6)
    c.optim.warmup_epochs = float(flags.get("warmup_epochs", 10))
    c.train.batch_size, c.train.dtype = flags["train_batch_size"], "float64"
    c.train.epochs = float(flags.get("train_epochs", 100))
    if "train_steps" in flags:  # official runs may be shorter than their warm-up
        examples = recording.settings["num_train_examples"]
        warmup = schedules.warmup_steps(c.optim.warmup_epochs, examples, c.train.batch_size)
        c.train.steps = max(flags["train_steps"], warmup + 1)
    c.eval.probe = flags.get("lineareval_while_pretraining", c.eval.probe)
    c.eval.probe_tap, c.eval.knn = flags.get("ft_proj_selector", 0), False
    return c


def enlarged(recording: golden.Recording, images: np.ndarray) -> np.ndarray:
    """Return coarse noise `[n, 4, 4, c]` as images of the recorded size, in blocks."""
    repeat = recording.flags["image_size"] // images.shape[1]
    return np.repeat(np.repeat(images, repeat, 1), repeat, 2).astype(np.float64)


def batch(recording: golden.Recording, step: int) -> dict[str, np.ndarray]:
    """Return views `[1, n, 2, h, w, c]` and labels `[1, n]`."""
    n = recording.flags["train_batch_size"]
    if recording.tf1:  # without a probe, so that nothing reads labels
        both, labels = recording.fill(f"images/step{step}", (n, 4, 4, 6), "uniform"), np.zeros(n)
    else:
        how, labels = recording.settings["views"], recording.arrays["labels"][step]
        both = recording.fill(how["name"].format(k=step), how["fill_shape"], how["law"])
        both[..., 3:] = np.float32(0.7) * both[..., :3] + np.float32(0.3) * both[..., 3:]
    both = enlarged(recording, both)
    views = np.stack([both[..., :3], both[..., 3:]], 1)
    return {"views": views[None], "label": labels[None].astype(np.int32)}


def feed_recorded_rates(recording: golden.Recording, plan: plans.Plan, monkeypatch) -> float:
    """Put the recorded learning rates in place of the schedule; return the error of the latter."""
    recorded = recording.arrays["learning_rates" if recording.tf1 else "learning_rate"]
    own = schedules.warmup_cosine(plan.peak_rate, plan.warmup_steps, plan.total_steps)
    rates = jnp.asarray(recorded, jnp.float64)
    monkeypatch.setattr(schedules, "warmup_cosine", lambda *_: lambda step: rates[step])
    return golden.error(jax.vmap(own)(jnp.arange(len(rates))), recorded, floor=plan.peak_rate)


def losses(
    recording: golden.Recording, c: recipes.ConfigDict, metrics: Mapping[str, Any], decay: float
) -> dict[str, Any]:
    """Return our metrics of one step under the names of the recorded ones."""
    total = metrics["loss"] + decay
    if recording.tf1:
        return {
            "losses": total,
            "contrastive_losses": metrics["loss"],
            "regularization_losses": decay,
        }
    found = {
        "train_total_loss": total,
        "train_weight_decay": decay,
        "train_contrast_loss": metrics["loss"],
        "train_contrast_acc": metrics["contrast_accuracy"],
        "train_contrast_entropy": metrics["contrast_entropy"],
    }
    if c.eval.probe:
        found["train_total_loss"] += metrics["probe_loss"]
        found["train_supervised_loss"] = metrics["probe_loss"]
        found["train_supervised_acc"] = metrics["train_probe_accuracy"]
    return found


def averaged32(objective, c: recipes.ConfigDict):
    """Round the factor 1/n of a mean to float32, as TensorFlow 1 does also in a float64 graph."""
    factor = round32(1 / c.train.batch_size) * c.train.batch_size  # 1 for powers of two

    def averaged(outputs, extra, axis_name):
        loss, metrics = objective(outputs, extra, axis_name)
        return factor * loss, metrics

    return averaged


class Program:
    """Our stage and its compiled step, to be run from the recorded start as often as wanted."""

    def __init__(self, recording: golden.Recording, c: recipes.ConfigDict, plan: plans.Plan):
        self._recording, self._config = recording, c
        self._mesh = parallel.make_mesh(recording.settings.get("num_replicas", 1))
        validation.validate(c, self._mesh.size)
        classes = recording.settings.get("classes", 10)
        unread = Images(np.zeros((16, 8, 8, 3), np.uint8), np.zeros(16, np.int32), classes)
        stage = pretrain.make_stage(c, plan, Inputs(c, unread, unread), self._mesh)
        if recording.tf1:
            stage = dataclasses.replace(stage, objective=averaged32(stage.objective, c))
        self._optimizer, self._step = stage.optimizer, make_step(stage, self._mesh)
        self._compiled: jax.stages.Compiled | None = None

        namer = official.namer(recording.tf1, c.bn.sync)
        encoder = namer.encoder(sections.architecture(recording))
        self._names = encoder | namer.head(c.head.kind, c.head.layers)
        if c.eval.probe:
            self._names |= namer.classifier(("probe", "dense"))
        assert list(self._names) == list(recording.variables)

    def run(self, blur: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yield after each step everything recorded of it.

        `blur` is by how much, relatively, every initial value is off.
        """
        recording, c = self._recording, self._config
        state = parallel.replicate(self._mesh, self._first_state(blur))
        for k in range(recording.settings["steps"]):
            views = parallel.shard(self._mesh, batch(recording, k), axis=1)
            if self._compiled is None:
                self._compiled = self._step.lower(state, views).compile(OPTIMISED)
            decay = sections.decay_term(state.params, c.optim.name, c.optim.weight_decay)
            state, metrics = self._compiled(state, views)
            found = losses(recording, c, {n: x[0] for n, x in metrics.items()}, decay)
            prefix = f"step{k}_" if recording.tf1 else f"step{k + 1}_"
            found[f"{prefix}var"], momentum = self._digests(state)
            last = k == recording.settings["steps"] - 1
            if not recording.tf1:
                found[f"{prefix}momentum"] = momentum
            elif last:
                found |= {"momentum": momentum} | self._features(state)
            yield found

    def _first_state(self, blur: float) -> TrainState:
        random = np.random.RandomState(0)
        values = {
            name: value * (1 + blur * random.standard_normal(value.shape))
            for name, value in self._recording.filled().items()
        }
        tree = jax.tree.map(jnp.float64, official.to_tree(values, self._names))
        params, batch_stats = tree["params"], tree["batch_stats"]
        opt_state = self._optimizer.init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)

    def _digests(self, state: TrainState) -> list[golden.Digests]:
        """Return digests of all variables, and of their momenta in the official sign."""
        tree, c = {"params": state.params, "batch_stats": state.batch_stats}, self._config
        trace = optax.tree_utils.tree_get(state.opt_state, "trace")
        # A buffer that holds the rate holds what is added here, and what is subtracted there.
        sign = -1 if c.optim.name == "lars" or c.optim.rate_in_momentum else 1
        momentum = {"params": jax.tree.map(lambda x: sign * x, trace)}
        sets = (official.from_tree(values, self._names) for values in (tree, momentum))
        return golden.digest(self._recording, self._names, *sets)

    def _features(self, state: TrainState) -> dict[str, jax.Array]:
        """Return representation and projection of the recorded images in inference mode."""

        def apply(module, name, x):
            variables = {"params": state.params[name], "batch_stats": state.batch_stats[name]}
            return jax.jit(functools.partial(module.apply, train=False))(variables, x)

        images = self._recording.fill("eval_images", (6, 4, 4, 3), "uniform")
        images = enlarged(self._recording, images)
        h = apply(build.encoder(self._config), "encoder", images)["h"]
        return {"eval_h": h, "eval_head": apply(build.projection_head(self._config), "head", h)[-1]}


def stored(recording: golden.Recording, key: str) -> str:
    """Return the key of the float64 array, if there is one."""
    return f"{key}64" if {f"{key}64", f"{key}64_norm"} & set(recording.arrays) else key


def wanted(recording: golden.Recording, key: str, step: int) -> np.ndarray | golden.Digests:
    key = stored(recording, key)
    if f"{key}_norm" in recording.arrays:
        return golden.Digests.stored(recording, key)
    return recording.arrays[key] if key.startswith("eval_") else recording.arrays[key][step]


def difference(got: Any, want: Any) -> float:
    return got.error(want) if isinstance(got, golden.Digests) else golden.error(got, want)


def exact(recording: golden.Recording, key: str) -> bool:
    """Tell whether an array is good to float64. TensorFlow 1 averages losses in float32."""
    return stored(recording, key) != key and (recording.tf1, key) != (True, "losses")


def noise(recording: golden.Recording, key: str, step: int) -> float:
    """Return the recorded relative difference between the official float32 and float64 runs."""
    recorded = recording.spec["sensitivity"]
    if not recording.tf1:
        return recorded[key]
    if key.endswith("_var"):
        return recorded["var_max_per_step"][step]
    if key.endswith("losses"):
        return recorded["losses"][step]
    return recorded["momentum_max" if key == "momentum" else key]


def tolerance(recording: golden.Recording, key: str, step: int, rounding: float) -> float:
    """Return what the official program and a correct one may differ by, relatively.

    A gradient without weight decay, a mean loss or another momentum are wrong by 1e-4 to 1. Steps
    multiply the differences that rounding made before, in some networks by hundreds each:
    `rounding` is what they came to here from initial values that were off by `BLUR`. However large
    that is, it excuses no more than what the official program measured of itself in float32.
    """
    recorded = noise(recording, key, step)
    if stored(recording, key) == key:
        return golden.float32_tolerance(recorded)
    least = 1e-10 if exact(recording, key) else 4 * golden.EPS32
    return max(least, 8 * min(rounding, recorded))


@pytest.mark.x64
@pytest.mark.parametrize("recording", cases())
def test_steps_are_the_official_ones(recording, record_parity, monkeypatch):
    c = recipe(recording)
    plan = plans.make(c, recording.settings["num_train_examples"])
    error = feed_recorded_rates(recording, plan, monkeypatch)
    record_parity("trajectory", recording.name, error, golden.float32_tolerance(0))

    program = Program(recording, c, plan)
    for step, (found, off) in enumerate(zip(program.run(), program.run(BLUR), strict=True)):
        for key, value in found.items():
            error = difference(value, wanted(recording, key, step))
            limit = tolerance(recording, key, step, difference(off[key], value))
            recorded = "float64" if exact(recording, key) else "float32"
            record_parity("trajectory", recording.name, error, limit, recorded)
