"""A trace of some training steps of the first process, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

import os

import jax
from etils import epath

from simclr_jax import buckets, processes
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

    def __exit__(self, *_) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._directory.publish()
            self._running = False

    def before(self, steps: range) -> None:
        """Start the trace if the first step asked for is in this chunk."""
        if processes.rank() == 0 and steps[0] <= self._first <= steps[-1]:
            jax.profiler.start_trace(os.fspath(self._directory.local))
            self._running = True

    def after(self, steps: range, result: object) -> None:
        """Stop the trace, once `result` is there, if the last step was in this chunk."""
        if self._running and steps[-1] >= self._last:
            jax.block_until_ready(result)
            self.__exit__()


def _parse(steps: str) -> tuple[int, int]:
    try:
        first, last = (int(part) for part in steps.split(":"))
    except ValueError:
        raise UserError(f"--profile_steps is {steps}: give two steps, such as 10:15") from None
    if not 0 <= first <= last:
        raise UserError(f"--profile_steps is {steps}: it must be 0 <= first <= last")
    return first, last
