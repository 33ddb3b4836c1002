"""Instance discrimination: an image must find its own row in a bank with a row for every image.

Wu et al. 2018 (arXiv 1805.01978), section 3; zhirongw/lemniscate.pytorch. Its full softmax takes
every row of the bank as a candidate; noise-contrastive estimation (NCE) and the softmax over a
sample (HobbitLong/CMC) take rows that were drawn for each image. The bank carries no gradient; all
devices hold it whole.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.losses import batch, tiles
from simclr_jax.losses.unit import l2_normalize

EPS = 1e-7  # of the official NCE, added to the probability of noise

Found = tuple[jax.Array, dict[str, jax.Array]]


def nce(
    z: jax.Array,
    bank: jax.Array,
    example: jax.Array,
    sampled: jax.Array,
    *,
    temperature: float,
    log_partition: jax.Array | float,
    eps: float = EPS,
    axis_name: str | None = None,
) -> Found:
    """Return this device's share of NCE: is a row the image's own, or one of K drawn as noise?

    With P(i|x) = exp(x . v_i / t) / Z and noise that draws each of N rows alike, an image's loss is
    -ln(P / (P + K/N)) of its own row, plus -ln((K/N) / (P + K/N)) of each row drawn (eq. 6, 7).
    Source: lemniscate `lib/NCEAverage.py`, `lib/NCECriterion.py`. Two things are as there and not
    as in the paper: K/N + `eps` stands in the denominators, and nothing pulls an embedding towards
    its last one (the proximal term). Computed by logarithms, it does not overflow.

    Args:
      z: `[n, d]` embeddings, of length 1 in the paper; computed in float32, or float64 if they are.
      bank: `[N, d]`, the same on every device.
      example: int `[n]`, the row of the bank that is each image's own.
      sampled: int `[n, K]`, rows drawn for each image; its own and repetitions may be among them.
      temperature: divides the similarities.
      log_partition: the logarithm of Z, a constant; see `log_partition`.
      eps: as above.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: a share in the same sense: `instance_accuracy`, how often no row that an image is
        compared with is nearer than its own.
    """
    scores = _scores(z, bank, _own_first(example, sampled), temperature)
    noise = sampled.shape[1] / len(bank)
    # ln(P / c), c being what P is added to in the denominators
    against = scores - lax.stop_gradient(log_partition) - math.log(noise + eps)
    of_own = jax.nn.softplus(-against[:, 0])
    of_noise = jnp.sum(jax.nn.softplus(against[:, 1:]) + math.log1p(eps / noise), axis=1)
    return _shares(of_own + of_noise, scores[:, 0] >= jnp.max(scores, axis=1), axis_name)


def log_partition(
    z: jax.Array,
    bank: jax.Array,
    example: jax.Array,
    sampled: jax.Array,
    *,
    temperature: float,
    axis_name: str | None = None,
) -> jax.Array:
    """Return the logarithm of the Z of `nce`, estimated by all that a batch is compared with.

    Z is N times the mean of exp(x . v / t) over the images of all devices and, for each, its own
    row and those drawn (eq. 8; the paper leaves the own row out, lemniscate does not). The official
    code estimates it once, by the first batch, and keeps it.

    Args:
      z, bank, example, sampled, temperature, axis_name: as in `nce`.

    Returns:
      A scalar, the same on every device, which carries no gradient.
    """
    scores = lax.stop_gradient(_scores(z, bank, _own_first(example, sampled), temperature))
    total, count = jax.nn.logsumexp(scores), scores.size
    if axis_name is not None:
        most = lax.pmax(total, axis_name)
        total = most + jnp.log(lax.psum(jnp.exp(total - most), axis_name))
        count *= lax.axis_size(axis_name)
    return total + math.log(len(bank) / count)


def sampled_softmax(
    z: jax.Array,
    bank: jax.Array,
    example: jax.Array,
    sampled: jax.Array,
    *,
    temperature: float,
    axis_name: str | None = None,
) -> Found:
    """Return this device's share of the cross entropy with an image's own row among K + 1.

    Source: CMC `NCE/NCEAverage.py: MemoryInsDis` with its softmax; lemniscate's README says that
    its last models were trained so, with K = 65536. The own row may be among those drawn, and then
    counts twice in the denominator, as there.

    Args:
      z, bank, example, sampled, temperature, axis_name: as in `nce`.

    Returns:
      What `nce` returns.
    """
    scores = _scores(z, bank, _own_first(example, sampled), temperature)
    losses = jax.nn.logsumexp(scores, axis=1) - scores[:, 0]
    return _shares(losses, scores[:, 0] >= jnp.max(scores, axis=1), axis_name)


def softmax(
    z: jax.Array,
    bank: jax.Array,
    example: jax.Array,
    *,
    temperature: float,
    axis_name: str | None = None,
    at_once: int | None = None,
) -> Found:
    """Return this device's share of the cross entropy with an image's own row among all N (eq. 2).

    Source: lemniscate `lib/LinearAverage.py`, what it runs with `--nce-k 0`. The memory it takes
    grows with n + N: similarities are made for some images at a time, and again for the gradient.

    Args:
      z, bank, example, temperature, axis_name: as in `nce`.
      at_once: images that are compared with the bank at a time; None decides by size
        (`tiles.rows_at_once`).

    Returns:
      What `nce` returns.
    """
    chex.assert_shape(example, (len(z),))
    z = _wide(z)
    losses, nearest = tiles.by_rows(
        _among_all, [z], [], [jnp.asarray(bank, z.dtype)], example, None, temperature, at_once
    )
    return _shares(losses, nearest, axis_name)


def moved(bank: jax.Array, z: jax.Array, example: jax.Array, *, momentum: float) -> jax.Array:
    """Return the bank after a batch: row y becomes the unit vector of m v + (1 - m) x.

    Of an image that stands in the batch several times the last one is written, on any devices:
    such writes would else come in whatever order. (Officially too the last one, each made of the
    row as it was before the batch.) Where the sum is zero, so is the row; there it is NaN.

    Args:
      bank: `[N, d]`.
      z: `[B, d]` embeddings of the whole batch, the same on every device.
      example: int `[B]`, their rows.
      momentum: share of the old row.
    """
    chex.assert_shape(example, (len(z),))
    bank, z, example = jnp.asarray(bank), jnp.asarray(z), jnp.asarray(example)
    order = jnp.argsort(example, stable=True)
    row, x = example[order], z[order].astype(bank.dtype)
    last = jnp.append(row[1:] != row[:-1], True)
    # The others are written past the end, each to a place of its own, which drops them.
    place = jnp.where(last, row, len(bank) + jnp.arange(len(row)))
    made = l2_normalize(momentum * bank[row] + (1 - momentum) * x)
    return bank.at[place].set(made, mode="drop", unique_indices=True)


def _wide(z: jax.Array) -> jax.Array:
    return jnp.asarray(z, jnp.promote_types(z.dtype, jnp.float32))


def _own_first(example: jax.Array, sampled: jax.Array) -> jax.Array:
    chex.assert_equal_shape_prefix((example, sampled), 1)
    return jnp.concatenate([example[:, None], sampled.astype(example.dtype)], axis=1)


def _scores(z: jax.Array, bank: jax.Array, rows: jax.Array, temperature: float) -> jax.Array:
    """Return how near each image is to rows of the bank, `[n, c]`, over the temperature.

    The vectors of all those rows, `[n, c, d]`, would be most of what a step holds (537 MB of 256
    images and 4096 draws); so those of some images are fetched at a time, and again backwards.

    Args:
      z: `[n, d]`.
      bank: `[N, d]`.
      rows: int `[n, c]`, of each image.
      temperature: a number.
    """
    z = _wide(z)
    bank = jnp.asarray(lax.stop_gradient(bank), z.dtype)

    def of_image(some: tuple[jax.Array, jax.Array]) -> jax.Array:
        one, which = some
        return jnp.einsum("d,cd->c", one, bank[which], precision=lax.Precision.HIGHEST)

    count, candidates = rows.shape
    at_once = tiles.rows_at_once(count, candidates * z.shape[1], z.dtype)
    if at_once == count:
        found = jax.vmap(of_image)((z, rows))
    else:
        found = lax.map(jax.checkpoint(of_image), (z, rows), batch_size=at_once)
    return found / temperature


def _among_all(
    similarities: tiles.Similarities, example: jax.Array, fixed: None, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Return the losses `[r]` of some images, and whether no row is nearer than their own."""
    scores = similarities[0][0] / temperature  # [r, N]
    own = jnp.take_along_axis(scores, example[:, None], axis=1)[:, 0]
    nearest = lax.stop_gradient(own >= jnp.max(scores, axis=1))
    return jax.nn.logsumexp(scores, axis=1) - own, nearest


def _shares(losses: jax.Array, nearest: jax.Array, axis_name: str | None) -> Found:
    accuracy = batch.mean(nearest.astype(losses.dtype), axis_name=axis_name)
    metrics = {"instance_accuracy": lax.stop_gradient(accuracy)}
    return batch.mean(losses, axis_name=axis_name), metrics
