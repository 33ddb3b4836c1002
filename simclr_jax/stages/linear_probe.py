"""Judge the encoders of runs on labelled images, by any of `solvers.SOLVERS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import files
from simclr_jax.data.sources import NO_LABEL, Source
from simclr_jax.errors import UserError, choose, number
from simclr_jax.evaluate import scores, significance, subsets
from simclr_jax.reporting import results, tables
from simclr_jax.stages import datasets, feature_bank
from simclr_jax.stages.datasets import Data, Wanted
from simclr_jax.stages.encoder import Encoder
from simclr_jax.stages.feature_bank import Features, Say
from simclr_jax.stages.solvers import LEARN, SOLVERS, Outcome, Settings, Task
from simclr_jax.train import saved

ALL = "all"
NO_CACHE = "none"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is judged, and how.

    Attributes:
      solvers: names in `SOLVERS`.
      taps: see `encoder.taps`.
      labels: which of the training labels may be used: "all", "10%", "25" (each class), or a file
        of image names, such as the official `1percent.txt`.
      settings: of the solvers.
      untrained: judge the same network before training as well.
      cache: where features are kept; "" is the run's directory, "none" keeps none.
      metric: by which settings are chosen; "" is top-1, or mAP for several labels an image.
    """

    solvers: tuple[str, ...] = ("lbfgs",)
    taps: tuple[str, ...] = ("h",)
    labels: str = ALL
    settings: Settings = dataclasses.field(default_factory=Settings)
    untrained: bool = False
    cache: str = ""
    metric: str = ""


@dataclasses.dataclass(frozen=True)
class Scored:
    """One line of the table: what was judged, its result file's content and its arrays."""

    encoder: Encoder
    result: dict[str, Any]
    arrays: dict[str, np.ndarray]


def run(checkpoints: Sequence[str], wanted: Wanted, options: Options, say: Say = print) -> None:
    """Judge checkpoints, write `results/NAME.json` into their runs, and print a table.

    Args:
      checkpoints: workdirs, or `WORKDIR@STEP`.
      wanted: the images.
      options: what is judged, and how.
      say: receives each line.

    Raises:
      UserError: for whatever a user can put right.
    """
    for solver in options.solvers:
        choose("--solver", solver, SOLVERS)
    found: list[Scored] = []
    for checkpoint in checkpoints:
        run = saved.read(checkpoint)
        encoder = Encoder.of(run)
        for tap in options.taps:
            choose("--tap", tap, encoder.taps)
        data = datasets.open_data(run.config, run.workdir, wanted)
        _announce(encoder, data, say)
        cache = cache_of(run.workdir, options.cache)
        for judged in [encoder, encoder.untrained()] if options.untrained else [encoder]:
            tasks = make_tasks(judged, data, options, cache, say)
            if judged is not encoder:
                tasks = [task for task in tasks if task.tap != "pixels"]  # which are the same
            for one in judge(judged, data, tasks, options):
                found.append(one)
                results.write(run.workdir, one.result, one.arrays)
    for line in table(found):
        say(line)
    for line in _comparisons(found):
        say(line)
    written = dict.fromkeys(run.partition("@")[0] for run in (one.encoder.run for one in found))
    say(
        f"written   {', '.join(f'{run}/results' for run in written)}: settings, scores, predictions"
    )


def neighbours(text: str) -> tuple[int, float | None]:
    """Read `k:temperature`, or `k` for one vote each; raise `UserError` for anything else."""
    k, colon, temperature = text.partition(":")
    if not k.isdecimal() or not int(k):
        raise UserError(f'--knn has "{text}": give k, or k:temperature, such as 200:0.1')
    return int(k), number("--knn", temperature) if colon else None


def cache_of(workdir: epath.PathLike, cache: str) -> epath.Path | None:
    """Return the directory that keeps features, or None."""
    if cache == NO_CACHE:
        return None
    return epath.Path(files.expand_home(cache)) if cache else epath.Path(workdir) / "features"


