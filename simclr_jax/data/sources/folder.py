"""A directory of image files, at any depth, with a class per subdirectory if there are several.

    PATH/cats/1.jpg  PATH/dogs/a/b/2.png                    one split, classes cats and dogs
    PATH/train/cats/1.jpg  PATH/test/dogs/2.png             the splits train and test
    PATH/1.jpg  PATH/trip/2.webp                            one split without labels

Hidden files and directories are skipped, links are followed, a file's suffix makes it an image.
What was found is an index: a run keeps its own, so that files added later leave its order alone.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files
from simclr_jax.data import decode
from simclr_jax.data.decode import BadImage, Decoder, Rules
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.unlabelled import NO_LABEL

SUFFIXES = decode.suffixes()
SPLITS = ("train", "test", "val", "validation", "valid")
INDEX = "index.json"
# What the system says of a file that is at fault itself. After anything else the next is no better.
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM} | {
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENXIO,
    errno.EFBIG,
}


@dataclasses.dataclass
class Index:
    """Which image files a data set has.

    Attributes:
      path: the data set's directory.
      roots: of each split, the directory below `path` (itself: "").
      listed: of each split that was asked for, the files below its root, sorted.
    """

    path: Path
    roots: dict[str, str]
    listed: dict[str, list[str]]

    def files(self, split: str) -> list[str]:
        """Return the files of a split; the first time, search its directory.

        Raises:
          UserError: if it has no images, or one of its directories cannot be listed.
        """
        if split not in self.listed:
            self.listed[split] = _search(self.path / self.roots[split])
        return self.listed[split]


@dataclasses.dataclass(frozen=True)
class Folder:
    """One split of a directory of images.

    Attributes:
      index: of the whole data set.
      root: the split's directory.
      paths: the image files, relative to `root`.
      labels: int32 `[m]`, or None.
      class_names: by label; empty without labels.
      notes: sentences a user should read: why there are no labels, which classes have no images.
      decoder: of the files.
    """

    index: Index
    root: Path
    paths: list[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    channels: int = 3
    multi_label: bool = False
    decoder: Decoder = dataclasses.field(default_factory=Decoder, compare=False)

    @property
    def classes(self) -> int:
        """Return the number of classes, 0 without labels."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """Return the number of images and a checksum of their names and labels."""
        check = zlib.crc32("\0".join(self.paths).encode(errors="surrogateescape"))
        if self.labels is not None:
            check = zlib.crc32(np.ascontiguousarray(self.labels).data, check)
        return f"{len(self)} files, crc32 {check:08x}"

    def name(self, example: int) -> str:
        """Return the path of an example below the split's directory, odd characters escaped."""
        return _printable(self.paths[example])

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Read and decode an image: uint8 `[h, w, 3]` and its label, or `NO_LABEL`.

        Raises:
          BadImage: if the file cannot be read or decoded.
        """
        label = NO_LABEL if self.labels is None else int(self.labels[example])
        encoded = _read(self.root / self.paths[example], self.decoder.rules)
        return self.decoder(encoded, functools.partial(self.name, example)), label

    def size(self, example: int) -> tuple[int, int]:
        """Return an image's height and width in pixels, reading only its header.

        Raises:
          BadImage: if the file cannot be read or begins like no image.
        """
        try:
            with (self.root / self.paths[example]).open("rb") as file:
                return decode.size(file, self.decoder.rules)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from error

    def take(self, rows: np.ndarray) -> Folder:
        """Return the split that holds only the examples `rows`, in that order."""
        paths = [self.paths[row] for row in rows]
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(self, paths=paths, labels=labels)

    def remember(self, kept: epath.Path) -> None:
        """Write the index of all splits opened so far to `kept`.

        Call it while the lock of a new run is held: `splits` reads it when the run is resumed.
        """
        kept.mkdir(parents=True, exist_ok=True)
        content = {
            split: {"directory": root, "files": _grouped(self.index.listed.get(split))}
            for split, root in self.index.roots.items()
        }
        files.write_atomically(kept / INDEX, json.dumps(content, separators=(",", ":")) + "\n")


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Callable[[], Folder]]:
    """Return the splits of the directory `data.path`, each searched when it is called.

    Subdirectories named train, test, val, validation or valid, or like `data.split` or
    `data.eval_split`, are the splits (in any case); without one the whole directory is
    `data.split`. With `data.labels` the directories right below the training split are the
    classes, sorted; a single one, or images beside them, mean that there are no labels.

    Args:
      data: `config.data`.
      kept: directory with the index of a run that is resumed, or None.

    Raises:
      UserError: if there is no such directory or split, or the kept index is damaged. When called,
        a split raises it if it has no images, or no label or an unknown class for one of them.
    """
    path = _directory(data)
    if kept is not None and (kept / INDEX).exists():
        index = _load(kept / INDEX, path)
    else:
        roots = _find_splits(path, (*SPLITS, data.eval_split, data.split))
        index = Index(path, roots or {data.split: ""}, {})
    if data.split not in index.roots:
        raise UserError(
            f'data.split is "{data.split}", but {path} has {", ".join(sorted(index.roots))}: '
            "name one of them, or give data.path another directory"
        )
    decoder = Decoder(Rules.of(data))
    return {split: functools.partial(_open, data, index, split, decoder) for split in index.roots}


def _directory(data: ConfigDict) -> Path:
    if data.name:
        raise UserError(f"data.name is {data.name}, but a folder has no variants: leave it out")
    if not data.path:
        raise UserError("data.path is empty: set data.path=DIRECTORY")
    if not files.is_local(data.path):
        raise UserError(f"data.path={data.path} is no local directory: mount or copy it")
    path = Path(data.path).expanduser()
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"data.path={data.path} does not exist") from None
    except OSError as error:  # a directory above it is closed to us, or the disk is gone
        raise UserError(f"data.path={data.path} cannot be read: {error.strerror}") from error
    if not is_directory:
        raise UserError(f"data.path={data.path} is a file: data.source=folder takes a directory")
    return path


# Labels -------------------------------------------------------------------------------------------


def _open(data: ConfigDict, index: Index, split: str, decoder: Decoder) -> Folder:
    paths, root = index.files(split), index.path / index.roots[split]
    names, notes = _classes(index.files(data.split)) if data.labels else ([], [])
    if split != data.split:
        notes = []
    elif data.eval_split not in index.roots and len(index.roots) > 1:
        others = ", ".join(other for other in sorted(index.roots) if other != split)
        notes.append(f"{index.path} also has {others}: data.eval_split would name it")
    if not names:
        return Folder(index, root, paths, None, (), tuple(notes), decoder=decoder)

    loose = [path for path in paths if "/" not in path]
    if loose:
        raise UserError(
            f"{root} has {len(loose)} image(s) outside its class directories, such as "
            f"{_printable(loose[0])}: sort them into classes; pretraining can also ignore all "
            "labels (data.labels=False) or hold out a part of the training images instead "
            "(data.eval_split=held_out)"
        )
    number = {name: i for i, name in enumerate(names)}
    present = [path.partition("/")[0] for path in paths]
    unknown = sorted(set(present) - set(names))
    if unknown:
        raise UserError(
            f"{root} has the class {_printable(unknown[0])}"
            f"{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, of which {data.split} has "
            f"no image: give {data.split} some or move the class away from {root}; pretraining "
            "can also ignore all labels (data.labels=False)"
        )
    absent = sorted(set(names) - set(present))
    if absent:
        notes = [f"{split} has no image of {len(absent)} class(es): {_listed(absent)}"]
    labels = np.array([number[name] for name in present], np.int32)
    called = tuple(map(_printable, names))
    return Folder(index, root, paths, labels, called, tuple(notes), decoder=decoder)


def _classes(paths: list[str]) -> tuple[list[str], list[str]]:
    """Return the classes of the training split, and what a user may wonder at if it has none."""
    loose = [path for path in paths if "/" not in path]
    names = sorted({path.partition("/")[0] for path in paths if "/" in path})
    if loose and names:
        return [], [
            f"no labels: {len(loose)} image(s), such as {_printable(loose[0])}, lie beside "
            f"{len(names)} director{'y' if len(names) == 1 else 'ies'}: {_listed(names)}"
        ]
    if len(names) == 1:
        return [], [f"no labels: all images lie in one directory, {_printable(names[0])}"]
    return names, []


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_printable, names[:most])) + more


def _printable(name: str) -> str:
    """Escape what cannot be printed on one line: control characters, bytes that are no UTF-8."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# Searching a directory ----------------------------------------------------------------------------


