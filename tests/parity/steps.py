"""Our stages on the recorded batches, step after step.

The views are those of the recording, so everything behind them is compared: networks, loss,
gradients over devices, optimiser, statistics, and the features in the end. Numbers that TensorFlow
rounds to float32, also in a float64 program, are rounded here: the learning rates (the recorded
ones are fed), the rate of the moving averages, and TensorFlow 1's factor of a mean and constants of
its optimisers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sections

from simclr_jax import parallel, recipes, validation
from simclr_jax.data.sources import Images
from simclr_jax.interop import official_names as official
from simclr_jax.optim import optimizers, schedules
from simclr_jax.stages.encoder import embedder
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.labelled_network import LabelledNetwork
from simclr_jax.train import timetable as timetables
from simclr_jax.train.stage import Batch, Metrics, Stage, TrainState
from simclr_jax.train.step import make_step

KERAS_EPSILON = 1e-7  # of Adam under TensorFlow 2
# In float64 these steps run longer than they compile, unlike other tests: the cheap settings of
# tests/conftest.py would make them take two to three times as long.
OPTIMISED = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": False}


def best(parameters: list, cost: Callable[[golden.Recording], Any]) -> list:
    """Skip, unless SIMCLR_PARITY=all, all but the least costly recording of each flavour."""
    if parameters[0].values[0] is None:
        return parameters
    by_flavour: dict[bool, list[golden.Recording]] = {}
    for (recording,) in (parameter.values for parameter in parameters):
        by_flavour.setdefault(recording.tf1, []).append(recording)
    chosen = [min(some, key=lambda r: (cost(r), r.name)) for some in by_flavour.values()]
    return golden.only(parameters, [recording.name for recording in chosen])


def finetunes(recording: golden.Recording) -> bool:
    return recording.flags["train_mode"] == "finetune"


def size(recording: golden.Recording) -> tuple[int, ...]:
    """Return what the time of a trajectory grows with, most important first."""
    flags = recording.flags
    steps = recording.settings["steps"]
    return flags["resnet_depth"], flags["image_size"], flags["train_batch_size"], steps


def classes(recording: golden.Recording) -> int:
    """Return how many classes the official supervised head has; any number without one."""
    return sections.classes(recording) or 10


def round32(x: float) -> float:
    return float(np.float32(x))


def recipe(recording: golden.Recording, stage: str) -> recipes.ConfigDict:
    """Return the recipe of the official flags; what a recording leaves out is their default."""
    flags, tf1, c = recording.flags, recording.tf1, recipes.base()
    assert finetunes(recording) == (stage != "pretrain"), f"{recording.name}: not of {stage}"
    c.stage = stage
    c.bn.groups = 1 if flags["global_bn"] else 0
    c.finetune.train_from_block = flags["fine_tune_after_block"] + 1
    recipes.official(c, recording.spec["flavour"])
    c.augment.placement = "host"  # which is how finished views come in
    c.data.image_size = flags["image_size"]
    c.model.update(dataclasses.asdict(sections.architecture(recording)))
    c.bn.momentum = 1 - round32(1 - flags["batch_norm_decay"])
    c.head.kind = sections.head_kind(recording)
    c.head.layers = max(1, recipes.layer_count(c.head.kind, flags["num_proj_layers"]))
    c.head.dim = flags["proj_out_dim"]
    c.optim.name = {"lars": "lars", "momentum": "sgd", "adam": "adam"}[flags["optimizer"]]
    c.optim.momentum = float(flags["momentum"])
    if tf1 and c.optim.name == "sgd":
        c.optim.momentum = round32(c.optim.momentum)
    c.optim.base_lr = flags["learning_rate"]
    c.optim.lr_scaling = flags["learning_rate_scaling"]
    c.optim.weight_decay = flags["weight_decay"]
    c.optim.warmup_epochs = float(flags["warmup_epochs"])
    c.train.batch_size, c.train.dtype = flags["train_batch_size"], "float64"
    c.train.epochs = float(flags["train_epochs"])
    if flags["train_steps"]:  # official runs may be shorter than their warm-up
        examples = recording.settings["num_train_examples"]
        warmup = schedules.warmup_steps(c.optim.warmup_epochs, examples, c.train.batch_size)
        c.train.steps = max(flags["train_steps"], warmup + 1)
    c.eval.knn = False
    tap, temperature = sections.tap(recording), flags["temperature"]
    normalize, blur = flags["hidden_norm"], flags["use_blur"]
    probe = flags["lineareval_while_pretraining"] and not tf1
    if stage == "pretrain":
        assert not blur, f"{recording.name}: use_blur is true, and what it drew is not recorded"
        c.loss.temperature, c.loss.normalize = temperature, normalize
        c.eval.probe, c.eval.probe_tap = probe, tap if probe else 0
    else:
        recipes.crop_and_flip(c)
        c.eval.probe, c.finetune.tap = False, tap
    return c


def drawn(recording: golden.Recording, step: int, channels: int) -> np.ndarray:
    """Return the coarse noise `[n, s, s, channels]` of which the images of a step are made."""
    n = recording.flags["train_batch_size"]
    if recording.tf1:
        how = recording.settings["images"].replace("6 if pretrain else 3", str(channels))
        name, shape, law = golden.formula(how.replace("(batch,", f"({n},"))
        name = name.replace("<k>", str(step))
    else:
        how = recording.settings["views"]
        name, shape, law = how["name"].format(k=step), how["fill_shape"], how["law"]
    assert (shape[0], shape[-1]) == (n, channels), f"{recording.name}: images of shape {shape}"
    return recording.fill(name, shape, law)


def enlarged(recording: golden.Recording, images: np.ndarray) -> np.ndarray:
    """Return coarse noise `[n, s, s, c]` as images of the recorded size, in blocks."""
    repeat, rest = divmod(recording.flags["image_size"], images.shape[1])
    assert repeat and not rest, f"{recording.name}: image_size {recording.flags['image_size']}"
    return np.repeat(np.repeat(images, repeat, 1), repeat, 2).astype(np.float64)


def chunk(views: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return a batch of one step from views `[n, v, h, w, c]` and labels `[n]`."""
    return {
        "views/views": views[None],
        "label": labels[None].astype(np.int32),
        "example": np.arange(len(views), dtype=np.int32)[None],
        "position": np.zeros((1, len(views), 2), np.uint32),  # nothing is drawn
    }