def make_tasks(
    encoder: Encoder, data: Data, options: Options, cache: epath.Path | None, say: Say
) -> list[Task]:
    """Extract what the solvers need, a task for each tap.

    Raises:
      UserError: if there are no labels, or too few for the classes.
    """
    for source, what in ((data.fit, "a probe"), (data.score, "a score")):
        if not source.classes:
            note = f" ({data.notes[0]})" if data.notes else ""
            raise UserError(
                f"the images of {data.name} have no labels, which {what} needs{note}: name others "
                "with --data"
            )
    taps, classes = options.taps, max(data.fit.classes, data.score.classes)
    score = feature_bank.extract(encoder, data.score, taps, cache, say)
    learn = any(solver in LEARN for solver in options.solvers)
    fit = feature_bank.extract(encoder, data.fit, taps, cache, say) if learn else {}
    choose = None
    if learn and data.choose is not None and options.labels == ALL:
        choose = feature_bank.extract(encoder, data.choose, taps, cache, say)
    metric = options.metric or ("mAP" if data.score.multi_label else "top-1")
    tasks = []
    for tap in taps:
        scored = _labelled(score[tap])
        labelled = _labelled(fit[tap]) if learn else Features.none(scored)
        if learn:
            labelled = labelled.take(_allowed(options, labelled, data.fit))
        if tap == taps[0]:
            _check(labelled, scored, classes, data, learn, say)
        chosen = None if choose is None else _labelled(choose[tap])
        tasks.append(Task(encoder, tap, data.fit, labelled, chosen, scored, classes, metric))
    return tasks


def judge(
    encoder: Encoder, data: Data, tasks: Sequence[Task], options: Options, prefix: str = ""
) -> Iterator[Scored]:
    """Run every solver on every task; yield what results files hold."""
    for task in tasks:
        for solver in options.solvers:
            for outcome in SOLVERS[solver](task, options.settings):
                yield _scored(encoder, data, task, solver, outcome, options, prefix)


def table(found: Sequence[Scored]) -> list[str]:
    """Show scores in per cent and their intervals: a row for each result."""
    several = len({one.encoder.run for one in found}) > 1
    groups: dict[str, list[Scored]] = {}
    for one in found:
        kind = one.result["solver"]
        groups.setdefault(kind if kind in ("kmeans", "retrieval") else "classes", []).append(one)
    lines = []
    for group in groups.values():
        names = list(dict.fromkeys(name for one in group for name in one.result["scores"]))
        rows = []
        for one in group:
            name, scored = one.result["name"], one.result["scores"]
            name = f"{one.encoder.run}  {name}" if several else name
            rows.append((name, *(_percent(scored.get(n)) for n in names)))
        lines += ["", tables.table(("%", *names), rows)]
    return [*lines, "in brackets: 95 % bootstrap interval over the images scored on", ""]


def _percent(score: dict[str, float] | None) -> str:
    if score is None:
        return "-"
    interval = f" ({100 * score['low']:.1f}-{100 * score['high']:.1f})" if "low" in score else ""
    return f"{100 * score['value']:.1f}{interval}"


def _scored(
    encoder: Encoder,
    data: Data,
    task: Task,
    solver: str,
    outcome: Outcome,
    options: Options,
    prefix: str,
) -> Scored:
    seed, labels = options.settings.seed, task.score.known
    arrays = {"labels": labels, "examples": task.score.examples}
    measured = dict(outcome.measured)
    if outcome.outputs is not None:
        measured |= scores.statistics(labels, outcome.outputs)
        if labels.ndim == 2:
            arrays["scores"] = np.asarray(outcome.outputs, np.float32)
        else:
            single = outcome.outputs.ndim == 1
            predicted = outcome.outputs if single else outcome.outputs.argmax(axis=1)
            arrays["predictions"] = predicted.astype(np.int32)
    few = "" if options.labels == ALL else f"{_word(options.labels)}_labels-seed{seed}"
    untrained = "untrained" if not encoder.step and encoder.run.endswith("untrained") else ""
    parts = (prefix or data.slug, outcome.name, task.tap, few, untrained)
    result = {
        "name": "-".join(part for part in parts if part),
        "solver": solver,
        "tap": task.tap,
        "checkpoint": {"run": encoder.run, "step": encoder.step, "weights": encoder.fingerprint},
        "data": _about_data(data, task),
        "protocol": outcome.protocol
        | {
            "features": f"{task.tap}, {task.fit.x.shape[1]} numbers, inference mode",
            "preprocessing": dataclasses.asdict(encoder.preprocessing),
            "labels used": f"{options.labels} ({len(task.fit)} images)",
            "intervals": "95 %, percentile bootstrap over the images scored on, 1000 resamples",
        },
        "scores": scores.intervals(measured, len(labels), seed)
        | {name: {"value": value} for name, value in outcome.values.items()},
        "seed": seed,
    }
    return Scored(encoder, result, arrays)


