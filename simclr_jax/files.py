"""Files of a run, on a local disk or a bucket: whole or absent, never half written."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
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
