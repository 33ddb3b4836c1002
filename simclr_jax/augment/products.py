"""Matrix products of the augmentation, in the precision that a policy names.

Accelerators multiply numbers of bfloat16, with 8 significant bits, several times as fast as those
of float32, and add in float32. The sum of two of them has 16 bits; pixels of 8 bits are themselves
numbers of bfloat16. Operands are rounded here, and by no device, so that a precision means the same
numbers on a CPU.
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
      precision: "float32": as exact as the type of the weights; "bfloat16_3x": both operands
        rounded to 16 bits, two numbers of bfloat16 each, whose products accelerators add but for
        that of both second ones; "bfloat16": rounded to 8 bits. All are added in float32 or more.

    Returns:
      An array of the type of the weights.
    """
    if precision == "float32":
        # Accelerators would otherwise round both operands to 8 or 11 bits.
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum(subscripts, weights, values.astype(weights.dtype), precision=exact)
    if precision == "bfloat16":
        made = jnp.einsum(
            subscripts, _rounded(weights), _rounded(values), preferred_element_type=jnp.float32
        )
        return made.astype(weights.dtype)
    # One product for the program: three would each write what they made to memory.
    thrice = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
    made = jnp.einsum(subscripts, _two_parts(weights), _two_parts(values), precision=thrice)
    return made.astype(weights.dtype)


def rounded(image: jax.Array, dtype: str) -> jax.Array:
    """Return an image as it is kept between operations: in bfloat16; by "float32", unchanged."""
    return image if dtype == "float32" else _rounded(image)


def _two_parts(x: jax.Array) -> jax.Array:
    """Return as float32 the nearest sum of two numbers of bfloat16."""
    if x.dtype in EXACT:
        return x.astype(jnp.float32)
    high = _rounded(x).astype(x.dtype)
    return (high + _rounded(x - high).astype(x.dtype)).astype(jnp.float32)


def _rounded(x: jax.Array) -> jax.Array:
    if x.dtype in EXACT:
        return x.astype(jnp.bfloat16)
    # A mere conversion there and back is one that XLA may leave out.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)
