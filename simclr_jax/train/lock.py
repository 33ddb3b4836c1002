"""One run, one writer: `workdir/lock.json` says which process it is and that it is alive."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Required, TypedDict

from absl import logging
from etils import epath

from simclr_jax import buckets, closing, documents, files
from simclr_jax.errors import UserError

MARKER = "lock.takeover"


class Owner(TypedDict, total=False):
    """What a lock says of the process that holds it."""

    host: str
    system: str
    pid: Required[int]
    started: Required[int | None]
    token: str
    heartbeat: float


class WorkdirLock:
    """Hold a workdir for as long as the `with` block lasts.

    A lock left by a process that has died on this host is taken over at once. One left on another
    host, in another container or before a reboot is taken over when its heartbeat is old and does
    not advance; it is watched for at least two heartbeats of ours, so that a clock that runs behind
    is not mistaken for a dead process. That holds for a process that died while it took a lock
    over, too.

    Args:
      workdir: an existing directory.
      heartbeat_secs: how often the holder renews its heartbeat.
      stale_secs: how old another host's heartbeat must be.
      say: receives one line when a lock is waited for, taken over or lost.

    Raises:
      UserError: on entry, if another process holds the workdir.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        heartbeat_secs: float = 10.0,
        stale_secs: float = 60.0,
        say: Callable[[str], None] = logging.warning,
    ):
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / "lock.json"
        self._heartbeat_secs = heartbeat_secs
        self._stale_secs = stale_secs
        self._say = say
        self._stop = threading.Event()
        self._lost: str | None = None
        self._identity: dict[str, Any] = {}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> WorkdirLock:
        self._identity = {
            "host": socket.gethostname(),
            "system": _system(),
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        while not self._create(self._path):
            owner = self._read(self._path)
            if owner is not None and self._take_over(owner, self._why_free(self._path, owner)):
                break
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="workdir-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        closing.close(error, self._end_beating, self._remove)

    def _end_beating(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _remove(self) -> None:
        """Release the lock; one that cannot be removed is taken over by the next run."""
        with files.explaining(self._path, "removed"):
            if self._is_ours(self._read(self._path)):
                self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `UserError` if another process has taken the workdir over, or it is gone."""
        owner = self._read(self._path)
        if not self._is_ours(owner):
            self._look(owner)
            if self._lost:
                raise UserError(self._lost)

    def _record(self) -> str:
        return documents.line({**self._identity, "heartbeat": time.time()})

    def _create(self, path: epath.Path) -> bool:
        """Create a file with our record unless it exists; of several processes one succeeds.

        In a bucket reached through TensorFlow it may be two that start in the same moment: the
        later one holds the lock, and the other learns of it by `check`.
        """
        return files.create(path, self._record())

    def _read(self, path: epath.Path) -> dict[str, Any] | None:
        """Return who a lock names, None without a lock, `{}` if it cannot be read (yet)."""
        try:
            return dict(documents.read(path, Owner))
        except FileNotFoundError:
            return None
        except UserError:
            return {}

    def _is_ours(self, owner: dict[str, Any] | None) -> bool:
        return owner is not None and owner.get("token") == self._identity["token"]

    def _why_free(self, path: epath.Path, owner: dict[str, Any]) -> str:
        """Say why a lock may be taken over, after watching it if need be; raise if it may not."""
        if owner.get("system") == self._identity["system"]:
            if _is_alive(owner["pid"], owner["started"]):
                raise self._refusal(owner)
            return "that process has ended"
        remaining = self._stale_secs - (time.time() - owner.get("heartbeat", time.time()))
        # Clocks of two hosts differ: what counts is that nothing moves while we look.
        wait = min(max(remaining, 2 * self._heartbeat_secs), self._stale_secs)
        self._say(
            f'workdir "{self._workdir}" is locked by {_name(owner)}: '
            f"waiting {wait:.0f} s for a heartbeat"
        )
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            # One that cannot be read was probably created just now.
            time.sleep(min(1.0 if owner else 0.05, self._heartbeat_secs / 2))
            now = self._read(path)
            if now is None:
                return "it was released"
            if now != owner:
                raise self._refusal(now)
        return f"no heartbeat came for {wait:.0f} s"

    def _refusal(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f'workdir "{self._workdir}" is in use by {_name(owner)}: '
            "wait for that run, stop it, or name another --workdir"
        )

    def _take_over(self, owner: dict[str, Any], reason: str) -> bool:
        """Replace a dead lock by ours; False if it changed hands since it was judged."""
        marker = self._wait_for_turn(owner)
        with closing.Closing(lambda: marker.unlink(missing_ok=True)):
            if self._read(self._path) != owner:
                return False
            files.write_atomically(self._path, self._record())
        for path in buckets.listing(self._workdir):
            if path.name.startswith(MARKER):
                path.unlink(missing_ok=True)  # of processes that died in here
        self._say(f'workdir "{self._workdir}" is taken over from {_name(owner)}: {reason}')
        return True

    def _wait_for_turn(self, owner: dict[str, Any]) -> epath.Path:
        """Create the marker that lets one process at a time replace a dead lock.

        The next marker is for when the holder of the one before is dead as well. None of them is
        removed to make way: two processes that judge at the same time would both get in.
        """
        for turn in itertools.count(1):
            marker = self._workdir / f"{MARKER}.{owner.get('token', 'unknown')}.{turn}"
            while not self._create(marker):
                holder = self._read(marker)
                if holder is None:
                    continue
                self._why_free(marker, holder)
                if self._read(marker) == holder:
                    break
            else:
                return marker
        raise AssertionError

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_secs):
            try:
                owner = self._read(self._path)
                # One that was ours and says nothing any more is damaged.
                if self._is_ours(owner) or (owner == {} and self._lost is None):
                    self._lost = None
                    files.write_atomically(self._path, self._record())
                    continue
                self._look(owner)
                if owner:
                    return
            except (OSError, UserError) as error:  # a full disk, a network: it may come back
                self._warn(f"the heartbeat in {self._path} could not be written: {error}")

    def _look(self, owner: dict[str, Any] | None) -> None:
        """Say what it means that a lock is not ours: `{}` may be ours, and cannot be read now."""
        if owner is None:
            self._lose(self._gone())  # until a mount comes back
        elif owner:
            self._lose(
                f'workdir "{self._workdir}" was taken over by {_name(owner)} while this process '
                "gave no heartbeat: stop one of the two"
            )

    def _gone(self) -> str:
        if not self._workdir.exists():
            return f'workdir "{self._workdir}" is gone: bring it back and start again'
        return (
            f'workdir "{self._workdir}" has no lock.json any more: make sure that no other process '
            "uses it, and start again"
        )

    def _lose(self, reason: str) -> None:
        if reason != self._lost:
            self._lost = reason
            self._warn(reason)

    def _warn(self, line: str) -> None:
        with contextlib.suppress(OSError, UserError):  # the log may be on the same disk
            self._say(line)


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"


def _system() -> str:
    """Return a name for all that numbers processes together with this one.

    Two containers may have the same host name, and a host has other processes after it booted.
    """
    named = [socket.gethostname()]
    with contextlib.suppress(OSError):  # there is no /proc
        named.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        named.append(os.fspath(Path("/proc/self/ns/pid").readlink()))
    return " ".join(named)


def _start_time(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None where there is no /proc."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str]:
    """Return /proc/PID/stat from its third field on (the second may contain blanks)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_alive(pid: int, started: int | None) -> bool:
    """Tell whether the process with this pid is there and is the one that began at `started`."""
    fields = _stat(pid)
    if fields:
        dead = fields[0] in "ZX"  # ended, but its parent has not asked yet
        return not dead and (started is None or int(fields[19]) == started)
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
