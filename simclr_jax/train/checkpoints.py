"""Verified, asynchronous checkpoints: what is restored is what was saved, or is not restored.

Orbax writes the arrays, as plain nested dictionaries that every Orbax tool reads. By itself it
restores a flipped byte, casts dtypes and takes an empty directory for a step, all silently; the
manifest of `manifest.py` is what makes a directory a checkpoint here. A step's life:

    STEP.orbax-checkpoint-tmp   Orbax writes
    STEP                        Orbax has renamed it; not a checkpoint yet
    STEP/manifest.json          a checkpoint; now read back and compared with what was in memory
    STEP.pruned                 being deleted, after a newer step was read back
    STEP.damaged                set aside, never read again, for the user to look at or delete

Each passage is one atomic rename, so a kill at any instant leaves the newest checkpoint whole.

A state is whole on every process of a run. The first one writes, and all of them read, verify and
agree on what they read: `save`, `wait` and `restore` are called by all at the same point.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from simclr_jax import buckets, closing, documents, errors, files, processes
from simclr_jax.errors import UserError
from simclr_jax.train import arrays, manifest, stored
from simclr_jax.train.manifest import Damaged, Leaf
from simclr_jax.train.orbax_errors import errno_of, hush_orbax

Found = TypeVar("Found")

_LEFTOVERS = (".orbax-checkpoint-tmp", ".pruned")


class Checkpoints:
    """Checkpoints of one run, in `DIRECTORY/STEP/`.

    Args:
      directory: created by the first save.
      keep: how many of the newest steps stay.
      keep_period: multiples of this step stay as well.
      stay: steps that stay too.
      read_only: for readers of a run that may still be training: `restore` skips what is damaged
        or unfinished and leaves it in place, and `save` is refused.
      recipe: of the run, kept in each checkpoint; one that has another recipe is not restored.
      sealed: is told each step that has been saved, once it was read back.
      say: receives one line about each checkpoint set aside or skipped.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int = 3,
        keep_period: int | None = None,
        stay: Collection[int] = (),
        read_only: bool = False,
        recipe: Mapping[str, Any] | None = None,
        sealed: Callable[[int], None] = lambda step: None,
        say: Callable[[str], None] = logging.warning,
    ):
        if keep < 1 or (keep_period is not None and keep_period < 1):
            raise UserError(
                f"checkpoint.keep is {keep} and checkpoint.keep_period {keep_period}: "
                "both must be at least 1"
            )
        hush_orbax()
        path = epath.Path(directory)
        self._directory = path.absolute() if files.is_local(path) else path  # Orbax insists
        self._keep = keep
        self._keep_period = keep_period
        self._stay = stay
        self._read_only = read_only
        self._recipe = None if recipe is None else documents.finite(recipe)  # as it is kept
        self._sealed = sealed
        self._say = say
        # Directories are made in the caller's thread: when Orbax fails to make one in the
        # background, its writers wait ten minutes for it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=processes.rank(), active_processes={processes.rank()}
        )
        self._writer = ocp.StandardCheckpointer(
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            multiprocessing_options=alone,
        )
        self._reader = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving = self._closed = False
        self._pending: Future[None] | None = None  # of the process that writes

    @property
    def place(self) -> epath.Path:
        """Return the directory that a user knows."""
        return self._directory

    def steps(self) -> list[int]:
        """Return the steps that have a manifest, oldest first."""
        with buckets.reaching(self.place):
            return [
                step
                for step in self._directories()
                if (self.place / str(step) / manifest.NAME).exists()
            ]

    def about(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint tells of its run, see `manifest.about`; `{}` without one."""
        try:
            return manifest.about(self.place / str(step), step)
        except Damaged:
            return {}

    def save(self, step: int, state: Any, log: Mapping[str, Any] | None = None) -> None:
        """Save a pytree of arrays; return as soon as it is on the host and may be donated.

        `log`, of JSON, is kept with it: what had been logged until then.

        Waits for the previous save. Writing, reading back, sealing and pruning happen in the
        background; what goes wrong there is raised by the next `save`, `wait` or `close`.

        Raises:
          UserError: the step exists, or the files cannot be written.
        """
        self.wait()
        if self._read_only:
            raise ValueError("these checkpoints were opened read-only")
        self._saving = True
        processes.on_first(functools.partial(self._begin, step, state, log))

    def _begin(self, step: int, state: Any, log: Mapping[str, Any] | None) -> None:
        path = self._path(step)
        leaves = manifest.named_leaves(state)
        with self._explaining(step):
            if step in self.steps():
                raise UserError(
                    f"checkpoint {self._name(step)} exists: resume from it or use another workdir"
                )
            self.sweep()
            if path.exists():
                self._set_aside(step, "its save did not finish")
            host = manifest.to_host(leaves)
            self._writer.save(path, arrays.nest(arrays.for_orbax(leaves, host)))
        told = {"recipe": self._recipe, "log": log}
        about = {name: content for name, content in told.items() if content is not None}
        self._pending = self._background.submit(self._finish, step, host, about)

    def wait(self) -> None:
        """Wait until the last save is sealed; raise what went wrong with it."""
        saving, self._saving = self._saving, False
        if saving:
            processes.on_first(self._wait_here)

    def _wait_here(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait as `wait` does, then free the threads."""
        last = (self._background.shutdown, self._close_writer, self._reader.close)
        closing.close(None, self._wait_here, self._mark_closed, *last)

    def _mark_closed(self) -> None:
        """Let a thread that still reads for nobody take what it meets for no damage."""
        self._closed = True

    def _close_writer(self) -> None:
        """Close what Orbax writes by, which says once more why the last save failed."""
        with self._explaining("the last"):
            self._writer.close()

    def restore(self, target: Any) -> tuple[int, Any] | None:
        """Return the newest step that verifies and its state, or None if there is none.

        Damaged and unfinished steps met on the way are renamed to `STEP.damaged` and reported.

        Args:
          target: pytree of `jax.ShapeDtypeStruct` or arrays. A leaf is restored with the target's
            sharding (a struct without one: to the default device), a NumPy leaf as NumPy.

        Raises:
          UserError: a whole checkpoint holds other leaves, shapes or dtypes than `target`. Nothing
            is set aside then.
        """
        self.wait()
        for step in reversed(processes.on_first(self._directories)):
            state, damage = None, None
            try:
                state = self._read(step, target)
            except Damaged as found:
                damage = str(found)
            damages = processes.everyone(damage)
            if not any(damages):
                return step, state
            self._dismiss(step, damages)
        return None

    def _dismiss(self, step: int, damages: list[str | None]) -> None:
        """Set a step aside that no process could read; `damages` is what each of them found."""
        if self._closed:
            raise RuntimeError(f"checkpoint {self._name(step)} is read, though nobody waits for it")
        if not all(damages):
            rank = next(rank for rank, found in enumerate(damages) if found)
            raise UserError(
                f"process {rank} cannot read checkpoint {self._name(step)} ({damages[rank]}), "
                "others can: give a --workdir that all hosts share"
            )
        if self._read_only:
            self._say(f"checkpoint {self._name(step)} is skipped: {damages[0]}")
        else:
            processes.on_first(functools.partial(self._set_aside, step, damages[0]))

    def leaves(self, step: int | None = None) -> tuple[int, dict[str, np.ndarray]]:
        """Return a step and all its arrays in host memory, by path, whatever model they are of.

        Args:
          step: which; None: the newest one that verifies.

        Raises:
          UserError: there is no such step, or it is damaged.
        """
        self.wait()
        return self._newest(step, self._values)

    def described(self, step: int | None = None) -> tuple[int, dict[str, Leaf]]:
        """Return what `leaves` would, by shape and dtype alone: values are not looked at."""
        return self._newest(step, lambda tried: manifest.read(self.place / str(tried), tried))

    def _newest(self, step: int | None, read: Callable[[int], Found]) -> tuple[int, Found]:
        """Return a step, None for the newest that is not damaged, and what is read of it."""
        steps, skipped = self.steps(), dict[int, Damaged]()
        for tried in reversed(steps) if step is None else [step] if step in steps else []:
            try:
                found = read(tried)
            except Damaged as damage:
                skipped[tried] = damage
                continue
            for other, reason in skipped.items():
                self._say(f"checkpoint {self._name(other)} is skipped: {reason}")
            return tried, found
        wanted = "whole checkpoint" if step is None else f"whole checkpoint {step}"
        why = next((f"; {last} is damaged: {reason}" for last, reason in skipped.items()), "")
        raise UserError(
            f"there is no {wanted} in {self.place}: "
            f"steps there: {', '.join(map(str, steps)) or 'none'}{why}"
        )

    def _name(self, step: int) -> str:
        return os.fspath(self.place / str(step))

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _directories(self) -> list[int]:
        """Return all steps that have a directory, whole or not, oldest first."""
        names = [path.name for path in buckets.listing(self._directory)]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def _finish(
        self, step: int, host: Mapping[str, manifest.HostLeaf], about: Mapping[str, Any]
    ) -> None:
        """Seal a step once Orbax has committed it, check it, then prune: in this order."""
        path = self._path(step)
        with self._explaining(step):
            leaves = manifest.describe(host)  # while Orbax is writing
            self._writer.wait_until_finished()
            manifest.write(path, step, leaves, about)
            try:
                self._check_files(step, manifest.read(path, step))
            except Damaged as damage:
                self._set_aside(step, damage)
                raise
            self._publish(step)
            self._sealed(step)
            self._prune()

    def _publish(self, step: int) -> None:
        """Do nothing: a sealed directory is a checkpoint. Where it is none, it becomes one here."""

    def _read(self, step: int, target: Any) -> Any:
        """Restore one step onto the target's devices; raise `Damaged` or `UserError`."""
        saved = manifest.read(self._path(step), step)
        recipe = manifest.about(self._path(step), step).get("recipe")
        if recipe is not None and self._recipe is not None:
            stored.check_same(recipe, self._recipe, f"checkpoint {self._name(step)}")
        wanted = manifest.named_leaves(target)
        described = {name: Leaf(np.shape(a), arrays.dtype(a).name) for name, a in wanted.items()}
        if found := manifest.differences(described, saved):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise UserError(
                f"checkpoint {self._name(step)} is of another model ({'; '.join(found[:3])}{more})"
                ": use the recipe it was trained with, or another workdir"
            )
        values = self._host_values(step, saved)
        state = [arrays.place(values[name], leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(target), state)

    def _values(self, step: int) -> dict[str, np.ndarray]:
        """Read all arrays of a step into host memory; raise `Damaged` if it is not whole."""
        return self._host_values(step, manifest.read(self._path(step), step))

    def _check_files(self, step: int, saved: Mapping[str, Leaf]) -> None:
        """Raise `Damaged` if a step does not read back, away from the devices, as it was saved."""
        self._host_values(step, saved)

    def _host_values(self, step: int, saved: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
        """Read a step into host memory; raise `Damaged` if it is not what was saved."""
        try:
            places = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in saved.items()}
        except MemoryError as error:
            raise UserError(
                f"checkpoint {self._name(step)} claims more than there is memory ({error}): free "
                "some, or use less"
            ) from error
        try:
            values = self._load(step, places)
        except MemoryError:
            raise
        except Exception as error:  # each layer of Orbax and TensorStore has types of its own
            if self._closed:
                raise
            if (number := errno_of(error)) is not None:
                said = errors.unreadable(
                    f"checkpoint {self._name(step)}",
                    OSError(number, os.strerror(number)),
                    remedy_of_disk="check that disk or mount; if it stays so, move that directory "
                    "away, and the run goes on from the checkpoint before",
                )
                if not isinstance(said, errors.BadFile):
                    raise said from error
            raise Damaged(f"it cannot be read: {str(error).splitlines()[0][:200]}") from error
        manifest.check_values(manifest.describe(manifest.to_host(values)), saved)
        return values

    def _load(self, step: int, places: Mapping[str, Any]) -> dict[str, Any]:
        """Let Orbax read a step into the given shapes, dtypes and shardings."""
        args = ocp.args.StandardRestore(arrays.nest(places))
        return traverse_util.flatten_dict(
            self._reader.restore(self._path(step), args=args), sep="/"
        )

    def _prune(self) -> None:
        """Delete what need not stay, now that the newest step is known to be whole."""
        for step in self.steps()[: -self._keep]:
            periodic = self._keep_period is not None and step % self._keep_period == 0
            if not periodic and step not in self._stay:
                self._retire(step)
        self.sweep()

    def _retire(self, step: int) -> None:
        """Make a checkpoint one no more; `sweep` deletes the rest of it."""
        self._path(step).rename(self._directory / f"{step}.pruned")

    def sweep(self, lost: int = 0) -> None:
        """Delete what a killed process left half written or half deleted.

        `lost` is the newest step that was ever saved if it is no checkpoint any more. On a disk it
        has a name that nothing half written has, and `restore` sets it aside.
        """
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                if path.name.endswith(_LEFTOVERS):
                    path.rmtree()

    def damaged(self) -> list[str]:
        """Return the names of checkpoints that were whole once and have been set aside."""
        if not self._directory.is_dir():
            return []
        paths = self._directory.glob("*.damaged*")
        return sorted(path.name for path in paths if (path / manifest.NAME).exists())

    def _set_aside(self, step: int, reason: object) -> None:
        names = itertools.chain(
            [f"{step}.damaged"], (f"{step}.damaged-{i}" for i in itertools.count(2))
        )
        free = next(path for name in names if not (path := self._directory / name).exists())
        self._path(step).rename(free)
        self._say(f"checkpoint {self._name(step)} is set aside as {free.name}: {reason}")

    @contextlib.contextmanager
    def _explaining(self, step: int | str) -> Iterator[None]:
        """Turn what a full or failing disk raises into a line for the user; leave the rest."""
        try:
            yield
        except (Damaged, OSError, ValueError) as error:  # TensorStore raises ValueErrors
            number = errno_of(error)
            if number is None and not isinstance(error, Damaged):
                raise
            reason = os.strerror(number) if number else f"it reads back differently: {error}"
            raise UserError(
                f"checkpoint {step} cannot be written to {self.place} ({reason}; the last "
                f"good one is {max(self.steps(), default='none')}): "
                f"{errors.remedy(number)} and start again"
            ) from error
