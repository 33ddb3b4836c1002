"""What a run has written about itself so far, read without touching it."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import declaration, files, recipes
from simclr_jax.declaration import Declaration
from simclr_jax.errors import UserError
from simclr_jax.judging import results
from simclr_jax.optim import schedules

BEATING = 120.0  # seconds since the last heartbeat in lock.json after which a run counts as dead
# What config.json holds besides the recipe.
NOT_RECIPE = ("images", "trained_on", "chance")
WINDOW = 64  # steps between two lines of metrics of which the chance is looked at


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over the run: `steps` and `values`, both `[n]`; NaN where it was no number."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        return float(self.values[-1])


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
      damaged: why results, or their arrays, are left out: a sentence each.
      summary: of results/summary.json, or None.
      views: the picture of views, or None.
      saved: steps that have a checkpoint.
      devices: such as "8 x TPU v5", or "".
      alive: a process is at work on it.
      unreadable: how many images of the training data could not be read so far.
      method: what the method of pretraining says of itself; None of other stages.
      chances: what each `loss` would be of an encoder that has learned nothing, if that is known.
      floor: what the loss would be of one that has learned all; None: that is not known.
    """

    path: epath.Path
    at: int | None
    name: str
    recipe: Mapping[str, Any]
    curves: Mapping[str, Curve]
    results: list[dict[str, Any]]
    outputs: Mapping[str, Mapping[str, np.ndarray]]
    damaged: Sequence[str]
    summary: dict[str, Any] | None
    views: bytes | None
    saved: list[int]
    devices: str
    alive: bool
    unreadable: int
    method: Declaration | None = None
    chances: np.ndarray | None = None
    floor: float | None = None

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
        return round(int(epochs.steps[-1]) * batch / epochs.last)

    @property
    def total_steps(self) -> int:
        """Return the length of the run, 0 where it is not known yet."""
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
    path, at = _parse(run)
    if not path.is_dir():
        raise UserError(f"{flag}={run} is no directory: give the workdir of a run")
    curves, saved = _curves(path / "metrics.jsonl"), _saved(path)
    if not curves and not saved:
        raise UserError(
            f"{flag}={run} holds no run: there is neither a metrics.jsonl with numbers in it nor a "
            "checkpoint"
        )
    if at is not None and at not in saved:
        steps = ", ".join(map(str, saved)) or "none"
        raise UserError(f"{flag}={run} has no checkpoint of step {at}: steps there: {steps}")
    config = files.read_json(path / "config.json") if (path / "config.json").exists() else {}
    found, outputs, damaged = _results(path)
    method = _method(config)
    views = path / "views.png"
    return Record(
        path=path,
        at=at,
        name=path.name,
        recipe=flatten({name: v for name, v in config.items() if name not in NOT_RECIPE}),
        curves=curves,
        results=found,
        outputs=outputs,
        damaged=damaged,
        summary=_summary(path / "results" / results.SUMMARY),
        views=views.read_bytes() if views.exists() else None,
        saved=saved,
        devices=_devices(path / "log.txt"),
        alive=_alive(path / "lock.json"),
        unreadable=_unreadable(path),
        method=method,
        chances=_chances(config, method, curves.get("loss")),
        floor=_floor(config, method),
    )


def _chances(
    config: Mapping[str, Any], method: Declaration | None, loss: Curve | None
) -> np.ndarray | None:
    """Return the loss of an encoder that has learned nothing for each line of metrics, `[n]`.

    A line has the mean over the steps since the line before. Stages with labels write their chance
    into `config.json`, for their labels decide it.
    """
    if loss is None or not len(loss.steps):
        return None
    value: Any = config.get("chance")
    if method is not None:
        recipe = recipes.of_record(config)
        value = method.chance(recipe)
        if method.chance_at is not None and value is not None:
            ends = np.concatenate([[0.0], loss.steps])
            begins = np.minimum(ends[:-1], np.maximum(ends[1:] - 1, 0))
            share = (np.arange(WINDOW) + 0.5) / WINDOW
            steps = np.floor(begins[:, None] + (ends[1:] - begins)[:, None] * share)
            found = method.chance_at(recipe, steps.reshape(-1))
            return found.reshape(steps.shape).mean(axis=1)
    if not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return np.full(len(loss.steps), float(value))


def _floor(config: Mapping[str, Any], method: Declaration | None) -> float | None:
    if method is not None:
        return method.floor(recipes.of_record(config))
    # A student can come no nearer to its teacher than the teacher is sure, which is not known here.
    return None if config.get("stage") == "distill" else 0.0


def _method(config: Mapping[str, Any]) -> Declaration | None:
    """Return what the method of a run says of itself, if the run is pretraining."""
    if config.get("stage", "pretrain") != "pretrain" or "train" not in config:
        return None
    return declaration.find(config.get("method", declaration.DEFAULT))


def named(records: list[Record]) -> list[Record]:
    """Give runs of one name their whole paths, so that every name on the page is another.

    Raises:
      UserError: if one of them is there twice.
    """
    if len({record.name for record in records}) == len(records):
        return records
    longer = []
    for record in records:
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


def _parse(run: str) -> tuple[epath.Path, int | None]:
    workdir, _, at = run.rpartition("@")
    if not at.isdecimal():  # the directory itself may have an @ in its name
        workdir, at = run, ""
    return epath.Path(workdir).expanduser(), int(at) if at else None


def _curves(path: epath.Path) -> dict[str, Curve]:
    """Read metrics; a last line without its end is being written."""
    if not path.exists():
        return {}
    found: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"line {number} of {path} is no line of metrics ({error}): restore or remove it"
            ) from error
        for name, value in values.items():
            found.setdefault(name, []).append((step, np.nan if value is None else float(value)))
    return {
        name: Curve(*(np.array(column, float) for column in zip(*points, strict=True)))
        for name, points in found.items()
    }


def _saved(path: epath.Path) -> list[int]:
    directory = path / "checkpoints"
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


def _results(path: epath.Path) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Return results, the newest last, their arrays by name, and why some are left out."""
    found: list[dict[str, Any]] = []
    outputs: dict[str, Any] = {}
    damaged: list[str] = []
    for file in sorted(results.paths(path), key=lambda file: file.stat().mtime):
        try:
            found.append(results.read(file))
            if (path / "results" / f"{file.stem}.npz").exists():
                outputs[file.stem] = results.read_arrays(path, file.stem)
        except UserError as error:  # the rest of the run stands
            damaged.append(f"{error}.")
    return found, outputs, damaged


def _summary(path: epath.Path) -> dict[str, Any] | None:
    return files.read_json(path) if path.exists() else None


def _devices(log: epath.Path) -> str:
    """Return what the newest line of the log about devices says."""
    found = re.findall(r"  devices +(.+), computing in ", log.read_text()) if log.exists() else []
    return found[-1] if found else ""


def _alive(lock: epath.Path) -> bool:
    try:
        heartbeat = files.read_json(lock).get("heartbeat", 0)
    except (FileNotFoundError, UserError, AttributeError):
        return False
    return time.time() - float(heartbeat) < BEATING


def _unreadable(workdir: epath.Path) -> int:
    """Count the images in the lists of all processes, of which several may have met the same."""
    lists = [path.read_text() for path in workdir.glob("unreadable_train*.jsonl")]
    # What follows the last line's end is half a line of a run at work, or killed.
    lines = [line for text in lists for line in text.rpartition("\n")[0].splitlines()]
    return len({json.loads(line)["image"] for line in lines})
