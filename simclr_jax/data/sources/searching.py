"""Finds the image files below a directory, at any depth, and counts what it leaves aside.

Hidden files and directories are skipped, links are followed, a file's suffix makes it an image.
Each directory is entered once, whatever number of paths lead to it: by the one without links where
there is one, else by the first in sorted order, so that it does not depend on the disk's.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from simclr_jax import documents, processes
from simclr_jax.data import gone

DEEPEST = 128  # directories below one another; what lies deeper is not entered
EVERY_SECS = 3.0  # between lines about a search under way
LOOKS = 8192  # entries between two looks at the clock
ABOVE = ".."  # stands for a directory that holds the one searched

HIDDEN, NO_SUFFIX, NOWHERE, NO_FILE = "hidden", "without a suffix", "links to nothing", "no files"


def tell(line: str) -> None:
    """Print a line of the first process, where a run has no console yet."""
    if processes.rank() == 0:
        print(line, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies below a directory.

    Attributes:
      images: paths of the image files below it, sorted.
      others: how many files are not read, by kind: `*.heic`, `HIDDEN`, ...
      again: paths by which directories were not entered, and those by which they were.
      deep: directories that lie too deep and were not entered.
    """

    images: list[str]
    others: Mapping[str, int]
    again: Mapping[str, str]
    deep: tuple[str, ...]

    def notes(self) -> list[str]:
        """Return what a user should know of all that is no image here, or was not entered."""
        found = []
        if self.others:
            count = sum(self.others.values())
            found.append(f"not read: {count} file{'s' * (count != 1)}, {kinds(self.others)}")
        if self.again:
            path, first = next(iter(self.again.items()))
            is_what = "above it" if first == ABOVE else documents.shown(first or ".")
            found.append(
                f"counted once: {_directories(len(self.again))} that links reach again, such as "
                f"{documents.shown(path)}, which is {is_what}"
            )
        if self.deep:
            found.append(
                f"not entered: {_directories(len(self.deep))} deeper than {DEEPEST} others, such "
                f"as {documents.shown(self.deep[0][:200])}"
            )
        return found


def kinds(others: Mapping[str, int], most: int = 5) -> str:
    """Return how many files there are of each kind, the most frequent first."""
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {documents.shown(kind[:40])}" for kind, count in ordered[:most]]
    rest = sum(count for _, count in ordered[most:])
    return ", ".join([*shown, *([f"{rest} of other kinds"] if rest else [])])


def _directories(count: int) -> str:
    return f"{count} director{'y' if count == 1 else 'ies'}"


def search(root: Path, suffixes: Collection[str], say: Callable[[str], object] = tell) -> Found:
    """Return all image files below `root`, and what else is there.

    Args:
      root: a directory.
      suffixes: of images, in lower case, without the dot.
      say: told every few seconds how many images there are so far.

    Raises:
      UserError: if one of its directories cannot be listed.
    """
    walk = _Walk(root, suffixes, say)
    paths = [""]
    while paths:
        for path in sorted(paths):
            walk.enter(path)
        paths, walk.links = walk.links, []
    again = {path.rstrip("/"): first.rstrip("/") for path, first in sorted(walk.again.items())}
    deep = tuple(sorted(path.rstrip("/") for path in walk.deep))
    return Found(sorted(walk.images), walk.others, again, deep)


class _Walk:
    """One search; directories are named by their paths below the root, with a slash at the end."""

    def __init__(self, root: Path, suffixes: Collection[str], say: Callable[[str], object]):
        self._root, self._suffixes, self._say = root, frozenset(suffixes), say
        self.images: list[str] = []
        self.others = Counter[str]()
        self.links: list[str] = []  # to directories, yet to be entered
        self.again: dict[str, str] = {}
        self.deep: list[str] = []
        # A link to a directory that holds the root would have us search a whole disk.
        above = Path(os.path.realpath(root)).parents
        self._entered = {_identity(directory): ABOVE for directory in above}
        self._above = len(self._entered)
        self._said = time.monotonic()

    def enter(self, path: str) -> None:
        """Search a directory and those in it; links to others wait in `links`."""
        todo = [path]
        while todo:
            here = todo.pop()
            identity = _identity(self._root / here)
            if identity in self._entered:
                self.again[here] = self._entered[identity]
            elif here.count("/") > DEEPEST:
                self.deep.append(here)
            else:
                self._entered[identity] = here
                todo += sorted(self._look(here), reverse=True)

    def _look(self, prefix: str) -> list[str]:
        """Note what a directory holds; return the directories in it that are no links."""
        directories, images, suffixes = [], self.images, self._suffixes
        for number, entry in enumerate(_entries(self._root / prefix)):
            if not number % LOOKS:
                self._progress()
            name = entry.name
            _, dot, suffix = name.rpartition(".")
            is_image = bool(dot) and suffix.lower() in suffixes
            if name.startswith("."):
                if is_image or entry.is_dir(follow_symlinks=False):
                    self.others[HIDDEN] += 1
            elif is_image and entry.is_file(follow_symlinks=False):  # which asks the disk nothing
                images.append(prefix + name)
            elif entry.is_dir(follow_symlinks=False):
                directories.append(f"{prefix}{name}/")
            elif _leads_to_directory(entry):
                self.links.append(f"{prefix}{name}/")
            elif is_image and _leads_to_file_or_nothing(entry):
                images.append(prefix + name)
            else:
                self.others[_kind(entry, suffix.lower() if dot else "")] += 1
        return directories

    def _progress(self) -> None:
        if time.monotonic() - self._said >= EVERY_SECS:
            self._said = time.monotonic()
            directories = len(self._entered) - self._above
            self._say(
                f"searching {documents.shown(self._root)}: {len(self.images)} images in "
                f"{directories} directories so far"
            )


def _identity(directory: Path) -> tuple[int, int]:
    try:
        status = directory.stat()
    except OSError as error:
        raise gone.trouble(directory, "cannot be read", error) from error
    return status.st_dev, status.st_ino


def _entries(directory: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except OSError as error:
        raise gone.trouble(directory, "cannot be listed", error) from error


def _leads_to_directory(entry: os.DirEntry) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link that leads in a circle, or to where one may not look
        return False


def _leads_to_file_or_nothing(entry: os.DirEntry) -> bool:
    """Tell links to files from pipes and devices; a broken one counts, so that reading names it."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def _kind(entry: os.DirEntry, suffix: str) -> str:
    """Return what a file that is no image is counted as."""
    try:
        if entry.is_file():
            return f"*.{suffix}" if suffix else NO_SUFFIX
        return NOWHERE if entry.is_symlink() and not Path(entry.path).exists() else NO_FILE
    except OSError:
        return NOWHERE


def by_directory(images: Iterable[str]) -> dict[str, int]:
    """Return how many images lie in each directory right below; beside the directories: ""."""
    return Counter(path.partition("/")[0] if "/" in path else "" for path in images)
