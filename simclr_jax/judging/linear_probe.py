"""Judge the encoders of runs on labelled images, each by any of `judging.solvers.SOLVERS`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import alive, files
from simclr_jax.closing import Closing
from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError, choose, number
from simclr_jax.evaluate import chance, scores
from simclr_jax.judging import datasets, feature_bank, naming, results, shown
from simclr_jax.judging.comparable import Comparable
from simclr_jax.judging.datasets import Data, Wanted
from simclr_jax.judging.feature_bank import Features, Say, cache_of
from simclr_jax.judging.settings import Settings
from simclr_jax.judging.shown import Scored
from simclr_jax.judging.solvers import CHOOSE, LEARN, SOLVERS, Outcome, Task, check
from simclr_jax.stages import labels as label_choice
from simclr_jax.stages.encoder import Encoder, check_tap
from simclr_jax.train import saved
from simclr_jax.unlabelled import counted


@dataclasses.dataclass(frozen=True)
class Options:
    """What is judged, and how.

    Attributes:
      solvers: names in `SOLVERS`.
      taps: see `encoder.taps`.
      labels: which of the training labels may be used, see `stages.labels.allowed`.
      settings: of the solvers.
      untrained: judge the same network before training as well.
      weights: which of a checkpoint's, one of `saved.WEIGHTS`.
      cache: where features are kept; "" is the run's directory, "none" keeps none.
      metric: by which settings are chosen; "" is top-1, or mAP for several labels an image.
      name: what results begin with, in place of a word for the data.
      max_bad_fraction: of unreadable images in a split; None is that of the run's recipe.
      grid: print a table of runs by taps for each way to judge, not a line for each result.
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
    grid: bool = False
    weights: str = saved.TRAINED


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
    options = dataclasses.replace(
        options,
        solvers=tuple(dict.fromkeys(options.solvers)),
        taps=tuple(dict.fromkeys(options.taps)),
    )
    _check_runs(checkpoints, options)
    table = Comparable("--grid") if options.grid else None
    for checkpoint in checkpoints[1:]:  # the first is checked as its turn comes, which is now
        _open(checkpoint, wanted, options, table)
    done = _Done()
    with Closing() as end:
        # What is done is not lost where a later part fails.
        end.step(_say_found, done, options.grid, say)
        for checkpoint in checkpoints:
            _judge_run(_open(checkpoint, wanted, options, table), wanted, options, done, say)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A checkpoint to judge and its images, checked; `tail` ends the names of its results."""

    encoder: Encoder
    data: Data
    workdir: epath.Path
    tail: str


@dataclasses.dataclass
class _Done:
    """Results so far, where they were written, and workdirs whose untrained network was judged."""

    found: list[Scored] = dataclasses.field(default_factory=list)
    written: set[str] = dataclasses.field(default_factory=set)
    untrained: set[str] = dataclasses.field(default_factory=set)


def _open(checkpoint: str, wanted: Wanted, options: Options, table: Comparable | None) -> _Opened:
    """Open a checkpoint and its images, and raise what they tell before features are computed."""
    run = saved.of_weights(saved.read(checkpoint), options.weights)
    encoder = Encoder.of(run)
    if options.max_bad_fraction is not None:
        encoder = encoder.changed({"data.max_bad_fraction": options.max_bad_fraction})
    data = datasets.open_data(run.config, run.workdir, wanted)
    _check_before(encoder, data, options)
    if table is not None:
        size = {"image size": f"{encoder.preprocessing.size} pixels"}
        on = datasets.judged_on(data, _guesses(options), _chooses(options))
        table.add(checkpoint, size | on)
    return _Opened(encoder, data, run.workdir, naming.of_weights(run, checkpoint))


def _judge_run(opened: _Opened, wanted: Wanted, options: Options, done: _Done, say: Say) -> None:
    """Judge a checkpoint and write its results."""
    encoder, data, workdir = opened.encoder, opened.data, opened.workdir
    shown.announce(encoder, data, options.solvers, _chooses(options), say)
    cache = cache_of(workdir, options.cache)
    # Before training the network is the same one at any step of a run.
    both = options.untrained and str(workdir) not in done.untrained
    done.untrained.add(str(workdir))
    for judged in [encoder, encoder.untrained()] if both else [encoder]:
        tail = opened.tail if judged is encoder else "untrained"
        tasks = make_tasks(judged, data, options, cache, say)
        if judged is not encoder:
            tasks = [task for task in tasks if task.tap != "pixels"]  # which are the same
        named = (options.name or data.slug, tail, naming.of_data(wanted, data))
        for one in judge(judged, data, tasks, options, *named, say=say):
            for line in naming.set_aside(workdir, one.result):
                say(f"note      {line}")
            results.write(workdir, one.result, one.arrays)
            done.written.add(f"{workdir}/results")
            done.found.append(one)


def _say_found(done: _Done, grid: bool, say: Say) -> None:
    if not done.found:
        return
    for line in shown.grid(done.found) if grid else shown.table(done.found):
        say(line)
    for line in shown.notes(done.found):
        say(f"note      {line}")
    for line in () if grid else shown.comparisons(done.found):
        say(line)
    say(f"written   {', '.join(sorted(done.written))}: settings, scores, predictions")


def _check_runs(checkpoints: Sequence[str], options: Options) -> None:
    """Raise `UserError` unless each checkpoint is there, once, and has the taps and weights."""
    named = set()
    for checkpoint in checkpoints:
        run = saved.of_weights(saved.describe(checkpoint), options.weights)
        for tap in options.taps:
            check_tap("--tap", tap, run.config)
        at = run.step if checkpoint.endswith(f"@{run.step}") else None
        place = os.path.realpath(run.workdir) if files.is_local(run.workdir) else str(run.workdir)
        if (place, at) in named:
            raise UserError(f"--checkpoint names {checkpoint} twice: name it once")
        named.add((place, at))


def neighbours(text: str) -> tuple[int, float | None]:
    """Read `k:temperature`, or `k` for one vote each; raise `UserError` for anything else."""
    k, colon, temperature = text.partition(":")
    if not (k.isdecimal() and len(k) < 10 and int(k)):
        raise UserError(f'--knn has "{text}": give k, or k:temperature, such as 200:0.1')
    return int(k), number("--knn", temperature, above=0) if colon else None


def make_tasks(
    encoder: Encoder, data: Data, options: Options, cache: epath.Path | None, say: Say
) -> list[Task]:
    """Extract what the solvers need, a task for each tap.

    Raises:
      UserError: if there are no labels, or too few for the classes.
    """
    _check_before(encoder, data, options)
    classes = max(data.fit.classes, data.score.classes)
    learn = any(solver in LEARN for solver in options.solvers)
    score = feature_bank.extract(encoder, data.score, options.taps, cache, say)
    fit = feature_bank.extract(encoder, data.fit, options.taps, cache, say) if learn else {}
    choose = None
    if data.choose is not None and _chooses(options):
        choose = feature_bank.extract(encoder, data.choose, options.taps, cache, say)
    taught = _known(data.fit if _guesses(options) else data.score)
    metric = options.metric or ("mAP" if data.score.multi_label else "top-1")
    tasks = []
    for tap in options.taps:
        scored = _labelled(score[tap])
        labelled = _labelled(fit[tap]) if learn else Features.none(scored)
        if learn and options.labels != label_choice.ALL:
            seed = options.settings.seed
            rows = label_choice.allowed(
                options.labels, labelled.known, labelled.examples, data.fit, seed
            )
            labelled = labelled.take(rows)
            if tap == options.taps[0]:
                _say_labels_in_all(data, labelled, say)
        if tap == options.taps[0]:
            _check(labelled.known, scored.known, classes, data, learn)
            shown.who_counts(labelled.known, scored.known, data, learn, say)
        chosen = None if choose is None else _labelled(choose[tap])
        tasks.append(
            Task(encoder, tap, data.fit, labelled, chosen, scored, classes, metric, taught)
        )
    return tasks


def judge(
    encoder: Encoder,
    data: Data,
    tasks: Sequence[Task],
    options: Options,
    prefix: str = "",
    tail: str = "",
    beyond: Mapping[str, Any] | None = None,
    say: Say = lambda line: None,
) -> Iterator[Scored]:
    """Run every solver on every task; yield what results files hold.

    Args:
      encoder, data: what is judged, on which images.
      tasks: see `make_tasks`.
      options: the solvers and their settings.
      prefix, tail: what the names of results begin and end with.
      beyond: what tells `data` from the run's own, see `naming.name`.
      say: receives signs of life.
    """
    for task in tasks:
        for solver in options.solvers:
            with alive.during(f"solver {solver} on {task.tap}", say):
                outcomes = [*SOLVERS[solver](task, options.settings)]
            for outcome in outcomes:
                learned = options.labels if "fit" in outcome.roles else label_choice.ALL
                name = naming.name(
                    *(prefix, outcome.name, task.tap),
                    labels=learned,
                    seed=options.settings.seed,
                    beyond={**(beyond or {}), **options.settings.unsaid(solver)},
                    tail=tail,
                )
                with alive.during(f"intervals of {name}", say):
                    scored = _scored(encoder, data, task, solver, outcome, options, name)
                yield scored


def _scored(
    encoder: Encoder,
    data: Data,
    task: Task,
    solver: str,
    outcome: Outcome,
    options: Options,
    name: str,
) -> Scored:
    seed, labels = options.settings.seed, task.score.known
    arrays = {"labels": labels, "examples": task.score.examples}
    measured, level = dict(outcome.measured), {}
    if outcome.outputs is not None:
        measured |= scores.statistics(labels, outcome.outputs)
        guess = chance.outputs(task.taught, labels, task.classes)
        level = chance.level(guess, labels, measured)
        if labels.ndim == 2:
            arrays["scores"] = np.asarray(outcome.outputs, np.float32)
        else:
            single = outcome.outputs.ndim == 1
            predicted = outcome.outputs if single else outcome.outputs.argmax(axis=1)
            arrays["predictions"] = predicted.astype(np.int32)
    learned = "fit" in outcome.roles
    result = {
        "name": name,
        "solver": solver,
        "variant": outcome.name,
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
        **({"level": level} if level else {}),
        **({"notes": list(outcome.notes)} if outcome.notes else {}),
    }
    return Scored(encoder, result, arrays, outcome.name)


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
        labelled = len(counted(source.labels))
        if labelled < len(source):
            found[name]["without_label"] = len(source) - labelled
        if role != "fit" and len(used) < labelled:  # to fit on, fewer may have been asked for
            found[name]["unreadable"] = labelled - len(used)
    return found


def _say_labels_in_all(data: Data, used: Features, say: Say) -> None:
    """Say how many labels there are in all, if the encoder has learned from others than a probe."""
    if line := datasets.labels_in_all(data, used.examples):
        say(f"note      {line}")


def _labelled(features: Features) -> Features:
    rows = counted(features.known)
    return features if len(rows) == len(features) else features.take(rows)


def _known(source: Source) -> np.ndarray:
    """Return the labels of the images of a source that have some."""
    labels = np.asarray(source.labels)
    return labels[counted(labels)]


def _guesses(options: Options) -> bool:
    """Tell whether training labels are looked at, which may take a pass over the data."""
    return "classifier" in options.solvers or any(solver in LEARN for solver in options.solvers)


def _chooses(options: Options) -> bool:
    """Tell whether settings are chosen on a split of its own, if there is one."""
    return options.labels == label_choice.ALL and any(name in CHOOSE for name in options.solvers)


def _check_before(encoder: Encoder, data: Data, options: Options) -> None:
    """Raise what labels and encoder tell, before features are computed."""
    for source, what in ((data.fit, "a probe"), (data.score, "a score")):
        if not source.classes:
            note = f" ({data.notes[0]})" if data.notes else ""
            raise UserError(
                f"the images of {data.name} have no labels, which {what} needs{note}: name others "
                "with --data"
            )
    classes = max(data.fit.classes, data.score.classes)
    learn = any(solver in LEARN for solver in options.solvers)
    for solver in options.solvers:
        for tap in options.taps:
            check(solver, encoder, tap, data.fit, classes, options.settings)
    fit = _known(data.fit) if learn else np.zeros(0)
    if learn and options.labels != label_choice.ALL:
        examples, seed = counted(np.asarray(data.fit.labels)), options.settings.seed
        fit = fit[label_choice.allowed(options.labels, fit, examples, data.fit, seed)]
    _check(fit, _known(data.score), classes, data, learn)


def _check(fit: np.ndarray, score: np.ndarray, classes: int, data: Data, learn: bool) -> None:
    """Raise `UserError` for fewer labelled images than classes, or for none to score on."""
    if not len(score):
        raise UserError(f"no image to be scored on in {data.name} has a label: label some")
    if learn and len(fit) < classes:
        raise UserError(
            f"{data.name} has {len(fit)} labelled images to learn {classes} classes from: "
            "label at least one of each class"
        )