def feed_recorded_rates(
    recording: golden.Recording,
    c: recipes.ConfigDict,
    record: Callable[..., None],
    monkeypatch,
    first: int = 0,
) -> None:
    """Put the recorded rates in place of the schedule, which must give them from step `first`."""
    timetable = timetables.make(c, recording.settings["num_train_examples"])
    recorded = recording.arrays["learning_rates" if recording.tf1 else "learning_rate"]
    own = schedules.warmup_cosine(
        timetable.peak_rate, timetable.warmup_steps, timetable.total_steps
    )
    made = jax.vmap(own)(first + jnp.arange(len(recorded)))
    error = golden.error(made, recorded, floor=timetable.peak_rate)
    record(recording.spec["kind"], recording.name, error, golden.float32_tolerance(0))
    rates = jnp.asarray(recorded, jnp.float64)
    if recording.tf1 and c.optim.name == "adam":
        rates = rates * _adam32(len(recorded), monkeypatch)
    elif c.optim.name == "adam":
        monkeypatch.setattr(
            optimizers, "adam", functools.partial(optimizers.adam, epsilon=KERAS_EPSILON)
        )
    monkeypatch.setattr(schedules, "warmup_cosine", lambda *_: lambda step: rates[step])


def _adam32(steps: int, monkeypatch) -> np.ndarray:
    """Round Adam's constants as TensorFlow 1; return what its float32 powers make of the rates."""
    b1, b2, epsilon = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
    rounded = {"b1": float(b1), "b2": float(b2), "epsilon": float(epsilon)}
    monkeypatch.setattr(optimizers, "adam", functools.partial(optimizers.adam, **rounded))

    def corrections(one, dtype):
        first, second = (np.cumprod(np.full(steps, b, dtype), dtype=dtype) for b in (b1, b2))
        return np.sqrt(one - second.astype(np.float64)) / (one - first.astype(np.float64))

    return corrections(1.0, np.float32) / corrections(1.0, np.float64)


