"""What a run has written about itself so far, read without touching it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import numpy as np
from etils import epath

from simclr_jax import buckets, declaration, documents, files, recipes, records, segments
from simclr_jax.data import decode
from simclr_jax.data.reader import Listed
from simclr_jax.declaration import Declaration
from simclr_jax.documents import Unfit
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.judging import results
from simclr_jax.optim import schedules
from simclr_jax.reporting import curves, levels
from simclr_jax.reporting.curves import Curve, Known
from simclr_jax.segments import Segment
from simclr_jax.stages import summary
from simclr_jax.train import manifest, saved, stored
from simclr_jax.train.manifest import Damaged

__all__ = ["Curve", "Record", "flatten", "named", "read"]

T = TypeVar("T")

BEATING = 120.0  # seconds since the last heartbeat in lock.json after which a run counts as dead
MOST_EXAMPLES = 10**15


class Lock(TypedDict):
    """What is read of lock.json."""

    heartbeat: float


@dataclasses.dataclass(frozen=True)
class Record:
    """A run as its files tell it.

    Attributes:
      path: the workdir.
      at: the step of the checkpoint that was asked for; None: the newest.
      name: a short name, unlike that of any other run on the page.
      recipe: the resolved recipe by dotted field, `{}` of a run without config.json.
      curves: by metric.
      results: contents of results/NAME.json, the newest last.
      outputs: by name of a result: the arrays of results/NAME.npz, where there are any.
      damaged: what of the run's files is left out or missing, and why: a sentence each.
      gaps: lines of metrics are among that.
      summary: of results/summary.json, or None.
      views: the picture of views, or None.
      painted: that of what the network makes of held-out images, or None.
      saved: steps that have a checkpoint.
      devices: such as "8 x TPU v5", or "".
      alive: a process is at work on it.
      unreadable: how many images of the training data could not be read so far, at least.
      method: what the method of pretraining says of itself; None of other stages.
      chances: what each `loss` would be of an encoder that has learned nothing, if that is known.
      floor: what the loss would be of one that has learned all; None: that is not known.
      segments: by which the run was extended.
    """

    path: epath.Path
    at: int | None
    name: str
    recipe: Mapping[str, Any]
    curves: Mapping[str, Curve]
    results: list[dict[str, Any]]
    outputs: Mapping[str, Mapping[str, np.ndarray]]
    damaged: Sequence[str]
    gaps: bool
    summary: dict[str, Any] | None
    views: bytes | None
    painted: bytes | None
    saved: list[int]
    devices: str
    alive: bool
    unreadable: int
    method: Declaration | None = None
    chances: np.ndarray | None = None
    floor: float | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def chance(self) -> float | None:
        """Return the metric `loss` of an encoder that has learned nothing, where the run is now."""
        return None if self.chances is None else float(self.chances[-1])

    @property
    def step(self) -> int:
        """Return the last step that anything was written about."""
        return max((int(curve.steps[-1]) for curve in self.curves.values()), default=0)

    @property
    def examples(self) -> int:
        """Return the number of training images, 0 where it is not known yet."""
        epochs, batch = self.curves.get("epoch"), self.recipe.get("train.batch_size")
        if epochs is None or not batch or not epochs.last > 0:
            return 0
        return round(min(int(epochs.steps[-1]) * batch / epochs.last, MOST_EXAMPLES))

    @property
    def total_steps(self) -> int:
        """Return the length of the run, 0 where it is not known yet."""
        if self.segments:
            return self.segments[-1].total_steps
        if self.recipe.get("train.steps"):
            return int(self.recipe["train.steps"])
        if not (self.examples and self.recipe.get("train.epochs")):
            return 0
        r = self.recipe
        return schedules.total_steps(r["train.epochs"], self.examples, r["train.batch_size"])


def read(run: str, flag: str = "--checkpoint") -> Record:
    """Read the record of a run, which may be under way.

    Args:
      run: a workdir, or `WORKDIR@STEP`.
      flag: what the user wrote it behind, for errors.

    Raises:
      UserError: if there is no run, or a file in it is damaged.
    """
    workdir, at = saved.split(run)
    path = epath.Path(files.expand_home(workdir))
    with buckets.reaching(path):
        if not path.is_dir():
            raise UserError(f"{flag}={run} is no directory: give the workdir of a run")
    there = _Files(path)
    steps = there.saved()
    known = there.known(steps)
    found, gaps = there.curves(known), bool(there.damaged)
    if not found and not steps:
        why = "; ".join(there.damaged) or (
            "there is neither a metrics.jsonl with numbers in it nor a checkpoint"
        )
        raise UserError(f"{flag}={run} holds no run: {why}")
    if at is not None and at not in steps:
        named = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{flag}={run} has no checkpoint of step {at}: steps there: {named}")
    config, resolved = there.recipe(steps)
    listed, outputs = there.results()
    method = _method(config, resolved)
    record = Record(
        path=path,
        at=at,
        name=path.name,
        recipe=flatten({name: v for name, v in config.items() if name not in records.NOT_RECIPE}),
        curves=found,
        results=listed,
        outputs=outputs,
        damaged=there.damaged,
        gaps=gaps,
        summary=there.said(results.read_summary, path),
        views=there.picture("views.png"),
        painted=there.picture("reconstructions.png"),
        saved=steps,
        devices=there.devices(),
        alive=_alive(path / "lock.json"),
        unreadable=there.unreadable(),
        method=method,
        segments=there.said(segments.of_record, config) or (),
    )
    known_of = config, resolved, method
    record = dataclasses.replace(
        record,
        chances=levels.chances(*known_of, found.get("loss"), record.examples),
        floor=levels.floor(*known_of, record.examples),
    )
    if known is None:
        missing = _missing(record)
        there.damaged += missing
        record = dataclasses.replace(record, gaps=gaps or bool(missing))
    there.damaged += _without_scores(record)
    return record


def _without_scores(record: Record) -> list[str]:
    """Say that the table of scores is missing from a run that has ended and must have made one."""
    file = record.path / "results" / "summary.json"
    ended = record.total_steps in record.saved and not record.alive
    scored = any(name in record.curves for name in ("knn_accuracy", "probe_accuracy", "accuracy"))
    if not (ended and scored and record.recipe.get("eval.compare")) or file.exists():
        return []
    return [f"{documents.shown(file)} is missing: restore it, or run the command again."]


def _missing(record: Record) -> list[str]:
    """Say where lines of metrics are missing; a converted run never had any."""
    if not (record.path / "metrics.jsonl").exists():
        return []
    every = record.recipe.get("log.every_steps") or 0
    newest, total = max(record.saved, default=0), record.total_steps
    finished = bool(total) and record.step >= total
    return curves.missing(record.curves, every, newest, finished, record.alive)


def _method(config: Mapping[str, Any], resolved: Any) -> Declaration | None:
    """Return what the method of a run says of itself, if the run is pretraining."""
    if config.get("stage", "pretrain") != "pretrain" or "train" not in config:
        return None
    return declaration.find(resolved.method)


def named(those: list[Record]) -> list[Record]:
    """Give runs of one name their whole paths, so that every name on the page is another.

    Raises:
      UserError: if one of them is there twice.
    """
    if len({record.name for record in those}) == len(those):
        return those
    longer = []
    for record in those:
        step = "" if record.at is None else f"@{record.at}"
        longer.append(dataclasses.replace(record, name=f"{record.path}{step}"))
    names = [record.name for record in longer]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--checkpoint names {twice[0]} twice: name it once")
    return longer


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a recipe by dotted field."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


class _Files:
    """The files of a run, read as if each of them were damaged.

    `damaged` grows by a sentence about each that is; the others stand.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        self.damaged: list[str] = []

    def said(self, read: Callable[..., T], *args: Any) -> T | None:
        """Return what a file holds, None if there is none or it cannot be used."""
        try:
            return read(*args)
        except FileNotFoundError:
            return None
        except Unreachable:
            raise
        except UserError as error:
            self.damaged.append(f"{error}.")
            return None

    def curves(self, known: Known | None) -> dict[str, Curve]:
        """Return the metrics."""
        file = self.path / "metrics.jsonl"
        found, wrong = self.said(curves.read, file, known) or ({}, [])
        self.damaged += wrong
        return found

    def known(self, steps: Sequence[int]) -> Known | None:
        """Return what the newest checkpoint knows of the metrics, if it is not too old for that."""
        for step in reversed(steps):
            with contextlib.suppress(Damaged):
                about = manifest.about(self.path / stored.CHECKPOINTS / str(step), step)
                return Known.of(step, about.get("log"))
        return None

    def saved(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        entries = self.said(buckets.listing, self.path / "checkpoints") or []
        names = [entry.name for entry in entries]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,18}", name))

    def recipe(self, steps: Sequence[int]) -> tuple[dict[str, Any], Any]:
        """Return the recipe of the run, as it was recorded and as it is resolved.

        That of the newest checkpoint, if config.json cannot be used or is another; `{}` and the
        usual one without either.
        """
        config, before = self.said(stored.in_config, self.path), len(self.damaged)
        if config == {}:
            self.damaged.append(f"{documents.shown(self.path / stored.NAME)} is empty: restore it.")
        sealed = (self.said(stored.in_checkpoints, self.path) or {}) if steps else {}
        if sealed:
            step, recipe = max(sealed.items())
            if config:
                self.said(stored.check_same, recipe, config, f"checkpoint {step}", stored.NAME)
            if not config or len(self.damaged) > before:
                config = recipe
        resolved = self.said(records.recipe, config or {})
        return ({}, recipes.base()) if resolved is None else (config or {}, resolved)

    def results(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return results, the newest last, and their arrays by name."""
        found: list[dict[str, Any]] = []
        outputs: dict[str, Any] = {}
        for file in sorted(results.paths(self.path), key=_written):
            result = self.said(results.read, file)
            if result is None:
                continue
            found.append(result)
            arrays = self.said(results.read_arrays, self.path, result)
            if arrays is not None:
                outputs[file.stem] = arrays
            elif result.get("arrays") and not file.with_suffix(".npz").exists():
                missing = documents.shown(file.with_suffix(".npz"))
                self.damaged.append(f"{missing} is missing: restore it.")
        self.damaged += [
            f"{documents.shown(file.with_suffix('.json'))} is missing, and {file.name} is there: "
            "restore it."
            for file in self.said(results.without_result, self.path) or []
        ]
        return found, outputs

    def picture(self, name: str) -> bytes | None:
        """Return a picture that the run has drawn, if it is one."""
        file = self.path / name
        content = self.said(documents.content, file)
        try:
            if content is None:
                return None
            if not content.startswith(b"\x89PNG"):
                raise decode.BadImage("it is no PNG")
            decode.decode(content)
        except decode.BadImage as error:
            self.damaged.append(f"{documents.shown(file)} is no picture to show: {error}.")
            return None
        return content

    def devices(self) -> str:
        """Return on which devices the run works, or worked last."""
        file, log = self.path / summary.DEVICES, self.path / "log.txt"
        before = len(self.damaged)
        if (found := self.said(documents.read, file, summary.Devices)) is not None:
            return found["devices"]
        if len(self.damaged) > before:  # no other file vouches for what it says
            return ""
        text = (self.said(documents.content, log) or b"").decode(errors="replace")
        lines = re.findall(r"  devices +(.+), computing in ", text)
        return lines[-1] if lines else ""

    def unreadable(self) -> int:
        """Count the images in the lists of all processes, of which several may have met the same.

        A list may have been cut short, so it is so many at least.
        """
        images: set[str] = set()
        for file in sorted(self.path.glob("unreadable_train*.jsonl")):
            # What follows the last line's end is half a line of a run at work, or killed.
            if (content := self.said(documents.content, file)) is None:
                continue
            wrong = [] if content else ["it is empty"]
            for number, line in enumerate(content.split(b"\n")[:-1], 1):
                try:
                    images.add(documents.parse(line, Listed)["image"])
                except Unfit as error:
                    wrong.append(f"line {number} is left out: {error}")
            if wrong:
                more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
                self.damaged.append(f"{documents.shown(file)}: {wrong[0]}{more}.")
        return len(images)


def _written(file: epath.Path) -> float:
    with contextlib.suppress(OSError):
        return file.stat().mtime
    return 0.0


def _alive(lock: epath.Path) -> bool:
    try:
        heartbeat = documents.read(lock, Lock)["heartbeat"]
    except (FileNotFoundError, UserError):
        return False
    return time.time() - heartbeat < BEATING
