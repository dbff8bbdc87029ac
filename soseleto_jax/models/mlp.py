"""A multilayer perceptron; with `hidden=(2,)` the 2-2-2 network of the paper's Figure 1."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Uniform on +-1/sqrt(fan_in): the default of the framework in which Figure 1 was made.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class MLP(nn.Module):
  """The representation of a perceptron: flattened input, then Dense and ReLU for each hidden layer.

  Attributes:
    hidden: sizes of the hidden layers, at least one.
    dtype: dtype of the arithmetic; parameters are float32.
  """

  hidden: tuple[int, ...] = (2,)
  dtype: Any = jnp.float32

  def __post_init__(self):
    if not isinstance(self.hidden, tuple) or not self.hidden or min(self.hidden) < 1:
      raise ValueError(f"hidden={self.hidden!r} must be one or more positive sizes, e.g. (64, 64)")
    super().__post_init__()

  @property
  def head_kernel_init(self) -> nn.initializers.Initializer:
    """Initializer for the kernel of a classifier on these features."""
    return _KERNEL_INIT

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps `[B, ...]` to features `[B, hidden[-1]]` of `dtype`; `train` changes nothing."""
    del train
    x = x.reshape(x.shape[0], -1)
    for i, size in enumerate(self.hidden, start=1):
      x = nn.Dense(size, dtype=self.dtype, kernel_init=_KERNEL_INIT, name=f"dense{i}")(x)
      x = nn.relu(x)
    return x
