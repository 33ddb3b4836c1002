"""Other geometry than a crop: what some methods make of finished views, or of images.

Nothing here is random, and nothing changes a value: pixels move.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def quarter_turns(images: jax.Array) -> jax.Array:
    """Return each image in its four orientations, `[n, 4, h, w, c]`.

    `images` are square, `[n, h, w, c]` of any dtype. Turn k is by k quarters of a circle,
    counter-clockwise, as by `numpy.rot90(image, k)`.

    Raises:
      ValueError: for images that are not square, whose turns have two shapes.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise ValueError(f"quarter turns need square images [n, h, h, c], not {images.shape}")
    return jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)], axis=1)
