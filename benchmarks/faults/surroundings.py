"""The faults of `environment.py`: each with what is done, what must be said, and the repair."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from commands import COMMANDS, FOLDER
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "tests" / "e2e"))

import disks

STRUCK = Path(__file__).with_name("struck.py")
MOST_MEMORY = 3000.0  # megabytes that a run may take
SIDE = 13_300  # of a bomb, pixels
PICTURES = 60
FLUSHED = disks.MOMENTS["metrics are flushed"]
SAVED = disks.MOMENTS["a later save"]

Change = Callable[[Path], object]


def nothing(directory: Path) -> None:
    """Leave all as it is."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
      says: a pattern of what the user must be told.
      moment: MODULE:NAME and CALL, just before which `command` is run; "": none.
      command: of a shell, in the directory of the command; `DISK` is its path.
      before: what is changed before the command starts.
      between: what is changed when the first run was killed, before the second.
      after: puts all right.
      folder: the images are a folder of pictures.
      disk: the run works on a small disk of its own.
      limit: of open files.
      harmless: the run may complete.
      repeat: the command is run again, and compared with the reference.
    """

    says: str
    moment: tuple[str, int] = ("", 0)
    command: str = ""
    before: tuple[Change, ...] = ()
    between: Change | None = None
    after: Change = nothing
    folder: bool = False
    disk: bool = False
    limit: int = 0
    harmless: bool = False
    repeat: bool = True

    def plain(self) -> list[str]:
        """Return the command line."""
        return (FOLDER if self.folder else COMMANDS["pretrain"]).line()

    def line(self, directory: Path) -> list[str]:
        """Return the command line under the fault."""
        line = self.plain()
        if self.moment[0]:
            place, call = self.moment
            command = self.command.replace("DISK", os.fspath(directory))
            module = line.index("-m")
            line[module : module + 2] = [os.fspath(STRUCK), place, str(call), command, "main"]
        if self.limit:
            line = ["bash", "-c", f'ulimit -n {self.limit}; exec "$@"', "bash", *line]
        return line


# Images


def write_pictures(path: Path, seed: int = 0) -> None:
    """Write small pictures in a directory for each class."""
    drawn = np.random.RandomState(seed)
    for i in range(PICTURES):
        pixels = drawn.randint(0, 100, (12, 12, 3)) + 40 * (i % 4)
        (path / f"class{i % 4}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"class{i % 4}" / f"{i:02}.png")


def _replace(directory: Path) -> None:
    shutil.rmtree(directory.parent / "pictures")
    write_pictures(directory.parent / "pictures", seed=1)


def _restore(directory: Path) -> None:
    """Put the pictures back as they were, their times included."""
    pictures, original = directory.parent / "pictures", directory.parent.parent / "pictures"
    if pictures.exists():
        shutil.rmtree(pictures)
    shutil.copytree(original, pictures)


def _farm(directory: Path) -> None:
    """Link the directories of a set to one another, to themselves and to those above them."""
    farm = directory.parent / "pictures" / "class0"
    rooms = [farm / f"room{i}" for i in range(12)]
    for room in rooms:
        room.mkdir()
    for room in rooms:
        for other in rooms:
            (room / other.name).symlink_to(other)
        (room / "up").symlink_to(farm)
    (farm / "root").symlink_to(directory.parent)
    os.mkfifo(farm / "pipe.png")


def _clear_farm(directory: Path) -> None:
    shutil.rmtree(directory / "run", ignore_errors=True)  # its images are others
    _restore(directory)


def _bomb(directory: Path, suffix: str) -> None:
    """Put a picture that is small on disk and large in memory among the others."""
    path = directory.parent / "pictures" / "class0" / f"00{suffix}"
    if suffix == ".bmp":  # nothing but a header
        size = struct.pack("<IiiHHIIiiII", 40, 65000, 65000, 1, 24, 0, 0, 0, 0, 0, 0)
        path.write_bytes(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + size + bytes(100))
        return
    Image.new("RGB", (SIDE, SIDE)).save(path)


def _archive_bomb(directory: Path) -> None:
    """Let an archive claim 20 GB."""
    with zipfile.ZipFile(directory.parent / "images.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        shape = "(20000000, 32, 32, 1)"
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        header = header.ljust(117) + "\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
        archive.writestr("images.npy", content + bytes(1000))


def _archive(directory: Path) -> None:
    shutil.copy(directory.parent.parent / "images.npz", directory.parent)
    shutil.rmtree(directory / "run", ignore_errors=True)


def _back(directory: Path, name: str = "run") -> None:
    """Move what was moved away back, in the place of what was made there since."""
    if (directory / name).exists():
        shutil.rmtree(directory / name)
    (directory / "away").rename(directory / name)


def _lift(directory: Path) -> None:
    (directory / "ballast").unlink(missing_ok=True)


KILL = "kill -KILL PID; sleep 1"

FAULTS: dict[str, Fault] = {
    f"disk full: {name}": Fault(
        "free space",
        moment,
        "cat /dev/zero >> DISK/ballast",
        after=_lift,
        disk=True,
    )
    for name, moment in disks.MOMENTS.items()
}
FAULTS |= {
    f"read-only: {name}": Fault(
        "Read-only", disks.MOMENTS[name], disks.sealing(Path("DISK")), after=disks.unseal, disk=True
    )
    for name in ("views.png", "a later save")
}
FAULTS |= {
    "workdir moved": Fault(r"run\b.*(gone|No such)", FLUSHED, "mv run away", after=_back),
    "workdir moved at a save": Fault(r"run\b.*(gone|No such)", SAVED, "mv run away", after=_back),
    "workdir removed": Fault(r"run\b.*(gone|No such)", FLUSHED, "rm -rf run"),
    "checkpoints removed": Fault("", SAVED, "rm -rf run/checkpoints", harmless=True),
    "data moved": Fault(
        r"pictures", FLUSHED, "mv ../pictures ../gone", after=_restore, folder=True
    ),
    "data removed": Fault(r"pictures", FLUSHED, "rm -rf ../pictures", after=_restore, folder=True),
    "data gone at the start": Fault(
        r"pictures", before=(lambda d: shutil.rmtree(d.parent / "pictures"),), after=_restore,
        folder=True,
    ),
    "images replaced": Fault(
        r"(?i)replaced|changed|other|differ", SAVED, KILL, between=_replace, after=_restore,
        folder=True, harmless=True, repeat=False,
    ),
    "link farm, FIFO": Fault("", before=(_farm,), after=_clear_farm, folder=True, harmless=True),
    "few files: 12": Fault("ulimit -n", limit=12),
    "few files: 24": Fault("ulimit -n", limit=24),
    "few files: 32": Fault("", limit=32, harmless=True),
    "few files: 32, a folder": Fault("", limit=32, folder=True, harmless=True),
    "bomb: npz": Fault("images.npz", before=(_archive_bomb,), after=_archive),
}  # fmt: skip
FAULTS |= {
    f"bomb: {suffix[1:]}": Fault(
        "",
        before=(functools.partial(_bomb, suffix=suffix),),
        after=_clear_farm,
        folder=True,
        harmless=True,
    )
    for suffix in (".png", ".jpg", ".gif", ".webp", ".bmp", ".tif")
}
