"""Whether training works on the devices that are here: check after check, each with advice."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import alive, errors, extras, fields, files, parallel, processes, validation
from simclr_jax.checking import alike, rates, surroundings
from simclr_jax.checking.findings import NOTE, WRONG, Finding
from simclr_jax.closing import Closing
from simclr_jax.errors import UserError
from simclr_jax.stages.inherit import inherit
from simclr_jax.stages.prepare import Prepared

Say = Callable[[str], object]
EXACT = "float32"  # what slopes are measured in, where the recipe computes in less
REASON = 300  # characters of what a library says


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to look at.

    Attributes:
      config: a recipe, whose images, step and dtype are taken.
      images: what its images are called; "": photographs are made, see `rates.made`.
      workdir: where runs are to live.
      secs: that each rate is measured.
    """

    config: ConfigDict
    images: str = ""
    workdir: str = "runs"
    secs: float = rates.SECS


def run(asked: Asked, say: Say = print) -> int:
    """Check this machine, print what is found; return 0 if it is sound, 1 if anything is wrong.

    In several processes all must call this; the first one prints.

    Raises:
      UserError: for a recipe or images that cannot be used, before anything is computed.
    """
    workdir = files.expand_home(asked.workdir)
    files.check_directory(workdir, "--workdir")
    fields.known(asked.config)
    first, mesh = processes.rank() == 0, parallel.make_mesh()
    during = functools.partial(alive.during, say=_progress if first else _silent)
    opened = None
    if asked.images:
        with during("opening the images"):
            opened = rates.opened(asked.config, mesh)
    else:  # photographs are made for it at the end
        validation.validate(inherit(asked.config)[0], mesh.size)
    found: list[Finding] = []
    looks: tuple[Callable[[], Iterable[Finding]], ...] = (
        surroundings.versions,
        surroundings.devices,
        surroundings.memory,
        functools.partial(surroundings.disk, workdir),
        functools.partial(same, asked.config.train.dtype, mesh, during),
        functools.partial(speed, asked, workdir, opened, mesh, during),
    )
    for look in looks:
        for finding in look():
            found.append(finding)
            for line in finding.lines if first else ():
                say(line)
    counts = [sum(finding.state == state for finding in found) for state in (WRONG, NOTE)]
    wrong, notes = max(processes.everyone(counts))
    beside = f", {notes} note{'s' if notes > 1 else ''}" if notes else ""
    if first:
        say(f"{'WRONG' if wrong else 'sound':<10}{wrong or 'nothing'} wrong{beside}")
    return int(wrong > 0)


def same(dtype: str, mesh: Mesh, during: Callable) -> list[Finding]:
    """Look whether one device and all compute the same, and twice the same."""
    trial = alike.Trial(mesh.size, dtype)
    with (
        _told("step") as failed,
        during(f"training a small network on one device and on {mesh.size}"),
    ):
        begun = alike.seeds(trial)
        if any(finding.state == WRONG for finding in begun):
            return begun  # all else would follow from it
        taken = trial.on(mesh)
        outcomes = [taken.once(), taken.once()]
        found = [*begun, *alike.repeats(outcomes)]
        alone = taken if mesh.size == 1 else trial.on(alike.own_mesh())
        one = alone.once()
        found += alike.devices_agree(trial, outcomes[0], one)
        if dtype not in alike.SLOPE:  # too few digits for a difference of two losses
            trial = alike.Trial(mesh.size, EXACT)
            alone = trial.on(alike.own_mesh())
            one = alone.once()
        return [*found, alike.slope(trial, alone, one)]
    return failed


def speed(
    asked: Asked, workdir: str, opened: tuple[Prepared, str] | None, mesh: Mesh, during: Callable
) -> Iterator[Finding]:
    """Look whether images arrive as fast as they are taken, and whether checkpoints have room.

    `opened` is by `rates.opened`; None: photographs are made.
    """
    what = f"images of {asked.images}" if asked.images else "JPEGs of 500x375 pixels"
    with Closing() as stack, _told("input") as failed:
        if opened is None:
            if missing := surroundings.missing("images"):
                said = f"not measured, for {', '.join(missing)} is missing"
                yield Finding(NOTE, "input", said, extras.install("images"))
                return
            place = Path(stack.enter(tempfile.TemporaryDirectory()))
            try:
                with during("making photographs"):
                    opened = rates.opened(rates.made(asked.config, place, mesh), mesh)
            except UserError as error:  # of a recipe that is sound as it was given
                said = f"not measured, for the recipe does not fit small photographs: {error}"
                yield Finding(NOTE, "input", said, "name images of your own by --data")
                return
        ready, whole = opened
        if whole:
            batch = ready.timetable.batch_size
            said = f"a step of {batch} images is measured, for a smaller batch is refused: {whole}"
            yield Finding(NOTE, "batch", said, "wait: such a step may take CPUs minutes")
        measured = rates.measure(ready, mesh, asked.secs, during)
        cpus = mesh.devices.flat[0].platform == "cpu"
        yield rates.compared(measured, ready.config, what, cpus)
        if asked.images:  # the disk was looked at before: this is what the recipe needs of it
            needed = (ready.config.checkpoint.keep + 1) * measured.checkpoint
            room = surroundings.disk(workdir, needed)
            yield from (finding for finding in room if finding.state == WRONG)
    yield from failed


@contextlib.contextmanager
def _told(about: str) -> Iterator[list[Finding]]:
    """Make what a library raises a finding: of a program that does not run, that is the answer.

    With other processes it is raised: they wait for this one.
    """
    failed: list[Finding] = []
    try:
        yield failed
    except UserError:
        raise
    except Exception as error:
        if processes.count() > 1 or "--debug" in sys.argv:
            raise
        said = " ".join(str(error).split())[:REASON] or type(error).__name__
        advice = "look at the driver and the versions above; --debug shows where"
        if "RESOURCE_EXHAUSTED" in said:
            advice = "lower train.batch_size; `simclr plan` says what fits"
        failed.append(Finding(WRONG, about, f"it fails: {errors.printable(said)}", advice))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """Say nothing: the first process does."""
