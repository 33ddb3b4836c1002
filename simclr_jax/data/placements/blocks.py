"""What placements `split` and `host` share: decoded images and their draws, block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from simclr_jax import parallel
from simclr_jax.augment.draws import Draws, draw_views
from simclr_jax.data.placements import Loading, Request
from simclr_jax.data.reader import Rows
from simclr_jax.errors import UserError

BLOCK = 32  # images that one thread decodes and augments at a time


class Block(NamedTuple):
    """Consecutive rows of a batch: what a thread works on."""

    rows: Rows
    draws: dict[str, tuple[Draws, ...]]  # by group, one for each view, fields [b, ...]


def split(requests: Iterator[Request]) -> Iterator[Request]:
    """Cut requests into blocks of at most `BLOCK` rows."""
    for request in requests:
        for first in range(0, len(request.positions), BLOCK):
            yield Request(request.positions[first : first + BLOCK], request.start)


def reader(
    loading: Loading, shrink: Callable[[np.ndarray], np.ndarray] = lambda image: image
) -> Callable[[Request], Block]:
    """Return what decodes the images of a block, shrinks each and draws their views."""
    draw = _drawer(loading)

    def read(block: Request) -> Block:
        rows = loading.reader.read(block.positions, shrink)
        sizes = np.array([image.shape[:2] for image in rows.images], np.int32)
        return Block(rows, draw(block, sizes))

    return read


def _drawer(
    loading: Loading,
) -> Callable[[Request, np.ndarray], dict[str, tuple[Draws, ...]]]:
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platforms = jax.config.read("jax_platforms")
        raise UserError(
            f"JAX_PLATFORMS={platforms} leaves out the CPU, which draws the crops of placement "
            f"split and host: set JAX_PLATFORMS={platforms},cpu"
        ) from error
    policies = tuple(loading.policies.items())  # can be hashed
    of_run = functools.partial(_draw, policies, loading.seed, loading.shared_sigma)

    def draw(block: Request, sizes: np.ndarray) -> dict[str, tuple[Draws, ...]]:
        count = len(sizes)
        rows = np.arange(BLOCK) % count  # always as many, so that it is compiled once
        positions = parallel.split64(block.positions)[rows]
        starts = parallel.split64(np.full(BLOCK, block.start))
        with jax.default_device(cpu):
            drawn = of_run(positions, starts, sizes[rows, 0], sizes[rows, 1])
        return jax.tree.map(lambda x: np.asarray(x)[:count], drawn)

    return draw


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(policies, seed, shared_sigma, positions, starts, heights, widths):
    one = functools.partial(draw_views, dict(policies), seed, shared_sigma=shared_sigma)
    return jax.vmap(one)(positions, starts, heights, widths)
