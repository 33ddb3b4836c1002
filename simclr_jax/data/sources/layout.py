"""Which directories of a data set are splits, and which are classes: never guessed from one name.

    PATH/train/cats/1.jpg  PATH/test/dogs/2.png     all are named like splits: train and test
    PATH/cats/1.jpg  PATH/dogs/a/b/2.png            none is: one split, classes cats and dogs
    PATH/train/1.jpg  PATH/test/2.jpg  PATH/more/   two are: splits; what lies beside is named
    PATH/train/1.jpg  PATH/plane/2.jpg              one is: a user must say

Directories without images count for nothing. `data.layout` says "splits" or "classes" outright.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from simclr_jax.documents import shown
from simclr_jax.errors import UserError

SPLITS = ("train", "test", "val", "validation", "valid")
DEFAULTS = {"split": "train", "eval_split": "test"}  # a recipe that names others means them


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the splits of a data set are.

    Attributes:
      roots: of each split, the directory (of all there is: "").
      beside: images in no split, by the directory they lie in (in none: "").
    """

    roots: dict[str, str]
    beside: dict[str, int] = dataclasses.field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return what a user should know of images that are in no split."""
        if not self.beside:
            return []
        named = next(iter(sorted(filter(None, self.beside))), "")
        hint = f": data.split={shown(named)} would name one" if named else ""
        return [f"not used: {listed(self.beside)}, which are no splits{hint}"]


def choose_layout(data: ConfigDict, path: Path, counts: Mapping[str, int]) -> Layout:
    """Return the layout of a data set.

    Args:
      data: `config.data`.
      path: its directory.
      counts: images in each directory right below; beside the directories: "".

    Raises:
      UserError: if it may be either, or is not what `data.layout` says.
    """
    names = sorted(filter(None, counts))
    whole = Layout({data.split: ""})
    if data.layout == "classes":
        return whole
    roots = _named(data, path, names)
    if data.layout == "splits":
        if not names:
            raise UserError(
                f'data.layout is "splits", but {path} has no directory with images: set '
                "data.layout=classes"
            )
        roots |= {name: name for name in names if name not in roots.values()}
    beside = {name: count for name, count in counts.items() if name not in roots.values()}
    if not roots:
        return whole
    if beside and len(roots) == 1 and data.layout == "auto" and not _is_meant(data, *roots):
        (name,) = roots.values()
        raise UserError(
            f"{path} has {listed({name: counts[name]})} beside {listed(beside)}: set "
            f"data.layout=splits if {shown(name)} is a split, data.layout=classes if it is a class "
            f"(--data=splits:{path} or --data=classes:{path})"
        )
    return Layout(dict(sorted(roots.items(), key=lambda item: item[1])), beside)


def listed(counts: Mapping[str, int], most: int = 5) -> str:
    """Say how many images there are in each of some directories."""
    names = sorted(counts, key=lambda name: (not name, name))
    words = [
        f"{shown(name)} ({images(counts[name])})" if name else f"{images(counts[name])} in none"
        for name in names[:most]
    ]
    if rest := names[most:]:
        total = sum(counts[name] for name in rest)
        words.append(f"{len(rest)} more directories ({images(total)})")
    return " and ".join(words) if len(words) < 3 else ", ".join(words)


def images(count: int) -> str:
    """Say how many images there are."""
    return f"{count} image{'s' * (count != 1)}"


def _named(data: ConfigDict, path: Path, names: list[str]) -> dict[str, str]:
    """Return the directories that are named like splits, by the split's name.

    In any case, if a single one is named so; else by the exact name.
    """
    wanted = {name.lower(): name for name in (*SPLITS, data.eval_split, data.split)}
    found = {}
    for lower, split in wanted.items():
        alike = [name for name in names if name.lower() == lower]
        if split in alike:
            found[split] = split
        elif len(alike) > 1:
            raise UserError(
                f"{path} has {' and '.join(map(shown, alike))}, any of which may be the split "
                f"{split}: rename all but one, or name it exactly, as in data.split={alike[0]}"
            )
        elif alike:
            found[split] = alike[0]
    return found


def _is_meant(data: ConfigDict, split: str) -> bool:
    """Tell whether a recipe names a split of its own accord."""
    return any(data[field] == split != default for field, default in DEFAULTS.items())
