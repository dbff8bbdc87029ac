"""Rows brought to one length."""

import jax
import jax.numpy as jnp

_TINY = 1e-12  # of a squared length, below which it counts as 0


def with_row_norm(x: jax.Array, norm: float = 1.0) -> jax.Array:
  """Scales the rows of an array to one Euclidean length, in float32 or a wider dtype.

  Args:
    x: rows `[N, F]`, of any floating dtype.
    norm: the length.

  Returns:
    `[N, F]` of x's dtype. Rows of zeros stay zeros, and have a gradient of 0.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
  some = square > _TINY
  scale = jnp.where(some, norm * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)
  return (wide * scale).astype(x.dtype)
