"""A trace of some training steps of the first process, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import jax
from etils import epath

from simclr_jax import buckets, closing, processes
from simclr_jax.errors import UserError


class Profiler:
    """Records the steps `a` to `b` of `--profile_steps=a:b`, counted from 0, into `directory`.

    Raises:
      UserError: if that is no range of the run's `total_steps`.
    """

    def __init__(self, steps: str, directory: epath.Path, total_steps: int):
        self._first, self._last = _parse(steps) if steps else (-1, -1)
        if self._last >= total_steps:
            raise UserError(f"--profile_steps is {steps}: the last step is {total_steps - 1}")
        self._directory = buckets.Mirror(directory)
        self._running = False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        closing.close(error, self._stop, self._directory.close)

    def _stop(self) -> None:
        """Write what was recorded, if anything was."""
        if not self._running:
            return
        self._running = False
        with _explaining(self._directory.local):
            jax.profiler.stop_trace()
        self._directory.publish()

    def begin(self, step: int, say: Callable[[str], None]) -> None:
        """Say so if the run goes on from a step behind the first one asked for."""
        if 0 <= self._first < step:
            say(
                f"profile   no trace is written: steps {self._first} to {self._last} were asked "
                f"for, and the run goes on with step {step}"
            )

    def before(self, steps: range) -> None:
        """Start the trace if the first step asked for is in this chunk."""
        if processes.rank() == 0 and steps[0] <= self._first <= steps[-1]:
            with _explaining(self._directory.local):
                jax.profiler.start_trace(os.fspath(self._directory.local))
            self._running = True

    def after(self, steps: range, result: object) -> None:
        """Stop the trace, once `result` is there, if the last step was in this chunk."""
        if self._running and steps[-1] >= self._last:
            jax.block_until_ready(result)
            self._stop()


@contextlib.contextmanager
def _explaining(directory: epath.PathLike) -> Iterator[None]:
    """Turn what JAX raises where a trace cannot be written into a line for the user."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # of XLA, which names no number of the system
        raise UserError(
            f"the trace cannot be written to {os.fspath(directory)} "
            f"({' '.join(str(error).split())[:200]}): free space there, or leave --profile_steps "
            "away, and start again"
        ) from error


def _parse(steps: str) -> tuple[int, int]:
    try:
        first, last = (int(part) for part in steps.split(":"))
    except ValueError:
        raise UserError(f"--profile_steps is {steps}: give two steps, such as 10:15") from None
    if not 0 <= first <= last:
        raise UserError(f"--profile_steps is {steps}: it must be 0 <= first <= last")
    return first, last