class Program:
    """A stage and its compiled step, to be run from the recorded start as often as wanted.

    Args:
      recording: with the variables to start from.
      c: its recipe.
      make: `make_stage` of what is trained.
      batch: from a recording and a step to the batch.
      losses: from a recording, the recipe, the metrics of a step and the term of weight decay to
        our numbers under the names of the recorded ones.
      classifier: the part here that is the official supervised head; None: there is none.
      adapt: what to change in the stage.
    """

    def __init__(
        self,
        recording: golden.Recording,
        c: recipes.ConfigDict,
        make: Callable[..., Stage],
        *,
        batch: Callable[[golden.Recording, int], Batch],
        losses: Callable[[golden.Recording, recipes.ConfigDict, Metrics, float], dict[str, Any]],
        classifier: str | None,
        adapt: Callable[[Stage], Stage] = lambda stage: stage,
    ):
        self._recording, self._config, self._batch, self._losses = recording, c, batch, losses
        self._mesh = parallel.make_mesh(recording.settings.get("num_replicas", 1))
        validation.validate(c, self._mesh.size)
        labels = np.zeros(16, np.int32)
        unread = Images(np.zeros((16, 8, 8, 3), np.uint8), labels, classes(recording))
        timetable = timetables.make(c, recording.settings["num_train_examples"])
        stage = adapt(make(c, timetable, Inputs(c, unread, unread), self._mesh))
        self._optimizer, self._frozen = stage.optimizer, stage.frozen
        self._step = make_step(stage, self._mesh)
        self._compiled: jax.stages.Compiled | None = None

        namer = official.namer(recording.tf1, c.bn.groups == 1)
        names = namer.encoder(sections.architecture(recording))
        names |= namer.head(c.head.kind, c.head.layers)
        if classifier:
            names |= namer.classifier((classifier, "dense"))
        assert set(names) == set(recording.variables)
        # TensorFlow 2 lists what is frozen after what is trained.
        self._names = {name: names[name] for name in recording.variables}

    def run(self, blur: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yield after each step everything recorded of it.

        `blur` is by how much, relatively, every initial value is off.
        """
        recording, c = self._recording, self._config
        state = parallel.replicate(self._mesh, self._first_state(blur))
        for k in range(recording.settings["steps"]):
            batch = parallel.shard(self._mesh, self._batch(recording, k), axis=1)
            if self._compiled is None:
                self._compiled = self._step.lower(state, batch, self._frozen).compile(OPTIMISED)
            decay = sections.decay_term(state.params, c.optim.name, c.optim.weight_decay)
            state, metrics = self._compiled(state, batch, self._frozen)
            found = self._losses(recording, c, {n: x[0] for n, x in metrics.items()}, decay)
            prefix = f"step{k}_" if recording.tf1 else f"step{k + 1}_"
            found[f"{prefix}var"], momentum = self._digests(state, f"{prefix}momentum")
            last = k == recording.settings["steps"] - 1
            if not recording.tf1:
                found[f"{prefix}momentum"] = momentum
            elif last and "eval_h" in recording.arrays:
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

    def _digests(self, state: TrainState, key: str) -> list[golden.Digests]:
        """Return digests of all variables, and of their momenta in the official sign.

        The variables that have a momentum, all that learn, must be those that have one there.
        """
        recording, c = self._recording, self._config
        tree = {"params": state.params, "batch_stats": state.batch_stats}
        # A buffer that holds the rate holds what is added here, and what is subtracted there.
        sign = -1 if c.optim.name == "lars" or c.optim.rate_in_momentum else 1
        trace = {} if c.optim.name == "adam" else optax.tree.get(state.opt_state, "trace")
        momenta = {
            name: sign * value
            for name, value in official.from_tree({"params": trace}, self._names).items()
            if not isinstance(value, optax.MaskedNode)
        }
        for recorded in {f"{key}_norm", "momentum_norm"} & set(recording.arrays):
            slots = zip(self._names, np.isfinite(recording.arrays[recorded]), strict=True)
            assert set(momenta) == {name for name, there in slots if there}
        values = official.from_tree(tree, self._names)
        return golden.digest(recording, self._names, values, momenta)

    def _features(self, state: TrainState) -> dict[str, jax.Array]:
        """Return what the recorded images become in inference mode: h, what is read, logits."""
        recording, c = self._recording, self._config
        labelled = c.stage != "pretrain"
        network = LabelledNetwork(c, classes(recording)) if labelled else None
        tap = network.tap if network else "z"
        embed = embedder(c, ("h", tap))

        @jax.jit
        def features(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            found = embed(variables, images)
            logits = {"eval_logits": network(variables, images)} if network else {}
            return {"eval_h": found["h"], "eval_head": found[tap], **logits}

        images = recording.fill(*golden.formula(recording.settings["eval"]))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return features(variables, enlarged(recording, images))


def averaged32(recording: golden.Recording, rows: int) -> Callable[[Stage], Stage]:
    """Round a mean's factor 1/rows to float32, as TensorFlow 1 does also in a float64 graph."""
    factor = round32(1 / rows) * rows if recording.tf1 else 1.0  # 1 for powers of two

    def adapt(stage: Stage) -> Stage:
        def averaged(outputs, extra, step, axis_name):
            loss, metrics = stage.objective(outputs, extra, step, axis_name)
            return factor * loss, metrics

        return dataclasses.replace(stage, objective=averaged)

    return adapt
