"""How long a run that resumes waits for its first batch, by order, from TFRecord files.

    python benchmarks/resume_cost.py --path=/data/imagenet --size=224 --latency=0.05

For both orders and for steps 0 and `--step`: seconds from opening the data set (whose index is
there) to the first batch and to each one after it, and the requests and bytes that this took.
`--latency` adds so many seconds to each request, as a bucket would. The yardstick is a pipeline
that can only read from the start: one pass over the bytes, times the epochs up to that step.
"""

from __future__ import annotations

import itertools
import os
import threading
import time

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from simclr_jax import buckets, entry, errors, recipes
from simclr_jax.data import batches, sources
from simclr_jax.stages.inputs import Inputs
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "Directory of TFRecord files, or a bucket.")
flags.DEFINE_integer("step", 1_000_000, "At which the run resumes.", lower_bound=0)
flags.DEFINE_integer("batch_size", 256, "Images in a batch.", lower_bound=1)
flags.DEFINE_integer("batches", 130, "Batches to time after the first: two windows.", lower_bound=1)
flags.DEFINE_integer("size", 224, "Side of a view, in pixels.", lower_bound=8)
flags.DEFINE_integer("threads", os.cpu_count(), "Threads that read and decode.", lower_bound=1)
flags.DEFINE_float("latency", 0.0, "Seconds added to each request.", lower_bound=0)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


class Requests:
    """Counts what is read, and makes it slow."""

    def __init__(self):
        self._lock, self._read_range = threading.Lock(), buckets.read_range
        self.count = self.bytes = 0

    def __call__(self, path, start: int, count: int) -> bytes:
        """Stand in for `buckets.read_range`."""
        time.sleep(FLAGS.latency)
        with self._lock:
            self.count += 1
            self.bytes += count
        return self._read_range(path, start, count)


def main() -> None:
    """Time both orders at both steps and print a table."""
    if not FLAGS.path:
        raise errors.UserError("no images: give --path=DIRECTORY")
    source = sources.open_splits(_recipe("random").data)[0]  # makes the index
    count = len(source)
    rows = []
    _first_batch("random", 0)  # compiles
    for order, step in itertools.product(("random", "stream"), (0, FLAGS.step)):
        rows.append((order, f"{step:,}", *_first_batch(order, step)))
    epochs = FLAGS.step * FLAGS.batch_size / count
    seconds = _one_pass(source)
    heads = ("order", "step", "s to first batch", "s per batch after", "longest", "requests", "MB")
    print(f"{count} images, batches of {FLAGS.batch_size}, {FLAGS.threads} threads")
    print(table(heads, rows))
    print(f"reading from the start: {seconds:.2f} s a pass, {epochs * seconds:,.0f} s to that step")


def _recipe(order: str) -> ConfigDict:
    recipe = recipes.base()
    recipe.data.source, recipe.data.path, recipe.data.labels = "tfrecord", FLAGS.path, False
    recipe.data.order, recipe.data.threads = order, FLAGS.threads
    recipe.data.image_size, recipe.train.batch_size = FLAGS.size, FLAGS.batch_size
    recipe.augment.placement, recipe.augment.grid = "split", "opencv"
    return recipe


def _first_batch(order: str, step: int) -> tuple[str, ...]:
    recipe = _recipe(order)
    buckets.read_range, before = (requests := Requests()), buckets.read_range
    try:
        start = time.perf_counter()
        train, test = sources.open_splits(recipe.data)
        steps = (batches.request(at, FLAGS.batch_size) for at in itertools.count(step))
        stream = Inputs(recipe, train, test).stream(steps)
        next(stream)
        first = time.perf_counter() - start
        said = f"{requests.count:,}", f"{requests.bytes / 1e6:.1f}"
        later = []
        for _ in range(FLAGS.batches):
            start = time.perf_counter()
            next(stream)
            later.append(time.perf_counter() - start)
        stream.close()  # type: ignore[attr-defined]
    finally:
        buckets.read_range = before
    return f"{first:.2f}", f"{np.mean(later):.2f}", f"{max(later):.2f}", *said


def _one_pass(source) -> float:
    start = time.perf_counter()
    for rows in np.array_split(np.arange(len(source)), max(1, len(source) // 1024)):
        source.raw.fetch(source.rows[rows])
    return time.perf_counter() - start


if __name__ == "__main__":
    entry.run(main)
