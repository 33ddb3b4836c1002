"""What the input costs: CPU time for both views of an image, by placement, and images/s by threads.

    python benchmarks/input_cost.py --path=~/photographs --size=224

All ways take turns in one run on the same files: placement `canvas`, `split` and `host`, all again
on copies whose shorter side is 256 pixels, and as a yardstick what a TensorFlow pipeline would do
first: two `decode_and_crop_jpeg` calls, and the same with the bicubic resize that follows. `canvas`
leaves crops and all that follows to the device, `split` what follows the crops. CPU time is that of
all threads of the process, so it depends little on how busy the machine is; images/s do.

Last come packed stores (`simclr_jax.pack`) whose shorter side is 256 pixels as well.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from simclr_jax import errors, recipes
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
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

WARMED = 4  # batches before those of a turn that are timed
SETTLED = 1.0  # seconds after which what was under way in a turn is done
STORED = 256  # shorter side of the copies, pixels

Ways = dict[str, Callable[[int], Iterator[object]]]


def main() -> None:
    """Time every way in turns and print CPU time and throughput."""
    if not FLAGS.path:
        raise errors.UserError("no images: give --path=DIRECTORY")
    with tempfile.TemporaryDirectory() as directory:
        source = _open(FLAGS.path)
        stored = _open(_store(source, Path(directory)))
        ways: Ways = {
            "two decode_and_crop_jpeg": functools.partial(_tensorflow, source, False),
            "the same, resized": functools.partial(_tensorflow, source, True),
            "canvas": functools.partial(_batches, "canvas", source),
            f"canvas, stored at {STORED}": functools.partial(_batches, "canvas", stored),
            "split": functools.partial(_batches, "split", source),
            f"split, stored at {STORED}": functools.partial(_batches, "split", stored),
            "host": functools.partial(_batches, "host", source),
            f"host, stored at {STORED}": functools.partial(_batches, "host", stored),
            **_packed(Path(directory)),
        }
        numbers = [int(number) for number in FLAGS.threads]
        print(f"{len(source)} images, views of {FLAGS.size} pixels, {os.cpu_count()} cores")
        print(_report(_times(ways, numbers), numbers))


def _open(path: str | Path) -> sources.Source:
    data = recipes.base().data
    data.source, data.path, data.labels = "folder", str(path), False
    return sources.OPENERS["folder"](data, None)[data.split]()


def _store(source: sources.Source, directory: Path) -> Path:
    """Write copies of all images with a shorter side of `STORED` pixels."""
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


def _times(ways: Ways, threads: list[int]) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """Return CPU and wall seconds per image of each turn."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _, number, (name, start) in itertools.product(range(FLAGS.turns), threads, ways.items()):
        stream = start(number)
        for _ in range(WARMED):  # it compiles, and asks the system for memory
            next(stream)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(FLAGS.batches):
            next(stream)
        count = FLAGS.batches * FLAGS.batch_size
        seconds = ((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)
        found.setdefault((name, number), []).append(seconds)
        if hasattr(stream, "close"):
            stream.close()
        del stream  # TensorFlow's has no end but this: it would work on in the turn of the next
        gc.collect()
        time.sleep(SETTLED)
    return found


def _packed(directory: Path) -> Ways:
    """Pack the images, and return placement `split` on each store."""
    ways: Ways = {}
    for kind in ("uint8", "jpeg"):
        config = recipes.base()
        config.data.update({"source": "folder", "path": FLAGS.path, "labels": False})
        store = directory / kind
        options = run.Options(str(store), kind, STORED, workers=1)
        run.pack(config, options, say=lambda line: None)
        config.data.update({"source": "packed", "path": str(store)})
        source = sources.find(config.data)[config.data.split]()
        ways[f"split, packed {kind} at {STORED}"] = functools.partial(_batches, "split", source)
    return ways


def _report(times: dict, threads: list[int]) -> str:
    def median(name: str, number: int, kind: int) -> float:
        return statistics.median(seconds[kind] for seconds in times[name, number])

    names = list(dict.fromkeys(name for name, _ in times))
    yardstick = median(names[0], threads[0], 0)
    rows = []
    for name in names:
        cpu = median(name, threads[0], 0)
        spread = [seconds[0] for seconds in times[name, threads[0]]]
        rates = [f"{1 / median(name, number, 1):.0f}" for number in threads]
        cells = (f"{1e3 * cpu:.2f}", f"{1e3 * np.ptp(spread):.2f}", f"{cpu / yardstick:.2f}")
        rows.append((name, *cells, *rates))
    heads = [f"images/s, {number} threads" for number in threads]
    return table(("", "CPU ms an image", "spread", "ratio", *heads), rows)


if __name__ == "__main__":
    errors.run(main)
