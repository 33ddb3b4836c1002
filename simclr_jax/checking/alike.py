"""Whether this machine computes the same on one device and on all, the same twice, and rightly.

A small network is trained for one step by the train step of every run, with parameters that are all
random, on images whose brightness tells each device's rows from those of the others: statistics of
some rows cannot pass for those of all. What is wrong on one device as on all shows elsewhere: along
the gradient the loss must rise as the gradient says.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import parallel, processes, recipes, validation
from simclr_jax.checking.findings import SOUND, WRONG, Finding
from simclr_jax.data import order
from simclr_jax.data.sources import Images
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.stage import Batch, Stage, TrainState
from simclr_jax.train.step import make_step

IMAGES = 16  # in a batch, at least
SIDE = 8  # pixels
# Differences on one device and on all, relative to the largest number of an array: what sums in
# another order come to, with room; each planted fault of the tests makes ten times as much.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 5e-2}
FAULTS = {
    "statistics": (
        "batch normalisation is not synchronised over devices",
        "each device normalises by its own rows: see that bn.groups is 1, and whether this JAX "
        "passes the project's own tests (tests/train/test_step.py)",
    ),
    "loss": (
        "devices do not contrast their images with those of the others",
        "what devices gather does not arrive: test the links between them (NCCL_DEBUG=INFO)",
    ),
    "gradients": (
        "what one device gathers from others carries no gradient, or a wrong one",
        "do not train on these devices together: try another version of JAX, or one device",
    ),
}


# How far the slope of the loss may be from the length of the gradient, relative to it, and the
# change of the loss by which it is measured, relative to the loss.
SLOPE = {"float64": (1e-3, 1e-5), "float32": (0.05, 1e-3)}


class Outcome(NamedTuple):
    """What one step leaves on the host: loss, gradients, statistics, and a digest of all of it."""

    compared: dict[str, Any]
    digest: str


def recipe(devices: int, dtype: str) -> ConfigDict:
    """Return the recipe of the step, for as many devices."""
    c = recipes.base()
    c.data.image_size = SIDE
    c.model.depth, c.model.width, c.model.stem = 10, 1 / 16, "cifar"
    c.head.layers, c.head.dim = 2, 8
    c.loss.temperature = 1.0  # no row so certain that it has no gradient
    c.optim.base_lr, c.optim.lr_scaling, c.optim.warmup_epochs = 0.3, "none", 0.0
    c.train.batch_size = devices * max(2, -(-IMAGES // devices))
    c.train.steps, c.train.dtype, c.train.deterministic = 1, dtype, True
    c.eval.probe, c.eval.knn = False, False
    return c


def images(config: ConfigDict) -> Images:
    """Return one batch of images that come from the darkest to the brightest."""
    count, random = config.train.batch_size, np.random.default_rng(0)
    level = np.linspace(10, 210, count)[:, None, None, None]
    spread = 1 + np.arange(count)[:, None, None, None] % 8
    noise = 4 * spread * random.normal(size=(count, SIDE + 4, SIDE + 4, 3))
    in_order = np.clip(np.rint(level + noise), 0, 255).astype(np.uint8)
    pixels = np.empty_like(in_order)
    pixels[order.examples(config.seed, np.arange(count), count)] = in_order
    return Images(pixels, None, 0)


class Trial:
    """One training step, on any devices, with its gradients kept.

    Args:
      devices: over which the batch can be spread.
      dtype: of the network.
    """

    def __init__(self, devices: int, dtype: str):
        self.config, self.devices = recipe(devices, dtype), devices
        validation.validate(self.config, devices)
        self._images = images(self.config)
        self._timetable = timetables.make(self.config, len(self._images))
        self._first: TrainState | None = None

    def _stage(self, mesh: Mesh) -> Stage:
        inputs = Inputs(self.config, self._images, self._images)
        stage = pretrain.make_stage(self.config, self._timetable, inputs, mesh)
        # A trace that forgets is the last gradient itself.
        kept = optax.chain(optax.trace(decay=0.0), stage.optimizer)
        return dataclasses.replace(stage, optimizer=kept)

    def first(self) -> tuple[TrainState, Batch]:
        """Return the first state, as a run begins, and the first batch, both on the host."""
        mesh = own_mesh()
        stage = self._stage(mesh)
        _, batch = next(iter(stage.batches(0, 1)))
        return jax.tree.map(np.asarray, stage.init()), jax.tree.map(np.asarray, batch)

    def on(self, mesh: Mesh) -> Taken:
        """Compile the step for some devices; all begin from the same state."""
        stage = self._stage(mesh)
        if self._first is None:
            self._first = perturbed(jax.tree.map(np.asarray, stage.init()))
        kept = optax.TraceState(jax.tree.map(np.zeros_like, self._first.params))
        return Taken(stage, mesh, self._first._replace(opt_state=(kept, self._first.opt_state)))


class Taken:
    """The step on some devices, to be taken from one state as often as wanted.

    Args:
      stage: with `optax.trace` before its optimiser.
      mesh: the devices.
      start: the state, on the host.
    """

    def __init__(self, stage: Stage, mesh: Mesh, start: TrainState):
        self._mesh, self._frozen, self._start = mesh, stage.frozen, start
        self._step = make_step(stage, mesh)
        _, self._batch = next(iter(stage.batches(0, 1)))

    def once(self, moved: Any = None) -> Outcome:
        """Take the step, with parameters that are `moved` from those of the start."""
        start = self._start
        if moved is not None:
            params = jax.tree.map(lambda p, m: (p + m).astype(p.dtype), start.params, moved)
            start = start._replace(params=params)
        # Accelerators multiply float32 in fewer bits where nobody forbids it.
        with jax.default_matmul_precision("highest"):
            state, metrics = self._step(
                parallel.replicate(self._mesh, start), self._batch, self._frozen
            )
        state, metrics = jax.tree.map(np.asarray, (state, metrics))
        compared = {
            "loss": metrics["loss"],
            "gradients": state.opt_state[0].trace,
            "statistics": state.batch_stats,
        }
        return Outcome(compared, digest((state, metrics)))


def own_mesh() -> Mesh:
    """Return the mesh of one device, which is this process's own."""
    whole = parallel.make_mesh()
    return Mesh(np.array(jax.local_devices()[:1]), whole.axis_names, axis_types=whole.axis_types)


