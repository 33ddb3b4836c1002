"""Matrix products of the augmentation, in the precision that a policy names.

Accelerators multiply numbers of bfloat16, with 8 significant bits, several times as fast as those
of float32, and add in float32. A number of float32 is nearly the sum of two of bfloat16; pixels of
8 bits are themselves numbers of bfloat16, and need no second part. What is rounded here is rounded
on every device alike, so that a precision means the same numbers on a CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

EXACT = (jnp.uint8, jnp.bfloat16)  # whose values bfloat16 holds


def product(subscripts: str, weights: jax.Array, values: jax.Array, precision: str) -> jax.Array:
    """Return `jnp.einsum(subscripts, weights, values)` of float weights.

    Args:
      subscripts: of two operands, as einsum has them.
      weights: float32 or float64.
      values: of that type, or uint8 or bfloat16.
      precision: "float32": as exact as the type of the weights; "bfloat16_3x": the products of two
        parts of each operand but for that of both second parts, 16 significant bits; "bfloat16":
        both operands rounded to 8. All are added in float32 or more.

    Returns:
      An array of the type of the weights.
    """
    if precision == "float32":
        # Accelerators would otherwise round both operands to 8 or 11 bits.
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum(subscripts, weights, values.astype(weights.dtype), precision=exact)

    def short(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)

    high, low = _parts(weights)
    if values.dtype in EXACT:
        first, second = values.astype(jnp.bfloat16), None
    else:
        first, second = _parts(values)
    made = short(high, first)
    if precision == "bfloat16_3x":
        made += short(low, first)
        if second is not None:
            made += short(high, second)
    return made.astype(weights.dtype)


def rounded(image: jax.Array, dtype: str) -> jax.Array:
    """Return an image as it is kept between operations: in bfloat16; by "float32", unchanged."""
    return image if dtype == "float32" else _rounded(image)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two arrays of bfloat16 whose sum is nearly `x`."""
    high = _rounded(x)
    return high, _rounded(x - high.astype(x.dtype))


def _rounded(x: jax.Array) -> jax.Array:
    # A mere conversion there and back is one that XLA may leave out.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)
