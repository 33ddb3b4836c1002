"""Which image files a data set has; a run keeps its own list, so that others leave its order alone.

`index.json` in a workdir is a sealed document (`documents.py`): of each split its directory, how
many images it has and, if the run uses it, their names by directory and their sizes and times.
Versions before it had names alone, and no seal.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec
import numpy as np
from etils import epath

from simclr_jax import documents
from simclr_jax.data import gone
from simclr_jax.data.sources.changes import NONE, as_text, changed_files, look_at, of_text
from simclr_jax.data.sources.searching import Found
from simclr_jax.errors import UserError

FILE = "index.json"
FORMAT = 2
LARGEST = 2**32  # bytes of it, of which an image takes about 32
# Of more images than these, only so many are looked at when a run is resumed, evenly spread.
ALL_LOOKED_AT, SOME_LOOKED_AT = 200_000, 20_000


class _Part(TypedDict):
    directory: str
    files: dict[str, list[str]] | None
    images: NotRequired[int]
    marks: NotRequired[str]


class _Kept(TypedDict):
    format: int
    splits: dict[str, _Part]
    notes: list[str]


@dataclasses.dataclass
class Index:
    """Which image files a data set has.

    Attributes:
      path: the data set's directory.
      roots: of each split, the directory below `path` (itself: "").
      search: finds all images below `path`.
      counts: images of each split, as far as they are known.
      notes: sentences about what is no image of any split.
      listed: of each split that was asked for, the files below its root, sorted.
      marks: of those, sizes and times when the run began, as `changes.look_at` gives them.
    """

    path: Path
    roots: dict[str, str]
    search: Callable[[], Found]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    listed: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    marks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def files(self, split: str) -> list[str]:
        """Return the files of a split, below its root.

        Raises:
          UserError: if it has no images, or one of its directories cannot be listed.
        """
        if split not in self.listed:
            root = self.roots[split]
            start = f"{root}/" if root else ""
            images = self.search().images
            self.listed[split] = [p[len(start) :] for p in images if p.startswith(start)]
            if not self.listed[split]:
                raise UserError(f"{self.path / root} has no images any more: name another split")
        return self.listed[split]

    def changes(self, split: str, thorough: bool) -> str:
        """Say which files of a split are not those that the run began with; "" if all are.

        Args:
          split: its name.
          thorough: look at each file, however many there are.

        Raises:
          Unreachable: if the first that is not there any more is on a disk that is gone.
        """
        if split not in self.marks:
            return ""
        paths, before, root = self.listed[split], self.marks[split], self.path / self.roots[split]
        total = len(paths)
        if total > ALL_LOOKED_AT and not thorough:
            rows = np.linspace(0, total - 1, SOME_LOOKED_AT).astype(int)
            paths, before = [paths[row] for row in rows], before[rows]
        now = look_at(root, paths)
        lost = np.flatnonzero((now == NONE).all(1) & (before != NONE).any(1))
        if len(lost):
            first = paths[lost[0]]
            if gone.is_gone(root, first) or gone.leads_off(root / first):
                raise gone.unreachable(root, first)
        return changed_files(documents.shown(root), paths, before, now, total)

    def leads_off(self, split: str, path: str) -> bool:
        """Tell whether an image that was there when the run began is on a disk that is gone.

        False where nobody knows whether it was there: outside a run.
        """
        if split not in self.marks:
            return False
        row = bisect.bisect_left(self.listed[split], path)
        was_there = bool((self.marks[split][row] != NONE).any())
        return was_there and gone.leads_off(self.path / self.roots[split] / path)

    def write(self, kept: epath.Path) -> None:
        """Write the lists of all splits opened so far, with sizes and times, to a directory."""
        splits: dict[str, Any] = {}
        for split, root in self.roots.items():
            part: dict[str, Any] = {"directory": root, "files": None}
            if split in self.counts:
                part["images"] = self.counts[split]
            if (paths := self.listed.get(split)) is not None:
                self.marks[split] = look_at(self.path / root, paths)
                part |= {"files": _grouped(paths), "marks": as_text(self.marks[split])}
            splits[split] = part
        content = {"format": FORMAT, "splits": splits, "notes": [*self.notes]}
        documents.write(kept / FILE, content, indent=None)


def read_index(kept: epath.Path, path: Path, search: Callable[[], Found]) -> Index:
    """Return the index of a run, for images that lie below `path`.

    Raises:
      FileNotFoundError: if there is none.
      UserError: if it is damaged.
    """
    remedy = (
        f"restore it, or remove it to list the images of {path} anew, which changes their order if "
        "files were added or removed"
    )
    content = documents.read(kept / FILE, dict[str, Any], remedy, LARGEST)
    try:
        if "format" not in content or not isinstance(content["format"], int):
            content = {"format": 1, "splits": content, "notes": []}
        return _index(msgspec.convert(content, _Kept), path, search)
    except (msgspec.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{documents.shown(kept / FILE)} cannot be used ({reason}): {remedy}"
        ) from error


def _index(content: _Kept, path: Path, search: Callable[[], Found]) -> Index:
    parts = content["splits"]
    if not parts:
        raise ValueError("it has no splits")
    found = Index(path, {s: part["directory"] for s, part in parts.items()}, search)
    found.notes = tuple(content["notes"])
    for split, part in parts.items():
        if not _is_below(part["directory"]):
            raise ValueError(f"{part['directory']} is not below {path}")
        if "images" in part:
            found.counts[split] = part["images"]
        if part["files"] is not None:
            found.listed[split] = _flat(part["files"])
            found.counts[split] = len(found.listed[split])
        if "marks" in part:
            found.marks[split] = of_text(part["marks"], len(found.listed.get(split, ())))
    return found


def _grouped(paths: list[str]) -> dict[str, list[str]]:
    """Group paths by directory, which halves the file."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        directory, _, name = path.rpartition("/")
        groups.setdefault(directory, []).append(name)
    return groups


def _flat(groups: Mapping[str, list[str]]) -> list[str]:
    """Return the paths that were grouped, sorted; `ValueError` if one leads out of the data set."""
    for directory, names in groups.items():
        if not _is_below(directory) or not {"", ".", ".."}.isdisjoint(names):
            raise ValueError(f"{directory} is no directory below it")
        if any("/" in name or "\0" in name for name in names):
            raise ValueError(f"{directory} has names with a slash")
    return sorted(
        f"{directory}/{name}" if directory else name
        for directory, names in groups.items()
        for name in names
    )


def _is_below(directory: str) -> bool:
    return (
        "\0" not in directory
        and not directory.startswith("/")
        and (".." not in directory.split("/"))
    )
