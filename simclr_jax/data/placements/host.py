"""Placement `host`: tf.data makes whole views by the official operations; the device only trains.

A pipeline of TensorFlow operations behind the decoding threads, with the run's own order in place
of a shuffle buffer: a resumed run computes where it was, and finds the same views.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from simclr_jax import extras
from simclr_jax.augment import on_host
from simclr_jax.augment.draws import Draws
from simclr_jax.closing import Closing
from simclr_jax.data.placements import Loading, Request, blocks
from simclr_jax.data.reader import ahead
from simclr_jax.errors import UserError


def batches(
    loading: Loading, requests: Iterator[Request]
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield `views/GROUP`, float32 `[n, views, size, size, c]`, `example` and, if any, `label`.

    Both are int32 `[n]`; `example` are the numbers of the images that were taken. All requests
    have the same number of rows.
    """
    first = next(requests, None)
    if first is None:
        return

    def all_blocks() -> Iterator[Request]:
        yield from blocks.split(iter([first]))
        yield from blocks.split(requests)

    failures: list[Exception] = []
    dataset = _dataset(loading, all_blocks, failures)
    dataset = dataset.batch(len(first.positions), drop_remainder=True)
    # Has a name, and so outlives the loop: its end waits for a thread that ends with the reader.
    made = dataset.prefetch(1).as_numpy_iterator()
    with Closing(loading.reader.close):
        for batch in made:
            if not loading.reader.source.classes:
                del batch["label"]
            yield batch
    if failures:  # TensorFlow would have wrapped it in an error of its own
        raise failures[0]


def _dataset(loading: Loading, all_blocks: Any, failures: list[Exception]) -> Any:
    """Return a `tf.data.Dataset` of single examples.

    Each has `views/GROUP`, `[views, size, size, c]`, for each group of views, `label` and
    `example`. They end early where reading fails, and the reason is put into `failures`.
    """
    tf = _tensorflow()
    policies, channels = loading.policies, loading.reader.source.channels
    read = blocks.reader(loading)

    def decoded() -> Iterator[dict[str, Any]]:
        pool = ThreadPoolExecutor(loading.threads)
        with Closing(loading.reader.close, pool.shutdown):
            try:
                for block in ahead(pool, read, all_blocks(), depth=2 * loading.threads):
                    yield _tensors(block)
            except Exception as failure:
                failures.append(failure)

    def examples(block: dict[str, Any]) -> Any:
        sizes = tf.reduce_prod(block["shape"], axis=1)
        ends = tf.cumsum(sizes)
        per_image = {
            "end": ends,
            "size": sizes,
            **{k: block[k] for k in ("shape", "label", "example", "draws")},
        }

        def cut(image: dict[str, Any]) -> dict[str, Any]:
            pixels = block["pixels"][image["end"] - image["size"] : image["end"]]
            pixels = tf.ensure_shape(tf.reshape(pixels, image["shape"]), [None, None, channels])
            return {"image": pixels, **{k: image[k] for k in ("label", "example", "draws")}}

        return tf.data.Dataset.from_tensor_slices(per_image).map(cut)

    def augment(example: dict[str, Any]) -> dict[str, Any]:
        made = {k: example[k] for k in ("label", "example")}
        for group, some in policies.items():
            views = [
                on_host.augment(example["image"], Draws(**drawn), policy)
                for drawn, policy in zip(example["draws"][group], some, strict=True)
            ]
            made[f"views/{group}"] = tf.stack(views)
        return made

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = loading.threads
    dataset = tf.data.Dataset.from_generator(decoded, output_signature=_signature(tf, loading))
    dataset = dataset.flat_map(examples)
    return dataset.map(augment, num_parallel_calls=loading.threads).with_options(options)


def _tensors(block: blocks.Block) -> dict[str, Any]:
    """Return a block as arrays: images of many sizes as one vector, beside their shapes."""
    images = block.rows.images
    return {
        "pixels": np.concatenate([image.ravel() for image in images]),
        "shape": np.array([image.shape for image in images], np.int64),
        "label": block.rows.labels,
        "example": block.rows.examples,
        "draws": {
            group: tuple(drawn._asdict() for drawn in draws) for group, draws in block.draws.items()
        },
    }


def _signature(tf: Any, loading: Loading) -> dict[str, Any]:
    kinds = dict.fromkeys(("flip", "jitter", "grayscale", "blur", "solarize"), tf.bool)
    kinds |= dict.fromkeys(("box", "order"), tf.int32)
    draws = {
        name: tf.TensorSpec(
            [None, 4] if name in ("box", "order") else [None], kinds.get(name, tf.float32)
        )
        for name in Draws._fields
    }
    return {
        "pixels": tf.TensorSpec([None], tf.uint8),
        "shape": tf.TensorSpec([None, 3], tf.int64),
        "label": tf.TensorSpec([None], tf.int32),
        "example": tf.TensorSpec([None], tf.int32),
        "draws": {group: (draws,) * len(some) for group, some in loading.policies.items()},
    }


def check_libraries() -> None:
    """Raise `UserError` if TensorFlow is not installed."""
    _tensorflow()


def _tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            "augment.placement=host needs TensorFlow, which is not installed: "
            f"{extras.install('tf')}"
        ) from error
    tf.config.set_visible_devices([], "GPU")  # it would take the memory that JAX needs
    return tf
