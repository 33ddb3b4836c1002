"""K-means over the features of all training images, and how dense each cluster is.

What PCL (arXiv 2005.04966) makes before an epoch. Nothing here depends on the number of devices:
each finds the nearest centroids of its part of the images, in tiles of one shape, and every device
then sums all images in the same order; GPUs are told to repeat to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simclr_jax.errors import UserError
from simclr_jax.parallel import AXIS, compiler_options, replicate

ROWS, TILE = 1024, 2**26  # images compared with all centroids at a time, and numbers, at most


def kmeans(
    features: np.ndarray,
    clusters: int,
    key: jax.Array,
    mesh: Mesh,
    *,
    iterations: int = 20,
    starts: int = 5,
) -> np.ndarray:
    """Return the centroids of Lloyd's algorithm, the best of several starts, `[k, d]`.

    As PCL has it of faiss (`main_pcl.py: run_kmeans`): a start is k of the images, drawn without
    replacement; distances are Euclidean, centroids are means and not scaled to length 1; the start
    of the least sum of squared distances is kept. A cluster that has lost all its images goes to
    the image farthest from its centroid (several to as many), where faiss splits a large cluster.
    All images are used; faiss draws 1000 for each cluster where there are more.

    Args:
      features: `[n, d]`, float32 or float64.
      clusters: k, 1 to n.
      key: of the starts.
      mesh: the devices that share the work.
      iterations: of each start.
      starts: 1 or more.

    Raises:
      UserError: there are fewer images than clusters, or a feature is not finite.
    """
    if not 1 <= clusters <= len(features):
        raise UserError(
            f"{clusters} clusters are asked of {len(features)} images: choose 1 to {len(features)}"
        )
    if not np.isfinite(features).all():
        raise UserError("features are not all finite: look at the encoder that made them")
    run = _program(_kmeans, mesh, clusters=clusters, iterations=iterations, starts=starts)
    return np.asarray(run(*replicate(mesh, (features, jax.random.key_data(key)))))


def held(images: int, dim: int, clusters: int) -> int:
    """Return about how many bytes k-means holds on each device, of float32.

    All features and as many numbers again, the difference of each image to its centroid; of a tile
    how close its rows are to all centroids; the centroids of a start, the next ones and the best.

    Args:
      images: n.
      dim: d of a feature.
      clusters: k.
    """
    return 4 * (2 * images * dim + _rows(images, clusters) * clusters + 3 * clusters * dim)


def nearest(
    features: np.ndarray, centroids: np.ndarray, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centroid of each image, int32 `[n]`, and how far it is, `[n]`.

    Args:
      features: `[n, d]`.
      centroids: `[k, d]`.
      mesh: the devices that share the work.
    """
    run = _program(_nearest, mesh)
    assigned, distances = run(*replicate(mesh, (features, centroids)))
    return np.asarray(assigned), np.asarray(distances)


def concentration(
    distances: np.ndarray, assigned: np.ndarray, clusters: int, temperature: float
) -> np.ndarray:
    """Return PCL's phi of each cluster, float64 `[k]`: small where images lie close (eq. 12).

    The mean distance to the centroid over ln(images + 10); for a cluster of one image or none the
    largest of the others; all clipped to their 10th and 90th percentile, and scaled to a mean of
    `temperature`.

    Source: PCL `main_pcl.py: run_kmeans`. Where each image is its centroid, as of one image a
    cluster, that is 0/0; here all are `temperature` then.

    Args:
      distances: `[n]`, of each image to its centroid.
      assigned: int `[n]`, its cluster.
      clusters: k.
      temperature: the mean.
    """
    count = np.bincount(assigned, minlength=clusters)
    total = np.bincount(assigned, np.asarray(distances, np.float64), minlength=clusters)
    found = total / np.maximum(count, 1) / np.log(count + 10)
    several = count > 1
    found = np.where(several, found, np.max(found[several], initial=0))
    found = np.clip(found, *np.percentile(found, (10, 90)))
    mean = found.mean()
    return temperature * found / mean if mean else np.full(clusters, float(temperature))


