"""CIE Lab: how light a pixel is, and of what colour, apart (skimage `color.rgb2lab`).

sRGB in [0, 1] under D65, 2 degree observer. L goes from 0, black, to 100, white; a from green to
red and b from blue to yellow, both about -110 to 110. All is computed in the dtype of the input,
at least in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Red, green and blue in X, Y and Z, a row each, and the white point, as in `skimage.color`.
XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
RGB = tuple(tuple(map(float, row)) for row in np.linalg.inv(np.array(XYZ)))

COLOURED = 5.0  # |a| or |b| above this somewhere: an image that has colours


def linear(rgb: jax.Array) -> jax.Array:
    """Return how much light each value of sRGB stands for."""
    return jnp.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def root(share: jax.Array) -> jax.Array:
    """Return what Lab makes of a share of the white point: a cube root, linear near black."""
    return jnp.where(share > 0.008856, jnp.cbrt(share), 7.787 * share + 16 / 116)


def _times(rows: Sequence[Sequence[float]], x: jax.Array) -> list[jax.Array]:
    """Return a matrix times vectors `[..., 3]`, by row.

    Written out: a TPU would round a product of matrices to bfloat16.
    """
    return [a * x[..., 0] + b * x[..., 1] + c * x[..., 2] for a, b, c in rows]


def rgb_to_lab(images: jax.Array) -> jax.Array:
    """Return L, a and b of images `[..., 3]` in sRGB; float32, or float64 if they are."""
    x = linear(images.astype(jnp.promote_types(images.dtype, jnp.float32)))
    shares = [share / white for share, white in zip(_times(XYZ, x), WHITE, strict=True)]
    fx, fy, fz = (root(share) for share in shares)
    return jnp.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)


def lab_to_rgb(lab: jax.Array) -> jax.Array:
    """Return sRGB `[..., 3]` of L, a and b; colours that no screen has are cut to [0, 1]."""
    lab = lab.astype(jnp.promote_types(lab.dtype, jnp.float32))
    fy = (lab[..., 0] + 16) / 116
    roots = (fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200)
    xyz = [
        white * jnp.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
        for f, white in zip(roots, WHITE, strict=True)
    ]
    x = jnp.stack(_times(RGB, jnp.stack(xyz, -1)), -1)
    x = jnp.clip(x, 0, 1)
    return jnp.where(x > 0.0031308, 1.055 * x ** (1 / 2.4) - 0.055, 12.92 * x)


def has_colours(ab: jax.Array) -> jax.Array:
    """Tell of each image whether it has colours, bool `[n]`.

    One in which neither a nor b is beyond 5 anywhere counts as gray (richzhang/colorization
    `caffe_traininglayers.py: NonGrayMaskLayer`).

    Args:
      ab: `[n, h, w, 2]`.
    """
    return jnp.any(jnp.abs(ab) > COLOURED, (1, 2, 3))
