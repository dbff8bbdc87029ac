"""Networks of a user's own, for configs that name them by import path."""

import jax
from flax import nnx


class SmallNnx(nnx.Module):
  """Two convolutions with BatchNorm and dropout, from images `[B, 32, 32, 3]` to features `[B, 32]`."""

  def __init__(self, width: int = 16, *, rngs: nnx.Rngs):
    self.conv1 = nnx.Conv(3, width, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)
    self.conv2 = nnx.Conv(width, 2 * width, (3, 3), strides=2, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = nnx.relu(self.norm(self.conv1(x)))
    return self.dropout(nnx.relu(self.conv2(x)).mean(axis=(1, 2)))
