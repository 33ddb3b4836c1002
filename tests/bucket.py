"""A stand-in for Google Cloud Storage behind `gs://`: objects, and no file system.

It refuses what an object store refuses: to append, to rename a directory, to see an empty one. An
object appears, whole, when its writer is closed.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import urllib.parse
import uuid
from pathlib import Path

import fsspec
from etils.epath import gpath
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from simclr_jax import buckets


def use(root: Path) -> type[Bucket]:
    """Let `gs://` mean a bucket kept in the directory `root`, from here on in this process."""
    os.environ["EPATH_USE_TF"] = "false"
    root.mkdir(parents=True, exist_ok=True)
    Bucket.root, Bucket.reads = root, []
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    _forget()
    return Bucket


def _forget():
    gpath._is_tf_installed.cache_clear()
    gpath.backend_lib.fsspec_backend._get_filesystem.cache_clear()
    buckets._open.cache_clear()
    Bucket.clear_instance_cache()


@contextlib.contextmanager
def at(root: Path):
    """Do so as long as a `with` block lasts."""
    before = os.environ.get("EPATH_USE_TF")
    try:
        yield use(root)
    finally:
        os.environ.pop("EPATH_USE_TF")
        if before is not None:
            os.environ["EPATH_USE_TF"] = before
        _forget()


class Bucket(AbstractFileSystem):
    """Objects by name, each a file whose name is the object's with its slashes escaped."""

    protocol = ("gcs", "gs")
    root: Path
    reads: list[tuple[str, int, int]] = []  # noqa: RUF012  (object, start, end) of each request

    def _file(self, path):
        return self.root / urllib.parse.quote(self._strip_protocol(path), safe="")

    def _objects(self):
        return [urllib.parse.unquote(file.name) for file in self.root.iterdir()]

    def info(self, path, **_):
        path, file = self._strip_protocol(path), self._file(path)
        if file.is_file():
            status = file.stat()
            time = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
            return {"name": path, "size": status.st_size, "type": "file", "mtime": time}
        if "/" not in path or any(name.startswith(f"{path}/") for name in self._objects()):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).rstrip("/")
        if self._file(path).is_file():
            return [self.info(path)] if detail else [path]
        rests = [name[len(path) + 1 :] for name in self._objects() if name.startswith(f"{path}/")]
        if not rests and "/" in path:
            raise FileNotFoundError(path)
        names = sorted({f"{path}/{rest.partition('/')[0]}" for rest in rests})
        return [self.info(name) for name in names] if detail else names

    def mkdir(self, path, create_parents=True, **_):
        """Do nothing: there are no directories."""

    def makedirs(self, path, exist_ok=False):
        """Do nothing: there are no directories."""

    def rmdir(self, path):
        """Do nothing: there are no directories."""

    def cp_file(self, path1, path2, **_):
        self.pipe_file(path2, self.cat_file(path1))

    def mv(self, path1, path2, recursive=False, **_):
        if not self._file(path1).is_file():
            raise OSError(f"{path1} is no object: a bucket cannot rename directories")
        self.cp_file(path1, path2)
        self._rm(path1)

    def _rm(self, path):
        self._file(path).unlink()

    def pipe_file(self, path, value, mode="overwrite", **_):
        aside = self.root.parent / f"upload-{uuid.uuid4().hex}"
        aside.write_bytes(value)
        if mode == "create":
            try:
                os.link(aside, self._file(path))
            finally:
                aside.unlink()
        else:
            aside.replace(self._file(path))

    def cat_file(self, path, start=None, end=None, **_):
        content = self._file(path).read_bytes()
        self.reads.append((self._strip_protocol(path), start or 0, end or len(content)))
        return content[start:end]

    def _open(self, path, mode="rb", **_):
        if mode not in ("rb", "wb"):
            raise NotImplementedError(f"a bucket cannot open {path} as {mode}")
        return Object(self, path, mode, cache_type="readahead")


class Object(AbstractBufferedFile):
    """An open object: read by ranges, written when it is closed."""

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start, end)

    def _initiate_upload(self):
        self._parts = []

    def _upload_chunk(self, final=False):
        self._parts.append(self.buffer.getvalue())
        if final:
            self.fs.pipe_file(self.path, b"".join(self._parts))
        return True