def perturbed(state: TrainState) -> TrainState:
    """Return a state whose every parameter is random: zeros would agree anywhere."""
    random = np.random.default_rng(1)

    def perturb(leaf: np.ndarray) -> np.ndarray:
        return (leaf + 0.3 * random.normal(size=leaf.shape)).astype(leaf.dtype)

    return state._replace(params=jax.tree.map(perturb, state.params))


def digest(tree: Any) -> str:
    """Return a digest of the bits of all arrays of a tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def seeds(trial: Trial) -> list[Finding]:
    """Return whether processes begin alike: first weights, and which images come when."""
    if processes.count() == 1:
        return []
    state, batch = trial.first()
    said = {"weights": digest(state), "images": digest(batch)}
    each = processes.everyone(said)
    differ = [
        f"process {rank} begins with other {name}"
        for rank, other in enumerate(each)
        for name in said
        if other[name] != each[0][name]
    ]
    if not differ:
        return [Finding(SOUND, "seed", f"{len(each)} processes begin alike")]
    return [
        Finding(
            WRONG,
            "seed",
            f"processes do not share a seed: {', '.join(differ)} than process 0",
            "give all processes the same command, code and seed",
        )
    ]


def devices_agree(trial: Trial, on_all: Outcome, on_one: Outcome) -> list[Finding]:
    """Compare a step on one device of each process with the same step on all devices."""
    count, dtype = trial.devices, trial.config.train.dtype
    if count == 1:
        return [Finding(SOUND, "one device and all", "there is one device: nothing to compare")]
    here = {name: error(on_all.compared[name], on_one.compared[name]) for name in FAULTS}
    everybody, most = processes.everyone(here), TOLERANCE[dtype]
    errors = {name: float(np.max([each[name] for each in everybody])) for name in FAULTS}
    bad = [name for name in FAULTS if not errors[name] <= most]  # as NaN is not, either
    findings = []
    for name, found in errors.items():
        said = f"1 and {count} devices, {dtype}: {found:.1e} apart, at most {most:g} is rounding"
        if name not in bad:
            findings.append(Finding(SOUND, name, said))
        elif name == bad[0]:  # the others follow from it
            fault, advice = FAULTS[name]
            findings.append(Finding(WRONG, name, f"{said}: {fault}", advice))
        else:
            findings.append(Finding(WRONG, name, f"{said}; it follows from the {bad[0]}"))
    return findings


def slope(trial: Trial, taken: Taken, start: Outcome) -> Finding:
    """Compare the gradient with how the loss changes along it, by the step itself.

    Args:
      trial: of a dtype of `SLOPE`.
      taken: its step, on any devices.
      start: what that leaves without a move.
    """
    most, change = SLOPE[trial.config.train.dtype]
    gradients, loss = start.compared["gradients"], float(start.compared["loss"][0])
    leaves = jax.tree.leaves(gradients)
    length = float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves)))
    if not length:
        return Finding(WRONG, "slope", "the gradient is zero", FAULTS["gradients"][1])
    far = change * loss / length  # by so much the loss changes, as the gradient says

    def at(distance: float) -> float:
        moved = jax.tree.map(lambda g: g * (distance / length), gradients)
        return float(taken.once(moved).compared["loss"][0])

    found = (at(far / 2) - at(-far / 2)) / (far * length)
    said = f"along the gradient the loss changes {found:.3f} times as much as the gradient says"
    if abs(found - 1) <= most:
        return Finding(SOUND, "slope", said)
    return Finding(WRONG, "slope", f"{said}: {FAULTS['gradients'][0]}", FAULTS["gradients"][1])


def repeats(outcomes: list[Outcome]) -> list[Finding]:
    """Return whether a step that was taken twice, by all processes, came to the same bits."""
    digests = [outcome.digest for outcome in outcomes]
    everybody = processes.everyone(digests)
    if len({*digests}) > 1:
        return [
            Finding(
                WRONG,
                "repeat",
                "the same step twice came to other bits",
                "a resumed run will not be the run that was not interrupted: look for errors of "
                "memory (nvidia-smi -q -d ECC), and for another version of the driver",
            )
        ]
    if any(other != everybody[0] for other in everybody):
        return [
            Finding(
                WRONG,
                "repeat",
                "processes hold other bits after the same step",
                "give all processes the same devices, code and versions",
            )
        ]
    return [Finding(SOUND, "repeat", "the same step twice came to the same bits")]


def error(found: Any, want: Any) -> float:
    """Return the largest difference of two trees, relative to the length of each array.

    An array that is nothing beside the others, such as the gradient of what a normalisation takes
    away again, is rounding: it counts as one of a thousandth of their length.
    """
    lengths = {
        path: float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(want)
    }
    least = 1e-3 * max(lengths.values())

    def of(path: Any, a: np.ndarray, b: np.ndarray) -> float:
        apart = np.linalg.norm(np.subtract(a, b, dtype=np.float64))
        return float(apart / (max(lengths[path], least) or 1))

    return float(np.max(jax.tree.leaves(jax.tree_util.tree_map_with_path(of, found, want))))
