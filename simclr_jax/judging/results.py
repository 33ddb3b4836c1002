"""Results of evaluations as files: what was measured, and everything that decides the number.

RUN/results/NAME.json   settings, what was chosen, scores with intervals, versions
RUN/results/NAME.npz    `labels`, `predictions` or `scores`, and `examples`, of each test image
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from etils import epath

from simclr_jax import archives, files
from simclr_jax.errors import UserError

PACKAGES = ("simclr-jax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "pillow")
# They decode or resize images, where they are installed.
OPTIONAL = ("opencv-python-headless", "simplejpeg", "tensorflow-datasets", "tensorflow")
NAME = re.compile(r"[\w.+-]+")
SUMMARY = "summary.json"  # what the end of pretraining writes beside the results


def write(workdir: epath.PathLike, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Write a result under its `name`, in place of an older one, and return the JSON file's path.

    Args:
      workdir: of the run that was judged.
      result: `name`, `solver`, `tap`, `checkpoint`, `data`, `protocol`, `scores` and `seed`.
      arrays: `labels`, `examples`, and `predictions` `[m]` or `scores` `[m, classes]`.

    Raises:
      UserError: if the directory cannot be written.
    """
    assert NAME.fullmatch(result["name"]), result["name"]
    directory = epath.Path(workdir) / "results"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = directory / f"{result['name']}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_atomically(directory / f"{result['name']}.npz", buffer.getvalue())
        files.write_json(path, {**result, "versions": versions()})
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


def read(path: epath.Path) -> dict[str, Any]:
    """Return the content of a result's JSON file.

    Raises:
      UserError: if it is not JSON, or not what `write` writes.
    """
    found = files.read_json(path)
    scores = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(scores, dict) or not all(isinstance(s, dict) for s in scores.values()):
        raise UserError(f"{os.fspath(path)} has no scores: restore or remove it")
    if found.get("name") != path.stem:
        raise UserError(
            f'{os.fspath(path)} is the result "{found.get("name")}" under another name: name the '
            "file as it was"
        )
    return found


def read_arrays(workdir: epath.PathLike, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a result.

    Raises:
      UserError: if their file is missing or damaged.
    """
    path = epath.Path(workdir) / "results" / f"{name}.npz"
    try:
        return archives.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{os.fspath(path)} is not there: restore it") from error


def versions() -> dict[str, str]:
    """Return what decides a number beside settings: versions and the kind of device."""
    found = {"python": platform.python_version()}
    found |= {package: metadata.version(package) for package in PACKAGES}
    for package in OPTIONAL:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found | {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}