def _about_data(data: Data, task: Task) -> dict[str, Any]:
    def about(role: str, source: Source, images: int) -> dict[str, Any]:
        return {"split": data.splits[role], "fingerprint": source.fingerprint(), "images": images}

    found = {
        "name": data.name,
        "classes": task.classes,
        "class_names": datasets.class_names(data.fit),
        "fit": about("fit", data.fit, len(task.fit)),
        "test": about("score", data.score, len(task.score)),
    }
    if task.choose is not None and data.choose is not None:
        found["validation"] = about("choose", data.choose, len(task.choose))
    return found


def _announce(encoder: Encoder, data: Data, say: Say) -> None:
    model, p = encoder.config.model, encoder.preprocessing
    say(f"run       {encoder.run}: ResNet-{model.depth}, width {model.width:g}")
    of = "all of it" if p.proportion == 1 else f"its central {p.proportion:.1%}"
    say(f"images    {data.name}, each to {p.size}x{p.size} pixels, {of}, grid {p.grid}")
    if data.fit.channels != encoder.channels:
        how = "repeated" if encoder.channels == 3 else "reduced to their luminance"
        say(
            f"note      images have {data.fit.channels} channel(s), the encoder takes "
            f"{encoder.channels}: they are {how}"
        )
    for note in data.notes:
        say(f"note      {note}")


def _labelled(features: Features) -> Features:
    labels = features.known
    if labels.ndim == 2 or (labels != NO_LABEL).all():
        return features
    return features.take(np.flatnonzero(labels != NO_LABEL))


def _allowed(options: Options, fit: Features, source: Source) -> np.ndarray:
    """Return the rows of `fit` whose labels may be used."""
    wanted, seed = options.labels, options.settings.seed
    if wanted == ALL:
        return np.arange(len(fit))
    if Path(wanted).expanduser().is_file():
        return _listed(Path(wanted).expanduser(), fit, source)
    if np.ndim(fit.known) == 2:
        raise UserError(f"--labels={wanted} draws by class, but an image has several: use all")
    try:
        if wanted.endswith("%"):
            return subsets.share_of_labels(fit.known, float(wanted[:-1]) / 100, seed)
        return subsets.few_labels(fit.known, int(wanted), seed)
    except ValueError:
        raise UserError(
            f"--labels={wanted} is neither all, a share such as 10%, a number for each class, "
            "nor a file of names"
        ) from None


def _listed(path: Path, fit: Features, source: Source) -> np.ndarray:
    names = set(path.read_text().split("\n")) - {""}
    own = [source.name(int(example)) for example in fit.examples]
    rows = [i for i, name in enumerate(own) if name in names or name.split("/")[-1] in names]
    if not rows:
        raise UserError(f"--labels={path} names none of the images, such as {own[0]}")
    return np.array(rows)


def _check(fit: Features, score: Features, classes: int, data: Data, learn: bool, say: Say) -> None:
    """Check that there is something to learn and to score; say which classes cannot be learned.

    Raises:
      UserError: if there are fewer labelled images than classes, or none to score on.
    """
    if not len(score):
        raise UserError(f"no image to be scored on in {data.name} has a label: label some")
    if not learn:
        return
    if len(fit) < classes:
        raise UserError(
            f"{data.name} has {len(fit)} labelled images to learn {classes} classes from: "
            "label at least one of each class"
        )
    if np.ndim(fit.known) == 1:
        unseen = np.setdiff1d(score.known, fit.known)
        if len(unseen):
            names = datasets.class_names(data.score)
            say(
                f"note      {len(unseen)} class(es) occur among the images scored on only, such as "
                f"{names[int(unseen[0])]}: they count as errors"
            )


def _comparisons(found: Sequence[Scored]) -> Iterator[str]:
    """Say of each result whether it differs from that of the first run by more than chance."""
    for one in found:
        first = next(f for f in found if f.result["name"] == one.result["name"])
        names = [n for n in significance.LINEAR + significance.RANKED if n in one.result["scores"]]
        same = first.result["data"]["test"] == one.result["data"]["test"]
        if first is one or not same or not names or "examples" not in one.arrays:
            continue
        test = significance.permutation_test(one.arrays, first.arrays, names[0])
        yield (
            f"{one.encoder.run} against {first.encoder.run}, {one.result['name']}: {names[0]} "
            f"{100 * test['difference']:+.1f} points, p = {test['p']:.2g} "
            f"(paired permutation test, {test['samples']} samples)"
        )


def _word(text: str) -> str:
    stem = Path(text).stem.replace("%", "pct")
    return "".join(c if c.isalnum() or c == "." else "_" for c in stem)
