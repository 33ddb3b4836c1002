"""Placement `host`: tf.data makes whole views by the official operations; the device only trains.

A pipeline of TensorFlow operations behind the decoder, with the run's own order in place of a
shuffle buffer: a resumed run computes where it was, and finds the same views.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from simclr_jax import extras
from simclr_jax.augment import on_host
from simclr_jax.closing import Closing
from simclr_jax.data.placements import Loading, Request, blocks
from simclr_jax.errors import UserError

FLOATS, WHOLE = len(blocks.FLOATS), sum(blocks.WHOLE.values())  # numbers of a view's draws


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
    tf = _tensorflow()
    failures: list[Exception] = []
    dataset = _dataset(tf, loading, itertools.chain([first], requests), failures)
    dataset = dataset.batch(len(first.positions), drop_remainder=True)
    # Has a name, and so outlives the loop: its end waits for threads that end with the reader.
    made = dataset.prefetch(1).as_numpy_iterator()
    with Closing(loading.reader.close):
        try:
            for batch in made:
                if not loading.reader.source.classes:
                    del batch["label"]
                yield batch
        except tf.errors.OpError:
            if not failures:
                raise
    if failures:  # what TensorFlow has made an error of its own of
        raise failures[0]


def _dataset(
    tf: Any, loading: Loading, requests: Iterator[Request], failures: list[Exception]
) -> Any:
    """Return a `tf.data.Dataset` of single examples.

    Each has `views/GROUP`, `[views, size, size, c]`, for each group of views, `label` and
    `example`. Where reading fails the reason is put into `failures`.

    A thread that has made the views of an image reads the next: there are no more decoded images
    than threads, whatever their size.
    """
    policies, channels = loading.policies, loading.reader.source.channels
    read = blocks.one(loading)

    def places() -> Iterator[np.ndarray]:
        try:
            for request in requests:
                starts = np.full_like(request.positions, request.start)
                yield np.stack([request.positions, starts], 1)
        except Exception as failure:
            failures.append(failure)
            raise

    def decoded(place: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            found = read(*place.tolist())
        except Exception as failure:
            failures.append(failure)
            raise
        numbers = np.array([found.label, found.example], np.int32)
        return found.pixels, numbers, found.floats.ravel(), found.whole.ravel()

    kinds = (tf.uint8, tf.int32, tf.float32, tf.int32)

    def augmented(place: Any) -> dict[str, Any]:
        pixels, numbers, floats, whole = tf.numpy_function(decoded, [place], kinds)
        pixels = tf.ensure_shape(pixels, [None, None, channels])
        label, example = tf.unstack(tf.ensure_shape(numbers, [2]))
        count = sum(map(len, policies.values()))
        # Cut by one operation: each costs as much as a good part of a small image.
        each_float = tf.unstack(tf.ensure_shape(floats, [count * FLOATS]))
        each_whole = tf.unstack(tf.ensure_shape(whole, [count * WHOLE]))
        made, view = {"label": label, "example": example}, 0
        for group in sorted(policies):
            views = []
            for policy in policies[group]:
                drawn = blocks.unpacked(
                    each_float[view * FLOATS : (view + 1) * FLOATS],
                    each_whole[view * WHOLE : (view + 1) * WHOLE],
                )
                views.append(on_host.augment(pixels, drawn, policy))
                view += 1
            made[f"views/{group}"] = tf.stack(views)
        return made

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = loading.threads
    dataset = tf.data.Dataset.from_generator(
        places, output_signature=tf.TensorSpec([None, 2], tf.int64)
    )
    dataset = dataset.unbatch().map(augmented, num_parallel_calls=loading.threads)
    return dataset.with_options(options)


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
