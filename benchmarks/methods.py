"""What each method costs beside SimCLR, and what its runs have learned.

    python benchmarks/methods.py                                    ResNet-18, images of 32 pixels
    python benchmarks/methods.py --depth=50 --size=224 --images=1281167 --steps=0   memory alone
    python benchmarks/methods.py --steps=0 --memory=False --train=3    digits, three seeds of each
    python benchmarks/methods.py --steps=0 --memory=False --runs=runs/a,runs/b

Memory is that of a device as `simclr_jax.plan` estimates it, of which `kept` are averages, queues
and banks: of one network and one batch, with what else a method wants as its defaults have it.
A step is timed on the devices that are here, on batches that wait for it, in turns with a step of
SimCLR: the ratio is the median over turns, and SimCLR's own row, itself against itself, is what the
machine does to a ratio. What a method does before an epoch is not in it.

Accuracies are those that runs have written at their end, by method and number of steps: mean, and
from the lowest to the highest where there are several. `--train=SEEDS` makes them first, by
`configs/METHOD.py`, whose default are digits; SimCLR with network and length of most others. Here
`--methods=contrastive:loss=debiased` gives the recipe an argument. Runs of a method whose own
fields differ are rows of their own, which say in what. A run that is complete is only read, one
that was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from simclr_jax import declaration, documents, entry, errors, recipes
from simclr_jax.judging.comparable import Comparable
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_list("methods", [], "METHOD or, for --train, METHOD:ARGUMENT; all by default.")
flags.DEFINE_list("set", [], "Fields, FIELD=VALUE, of the methods that have them.")
flags.DEFINE_integer("depth", 18, "Of the ResNet.")
flags.DEFINE_float("width", 1.0, "Of the ResNet.")
flags.DEFINE_integer("size", 32, "Side of the views, pixels.", lower_bound=4)
flags.DEFINE_integer("batch_size", 256, "Images of a batch, over all devices.", lower_bound=1)
flags.DEFINE_integer("images", 50_000, "Of the data set: a bank has a row for each.", lower_bound=1)
flags.DEFINE_integer("classes", 10, "Of their labels.", lower_bound=1)
flags.DEFINE_boolean("memory", True, "Estimate the memory of a device.")
flags.DEFINE_string("device", "h100", "Whose memory: see python -m simclr_jax.plan --help.")
flags.DEFINE_integer("devices", 1, "Over which a batch is spread, for the memory.", lower_bound=1)
flags.DEFINE_integer("steps", 20, "Steps to time, after two that are not counted; 0: none.")
flags.DEFINE_list("runs", [], "Runs to read accuracies of.")
flags.DEFINE_integer("train", 0, "Seeds of digits to train for each method.", lower_bound=0)
flags.DEFINE_string("workdir", "runs/methods", "Where these live.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
WARM_UP = 2
TRAINED = "pretrained encoder"
# The network and the length of the other recipes for digits, and the best rate that was tried.
AS_THE_OTHERS = (
    *("--config.model.sk_ratio=0.0", "--config.head.kind=nonlinear"),
    *("--config.loss.temperature=0.2", "--config.optim.base_lr=3.0", "--config.train.epochs=80"),
)


def main() -> None:
    """Print a table of costs and one of accuracies, as far as they are asked for."""
    for named in FLAGS.methods:
        declaration.find(named.partition(":")[0])  # it complains of one that is not there
    methods = FLAGS.methods or declaration.known()
    changed = tuple(_field(text) for text in FLAGS.set)
    if FLAGS.memory or FLAGS.steps:
        if argued := [named for named in methods if ":" in named]:
            raise errors.UserError(
                f"--methods has {argued[0]}, an argument of a recipe: costs are of a method's "
                "defaults (--steps=0 --memory=False leaves them out, --set changes fields)"
            )
        print(_costs(methods, changed), flush=True)
    runs = [*FLAGS.runs, *(_train(method, seed) for method, seed in _wanted(methods))]
    if runs:
        print(accuracies(runs))


def _field(text: str) -> tuple[str, Any]:
    """Return name and value of a field to set, the value as its default is of a type."""
    name, equals, value = text.partition("=")
    kinds = [type(recipes.get(c, name)) for c in _bases() if _has(c, name)]
    if not equals or not kinds:
        raise errors.UserError(f"--set has {text}, which is no FIELD=VALUE of any method")
    if kinds[0] in (int, float):
        number = errors.number("--set", value)
        if kinds[0] is int and number != int(number):
            raise errors.UserError(f"--set has {text}: {name} is a whole number")
        return name, kinds[0](number)
    return name, {"True": True, "False": False}.get(value, value)


def _bases() -> Iterator[Any]:
    return (recipes.base(method) for method in declaration.known())


def _has(config: Any, name: str) -> bool:
    try:
        recipes.get(config, name)
    except (KeyError, TypeError, AttributeError):
        return False
    return True


# Costs -------------------------------------------------------------------------------------------


def recipe(method: str, changed: Sequence[tuple[str, Any]] = ()) -> Any:
    """Return the recipe whose cost is asked: the method's defaults on the network of the flags."""
    c = recipes.base(method)
    c.data.source, c.data.path, c.data.image_size = "folder", "not here", FLAGS.size
    c.model.depth, c.model.width = FLAGS.depth, FLAGS.width
    c.model.stem = "cifar" if FLAGS.size <= 64 else c.model.stem
    c.train.batch_size, c.train.steps = FLAGS.batch_size, FLAGS.steps + WARM_UP
    c.optim.warmup_epochs = 0.0
    c.eval.compare, c.eval.knn = False, False  # no part of a step
    for name, value in changed:
        if _has(c, name):
            recipes.put(c, name, value)
    return c


