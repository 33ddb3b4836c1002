"""Judge the encoders of runs on labelled images, each by any of `judging.solvers.SOLVERS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import tables
from simclr_jax.data.sources import NO_LABEL
from simclr_jax.errors import UserError, choose, number
from simclr_jax.evaluate import scores, significance
from simclr_jax.judging import datasets, feature_bank, results
from simclr_jax.judging.datasets import Data, Wanted
from simclr_jax.judging.feature_bank import Features, Say, cache_of
from simclr_jax.judging.solvers import LEARN, SOLVERS, Outcome, Settings, Task
from simclr_jax.stages import labels as label_choice
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved


@dataclasses.dataclass(frozen=True)
class Options:
    """What is judged, and how.

    Attributes:
      solvers: names in `SOLVERS`.
      taps: see `encoder.taps`.
      labels: which of the training labels may be used, see `stages.labels.allowed`.
      settings: of the solvers.
      untrained: judge the same network before training as well.
      cache: where features are kept; "" is the run's directory, "none" keeps none.
      metric: by which settings are chosen; "" is top-1, or mAP for several labels an image.
      name: what results begin with, in place of a word for the data.
      max_bad_fraction: of unreadable images in a split; None is that of the run's recipe.
    """

    solvers: tuple[str, ...] = ("lbfgs",)
    taps: tuple[str, ...] = ("h",)
    labels: str = label_choice.ALL
    settings: Settings = dataclasses.field(default_factory=Settings)
    untrained: bool = False
    cache: str = ""
    metric: str = ""
    name: str = ""
    max_bad_fraction: float | None = None


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
    if options.name and not results.NAME.fullmatch(options.name):
        raise UserError(f'--name is "{options.name}": use letters, digits and . + - _')
    found: list[Scored] = []
    written: set[str] = set()
    for checkpoint in checkpoints:
        run = saved.read(checkpoint)
        encoder = Encoder.of(run)
        if options.max_bad_fraction is not None:
            encoder = encoder.changed({"data.max_bad_fraction": options.max_bad_fraction})
        for tap in options.taps:
            choose("--tap", tap, encoder.taps)
        data = datasets.open_data(run.config, run.workdir, wanted)
        _announce(encoder, data, options, say)
        cache = cache_of(run.workdir, options.cache)
        step = f"step{run.step}" if checkpoint.endswith(f"@{run.step}") else ""
        for judged in [encoder, encoder.untrained()] if options.untrained else [encoder]:
            tail = step if judged is encoder else "untrained"
            tasks = make_tasks(judged, data, options, cache, say)
            if judged is not encoder:
                tasks = [task for task in tasks if task.tap != "pixels"]  # which are the same
            for one in judge(judged, data, tasks, options, options.name or data.slug, tail):
                place = f"{run.workdir}/results/{one.result['name']}.json"
                if place in written:
                    raise UserError(f"two results would be {place}: name each checkpoint once")
                results.write(run.workdir, one.result, one.arrays)
                written.add(place)
                found.append(one)
    for line in table(found):
        say(line)
    for line in _comparisons(found):
        say(line)
    places = sorted({place.rpartition("/")[0] for place in written})
    say(f"written   {', '.join(places)}: settings, scores, predictions")


def neighbours(text: str) -> tuple[int, float | None]:
    """Read `k:temperature`, or `k` for one vote each; raise `UserError` for anything else."""
    k, colon, temperature = text.partition(":")
    if not k.isdecimal() or not int(k):
        raise UserError(f'--knn has "{text}": give k, or k:temperature, such as 200:0.1')
    return int(k), number("--knn", temperature) if colon else None


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
    if learn and data.choose is not None and options.labels == label_choice.ALL:
        choose = feature_bank.extract(encoder, data.choose, taps, cache, say)
    metric = options.metric or ("mAP" if data.score.multi_label else "top-1")
    tasks = []
    for tap in taps:
        scored = _labelled(score[tap])
        labelled = _labelled(fit[tap]) if learn else Features.none(scored)
        if learn and options.labels != label_choice.ALL:
            seed = options.settings.seed
            rows = label_choice.allowed(
                options.labels, labelled.known, labelled.examples, data.fit, seed
            )
            labelled = labelled.take(rows)
            if tap == taps[0]:
                _say_labels_in_all(data, labelled, say)
        if tap == taps[0]:
            _check(labelled, scored, classes, data, learn, say)
        chosen = None if choose is None else _labelled(choose[tap])
        tasks.append(Task(encoder, tap, data.fit, labelled, chosen, scored, classes, metric))
    return tasks


def judge(
    encoder: Encoder,
    data: Data,
    tasks: Sequence[Task],
    options: Options,
    prefix: str = "",
    tail: str = "",
) -> Iterator[Scored]:
    """Run every solver on every task; yield what results files hold.

    Args:
      encoder, data: what is judged, on which images.
      tasks: see `make_tasks`.
      options: the solvers and their settings.
      prefix, tail: what the names of results begin and end with.
    """
    for task in tasks:
        for solver in options.solvers:
            for outcome in SOLVERS[solver](task, options.settings):
                yield _scored(encoder, data, task, solver, outcome, options, (prefix, tail))


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
    ends: tuple[str, str],
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
    learned = "fit" in outcome.roles
    few = label_choice.tag(options.labels, seed) if learned else ""
    parts = (ends[0], outcome.name, task.tap, few, ends[1])
    result = {
        "name": "-".join(part for part in parts if part),
        "solver": solver,
        "tap": task.tap,
        "checkpoint": {"run": encoder.run, "step": encoder.step, "weights": encoder.fingerprint},
        "data": _about_data(data, task, outcome.roles),
        "protocol": outcome.protocol
        | {
            "features": f"{task.tap}, {task.fit.x.shape[1]} numbers, inference mode",
            "preprocessing": dataclasses.asdict(encoder.preprocessing),
            "labels used": label_choice.describe(options.labels) if learned else "none",
            "labels of the encoder": datasets.labels_of_encoder(data),
            "intervals": "95 %, percentile bootstrap over the images scored on, 1000 resamples",
        }
        | datasets.scored_images(data),
        "scores": scores.intervals(measured, len(labels), seed)
        | {name: {"value": value} for name, value in outcome.values.items()},
        "seed": seed,
    }
    return Scored(encoder, result, arrays)


def _about_data(data: Data, task: Task, roles: Sequence[str]) -> dict[str, Any]:
    """Describe the splits that a solver looked at."""
    parts = {
        "fit": ("fit", data.fit, task.fit),
        "choose": ("validation", data.choose, task.choose),
        "score": ("test", data.score, task.score),
    }
    found: dict[str, Any] = {
        "name": data.name,
        "classes": task.classes,
        "class_names": datasets.class_names(data.fit),
    }
    for role in roles:
        name, source, used = parts[role]
        assert source is not None and used is not None
        found[name] = {
            "split": data.splits[role],
            "fingerprint": source.fingerprint(),
            "images": len(used),
        }
    return found


def _announce(encoder: Encoder, data: Data, options: Options, say: Say) -> None:
    model, p = encoder.config.model, encoder.preprocessing
    say(f"run       {encoder.run}: ResNet-{model.depth}, width {model.width:g}")
    of = "all of it" if p.proportion == 1 else f"its central {p.proportion:.1%}"
    say(f"images    {data.name}, each to {p.size}x{p.size} pixels, {of}, grid {p.grid}")
    uses = {"fit": "to learn from", "choose": "to choose on", "score": "to be scored on"}
    sources = {"fit": data.fit, "choose": data.choose, "score": data.score}
    counts = [
        f"{len(source)} {uses[role]} ({data.splits[role]})"
        for role, source in sources.items()
        if source is not None
    ]
    say(f"splits    {', '.join(counts)}")
    if data.fit.channels != encoder.channels:
        how = "repeated" if encoder.channels == 3 else "reduced to their luminance"
        say(
            f"note      images have {data.fit.channels} channel(s), the encoder takes "
            f"{encoder.channels}: they are {how}"
        )
    if data.slug and "classifier" in options.solvers:
        say(
            "note      the classifier's classes are taken to be those of these data, in their order"
        )
    for note in data.notes:
        say(f"note      {note}")


def _say_labels_in_all(data: Data, used: Features, say: Say) -> None:
    """Say how many labels there are in all, if the encoder has learned from others than a probe."""
    if line := datasets.labels_in_all(data, used.examples):
        say(f"note      {line}")


def _labelled(features: Features) -> Features:
    labels = features.known
    if labels.ndim == 2 or (labels != NO_LABEL).all():
        return features
    return features.take(np.flatnonzero(labels != NO_LABEL))


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
