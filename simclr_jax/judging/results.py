"""Results of evaluations as files: what was measured, and everything that decides the number.

RUN/results/NAME.json   settings, what was chosen, scores with intervals, versions
RUN/results/NAME.npz    `labels`, `predictions` or `scores`, and `examples`, of each test image

The first has a checksum of itself and one of the second, so that neither is read altered, or beside
another's. Results of versions without them are held to their shapes alone.
"""

from __future__ import annotations

import contextlib
import io
import platform
import re
import zlib
from collections.abc import Mapping
from importlib import metadata
from typing import Annotated, Any, NotRequired, TypedDict

import jax
import msgspec
import numpy as np
from etils import epath

from simclr_jax import archives, documents, files
from simclr_jax.documents import Unfit
from simclr_jax.errors import BadFile, UserError
from simclr_jax.train import manifest, stored
from simclr_jax.train.manifest import Damaged

PACKAGES = ("simclr-jax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "pillow")
# They decode or resize images, where they are installed.
OPTIONAL = ("opencv-python-headless", "simplejpeg", "tensorflow-datasets", "tensorflow")
NAME = re.compile(r"[\w.+-]+")
SUMMARY = "summary.json"  # what the end of pretraining writes beside the results
REMEDY = "restore or remove it"

# Fractions, null where there is no number; far beyond what any score can be is damage.
Fraction = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] | None


class Score(TypedDict):
    """A score and the ends of its interval; `accuracy` is what a summary calls the value."""

    value: NotRequired[Fraction]
    accuracy: NotRequired[Fraction]
    low: NotRequired[Fraction]
    high: NotRequired[Fraction]


class Weights(TypedDict):
    """Which weights were judged; the checksum is `Encoder.fingerprint`."""

    run: NotRequired[str]
    step: NotRequired[int]
    weights: NotRequired[str]


class Split(TypedDict):
    """Which images had a part in it."""

    split: NotRequired[str]
    fingerprint: NotRequired[str]
    images: NotRequired[int]


class Judged(TypedDict):
    """The data set, and its splits by what they were for."""

    name: NotRequired[str]
    classes: NotRequired[int]
    class_names: NotRequired[list[str]]
    fit: NotRequired[Split]
    validation: NotRequired[Split]
    test: NotRequired[Split]


class Level(TypedDict):
    """The scores of guessing, and by what was guessed."""

    of: str
    scores: dict[str, Score]


class Result(TypedDict):
    """The content of NAME.json; there may be more than this."""

    name: str
    scores: dict[str, Score]
    solver: NotRequired[str]
    variant: NotRequired[str]
    tap: NotRequired[str]
    checkpoint: NotRequired[Weights]
    data: NotRequired[Judged]
    protocol: NotRequired[dict[str, Any]]
    metric: NotRequired[str]
    published: NotRequired[dict[str, Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]]]
    notes: NotRequired[list[str]]
    seed: NotRequired[int]
    level: NotRequired[Level]
    versions: NotRequired[dict[str, str]]
    arrays: NotRequired[str]


class Summary(TypedDict):
    """The content of `SUMMARY`: what was compared, each thing's scores by name.

    `weights` of the checkpoint is `manifest.identity`; `minutes` is what the run took.
    """

    scores: dict[str, dict[str, Score]]
    protocol: NotRequired[dict[str, Any]]
    checkpoint: NotRequired[Weights]
    minutes: NotRequired[float | None]


