"""Files of a run, on a local disk or a bucket: whole or absent, never half written."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from simclr_jax.errors import UserError


def is_local(path: epath.PathLike) -> bool:
    """Tell whether `path` is on a mounted file system and not behind a scheme such as `gs://`."""
    return "://" not in os.fspath(path)


def expand_home(path: str) -> str:
    """Return `path` with its `~` replaced, which no shell does behind `--workdir=`."""
    return os.fspath(Path(path).expanduser()) if is_local(path) else path


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash, meets the old file or the new one.

    Locally: write aside, fsync, rename, fsync the directory. An object store publishes an object
    only when it is complete, so a remote path is written plainly.
    """
    data = content.encode() if isinstance(content, str) else content
    if not is_local(path):
        epath.Path(path).write_bytes(data)
        return
    final = Path(path)
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(final)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a directory
            os.fsync(directory)
    finally:
        os.close(directory)


# By scheme, the package through which fsspec reaches a bucket.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}

# Otherwise epath imports TensorFlow for any bucket, where that is installed: ten seconds.
if importlib.util.find_spec(PACKAGES["gs"]):
    os.environ.setdefault("EPATH_USE_TF", "false")


@contextlib.contextmanager
def reaching(path: epath.PathLike) -> Iterator[None]:
    """Turn what keeps a file from being read, or a bucket from being reached, into `UserError`."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        package = PACKAGES.get(os.fspath(path).partition("://")[0], "")
        if not package or is_local(path):
            raise
        gcs = package == PACKAGES["gs"]
        install = "'simclr-jax[gcs]'" if gcs else package
        raise UserError(
            f"{os.fspath(path)} needs the package {package}: pip install {install}"
        ) from error
    except Exception as error:  # each bucket's library has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not is_local(path):
            raise UserError(
                f"{os.fspath(path)} cannot be reached ({reason}): check its name, the network and "
                "your credentials (gcloud auth application-default login)"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{os.fspath(path)} cannot be read ({error.strerror or reason}): check the disk or "
            "mount; the same command continues from the last save"
        ) from error


@functools.cache
def _bucket(scheme: str) -> Any:
    """Return fsspec's view of a kind of bucket, as `epath` opens it, or None without its package."""
    import fsspec

    try:
        if scheme == "gs":
            return fsspec.filesystem("gcs", finalize_on_close=True)
        return fsspec.filesystem(scheme)
    except ImportError:
        return None


def read_range(path: epath.Path, start: int, count: int) -> bytes:
    """Return `count` bytes of a file from `start` on, fewer at its end, by one request."""
    with reaching(path):
        bucket = None if is_local(path) else _bucket(os.fspath(path).partition("://")[0])
        if bucket is not None:  # an open file would read megabytes ahead
            return bucket.cat_file(os.fspath(path), start=start, end=start + count)
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)


def size_and_time(path: epath.PathLike) -> str:
    """Return what changes when a file is replaced, or "no file"."""
    if is_local(path):
        with contextlib.suppress(OSError):
            local = Path(path).stat()  # whose times are finer than those of `epath`
            return f"{local.st_size} {local.st_mtime_ns}"
        return "no file"
    with reaching(path):
        try:
            remote = epath.Path(path).stat()
        except FileNotFoundError:
            return "no file"
        return f"{remote.length} {remote.mtime}"


def cache_directory() -> Path:
    """Return the user's directory for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "simclr_jax"


@contextlib.contextmanager
def explaining(path: epath.PathLike) -> Iterator[None]:
    """Turn what a full, failing or vanished disk raises while `path` is written into `UserError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise UserError(
            f"{os.fspath(path)} cannot be written ({error.strerror or error}): "
            f"{'free space there' if full else 'check that disk'} and start again"
        ) from error


def read_json(path: epath.PathLike) -> Any:
    """Return the content of a JSON file; raise `UserError` if it is not JSON."""
    try:
        return json.loads(epath.Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f"{os.fspath(path)} is not JSON ({error}): restore or remove it") from error


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def make_workdir(path: epath.PathLike) -> epath.Path:
    """Create the directory of a run, with its parents, and return it.

    Raises:
      UserError: it cannot be created, or no file can be written in it.
    """
    if not is_local(path):
        raise UserError(
            f"workdir {os.fspath(path)} is no local directory: buckets are not supported"
        )
    workdir = epath.Path(path)
    probe = workdir / f".writable.{uuid.uuid4().hex}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f'workdir "{os.fspath(path)}" cannot be written ({error.strerror or error}): '
            "name another with --workdir, or free space and rights there"
        ) from error
    return workdir
