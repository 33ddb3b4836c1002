"""What grows with a data set, at the sizes of large ones: measured, or measured on a part of them.

    python benchmarks/scale.py
    python benchmarks/scale.py --sections=index --files=1000000

| section | what |
|---|---|
| `index` | a folder of 1 000 000 images: searched, its list written and read again |
| `records` | 14 000 000 records of TFRecord files: found, the index read, 4096 of them read |
| `order` | which examples a step sees, at step 0 and at step 1 000 000 |
| `knn` | 50 000 queries against a bank of 1 281 167, 2048 numbers each, k = 200 |
| `lbfgs` | logistic regression on 20 000 x 1024, 50 classes, beside scikit-learn |

A row says `measured`, or what part of the size was: times are then multiplied by the rest, as they
grow in proportion (kNN with queries times bank). Memory is what arrays take.
"""

from __future__ import annotations

import functools
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from clouds import clouds, fits
from etils import epath

from simclr_jax import entry, errors, flag_kinds
from simclr_jax.data import order
from simclr_jax.data.sources.folder import SUFFIXES
from simclr_jax.data.sources.index import FILE, Index, read_index
from simclr_jax.data.sources.searching import search
from simclr_jax.data.sources.tfrecord_files import TFRecordFiles
from simclr_jax.evaluate import knn
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_list("sections", ["index", "records", "order", "knn", "lbfgs"], "Which to measure.")
flags.DEFINE(flag_kinds.Whole(1000, 10**6), "files", 200_000, "Images of the folder made here.")
flags.DEFINE(flag_kinds.Whole(1000, 14 * 10**6), "records", 10**6, "Records made here.")
flags.DEFINE(flag_kinds.Whole(200, 50_000), "queries", 1000, "Queries of kNN.")
flags.DEFINE(flag_kinds.Whole(200, 1_281_167), "bank", 40_000, "Features of its bank.")
flags.DEFINE_list("lbfgs", ["20000", "1024", "50"], "Images, numbers of each, classes.")
flags.DEFINE(flag_kinds.Path(), "directory", "", "Where files are made and removed; /tmp, say.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

FILES, RECORDS, BATCH = 10**6, 14 * 10**6, 4096
QUERIES, BANK, DIM, K = 50_000, 1_281_167, 2048, 200
Row = tuple[str, str, str]


def main() -> None:
    """Print a row for each thing measured."""
    sections: dict[str, Callable[[Path], Iterator[Row]]] = {
        "index": _index,
        "records": _records,
        "order": _order,
        "knn": _knn,
        "lbfgs": _lbfgs,
    }
    for name in FLAGS.sections:
        errors.choose("--sections", name, sections)
    rows = []
    for name in FLAGS.sections:
        with tempfile.TemporaryDirectory(dir=FLAGS.directory or None) as directory:
            rows += [(name, *row) for row in sections[name](Path(directory))]
    print(table(("section", "what", "found", "how"), rows))


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = jax.block_until_ready(action())
    return found, time.perf_counter() - start


def _seconds(value: float, share: float = 1.0) -> tuple[str, str]:
    """Return the seconds of the whole, and how they were found, of those of a share of it."""
    whole = value / share
    said = f"{1e3 * whole:.1f} ms" if whole < 1 else f"{whole:.1f} s"
    said = f"{whole / 3600:.1f} h" if whole > 7200 else said
    return said, "measured" if share == 1 else f"{share:.2g} of it took {value:.2f} s"


def _index(directory: Path) -> Iterator[Row]:
    root, kept, share = directory / "images", directory / "kept", FLAGS.files / FILES
    kept.mkdir()
    for start in range(0, FLAGS.files, 1000):
        (place := root / f"class{start // 1000:04}").mkdir(parents=True)
        for number in range(start, min(start + 1000, FLAGS.files)):
            os.close(os.open(place / f"n{number:08}.JPEG", os.O_CREAT | os.O_WRONLY))
    found, seconds = _timed(lambda: search(root, SUFFIXES, lambda line: None))
    yield "searched", *_seconds(seconds, share)
    index = Index(root, {"train": ""}, lambda: found)
    index.files("train")
    _, seconds = _timed(lambda: index.write(epath.Path(kept)))
    yield "its list written, with sizes and times", *_seconds(seconds, share)
    size = (kept / FILE).stat().st_size
    yield "size of that list", f"{size / share / 1e6:.0f} MB", f"{share:.2g} of it counted"
    again, seconds = _timed(lambda: read_index(epath.Path(kept), root, lambda: found))
    if again.files("train") != index.files("train"):
        raise ValueError("the list read is not the one written")
    yield "its list read", *_seconds(seconds, share)
    _, seconds = _timed(lambda: again.changes("train", thorough=False))
    yield "its files looked at, as a run does that is resumed", *_seconds(seconds)


def _records(directory: Path) -> Iterator[Row]:
    import tensorflow as tf

    share, parts = FLAGS.records / RECORDS, 10
    paths = [epath.Path(directory / f"{part}.tfrecord") for part in range(parts)]
    for part, path in enumerate(paths):
        with tf.io.TFRecordWriter(os.fspath(path)) as writer:
            for number in range(part, FLAGS.records, parts):
                writer.write(struct.pack("<Q", number))
    kept = directory / "kept"
    made, seconds = _timed(lambda: TFRecordFiles(paths, kept))
    yield "offsets found and kept", *_seconds(seconds, share)
    again, seconds = _timed(lambda: TFRecordFiles(paths, kept))
    yield "offsets read", *_seconds(seconds, share)
    arrays = sum(x.nbytes for x in vars(again).values() if isinstance(x, np.ndarray))
    yield "memory of them", f"{arrays / share / 1e9:.2f} GB", f"{share:.2g} of it counted"
    rows = order.examples(0, 10**9 + np.arange(BATCH), len(made))
    found, seconds = _timed(lambda: again.fetch(rows))
    if len(found) != BATCH or len(set(found)) != len(set(rows.tolist())):
        raise ValueError("the records read are not those asked for")
    yield f"{BATCH} of them read, in memory", *_seconds(seconds)


def _order(directory: Path) -> Iterator[Row]:
    for size in (BANK, RECORDS):
        for step in (0, 10**6):
            positions = step * BATCH + np.arange(BATCH)
            order.examples(0, positions, size)
            _, seconds = _timed(functools.partial(order.examples, 0, positions, size))
            yield f"{BATCH} of {size} at step {step}", *_seconds(seconds)


def _knn(directory: Path) -> Iterator[Row]:
    random = np.random.default_rng(0)
    bank = random.standard_normal((FLAGS.bank, DIM), np.float32)
    queries = random.standard_normal((FLAGS.queries, DIM), np.float32)
    knn.neighbours(bank[: 2 * 4096], queries, K)  # compiled
    _, seconds = _timed(lambda: knn.neighbours(bank, queries, K))
    share = FLAGS.queries * FLAGS.bank / (QUERIES * BANK)
    yield f"{QUERIES} against {BANK}", *_seconds(seconds, share)
    rate = 2 * FLAGS.queries * FLAGS.bank * DIM / seconds
    yield "products of it", f"{rate / 1e9:.0f} GFLOP/s", "measured"
    yield "memory of such a bank on the host", f"{BANK * DIM * 4 / 1e9:.1f} GB", "counted"


def _lbfgs(directory: Path) -> Iterator[Row]:
    count, dim, classes = (int(errors.number("--lbfgs", text, above=0)) for text in FLAGS.lbfgs)
    (x, _), (y, _) = clouds(count, dim, classes)
    here, there = fits(x, y, classes)
    here(), there()  # compiled
    (_, ours), (_, theirs) = _timed(here), _timed(there)
    yield f"{count} x {dim} x {classes}", *_seconds(ours)
    yield "scikit-learn", *_seconds(theirs)
    yield "its time over ours", f"{theirs / ours:.2f}", "measured"


if __name__ == "__main__":
    entry.run(main)
