"""What is taken out of an image or laid over it, to be found again: holes and noise.

Pure functions of images `[n, h, w, c]` and of given draws; what is returned has the images' dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked(images: jax.Array, draw: jax.Array, rate: float) -> jax.Array:
    """Set a share of the pixels to black, all channels of a pixel together (Vincent et al. 2008).

    Args:
      images: `[n, h, w, c]`.
      draw: `[n, h, w]`, uniform in [0, 1).
      rate: the share.
    """
    return jnp.where((draw < rate)[..., None], 0, images)


def noisy(images: jax.Array, noise: jax.Array, sigma: float) -> jax.Array:
    """Add noise of deviation `sigma`; the result may leave [0, 1].

    Args:
      images: `[n, h, w, c]`.
      noise: likewise, standard normal.
      sigma: in units of white.
    """
    return images + (sigma * noise).astype(images.dtype)


def inside(side: int, corner: jax.Array, hole: int) -> jax.Array:
    """Tell which pixels lie in a square, bool `[n, side, side]`.

    Args:
      side: of the images, pixels.
      corner: int `[n, 2]`, the upper left pixel of each square: row, column.
      hole: side of the square, pixels.
    """
    place = jnp.arange(side)
    apart = place - corner[..., None]  # [n, 2, side]
    in_it = (apart >= 0) & (apart < hole)
    return in_it[:, 0, :, None] & in_it[:, 1, None, :]


def with_holes(images: jax.Array, erased: jax.Array, colour: jax.Array) -> jax.Array:
    """Paint over some pixels.

    Args:
      images: `[n, h, w, c]`.
      erased: bool `[n, h, w]`, which.
      colour: `[c]`, in the units of the images.
    """
    return jnp.where(erased[..., None], colour.astype(images.dtype), images)
