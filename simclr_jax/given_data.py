"""Which images `--data` means: a directory, an archive, or a data set by its name."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from simclr_jax.errors import UserError

KINDS = (
    "DIRECTORY (splits:DIRECTORY or classes:DIRECTORY where its subdirectories may be either), "
    "FILE.npz, tfds:NAME or digits"
)
LAYOUTS = ("splits", "classes")  # what may stand before a directory
FIELDS = ("source", "name", "path", "layout")  # of `config.data`, that it decides
# The recipe for each kind, where a user names none.
RECIPES = {"folder": "folder", "memory": "memory", "digits": "digits"}


def layout_of(data: str) -> tuple[str, str]:
    """Return the layout that `--data` asks for and the path, as in `classes:DIRECTORY`."""
    kind, colon, rest = data.partition(":")
    if colon and kind in LAYOUTS:
        return kind, rest
    return "auto", data


def fields(data: str, flag: str = "--data") -> dict[str, Any]:
    """Return the fields of `config.data` that differ from their defaults.

    Args:
      data: the images.
      flag: by which they were named.

    Raises:
      UserError: if it is nothing of `KINDS`.
    """
    kind, colon, rest = data.partition(":")
    if data == "digits" or kind == "digits":
        return {"source": "digits", "name": rest or "placed"}
    if kind == "tfds" and colon:
        return {"source": "tfds", "name": rest}
    layout, directory = layout_of(data)
    path = Path(directory).expanduser()
    if layout != "auto" or _is_directory(path):
        return {"source": "folder", "path": directory, "layout": layout}
    if path.suffix == ".npz":
        return {"source": "memory", "path": data}
    raise UserError(f"{flag}={data} is no directory: give {KINDS}")


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no directory can have this name
        return False


def recipe(data: str) -> str:
    """Return the name of the recipe that trains on such images.

    Raises:
      UserError: if it is nothing of `KINDS`, or no recipe is for it alone.
    """
    source = fields(data)["source"]
    if source not in RECIPES:
        raise UserError(f"--data={data} has no recipe of its own: give one by --config")
    return RECIPES[source]


def put(config: ConfigDict, data: str, given: Container[str] = ()) -> None:
    """Let a recipe train on these images, whatever it names itself; its splits stay.

    Args:
      config: the recipe.
      data: the images.
      given: names of fields that the user has set.

    Raises:
      UserError: if it is nothing of `KINDS`, the recipe is one of several runs, or fields were
        given that say another thing.
    """
    for field in FIELDS:
        if f"data.{field}" in given:
            raise UserError(f"--data and --config.data.{field} are given: leave one out")
    if "data" not in config:
        raise UserError(
            f"--data={data} is for one run, and the recipe has several: set config.data of each"
        )
    config.data.update({"name": "", "path": "", "layout": "auto"} | fields(data))
