"""What placements `split` and `host` share: decoded images and the draws of their views."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import parallel
from simclr_jax.augment.draws import Draws, draw_views
from simclr_jax.data import scratch
from simclr_jax.data.placements import Loading, Request
from simclr_jax.data.reader import Row, Rows
from simclr_jax.errors import UserError

BLOCK = 16  # rows of a batch that a thread works on
HELD = 2**24  # bytes of decoded images that a thread holds, before it cuts their views


class Part(NamedTuple):
    """Consecutive rows of a block, decoded and drawn together."""

    rows: Rows
    boxes: dict[str, np.ndarray]  # of the views of a group, int32 [b, views, 4]: see `Draws.box`


def parts(
    loading: Loading, shrink: Callable[[np.ndarray], np.ndarray]
) -> Callable[[Request], Iterator[Part]]:
    """Return what decodes the images of a block, shrinks each and draws the crops of their views.

    A thread holds no more of them than `HELD` bytes and one image beyond: many small images are
    drawn in one call, and large ones one by one. They are valid until the next part is asked for.
    """
    of_run = _on_cpu(_boxes, loading)

    def draw(request: Request, sizes: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.arange(BLOCK) % len(sizes)  # always as many, so that it is compiled once
        drawn = of_run(Request(request.positions[rows], request.start), sizes[rows])
        return {group: np.asarray(boxes)[: len(sizes)] for group, boxes in drawn.items()}

    def part(block: Request, first: int, rows: list[Row]) -> Part:
        sizes = np.array([row.image.shape[:2] for row in rows], np.int32)
        positions = block.positions[first : first + len(rows)]
        drawn = draw(Request(positions, block.start), sizes)
        return Part(Rows.of(rows), drawn)

    def read(block: Request) -> Iterator[Part]:
        first, rows, held = 0, list[Row](), 0
        with scratch.lent() as memory:
            for row in loading.reader.each(block.positions, shrink):
                rows.append(row)
                held += row.image.nbytes
                del row
                if held >= HELD:
                    made = part(block, first, rows)
                    yield made
                    first, held = first + len(rows), 0
                    made.rows.images.clear()
                    rows.clear()
                    memory.clear()
            if rows:
                yield part(block, first, rows)

    return read


class One(NamedTuple):
    """An image, uint8 `[h, w, c]`, and the draws of all its views, group by group.

    `floats`, float32 `[views, f]`, are those fields that are floats, and `whole`, int32
    `[views, w]`, the others; `unpacked` makes `Draws` of a row of both.
    """

    pixels: np.ndarray
    label: int
    example: int
    floats: np.ndarray
    whole: np.ndarray


def one(loading: Loading) -> Callable[[int, int], One]:
    """Return what reads the image at a position, in a batch that starts at another, and draws."""
    draw = _on_cpu(_all, loading)

    def read(position: int, start: int) -> One:
        ((image, label, example),) = loading.reader.each(np.array([position]))
        request = Request(np.array([position]), start)
        floats, whole = draw(request, np.array([image.shape[:2]], np.int32))
        return One(image, label, example, np.asarray(floats)[0], np.asarray(whole)[0])

    return read


FLOATS = ("brightness", "contrast", "saturation", "hue", "sigma")
WHOLE = {"box": 4, "order": 4, "flip": 1, "jitter": 1, "grayscale": 1, "blur": 1, "solarize": 1}


def unpacked(floats: Sequence[Any], whole: Sequence[Any]) -> Draws:
    """Return the draws of a view, each number of its row of both arrays by itself; see `One`."""
    fields, at = dict(zip(FLOATS, floats, strict=True)), 0
    for name, count in WHOLE.items():
        fields[name] = whole[at : at + count] if count > 1 else whole[at] != 0
        at += count
    return Draws(**fields)


def _on_cpu(law: Callable, loading: Loading) -> Callable[[Request, np.ndarray], Any]:
    """Return what draws for positions and sizes, int32 `[n, 2]`, on the CPU."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platforms = jax.config.read("jax_platforms")
        raise UserError(
            f"JAX_PLATFORMS={platforms} leaves out the CPU, which draws the crops of placement "
            f"split and host: set JAX_PLATFORMS={platforms},cpu"
        ) from error
    policies = tuple(loading.policies.items())  # can be hashed
    # To ask for the device that is taken anyway costs as much as to draw for an image.
    elsewhere = jax.local_devices()[0] != cpu

    def draw(request: Request, sizes: np.ndarray) -> Any:
        positions = parallel.split64(request.positions)
        starts = parallel.split64(np.full(len(sizes), request.start))
        args = (policies, loading.seed, loading.shared_sigma, positions, starts, *sizes.T)
        with jax.default_device(cpu) if elsewhere else contextlib.nullcontext():
            return law(*args)

    return draw


def _draw(policies, seed, shared_sigma, positions, starts, heights, widths):
    one = functools.partial(draw_views, dict(policies), seed, shared_sigma=shared_sigma)
    return jax.vmap(one)(positions, starts, heights, widths)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _boxes(*args: Any) -> dict[str, jax.Array]:
    """Return the boxes of each group, `[n, views, 4]`; what else would be drawn is not computed."""
    return {
        group: jnp.stack([drawn.box for drawn in draws], 1) for group, draws in _draw(*args).items()
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _all(*args: Any) -> tuple[jax.Array, jax.Array]:
    """Return all draws as two arrays, `[n, views, fields]`, which cross faster than many."""
    draws = _draw(*args)
    views = [drawn for group in sorted(draws) for drawn in draws[group]]
    floats = [jnp.stack([getattr(drawn, name) for name in FLOATS], -1) for drawn in views]
    whole = [
        jnp.concatenate(
            [
                jnp.asarray(getattr(drawn, name), jnp.int32).reshape(-1, count)
                for name, count in WHOLE.items()
            ],
            -1,
        )
        for drawn in views
    ]
    return jnp.stack(floats, 1), jnp.stack(whole, 1)
