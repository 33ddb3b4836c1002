"""Counting: what an image's tiles hold adds up to what the image holds (Noroozi et al. 2017).

Source: arXiv 1708.06734, equation 5, of which there is no code of the authors; the element-wise
form is gitlimlab's (clvrai/Representation-Learning-by-Learning-to-Count, `model.py: build_loss`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.errors import choose
from simclr_jax.losses import batch

FORMS = ("length", "elementwise")


def counting(
    whole: jax.Array,
    tiles: jax.Array,
    other: jax.Array,
    *,
    margin: float | jax.Array,
    form: str = "length",
    apart: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the counting loss.

    "length": mean over images of |whole - tiles|^2 + max(0, margin - |other - tiles|^2), where
    `tiles` is summed over them. "elementwise" has the square and the hinge of each count by itself,
    and the mean over them. Counts that are all 0 cost the margin in both.

    Args:
      whole: counts of the image at half its size, `[n, d]`; computed in float32, or float64 if they
        are.
      tiles: of its four tiles, `[n, 4, d]`.
      other: of another image at half its size, `[n, d]`, see `of_image_before`.
      margin: how far another image must be, squared.
      form: one of `FORMS`.
      apart: bool `[n]`, whether that other image is another one; None: all are. The second term of
        one that is not is left out.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: shares in the same sense: `count_gap`, the first term, and `counting_accuracy`, the
        share of images whose tiles are nearer to them than to the other image.

    Raises:
      UserError: if the form is not known.
    """
    choose("form of counting", form, FORMS)
    wide = jnp.promote_types(whole.dtype, jnp.float32)
    added = jnp.sum(tiles.astype(wide), axis=1)  # [n, d]
    own, others = (jnp.square(x.astype(wide) - added) for x in (whole, other))
    near, far = (jnp.sum(squares, axis=1) for squares in (own, others))  # [n]
    if form == "length":
        gap, hinge = near, jnp.maximum(0, margin - far)
    else:
        gap = jnp.mean(own, axis=1)
        hinge = jnp.mean(jnp.maximum(0, margin - others), axis=1)
    if apart is not None:
        hinge = jnp.where(apart, hinge, 0)
    told = {"count_gap": gap, "counting_accuracy": (near < far).astype(wide)}
    shares = {name: batch.mean(value, axis_name=axis_name) for name, value in told.items()}
    return batch.mean(gap + hinge, axis_name=axis_name), lax.stop_gradient(shares)


def of_image_before(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """Return for each image the row of the one before it in the global batch, `[n, ...]`.

    The first image has that of the last. Of a device's rows one crosses to the next device, and its
    gradient comes back.
    """
    if axis_name is None:
        return jnp.roll(rows, 1, axis=0)
    devices = lax.axis_size(axis_name)
    along = [(device, (device + 1) % devices) for device in range(devices)]
    return jnp.concatenate([lax.ppermute(rows[-1:], axis_name, along), rows[:-1]])
