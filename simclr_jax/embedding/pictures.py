"""Thumbnails of embedded images, read only where the user wants images to be read."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from simclr_jax import files, given_data
from simclr_jax.data import decode
from simclr_jax.data.decode import BadImage, Rules
from simclr_jax.data.sources import Source
from simclr_jax.embedding.embed import open_parts
from simclr_jax.embedding.embeddings import Embeddings
from simclr_jax.errors import UserError, printable
from simclr_jax.judging.feature_bank import Say
from simclr_jax.reporting.sheet import thumbnail
from simclr_jax.train import saved

VIEWED = Rules(white_level="range")  # for people: of more than 8 bits all that can be seen


class Outside(Exception):
    """A name leads out of the directory of the images."""


def source_run(found: Embeddings, checkpoint: str = "") -> saved.Saved:
    """Return the run that made embeddings.

    Args:
      found: the embeddings; only the user's own files are believed.
      checkpoint: the run, where the user names it.

    Raises:
      UserError: if it cannot be read, or nobody trustworthy names it.
    """
    if not (checkpoint or found.own):
        raise UserError(
            "the embeddings are not of this user's embed, so the run that they name is not opened: "
            f"give --checkpoint=RUN (they say {printable(found.about['checkpoint'])})"
        )
    run = checkpoint or found.about["checkpoint"]
    return saved.read(run, "--checkpoint" if checkpoint else "the embeddings' checkpoint")


class Pictures:
    """Thumbnails of embedded images, as far as these are still there.

    Args:
      found: the embeddings.
      images: where the images are, where the user says it: a directory, or what `embed --data`
        takes. By default they are where the user's own file says; no other file is believed.
      checkpoint: the run, see `source_run`.

    Attributes:
      where: a sentence that says where pictures are read.

    Raises:
      UserError: if nobody trustworthy says where the images are.
    """

    def __init__(self, found: Embeddings, images: str = "", checkpoint: str = ""):
        about = found.about
        if not (images or found.own):
            said = about["directory"] or about["data"]["data"] or "the data of the run"
            raise UserError(
                "the embeddings are not of this user's embed, so images are not looked for where "
                f"they say: give --images=DIRECTORY (they say {printable(said)})"
            )
        if images:
            given_data.fields(images, "--images")
        self._found, self._checkpoint = found, checkpoint
        self._data = images or about["data"]["data"]
        self._sources: list[Source] = []
        self._kept: dict[int, bytes | None] = {}
        self._outside: list[int] = []
        directory = Path(files.expand_home(images or about["directory"]))
        self._root = directory if about["directory"] or (images and directory.is_dir()) else None
        # What the user's own embed has listed may lie behind links. Another file, or directory, may
        # have links that somebody else has made.
        self._links = found.own and not images
        named = images or about["directory"] or about["data"]["data"] or "the data of the run"
        says = "--images names it" if images else "this user's embed found them there"
        self.where = f"Pictures are read in {named}, for {says}."
        if self._root and not self._links:
            self.where += " Names and links that lead out of it are not followed."

    def __call__(self, row: int) -> bytes | None:
        """Return the thumbnail of an image, or None where it cannot be read."""
        if row not in self._kept:
            try:
                self._kept[row] = thumbnail(self._read(row))
            except Outside:
                self._outside.append(row)
                self._kept[row] = None
            except (BadImage, OSError, ValueError):  # the last for a name that no file can have
                self._kept[row] = None
        return self._kept[row]

    def check(self, say: Say) -> None:
        """Say how many images could not be read; raise `UserError` if it was all of them."""
        missing = [row for row, picture in self._kept.items() if picture is None]
        place = self._root or self._data or "the data of the run"
        if outside := self._outside:
            say(
                f"note      {len(outside)} of {len(self._kept)} images in the sheet are left out: "
                f"their names lead out of {place}, such as {self._name(outside[0])}"
            )
        if missing and len(missing) == len(self._kept):
            raise UserError(
                f"none of the images can be read in {place}, so a sheet would be empty: "
                "name their directory with --images=DIRECTORY"
            )
        if missing := [row for row in missing if row not in outside]:
            say(
                f"note      {len(missing)} of {len(self._kept)} images in the sheet cannot be "
                f"read, such as {self._name(missing[0])} in {place}"
            )

    def _name(self, row: int) -> str:
        return printable(str(self._found.names[row]))

    def _read(self, row: int) -> np.ndarray:
        if self._root:
            name = str(self._found.names[row])
            path = self._inside(self._root, name)
            if not path.is_file() and name in self._escaped:
                path = self._inside(self._root, self._escaped[name])
            if not path.is_file():
                raise BadImage("no file")
            return decode.decode(decode.content(path, VIEWED), VIEWED)
        if not self._sources:
            self._sources = self._opened()
        source = self._sources[int(self._found.part[row])]
        example = int(self._found.examples[row])
        if example >= len(source):
            raise BadImage("no such example")
        return source.example(example)[0]

    @functools.cached_property
    def _escaped(self) -> dict[str, str]:
        """Return the files whose names embed has escaped, by what it calls them."""
        assert self._root is not None
        found = (
            os.path.relpath(os.path.join(place, name), self._root)  # noqa: PTH118 (bytes stay)
            for place, _, names in os.walk(self._root, followlinks=self._links)
            for name in names
        )
        return {printable(name): name for name in found if not name.isprintable()}

    def _inside(self, root: Path, name: str) -> Path:
        """Return the path of an image, which lies below `root`; raise `Outside` if it does not."""
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Outside
        if self._links:
            return root / name
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()):
            raise Outside
        return path

    def _opened(self) -> list[Source]:
        about, data = self._found.about, self._data
        run = source_run(self._found, self._checkpoint)
        # The split is part of what was asked for. So is the directory of TFDS, but it is a place,
        # which only the user's own file may name.
        asked = about["data"] if data == about["data"]["data"] else {"split": "", "data_dir": ""}
        data_dir = asked["data_dir"] if self._found.own else ""
        parts = open_parts(run, data, data_dir, asked["split"])
        opened = [parts[part] for part in about["parts"] if part in parts]
        if [source.fingerprint() for source in opened] != about["fingerprints"]:
            raise UserError(
                f"the images are not those that were embedded ({data or 'the run'}"
                "'s data have changed): run python -m simclr_jax.embed again"
            )
        return opened
