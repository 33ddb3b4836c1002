"""Disks of a few megabytes, which another process fills while a run is at work."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE = "24m"


@contextlib.contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """Mount a small file system in memory."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path) -> None:
    """Let another process write until nothing is left; `empty` frees it again."""
    with (disk / "ballast").open("ab") as ballast:
        subprocess.run(["cat", "/dev/zero"], stdout=ballast, stderr=subprocess.DEVNULL, check=False)
    assert os.statvfs(disk).f_bavail == 0


def empty(disk: Path) -> None:
    (disk / "ballast").unlink()


@dataclasses.dataclass(frozen=True)
class When:
    """What happens to a disk just before a function of the package is called.

    Attributes:
      place: `MODULE:NAME` of the function.
      disk: where it happens.
      call: before which call, from 0.
      action: "fill" or "remount".
    """

    place: str
    disk: Path
    call: int = 0
    action: str = "fill"

    def arm(self) -> None:
        module, _, names = self.place.partition(":")
        owner = importlib.import_module(module)
        *parents, name = names.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function, calls = getattr(owner, name), []

        def struck(*args, **options):
            calls.append(name)
            if len(calls) == self.call + 1:
                fill(self.disk) if self.action == "fill" else remount(self.disk, "ro")
            return function(*args, **options)

        setattr(owner, name, struck)


def remount(disk: Path, how: str) -> None:
    """Make a file system read-only ("ro") or writable ("rw"), files open for writing or not."""
    # A file system with files open for writing refuses to be remounted; a mount does not.
    subprocess.run(["mount", "-o", f"remount,bind,{how}", disk], check=True)
