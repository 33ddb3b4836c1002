"""The processes that write shards, each of which opens the images itself."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import alive
from simclr_jax.alive import duration
from simclr_jax.closing import Closing
from simclr_jax.data import sources
from simclr_jax.data.packing import shards
from simclr_jax.data.packing.shards import Job, Shard
from simclr_jax.data.sources import Source, trained
from simclr_jax.data.sources.packed_files import Law
from simclr_jax.errors import Unreachable, UserError

EVERY_SECS = 3.0  # between lines of progress
Say = Callable[[str], object]


class Images(NamedTuple):
    """What a process needs to open the images.

    Attributes:
      data: `config.data` as a dictionary.
      kept: the directory with the list of a folder's files.
      identities: of the splits, see `trained.identity`.
      law: how pixels are made.
    """

    data: dict[str, Any]
    kept: str
    identities: dict[str, str]
    law: Law


class Done(NamedTuple):
    """A job that is done, and what the decoder said meanwhile."""

    job: Job
    shard: Shard
    lines: list[str]


def write(
    jobs: Sequence[Job],
    images: Images,
    opened: Mapping[str, Source],
    workers: int,
    say: Say,
) -> Generator[Done, None, None]:
    """Write shards, and yield each when it is there, in any order; say now and then how many are.

    Args:
      jobs: the shards.
      images: for processes of their own.
      opened: the splits, for one worker, which is this process.
      workers: how many.
      say: receives the lines.

    Raises:
      UserError: for whatever ends one of them.
    """
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    line = _progress(sum(job.last - job.first for job in jobs), lambda: count.value)
    with alive.lines(line, say, EVERY_SECS):
        if workers == 1:
            tick = functools.partial(_tick, count, stop)
            for job in jobs:
                yield Done(job, shards.write(opened[job.split], job, images.law, tick), [])
            return
        pool = futures.ProcessPoolExecutor(
            workers, context, initializer=_begin, initargs=(images, count, stop)
        )
        # What is under way ends within an image, and what is left is not begun.
        with Closing(stop.set, functools.partial(pool.shutdown, cancel_futures=True)):
            waiting = [pool.submit(_work, job) for job in jobs]
            for one in futures.as_completed(waiting):
                try:
                    yield one.result()
                except BrokenProcessPool as error:
                    raise UserError(
                        "a worker was killed, as the system does where memory runs out: give fewer "
                        f"with --workers ({workers} now); the same command goes on where it was"
                    ) from error


def _progress(total: int, count: Callable[[], int]) -> Callable[[float], str]:
    """Return what makes of the seconds so far a line about how many of `total` images are done."""

    def line(seconds: float) -> str:
        if not (done := count()):
            return f"working   packing {total} images, {duration(seconds)} so far"
        left = seconds * (total - done) / done
        return (
            f"packed    {done}/{total} images {done / total:4.0%}  "
            f"{duration(left)} left  {done / seconds:.0f} images/s"
        )

    return line


def _tick(count: Any, stop: Any) -> bool:
    with count.get_lock():
        count.value += 1
    return not stop.is_set()


# In a process of its own --------------------------------------------------------------------------

_GIVEN: list[Any] = []  # images, count, stop


def _begin(images: Images, count: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started this
    _GIVEN[:] = images, count, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job) -> Done:
    images, count, stop = _GIVEN
    lines: list[str] = []
    try:
        source = _open(job.split)
        sources.tell(source, lines.append)
        return Done(job, shards.write(source, job, images.law, lambda: _tick(count, stop)), lines)
    except UserError as error:  # in a form that survives the way to another process
        raise (Unreachable if isinstance(error, Unreachable) else UserError)(str(error)) from None


@functools.cache
def _open(split: str) -> Source:
    """Open a split as it was found when packing began; labels are not needed."""
    images = _GIVEN[0]
    data = ConfigDict(images.data | {"labels": False})
    source = sources.opener(data)(data, epath.Path(images.kept))[split]()
    if trained.identity(source) != images.identities[split]:
        raise UserError(
            f"{trained.called(data, split)} has other images than when packing began: leave them "
            "alone meanwhile; the same command goes on if they are as they were"
        )
    return source
