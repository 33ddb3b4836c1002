"""An image cut into its four quarters, and the whole of it at half its size."""

from __future__ import annotations

import jax
import jax.numpy as jnp

KERNELS = ("area", "linear", "cubic", "lanczos3")  # by which `halved` shrinks


def quarters(images: jax.Array) -> jax.Array:
    """Return the four tiles of images `[n, h, w, c]`, `[n, 4, h / 2, w / 2, c]`, row by row.

    Raises:
      ValueError: for an odd side.
    """
    n, height, width, c = images.shape
    if height % 2 or width % 2:
        raise ValueError(f"images of {height}x{width} pixels cannot be cut into four equal tiles")
    cut = images.reshape(n, 2, height // 2, 2, width // 2, c)
    return jnp.swapaxes(cut, 2, 3).reshape(n, 4, height // 2, width // 2, c)


def halved(images: jax.Array, kernel: str) -> jax.Array:
    """Return images `[n, h, w, c]` in [0, 1] at half their size, clipped to [0, 1].

    By "area" a pixel is the mean of four; by the others it is their sum weighed by that kernel,
    twice as wide as for an image that is not shrunk.
    """
    n, height, width, c = images.shape
    shape = (n, height // 2, width // 2, c)
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    if kernel == "area":
        found = wide.reshape(n, shape[1], 2, shape[2], 2, c).mean((2, 4))
    else:
        found = jnp.clip(jax.image.resize(wide, shape, kernel, antialias=True), 0, 1)
    return found.astype(images.dtype)


def halved_at_random(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Return images at half their size, each by one of `KERNELS`, drawn by its key of `[n]`."""
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(KERNELS), jnp.int32))(keys)
    every = jnp.stack([halved(images, kernel) for kernel in KERNELS])  # [kernels, n, ...]
    return jax.vmap(lambda some, which: some[which], in_axes=(1, 0))(every, drawn)