def draw_others(key: jax.Array, taken: jax.Array, clusters: int, count: int) -> jax.Array:
    """Return clusters drawn without replacement among those not taken, int32 `[count]`.

    Args:
      key: the same on every device.
      taken: int `[N]`, clusters, any of them several times; the same on every device.
      clusters: k, of which at least `count` must not be taken.
      count: how many.
    """
    order = jax.random.uniform(key, (clusters,)).at[taken].set(-1)
    return lax.top_k(order, count)[1].astype(jnp.int32)


def _program(function: Callable, mesh: Mesh, **fixed: int) -> Callable:
    """Compile a function of arrays that every device has whole, whose results they all have."""
    return _compiled(function, mesh, tuple(sorted(fixed.items())))


@functools.cache
def _compiled(function: Callable, mesh: Mesh, fixed: tuple[tuple[str, int], ...]) -> Callable:
    mapped = jax.shard_map(
        functools.partial(function, **dict(fixed)),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
        check_vma=False,  # gathered: the same everywhere
    )
    return jax.jit(mapped, compiler_options=compiler_options(mesh, True))


def _kmeans(
    x: jax.Array, key: jax.Array, *, clusters: int, iterations: int, starts: int
) -> jax.Array:
    assign = _assignment(x, clusters)

    def update(_: jax.Array, centroids: jax.Array) -> jax.Array:
        assigned = assign(centroids)
        count = jax.ops.segment_sum(jnp.ones(len(x), jnp.int32), assigned, clusters)
        total = jax.ops.segment_sum(x, assigned, clusters)
        means = total / jnp.maximum(count, 1).astype(x.dtype)[:, None]

        def refill() -> jax.Array:
            farthest = jnp.argsort(-_squared(x, centroids, assigned))  # [n]
            place = jnp.maximum(jnp.cumsum(count == 0) - 1, 0)  # [k], among the empty ones
            return jnp.where((count == 0)[:, None], x[farthest[place]], means)

        return lax.cond(jnp.any(count == 0), refill, lambda: means)

    def start(best: tuple, key: jax.Array) -> tuple[tuple, None]:
        first = x[jax.random.permutation(key, len(x))[:clusters]]
        centroids = lax.fori_loop(0, iterations, update, first)
        cost = jnp.sum(_squared(x, centroids, assign(centroids)))
        better = cost < best[0]
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), (cost, centroids), best)
        return kept, None

    worst = (jnp.asarray(jnp.inf, x.dtype), jnp.zeros((clusters, x.shape[1]), x.dtype))
    keys = jax.random.split(jax.random.wrap_key_data(key), starts)
    return lax.scan(start, worst, keys)[0][1]


def _nearest(x: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    assigned = _assignment(x, len(centroids))(centroids)
    return assigned, jnp.sqrt(_squared(x, centroids, assigned))


def _assignment(x: jax.Array, clusters: int) -> Callable[[jax.Array], jax.Array]:
    """Return the function from centroids `[k, d]` to the nearest of each row of `x`, int32 `[n]`.

    Each device looks at its part of the rows, in tiles whose shape depends on n and k alone.
    """
    n, devices = len(x), lax.axis_size(AXIS)
    rows = _rows(n, clusters)
    tiles = -(-n // (rows * devices))  # of a device
    first = lax.axis_index(AXIS) * tiles * rows
    own = jnp.minimum(first + jnp.arange(tiles * rows), n - 1)  # the last row fills up
    parts = x[own].reshape(tiles, rows, -1)

    def assign(centroids: jax.Array) -> jax.Array:
        half = jnp.sum(jnp.square(centroids), axis=1) / 2

        def of_tile(part: jax.Array) -> jax.Array:
            # |x - c|^2 is |x|^2 - 2 (x c - |c|^2 / 2).
            closeness = jnp.matmul(part, centroids.T, precision=lax.Precision.HIGHEST) - half
            return jnp.argmax(closeness, axis=1).astype(jnp.int32)

        found = lax.map(of_tile, parts).reshape(-1)
        return lax.all_gather(found, AXIS, tiled=True)[:n]

    return assign


def _rows(images: int, clusters: int) -> int:
    """Return how many images are compared with all centroids at a time."""
    return max(1, min(images, ROWS, TILE // clusters))


def _squared(x: jax.Array, centroids: jax.Array, assigned: jax.Array) -> jax.Array:
    """Return the squared distance of each row to its centroid, `[n]`, exact where it is small."""
    return jnp.sum(jnp.square(x - centroids[assigned]), axis=1)
