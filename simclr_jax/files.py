"""Files of a run, on a local disk or a bucket: whole or absent, never half written."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from etils import epath

from simclr_jax import buckets, closing, errors
from simclr_jax.buckets import is_local
from simclr_jax.errors import UserError

__all__ = [
    "Growing",
    "Unwritable",
    "cache_directory",
    "create",
    "expand_home",
    "explaining",
    "hold",
    "is_local",
    "make_workdir",
    "size_and_time",
    "sweep",
    "sync",
    "write_atomically",
]


# Names of files that are being written, and of the empty ones that try whether anything can be.
ASIDE = re.compile(r"\.(.+\.[0-9a-f]{32}(\.tmp|\.npz|\.parquet)|writable\.[0-9a-f]{32})")
YOUNG = 1.0  # seconds: one that new may be its owner's who is about to lock it
YOUNG_IN_BUCKET = 3600.0  # where nobody locks anything


class Unwritable(UserError, OSError):
    """A file that cannot be written, in a line for the user.

    For whoever knows what the file is for, and says it better, it is the `OSError` it came of.
    """

    def __init__(self, message: str, number: int | None, reason: str | None):
        super().__init__(message)
        self.errno, self.strerror = number, reason

    def __str__(self) -> str:
        return str(self.args[0])


def expand_home(path: str) -> str:
    """Return `path` with its `~` replaced, which no shell does behind `--workdir=`.

    Raises:
      UserError: if no file can have this name, on a disk or in a bucket that is known here.
    """
    if not is_local(path):
        scheme = path.partition("://")[0]
        if scheme not in buckets.PACKAGES:
            known = ", ".join(f"{name}://" for name in buckets.PACKAGES)
            raise UserError(
                f'"{path}" begins with {scheme}://, which is no bucket that is known ({known}): '
                "name a file on this machine by its path alone"
            )
        return path
    try:
        found = os.fspath(Path(path).expanduser())
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(found)
    except (RuntimeError, ValueError, OSError) as error:  # no such user, a null byte, too long
        reason = getattr(error, "strerror", None) or error
        raise UserError(f'"{path}" is the path of no file ({reason}): name another') from error
    return found


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash, meets the old file or the new one.

    Locally: write aside, fsync, rename, fsync the directory. An object store publishes an object
    only when it is complete, so a remote path is written plainly.

    Raises:
      UserError: if it cannot be written, or a bucket cannot be reached.
    """
    data = content.encode() if isinstance(content, str) else content
    if not is_local(path):
        with buckets.reaching(path):
            epath.Path(path).write_bytes(data)
        return
    final = Path(path)
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    with explaining(path):
        try:
            _write_synced(aside, data)
            aside.replace(final)
        except BaseException as error:
            closing.close(error, lambda: aside.unlink(missing_ok=True))
            raise
        _sync(final.parent)


def _write_synced(path: Path, data: bytes) -> None:
    file = path.open("wb")
    with closing.Closing(file.close):
        hold(file)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def hold(file: IO) -> None:
    """Mark an open file beside the one it is to become as one that is being written, see `sweep`.

    The system lets go of it however its owner ends.
    """
    with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(directory: epath.PathLike) -> None:
    """Delete what processes that were killed have left half written in a directory.

    What a living process is writing is left alone, whoever it is.
    """
    for path in buckets.listing(epath.Path(directory)):
        if not ASIDE.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            local = is_local(path)
            if time.time() - path.stat().mtime < (YOUNG if local else YOUNG_IN_BUCKET):
                continue
            if local:
                with Path(path).open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            else:
                with buckets.reaching(path):
                    path.unlink(missing_ok=True)


def sync(directory: epath.PathLike) -> None:
    """Put a local directory, and all in it, on the disk, where it outlives a power cut."""
    for path in [Path(directory), *Path(directory).rglob("*")]:
        _sync(path)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    # Some network file systems cannot sync a directory.
    may_fail = contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext()
    with closing.Closing(lambda: os.close(opened)), may_fail:
        os.fsync(opened)


def create(path: epath.Path, content: str) -> bool:
    """Create a file unless it exists, and tell; of several processes one succeeds.

    Raises:
      UserError: if it cannot be written, or a bucket cannot be reached.
    """
    if not is_local(path):
        return buckets.create(path, content)
    with explaining(path):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            file = os.fdopen(descriptor, "w")
            with closing.Closing(file.close):
                file.write(content)
                file.flush()
        except BaseException as error:
            closing.close(error, lambda: path.unlink(missing_ok=True))
            raise
    return True