def _costs(methods: Sequence[str], changed: tuple[tuple[str, Any], ...]) -> str:
    for method in methods:  # what cannot be is said before any minutes have passed
        _check(method, changed)
    rows = []
    for i, method in enumerate(methods):
        rows.append(_cost(method, changed))
        print(f"{i + 1} of {len(methods)}  {'  '.join(rows[-1])}", file=sys.stderr, flush=True)
    header = ["method"]
    header += ["kept MiB", f"MiB of {FLAGS.device}", "beside SimCLR's"] if FLAGS.memory else []
    header += ["step ms", "beside SimCLR's"] if FLAGS.steps else []
    title = (
        f"ResNet-{FLAGS.depth} x {FLAGS.width:g}, {FLAGS.batch_size} images of {FLAGS.size} pixels"
        f" of {FLAGS.images}; memory over {FLAGS.devices} device(s), time here"
    )
    return f"{title}\n{table(header, rows)}"


def _check(method: str, changed: tuple[tuple[str, Any], ...]) -> None:
    from simclr_jax import parallel
    from simclr_jax.planning.described import Case

    devices = parallel.make_mesh().size if FLAGS.steps else FLAGS.devices
    try:
        _ = Case.of(recipe(method, changed), devices, FLAGS.images, FLAGS.classes).prepared
    except errors.UserError as error:
        raise errors.UserError(
            f"{method} cannot be measured so: {error} (here by --set, --images, or leave it out by "
            "--methods)"
        ) from error


def _cost(method: str, changed: tuple[tuple[str, Any], ...]) -> tuple[str, ...]:
    cells: list[str] = [method]
    if FLAGS.memory:
        kept, peak = _memory(method, changed)
        ratio = peak / _memory(declaration.DEFAULT, changed)[1]
        cells += [f"{kept / MIB:.1f}", f"{peak / MIB:.1f}", f"x {ratio:.2f}"]
    if FLAGS.steps:
        pairs = _times(method, changed)
        ratio = statistics.median(own / other for own, other in pairs)
        own = statistics.median(own for own, _ in pairs)
        cells += [f"{1e3 * own:.1f}", f"x {ratio:.2f}"]
    return tuple(cells)


@functools.cache
def _memory(method: str, changed: tuple[tuple[str, Any], ...]) -> tuple[int, int]:
    """Return the bytes that the method keeps beside the network, and all that a device holds."""
    from simclr_jax.planning import devices, plan
    from simclr_jax.planning.described import Case

    devices.find(FLAGS.device)
    asked = plan.Asked(FLAGS.device, FLAGS.devices, images=FLAGS.images, classes=FLAGS.classes)
    case = Case.of(recipe(method, changed), FLAGS.devices, FLAGS.images, FLAGS.classes)
    found = case.at_any_batch().footprint(case.images, asked.rules)
    held = plan.beside(case, found, asked)
    return plan.parts_of(case.state()).get("averages, queues", 0), found.peak + sum(held.values())


def _times(method: str, changed: Sequence[tuple[str, Any]]) -> list[tuple[float, float]]:
    """Return seconds of steps of the method and of SimCLR, one after the other."""
    ours, others = (_Timed(recipe(m, changed)) for m in (method, declaration.DEFAULT))
    pairs = [(ours.once(), others.once()) for _ in range(FLAGS.steps + WARM_UP)]
    return pairs[WARM_UP:]


class _Timed:
    """A stage and its compiled step, on images that are all one picture of noise."""

    def __init__(self, config: Any):
        import numpy as np

        from simclr_jax import parallel
        from simclr_jax.planning.described import Case
        from simclr_jax.stages.inputs import Inputs
        from simclr_jax.stages.pretrain import make_stage
        from simclr_jax.train.step import make_step

        parallel.use_compilation_cache()
        mesh = parallel.make_mesh()
        ready = Case.of(config, mesh.size, FLAGS.images, FLAGS.classes).prepared
        noise = np.random.default_rng(0).integers(0, 256, (FLAGS.size, FLAGS.size, 3), np.uint8)

        def drawn(images: Any) -> Any:
            return dataclasses.replace(images, pixels=np.broadcast_to(noise, images.pixels.shape))

        inputs = Inputs(ready.config, drawn(ready.train), drawn(ready.test))
        stage = make_stage(ready.config, ready.timetable, inputs, mesh)
        self._step: Any = make_step(stage, mesh)
        self._state: Any = stage.init()
        self._batches = stage.batches(0, FLAGS.steps + WARM_UP)

    def once(self) -> float:
        """Take a step; return its seconds."""
        import jax

        _, batch = jax.block_until_ready(next(self._batches))
        start = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._step(self._state, batch))
        return time.perf_counter() - start