def _find_splits(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the direct subdirectories that are splits, by the split's name."""
    wanted = {name.lower(): name for name in names}  # spelt as in the recipe, which comes last
    found = {}
    for directory in sorted(entry.name for entry in _entries(path) if _is_directory(entry)):
        if directory.lower() in wanted:  # of Train and train the latter counts: it sorts last
            found[wanted[directory.lower()]] = directory
    return found


def _search(root: Path) -> list[str]:
    """Return all image files below `root`, as sorted relative paths.

    Only directories are looked at more closely (`stat`), to notice a link to one that holds it.
    """
    found, others = [], Counter[str]()
    todo: list[tuple[str, frozenset]] = [("", frozenset())]
    while todo:
        prefix, above = todo.pop()
        try:
            status = (root / prefix).stat()
        except OSError as error:
            raise UserError(f"{root / prefix} cannot be read: {error.strerror}") from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        for entry in _entries(root / prefix):
            path = prefix + entry.name
            _, dot, suffix = entry.name.rpartition(".")
            if _is_directory(entry):
                todo.append((f"{path}/", above | {here}))
            elif dot and suffix.lower() in SUFFIXES and _is_file(entry):
                found.append(path)
            else:
                others[f"*.{suffix.lower()}" if dot else "without a suffix"] += 1
    if not found:
        present = "it is empty"
        if others:
            most = _printable(others.most_common(1)[0][0])
            present = f"it has {others.total()} other file(s), most of them {most}"
        raise UserError(f"{root} has no images (*.jpg, *.png, *.webp, *.bmp, ...): {present}")
    return sorted(found)


def _entries(directory: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{directory} cannot be listed: {error.strerror}") from error


def _is_directory(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, or to where one may not look
        return False


def _is_file(entry: os.DirEntry) -> bool:
    """Tell files from pipes and devices; a broken link counts, so that reading it names it."""
    try:
        return entry.is_file() or not Path(entry.path).exists()
    except OSError:
        return True


def _read(path: Path, rules: Rules) -> bytes:
    try:
        return decode.content(path, rules)
    except OSError as error:
        if error.errno in OF_THE_FILE:
            raise BadImage(error.strerror or str(error)) from error
        raise Unreachable(
            f"{path} cannot be read at the moment ({error.strerror or error}), which is not the "
            "file's fault: check the disk or mount; the same command continues from the last save"
        ) from error


# The index on disk --------------------------------------------------------------------------------


def _grouped(paths: list[str] | None) -> dict[str, list[str]] | None:
    """Group paths by directory, which halves the file; None stays None."""
    if paths is None:
        return None
    groups: dict[str, list[str]] = {}
    for path in paths:
        directory, _, name = path.rpartition("/")
        groups.setdefault(directory, []).append(name)
    return groups


def _load(file: epath.Path, path: Path) -> Index:
    content = files.read_json(file)
    try:
        if not content:
            raise KeyError
        roots = {split: part["directory"] for split, part in content.items()}
        listed = {
            split: sorted(
                f"{directory}/{name}" if directory else name
                for directory, names in part["files"].items()
                for name in names
            )
            for split, part in content.items()
            if part["files"] is not None
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged: restore it, or remove it to list the images of {path} anew, "
            "which changes their order if files were added or removed"
        ) from error
    return Index(path, roots, listed)