class Growing:
    """A text file that lines are added to.

    Nothing can be added to an object in a bucket: there `flush` writes all of it again, but not
    sooner than `every_secs` after the last time.
    """

    def __init__(self, path: epath.Path, every_secs: float = 0.0):
        self._path, self._every, self._last = path, every_secs, -math.inf
        with explaining(path):
            self._file = path.open("a") if is_local(path) else None
        self._text = ""
        if self._file is None:
            with buckets.reaching(path):
                kept = path.read_bytes() if path.exists() else b""
            self._text = kept.decode(errors="surrogateescape")  # whatever it is
            self._flushed = self._text

    def write(self, text: str) -> None:
        """Add text; it is only sure to be there after a `flush`. Raises as `flush` does."""
        if self._file is not None:
            with explaining(self._path):
                self._file.write(text)
        else:
            self._text += text

    def flush(self, sync: bool = False) -> None:
        """Hand over what was added; with `sync` it outlives a power cut.

        Raises:
          UserError: if the disk is full or failing, or the file is not there any more.
        """
        if self._file is None:
            if time.monotonic() - self._last >= self._every:
                self._publish()
            return
        with explaining(self._path):
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
                self._path.stat()  # one that was removed still takes what is written

    def close(self) -> None:
        """Hand over all that was added, and close."""
        if self._file is None:
            self._publish()
            return
        with explaining(self._path):
            self._file.close()

    def _publish(self) -> None:
        if self._text != self._flushed:
            write_atomically(self._path, self._text.encode(errors="surrogateescape"))
        self._flushed, self._last = self._text, time.monotonic()


def size_and_time(path: epath.PathLike) -> str:
    """Return what changes when a file is replaced, or "no file"."""
    if is_local(path):
        with contextlib.suppress(OSError):
            local = Path(path).stat()  # whose times are finer than those of `epath`
            return f"{local.st_size} {local.st_mtime_ns}"
        return "no file"
    with buckets.reaching(path):
        try:
            if (bucket := buckets._filesystem(path)) is None:
                remote = epath.Path(path).stat()
                return f"{remote.length} {remote.mtime}"
            found = bucket.info(os.fspath(path))
        except FileNotFoundError:
            return "no file"
    # Each service has names of its own; what `gs://` has comes first.
    names = ("mtime", "generation", "etag", "ETag", "LastModified", "last_modified")
    mark = next((found[name] for name in names if found.get(name)), 0)
    return f"{found['size']} {int(mark.timestamp()) if hasattr(mark, 'timestamp') else mark}"


def check_directory(path: str, flag: str) -> None:
    """Raise `UserError` if a path can be no directory, for it or one above it is a file.

    Nothing is made: whether it can be written shows when it is.
    """
    if is_local(path) and not (there := nearest(Path(path))).is_dir():
        raise UserError(f"{flag}={path}: {there} is no directory, so name another")


def check_file(path: str, flag: str) -> None:
    """Raise `UserError` if a file cannot be written there; a bucket is left to whoever opens it."""
    out = Path(path)
    if is_local(path) and (
        out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK)
    ):
        raise UserError(f"{flag}={path} cannot be written: name a file in a directory of yours")


def nearest(path: Path) -> Path:
    """Return what is there of a path: itself, or the nearest above it."""
    whole = path.absolute()
    return next(part for part in (whole, *whole.parents) if os.path.lexists(part))


def cache_directory() -> Path:
    """Return the user's directory for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "simclr_jax"


@contextlib.contextmanager
def explaining(path: epath.PathLike, done: str = "written") -> Iterator[None]:
    """Turn what a full, failing or vanished disk raises while writing `path` into `Unwritable`.

    Args:
      path: of the file.
      done: what cannot be done with it.
    """
    try:
        yield
    except OSError as error:
        raise Unwritable(
            f"{os.fspath(path)} cannot be {done} ({error.strerror or error}): "
            f"{errors.remedy(error.errno)} and start again",
            error.errno,
            error.strerror,
        ) from error


def keep_damaged(path: epath.Path, content: bytes) -> str:
    """Keep what a file held that is about to be written anew, and return the name it is kept by.

    Raises:
      UserError: if it cannot be written.
    """
    aside, number = path.parent / f"{path.name}.damaged", 2
    while aside.exists():
        aside, number = path.parent / f"{path.name}.damaged-{number}", number + 1
    with explaining(aside):
        write_atomically(aside, content)
    return aside.name


def make_workdir(path: epath.PathLike) -> epath.Path:
    """Create the directory of a run, with its parents, and return it.

    Raises:
      UserError: it cannot be created, or no file can be written in it.
    """
    workdir = epath.Path(path)
    probe = workdir / f".writable.{uuid.uuid4().hex}"
    if not is_local(path):
        write_atomically(probe, "")
        with buckets.reaching(path):
            probe.unlink()
        return workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f'workdir "{os.fspath(path)}" cannot be written ({error.strerror or error}): '
            "name another with --workdir, or free space and rights there"
        ) from error
    return workdir