# Accuracies --------------------------------------------------------------------------------------


def _wanted(methods: Sequence[str]) -> list[tuple[str, int]]:
    return [(method, seed) for method in methods for seed in range(FLAGS.train)]


def _train(named: str, seed: int) -> str:
    """Train digits by the method and the argument of its recipe, unless done; return where."""
    method, colon, argument = named.partition(":")
    plain = method == declaration.DEFAULT
    file = ROOT / "configs" / f"{'digits' if plain else method}.py"
    if not file.exists():
        raise errors.UserError(f"--train: there is no {file} for method {method}")
    workdir = Path(FLAGS.workdir).resolve() / f"{re.sub(r'[^a-z]+', '_', named)}_{seed}"
    if not (workdir / "results" / "summary.json").exists():
        command = [sys.executable, "-m", "simclr_jax.main", f"--config={file}{colon}{argument}"]
        command += [f"--workdir={workdir}", f"--config.seed={seed}"]
        command += [*(AS_THE_OTHERS if plain else ()), *(f"--config.{f}" for f in FLAGS.set)]
        print(f"{named}, seed {seed}: {workdir}/log.txt grows", file=sys.stderr, flush=True)
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
            raise errors.UserError(f"{named}, seed {seed}, did not finish: see {workdir}/log.txt")
    return str(workdir)


def accuracies(runs: Sequence[str]) -> str:
    """Return the table of what runs have written at their end, levels of the first run below.

    Raises:
      UserError: if a run has not ended, or is of other images than the first, or of another size.
    """
    read = [_read(Path(run)) for run in runs]
    one_table = Comparable("--runs")
    for run, (config, said) in zip(runs, read, strict=True):
        one_table.add(run, _judged_on(config, said["protocol"]))
    found = _named(read)
    grouped: dict[tuple[str, int], list[dict]] = {}
    for method, said in found:
        grouped.setdefault((method, said["protocol"]["step"]), []).append(said["scores"])
    levels = found[0][1]["scores"]
    names = list(levels[TRAINED])
    rows = [
        (method, str(step), str(len(some)), *(_percent(some, TRAINED, n) for n in names))
        for (method, step), some in sorted(grouped.items())
    ]
    rows += [
        (thing, "", "1", *(_percent([levels], thing, n) for n in names))
        for thing in levels
        if thing != TRAINED
    ]
    return table(("accuracy, %", "steps", "runs", *names), rows)


def _judged_on(config: dict[str, Any], protocol: dict[str, Any]) -> dict[str, str]:
    """Return what the accuracies of a run are of, as far as it says it."""
    told = {
        "held-out images": protocol["held_out"],
        "training images": protocol.get("bank"),
        "image size": (config.get("data") or {}).get("image_size"),
    }
    return {what: str(value) for what, value in told.items() if value is not None}


def _named(
    runs: Sequence[tuple[dict[str, Any], dict[str, Any]]],
) -> list[tuple[str, dict[str, Any]]]:
    """Return name and summary of each run: its method, and what runs of that differ in."""
    own: dict[str, list[dict[str, Any]]] = {}
    for config, _ in runs:
        method = config.get("method", declaration.DEFAULT)
        own.setdefault(method, []).append(config.get(method) or {})

    def name(config: dict[str, Any]) -> str:
        method = config.get("method", declaration.DEFAULT)
        fields = config.get(method) or {}
        differs = [
            f"{field}={value}"
            for field, value in fields.items()
            if any(other.get(field) != value for other in own[method])
        ]
        return f"{method} {' '.join(differs)}".strip()

    return [(name(config), summary) for config, summary in runs]


def _read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return recipe and summary of a run."""
    path = run / "results" / "summary.json"
    if not path.exists():
        raise errors.UserError(f"{run} has no results/summary.json: it is no run that has ended")
    config = documents.read(run / "config.json", dict[str, Any])
    said = documents.read(path, dict[str, Any])
    if TRAINED not in said["scores"]:
        raise errors.UserError(f"{run} is no run of pretraining that was scored (eval.compare)")
    return config, said


def _percent(scores: Sequence[dict], thing: str, name: str) -> str:
    values = [100 * some[thing][name]["accuracy"] for some in scores if name in some[thing]]
    mean = f"{statistics.mean(values):.1f}" if values else ""
    return f"{mean} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else mean


if __name__ == "__main__":
    entry.run(main)
