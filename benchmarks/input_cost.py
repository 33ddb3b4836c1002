"""What the input costs: CPU time for both views of an image, by placement, and images/s by threads.

    python benchmarks/input_cost.py --path=~/photographs --size=224

All ways take turns in one run on the same files: placement `canvas`, `split` and `host`, all again
on copies whose shorter side is 256 pixels, and as a yardstick what a TensorFlow pipeline would do
first: two `decode_and_crop_jpeg` calls, and the same with the bicubic resize that follows. `canvas`
leaves crops and all that follows to the device, `split` what follows the crops. CPU time is that of
all threads of the process, so it depends little on how busy the machine is; images/s do.

Last come packed stores (`simclr_jax.pack`) whose shorter side is 256 pixels as well. After the
turns each way is timed once in several processes at the same time, of a thread each.
"""

from __future__ import annotations

import functools
import gc
import itertools
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from simclr_jax import entry, errors, recipes
from simclr_jax.augment.policy import Policy
from simclr_jax.data import batches, order, sources
from simclr_jax.data.canvas import Canvas
from simclr_jax.data.packing import run
from simclr_jax.data.placements import Loading
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "Directory of JPEGs.")
flags.DEFINE_integer("size", 224, "Side of a view, in pixels.", lower_bound=8)
flags.DEFINE_integer("canvas", 512, "Side of a canvas, in pixels.", lower_bound=8)
flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
flags.DEFINE_integer("batches", 3, "Batches to time in each turn.", lower_bound=1)
flags.DEFINE_integer("turns", 3, "How often each way has its turn.", lower_bound=1)
flags.DEFINE_list("threads", ["1", str(os.cpu_count())], "Numbers of threads to try.")
flags.DEFINE_integer("processes", 2, "Processes that work at the same time.", lower_bound=1)
flags.DEFINE_string("ways", "", "Regular expression of the ways to time.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

WARMED = 4  # batches before those of a turn that are timed
SETTLED = 1.0  # seconds after which what was under way in a turn is done
STORED = 256  # shorter side of the copies, pixels


class Way(NamedTuple):
    """A way to make batches: a placement, or TensorFlow's operations, on images of a source."""

    how: str
    source: str
    path: str

    def start(self, threads: int) -> Iterator[object]:
        """Return its batches."""
        source = _open(self.source, self.path)
        if self.how in PLACEMENTS:
            return _batches(self.how, source, threads)
        return _tensorflow(source, self.how == RESIZED, threads)


PLACEMENTS = ("canvas", "split", "host")
CROPS, RESIZED = "two decode_and_crop_jpeg", "the same, resized"


def main() -> None:
    """Time every way in turns and print CPU time and throughput."""
    if not FLAGS.path:
        raise errors.UserError("no images: give --path=DIRECTORY")
    with tempfile.TemporaryDirectory() as directory:
        source = _open("folder", FLAGS.path)
        given = Way("", "folder", FLAGS.path)
        stored = given._replace(path=str(_store(source, Path(directory) / "stored")))
        ways = {how: given._replace(how=how) for how in (CROPS, RESIZED)}
        for how in PLACEMENTS:
            ways |= {how: given._replace(how=how)}
            ways |= {f"{how}, stored at {STORED}": stored._replace(how=how)}
        ways |= _packed(Path(directory))
        ways = {name: way for name, way in ways.items() if re.search(FLAGS.ways, name)}
        numbers = [int(number) for number in FLAGS.threads]
        print(f"{len(source)} images, views of {FLAGS.size} pixels, {os.cpu_count()} cores")
        found = _times(ways, numbers)
        together = {name: _by_processes(way) for name, way in ways.items()}
        print(_report(found, numbers, together))


def _open(source: str, path: str) -> sources.Source:
    data = recipes.base().data
    data.source, data.path, data.labels = source, path, False
    return sources.OPENERS[source](data, None)[data.split]()


def _store(source: sources.Source, directory: Path) -> Path:
    """Write copies of all images with a shorter side of `STORED` pixels."""
    directory.mkdir()
    for i in range(len(source)):
        image = Image.fromarray(source.example(i)[0])
        scale = STORED / min(image.size)
        smaller = image.resize(
            [round(scale * side) for side in image.size], Image.Resampling.LANCZOS
        )
        smaller.save(directory / f"{i:06}.jpg", quality=92)
    return directory


def _batches(placement: str, source: sources.Source, threads: int) -> Iterator[object]:
    policy = Policy(FLAGS.size)
    loading = Loading(
        Reader(
            source,
            functools.partial(order.examples, 0, size=len(source)),
            Unreadable("train", len(source), max_fraction=0.5),
        ),
        policies={"views": (policy, policy)},
        seed=0,
        shared_sigma=False,
        threads=threads,
        canvas=Canvas(FLAGS.canvas),
    )
    requests = (batches.request(step, FLAGS.batch_size) for step in itertools.count())
    return batches.host_batches(placement, loading, requests)


def _tensorflow(source: sources.Source, resize: bool, threads: int) -> Iterator[object]:
    """Yield batches of two crops of each image, cut while decoding, as plain tf.data."""
    import tensorflow as tf

    paths = [str(source.root / path) for path in source.paths]  # type: ignore[attr-defined]

    def crop(encoded, shape):
        box, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=100,
        )
        y, x, _ = tf.unstack(box)
        height, width, _ = tf.unstack(size)
        image = tf.io.decode_and_crop_jpeg(
            encoded, [y, x, height, width], channels=3, dct_method="INTEGER_ACCURATE"
        )
        if not resize:
            return tf.reduce_max(image)
        image = tf.image.convert_image_dtype(image, tf.float32)
        return tf.image.resize(image, [FLAGS.size, FLAGS.size], "bicubic")

    def views(path):
        encoded = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(encoded)
        return tf.stack([crop(encoded, shape), crop(encoded, shape)])

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    dataset = dataset.map(views, num_parallel_calls=threads).batch(FLAGS.batch_size).prefetch(1)
    return dataset.with_options(options).as_numpy_iterator()