def write(workdir: epath.PathLike, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Write a result under its `name`, in place of an older one, and return the JSON file's path.

    Args:
      workdir: of the run that was judged.
      result: `name`, `solver`, `variant` (which names its settings too), `tap`, `checkpoint`,
        `data`, `protocol`, `scores` and `seed`.
      arrays: `labels`, `examples`, and `predictions` `[m]` or `scores` `[m, classes]`.

    Raises:
      UserError: if the directory cannot be written.
    """
    assert NAME.fullmatch(result["name"]), result["name"]
    directory = epath.Path(workdir) / "results"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path, whole = directory / f"{result['name']}.json", buffer.getvalue()
    about = {**result, "versions": versions(), "arrays": _checksum(whole)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_atomically(directory / f"{result['name']}.npz", whole)
        documents.write(path, about)
    except OSError as error:
        raise UserError(
            f"results cannot be written to {directory} ({error.strerror or error}): "
            "free space and rights there"
        ) from error
    return str(path)


def paths(workdir: epath.PathLike) -> list[epath.Path]:
    """Return the JSON files of a run's results, by name; SUMMARY is another kind of file."""
    found = (epath.Path(workdir) / "results").glob("*.json")
    return sorted(path for path in found if path.name != SUMMARY)


def without_result(workdir: epath.PathLike) -> list[epath.Path]:
    """Return the files of arrays whose result is not there any more, by name."""
    found = (epath.Path(workdir) / "results").glob("*.npz")
    there = {path.stem for path in paths(workdir)}
    return sorted(path for path in found if path.stem not in there)


def read(path: epath.Path) -> dict[str, Any]:
    """Return the content of a result's JSON file, all of it: at least what `Result` says.

    Raises:
      FileNotFoundError: if there is none.
      UserError: if it cannot be read, was altered, or is not what `write` writes.
    """
    found = _read(path, Result)
    if found["name"] != path.stem:
        raise BadFile(
            f'{documents.shown(path)} is the result "{found["name"]}" under another name: name the '
            "file as it was"
        )
    return found


def read_summary(workdir: epath.PathLike) -> dict[str, Any]:
    """Return what the end of a run has compared: at least what `Summary` says.

    Raises:
      FileNotFoundError: if there is none.
      UserError: if it cannot be read, was altered, is no summary, or is that of other weights than
        the checkpoint of its step.
    """
    path = epath.Path(workdir) / "results" / SUMMARY
    found = _read(path, Summary)
    about = found.get("checkpoint", {})  # of a run that is not too old for it
    step, weights, newest = about.get("step"), about.get("weights"), stored.newest_saved(workdir)
    if step is None or weights is None:
        return found
    why = f"it is of step {step}, and step {newest} was saved" if newest not in (0, step) else ""
    with contextlib.suppress(Damaged):  # who reads that checkpoint will say so
        if weights != manifest.identity(epath.Path(workdir) / stored.CHECKPOINTS / str(step), step):
            why = f"it is of other weights than the checkpoint of step {step}"
    if why:
        raise BadFile(
            f"{documents.shown(path)} cannot be used ({why}): put back the one that belongs to the "
            "run, or remove it and give the command of the run again"
        )
    return found


def _read(path: epath.Path, schema: Any) -> dict[str, Any]:
    documents.read(path, schema, REMEDY)
    return documents.read(path, dict[str, Any], REMEDY)  # with what the schema does not know


def read_arrays(workdir: epath.PathLike, result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a result that `read` gave.

    Raises:
      FileNotFoundError: if there are none.
      UserError: if their file is damaged, or that of another result.
    """
    path = epath.Path(workdir) / "results" / f"{result['name']}.npz"
    found = archives.read(path, remedy=REMEDY)
    try:
        if result.get("arrays", "") not in ("", _checksum(documents.content(path, REMEDY))):
            raise Unfit("it is not the one that was written with the result")
        _check(found)
    except Unfit as error:
        raise BadFile(f"{documents.shown(path)} cannot be used ({error}): {REMEDY}") from error
    return found


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `Unfit` unless arrays are of the kinds, lengths and ranges of a result's."""
    kinds = {"labels": "iu", "examples": "iu", "predictions": "iu", "scores": "f"}
    dimensions = {"labels": (1, 2), "scores": (2,)}
    found = {name: array for name, array in arrays.items() if name in kinds}
    for name, array in found.items():
        if array.dtype.kind not in kinds[name] or array.ndim not in dimensions.get(name, (1,)):
            raise Unfit(f"{name} is {array.dtype}{list(array.shape)}")
        least = -1 if array.ndim == 2 else 0  # -1: a class is ignored
        if array.dtype.kind in "iu" and array.size and array.min() < least:
            raise Unfit(f"{name} has {array.min()}")
    if len({len(array) for array in found.values()}) > 1:
        raise Unfit("its arrays have different lengths")
    if {"labels", "scores"} <= found.keys():
        labels, classes = found["labels"], found["scores"].shape[1]
        told = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=-1)) + 1
        if told > classes or (labels.ndim == 2 and told < classes):
            raise Unfit(f"labels are of {told} classes, and scores of {classes}")


def _checksum(content: bytes) -> str:
    return f"crc32 {zlib.crc32(content):08x}"


def versions() -> dict[str, str]:
    """Return what decides a number beside settings: versions and the kind of device."""
    found = {"python": platform.python_version()}
    found |= {package: metadata.version(package) for package in PACKAGES}
    for package in OPTIONAL:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found | {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}
