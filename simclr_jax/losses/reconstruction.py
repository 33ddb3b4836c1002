"""The squared error of pictures, pixel by pixel, perhaps with a weight for each pixel.

Losses of each image by itself: `losses.batch.mean` makes of them the share of a batch.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def squared_error(made: jax.Array, wanted: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Return the mean of weight x (made - wanted)^2 over each image, `[n]`.

    The mean is over all values of pixels of nonzero weight: a weight of 10 counts tenfold, and does
    not change what is divided by. An image all of whose weights are 0 loses nothing.

    Args:
      made: `[n, h, w, c]`; computed in float32, or float64 if it is.
      wanted: likewise; carries no gradient.
      weight: `[n, h, w]`, or None for 1.
    """
    chex.assert_equal_shape((made, wanted))
    wide = jnp.promote_types(made.dtype, jnp.float32)
    error = jnp.square(made.astype(wide) - jax.lax.stop_gradient(wanted).astype(wide))
    if weight is None:
        return jnp.mean(error, (1, 2, 3))
    chex.assert_equal_shape_prefix((made, weight), 3)
    counted = jnp.sum(weight != 0, (1, 2)).astype(wide) * made.shape[-1]
    weighed = jnp.sum(error * weight[..., None].astype(wide), (1, 2, 3))
    return weighed / jnp.maximum(counted, 1)


def one_colour(wanted: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Return the error of the best single colour for each image, `[n]`.

    What is left once the colour of a picture as a whole is known: whoever has learned no more than
    that loses as much. Arguments and mean are those of `squared_error`.
    """
    wanted = wanted.astype(jnp.promote_types(wanted.dtype, jnp.float32))
    share = jnp.ones(wanted.shape[:3]) if weight is None else weight
    share = share[..., None].astype(wanted.dtype)
    total = jnp.maximum(jnp.sum(share, (1, 2), keepdims=True), jnp.finfo(share.dtype).tiny)
    colour = jnp.sum(share * wanted, (1, 2), keepdims=True) / total
    return squared_error(jnp.broadcast_to(colour, wanted.shape), wanted, weight)