def _times(
    ways: dict[str, Way], threads: list[int]
) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """Return CPU and wall seconds per image of each turn."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _, number, (name, way) in itertools.product(range(FLAGS.turns), threads, ways.items()):
        found.setdefault((name, number), []).append(_timed(way, number))
        gc.collect()
        time.sleep(SETTLED)
    return found


def _timed(
    way: Way, threads: int, begin: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Return CPU and wall seconds per image of one turn, which begins when `begin` returns."""
    stream = way.start(threads)
    for _ in range(WARMED):  # it compiles, and asks the system for memory
        next(stream)
    begin()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(FLAGS.batches):
        next(stream)
    count = FLAGS.batches * FLAGS.batch_size
    seconds = ((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)
    if hasattr(stream, "close"):
        stream.close()
    return seconds  # TensorFlow's stream has no end but to be forgotten: it would work on


def _by_processes(way: Way) -> float:
    """Return images/s of several processes together, of a thread each."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(FLAGS.processes, timeout=120)  # seconds: where one has failed
    with futures.ProcessPoolExecutor(
        FLAGS.processes, context, initializer=_begin, initargs=(sys.argv, ready)
    ) as pool:
        found = list(pool.map(_in_process, [way] * FLAGS.processes))
    return sum(1 / wall for _, wall in found)


_READY: list[Barrier] = []


def _begin(argv: list[str], ready: Barrier) -> None:
    FLAGS(argv)
    _READY[:] = [ready]


def _in_process(way: Way) -> tuple[float, float]:
    return _timed(way, 1, _READY[0].wait)


def _packed(directory: Path) -> dict[str, Way]:
    """Pack the images, and return placements `split` and `canvas` on each store."""
    ways: dict[str, Way] = {}
    for kind in ("uint8", "jpeg"):
        config = recipes.base()
        config.data.update({"source": "folder", "path": FLAGS.path, "labels": False})
        store = directory / kind
        options = run.Options(str(store), kind, STORED, workers=1)
        run.pack(config, options, say=lambda line: None)
        for how in ("canvas", "split"):
            ways[f"{how}, packed {kind} at {STORED}"] = Way(how, "packed", str(store))
    return ways


def _report(times: dict, threads: list[int], together: dict[str, float]) -> str:
    def median(name: str, number: int, kind: int) -> float:
        return statistics.median(seconds[kind] for seconds in times[name, number])

    names = list(dict.fromkeys(name for name, _ in times))
    yardstick = median(RESIZED if RESIZED in names else names[0], threads[0], 0)
    rows = []
    for name in names:
        cpu = median(name, threads[0], 0)
        spread = [seconds[0] for seconds in times[name, threads[0]]]
        rates = [f"{1 / median(name, number, 1):.0f}" for number in threads]
        cells = (f"{1e3 * cpu:.2f}", f"{1e3 * np.ptp(spread):.2f}", f"{cpu / yardstick:.2f}")
        rows.append((name, *cells, *rates, f"{together[name]:.0f}"))
    heads = [f"images/s, {number} threads" for number in threads]
    heads.append(f"{FLAGS.processes} processes")
    return table(("", "CPU ms an image", "spread", "of resized", *heads), rows)


if __name__ == "__main__":
    entry.run(main)
