"""Files on a disk or in a bucket (`gs://`, `s3://`, ...): what is not the same for both."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from simclr_jax import closing, errors, extras
from simclr_jax.errors import Unreachable, UserError

# By scheme, the package through which fsspec reaches a bucket.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
# Otherwise epath imports TensorFlow for any bucket, where that is installed: ten seconds.
if importlib.util.find_spec(PACKAGES["gs"]):
    os.environ.setdefault("EPATH_USE_TF", "false")

SCRATCH = "simclr_jax-"  # what names of local directories begin with
COPIES = 16  # files that are copied to or from a bucket at the same time


def is_local(path: epath.PathLike) -> bool:
    """Tell whether `path` is on a mounted file system and not behind a scheme such as `gs://`."""
    return "://" not in os.fspath(path)


@contextlib.contextmanager
def reaching(path: epath.PathLike, others: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what keeps a file from being read, or a bucket from being reached, into `Unreachable`.

    Into another `UserError` if it will not be otherwise later, see `errors.unreadable`. Errors of
    the types `others` pass.
    """
    try:
        _filesystem(path)  # before `epath` opens it, with other settings
        yield
    except UserError:
        raise
    except others:
        raise
    except ImportError as error:
        package = PACKAGES.get(os.fspath(path).partition("://")[0], "")
        if not package or is_local(path):
            raise
        gcs = package == PACKAGES["gs"]
        install = extras.install("gcs") if gcs else f"pip install {package}"
        raise UserError(f"{os.fspath(path)} needs the package {package}: {install}") from error
    except Exception as error:  # each bucket's library has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = error.filename or tempfile.gettempdir()
            raise UserError(f"{where} is full: free space there and start again") from error
        if not is_local(path):
            raise (UserError if _stays(error) else Unreachable)(
                f"{os.fspath(path)} cannot be reached ({reason}): check its name, the network and "
                "your credentials (gcloud auth application-default login)"
            ) from error
        if not isinstance(error, OSError):
            raise
        later = "check the disk or mount; the same command continues from the last save"
        if isinstance(error, FileNotFoundError | NotADirectoryError):  # a mount that is gone
            raise Unreachable(f"{os.fspath(path)} cannot be read ({reason}): {later}") from error
        raise errors.unreadable(os.fspath(path), error, "give another name", later) from error


def _stays(error: Exception) -> bool:
    """Tell whether a bucket has answered that a name or credentials are wrong."""
    if type(error).__name__.endswith("CredentialsError"):  # of google.auth, botocore
        return True
    refused = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, refused) or getattr(error, "code", None) in (400, 401, 403, 404)


def _filesystem(path: epath.PathLike) -> Any:
    """Return fsspec's view of a bucket, as `epath` opens it; None without its package."""
    return None if is_local(path) else _open(os.fspath(path).partition("://")[0])


@functools.cache
def _open(scheme: str) -> Any:
    import fsspec

    name = "gcs" if scheme == "gs" else scheme
    # What other processes of a run have written must be seen.
    fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    try:
        return fsspec.filesystem(name, **({"finalize_on_close": True} if name == "gcs" else {}))
    except ImportError:
        return None


def read_range(path: epath.Path, start: int, count: int) -> bytes:
    """Return `count` bytes of a file from `start` on, fewer at its end, by one request."""
    with reaching(path):
        if (bucket := _filesystem(path)) is not None:  # an open file would read megabytes ahead
            return bucket.cat_file(os.fspath(path), start=start, end=start + count)
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)


def create(path: epath.Path, content: str) -> bool:
    """Create an object unless it exists, and tell; of several processes one succeeds.

    Except through TensorFlow: there the later of two that come in the same moment replaces what
    the other wrote.
    """
    with reaching(path):
        if path.exists():
            return False
        if (bucket := _filesystem(path)) is None:
            path.write_text(content)
            return True
        try:
            bucket.pipe_file(os.fspath(path), content.encode(), mode="create")
        except FileExistsError:
            return False
    return True


def listing(path: epath.Path) -> list[epath.Path]:
    """Return what a directory holds, sorted; nothing if there is none.

    Raises:
      UserError: if it cannot be read.
    """
    with reaching(path):
        try:
            return sorted(path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            if type(error).__name__ == "NotFoundError":  # of TensorFlow
                return []
            raise


def below(path: epath.Path) -> list[epath.Path]:
    """Return all files below a directory; a link to another directory is not followed."""
    found = []
    for entry in listing(path):
        linked = is_local(entry) and Path(entry).is_symlink()
        found += below(entry) if entry.is_dir() and not linked else [entry]
    return found


def copy(source: epath.Path, target: epath.Path, last: str | None = None) -> None:
    """Copy all files below `source`, to or from a bucket, the one named `last` after all others."""
    paths = {path: target / os.fspath(path)[len(os.fspath(source)) + 1 :] for path in below(source)}

    def one(path: epath.Path) -> None:
        if is_local(paths[path]):
            paths[path].parent.mkdir(parents=True, exist_ok=True)
        path.copy(paths[path], overwrite=True)

    sealing = [path for path in paths if last is not None and paths[path] == target / last]
    remote = target if is_local(source) else source
    with reaching(remote, (FileNotFoundError,)), ThreadPoolExecutor(COPIES) as pool:
        list(pool.map(one, paths.keys() - {*sealing}))
        list(map(one, sealing))


class Scratch:
    """An empty local directory, until it is closed; one of a process that was killed goes first.

    Its owner holds a lock on a file in it, which the system releases however the owner ends.

    Attributes:
      path: the directory.
    """

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/lock"):
            with contextlib.suppress(OSError), left.open() as lock:  # another's, or in use
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left.parent)
        self._whole = Path(tempfile.mkdtemp(prefix=SCRATCH))
        # Under a name that nobody looks for until it is locked.
        self._lock = (self._whole / "unlocked").open("x")
        with contextlib.suppress(OSError):  # a file system without locks: nobody deletes there
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self._whole / "unlocked").rename(self._whole / "lock")
        self.path = epath.Path(self._whole / "files")
        self.path.mkdir()

    def close(self) -> None:
        """Delete it."""
        remove = functools.partial(shutil.rmtree, self._whole, ignore_errors=True)
        closing.close(None, remove, self._lock.close)


class Mirror:
    """A directory for libraries that only know disks: in place, or apart and copied to a bucket."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._apart = None if is_local(path) else Scratch()
        self.local = self._apart.path if self._apart else path

    def publish(self) -> None:
        """Copy what is there."""
        if self._apart:
            copy(self.local, self._path)

    def close(self) -> None:
        """Copy what is there, and keep no copy here."""
        closing.close(None, self.publish, *([self._apart.close] if self._apart else []))
