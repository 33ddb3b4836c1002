"""A directory of image files, at any depth, with a class per subdirectory if there are several.

    PATH/cats/1.jpg  PATH/dogs/a/b/2.png                    one split, classes cats and dogs
    PATH/train/cats/1.jpg  PATH/test/dogs/2.png             the splits train and test
    PATH/1.jpg  PATH/trip/2.webp                            one split without labels

`searching.py` finds the files, `layout.py` says which directories are splits, and `index.py` keeps
the list of a run, so that files added later leave its order alone.
"""

from __future__ import annotations

import dataclasses
import functools
import stat
import zlib
from pathlib import Path

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents, files
from simclr_jax.data import decode, gone
from simclr_jax.data.decode import Decoder, Rules
from simclr_jax.data.sources.index import FILE, Index, read_index
from simclr_jax.data.sources.layout import choose_layout
from simclr_jax.data.sources.searching import Found, by_directory, kinds, search
from simclr_jax.data.sources.source import Split
from simclr_jax.errors import UserError
from simclr_jax.unlabelled import NO_LABEL

SUFFIXES = decode.suffixes()


@dataclasses.dataclass(frozen=True)
class Folder:
    """One split of a directory of images.

    Attributes:
      index: of the whole data set.
      split: its name.
      root: the split's directory.
      paths: the image files, relative to `root`.
      labels: int32 `[m]`, or None.
      class_names: by label; empty without labels.
      notes: sentences a user should read: why there are no labels, which classes have no images.
      decoder: of the files.
    """

    index: Index
    split: str
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
        return documents.shown(self.paths[example])

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Read and decode an image: uint8 `[h, w, 3]` and its label, or `NO_LABEL`.

        Raises:
          BadImage: if the file cannot be read or decoded.
          Unreachable: if the data are gone, or their disk does not answer.
        """
        label = NO_LABEL if self.labels is None else int(self.labels[example])
        try:
            encoded = decode.content(self.root / self.paths[example], self.decoder.rules)
        except OSError as error:
            name = self.paths[example]
            is_lost = functools.partial(self.index.leads_off, self.split, name)
            raise gone.not_read(self.root, name, error, is_lost) from error
        return self.decoder(encoded, functools.partial(self.name, example)), label

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
        self.index.write(kept)

    def changes(self, thorough: bool) -> str:
        """Say which files are not those that the run began with; see `Index.changes`."""
        return self.index.changes(self.split, thorough)


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Split[Folder]]:
    """Return the splits of the directory `data.path`, which is searched.

    `layout.py` says which they are. With `data.labels` the directories right below the training
    split are the classes, sorted; a single one, or images beside them, mean that there are no
    labels.

    Args:
      data: `config.data`.
      kept: directory with the index of a run that is resumed, or None.

    Raises:
      UserError: if there is no such directory or split, no image, or the kept index is damaged.
        When called, a split raises it if it has no label or an unknown class for an image.
    """
    path = _directory(data)
    searched = functools.cache(functools.partial(search, path, SUFFIXES))
    if kept is not None and (kept / FILE).exists():
        found = read_index(kept, path, searched)
    else:
        found = _indexed(data, path, searched())
    if data.split not in found.roots:
        notes = "".join(f"; {note}" for note in found.notes)
        raise UserError(
            f'data.split is "{data.split}", but {path} has {", ".join(sorted(found.roots))}: name '
            f"one of them, or give data.path another directory, or set data.layout=classes{notes}"
        )
    decoder = Decoder(Rules.of(data))
    return {
        split: Split(functools.partial(_open, data, found, decoder, split), found.counts.get(split))
        for split in found.roots
    }


def _indexed(data: ConfigDict, path: Path, found: Found) -> Index:
    """Return the index of a directory that was searched."""
    if not found.images:
        count = sum(found.others.values())
        present = f"it has {count} other file(s): {kinds(found.others)}"
        raise UserError(
            f"{path} has no images (*.jpg, *.png, *.webp, *.bmp, ...): "
            f"{present if count else 'it is empty'}"
        )
    counts = by_directory(found.images)
    chosen = choose_layout(data, path, counts)
    notes = (*chosen.notes(), *found.notes())
    known = {
        split: counts[root] if root else len(found.images) for split, root in chosen.roots.items()
    }
    return Index(path, chosen.roots, lambda: found, known, notes)


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
        raise gone.trouble(Path(data.path), "cannot be read", error) from error
    if not is_directory:
        raise UserError(f"data.path={data.path} is a file: data.source=folder takes a directory")
    return path


# Labels -------------------------------------------------------------------------------------------


def _open(data: ConfigDict, found: Index, decoder: Decoder, split: str) -> Folder:
    paths, root = found.files(split), found.path / found.roots[split]
    names, notes = _classes(found.files(data.split)) if data.labels else ([], [])
    if split != data.split:
        notes = []
    if not names:
        notes = [*notes, *found.notes]
        return Folder(found, split, root, paths, None, (), tuple(notes), decoder=decoder)

    loose = [path for path in paths if "/" not in path]
    if loose:
        raise UserError(
            f"{root} has {len(loose)} image(s) outside its class directories, such as "
            f"{documents.shown(loose[0])}: sort them into classes; pretraining can also ignore all "
            "labels (data.labels=False) or hold out a part of the training images instead "
            "(data.eval_split=held_out)"
        )
    number = {name: i for i, name in enumerate(names)}
    present = [path.partition("/")[0] for path in paths]
    unknown = sorted(set(present) - set(names))
    if unknown:
        raise UserError(
            f"{root} has the class {documents.shown(unknown[0])}"
            f"{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, of which {data.split} has "
            f"no image: give {data.split} some or move the class away from {root}; pretraining "
            "can also ignore all labels (data.labels=False)"
        )
    absent = sorted(set(names) - set(present))
    if absent:
        notes = [f"{split} has no image of {len(absent)} class(es): {_listed(absent)}"]
    labels = np.array([number[name] for name in present], np.int32)
    shown = tuple(map(documents.shown, names))
    notes = [*notes, *found.notes]
    return Folder(found, split, root, paths, labels, shown, tuple(notes), decoder=decoder)


def _classes(paths: list[str]) -> tuple[list[str], list[str]]:
    """Return the classes of the training split, and what a user may wonder at if it has none."""
    loose = [path for path in paths if "/" not in path]
    names = sorted({path.partition("/")[0] for path in paths if "/" in path})
    if loose and names:
        return [], [
            f"no labels: {len(loose)} image(s), such as {documents.shown(loose[0])}, lie beside "
            f"{len(names)} director{'y' if len(names) == 1 else 'ies'}: {_listed(names)}"
        ]
    if len(names) == 1:
        return [], [f"no labels: all images lie in one directory, {documents.shown(names[0])}"]
    return names, []


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(documents.shown, names[:most])) + more
