"""A multilayer perceptron; with `hidden=(2,)` the 2-2-2 network of the paper's Figure 1."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Uniform on +-1/sqrt(fan_in), biases too: the default of the framework in which Figure 1 was made.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@functools.cache  # one object for one size, so that equal networks compare equal
def _bias_init(fan_in: int) -> nn.initializers.Initializer:
  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

  return init


class MLP(nn.Module):
  """The representation of a perceptron: flattened input, then Dense and ReLU for each hidden layer.

  Attributes:
    hidden: sizes of the hidden layers, at least one.
    dtype: dtype of the arithmetic; parameters are float32.
  """

  hidden: tuple[int, ...] = (2,)
  dtype: Any = jnp.float32

  def __post_init__(self):
    sizes = isinstance(self.hidden, tuple) and all(isinstance(size, int) and size >= 1 for size in self.hidden)
    if not sizes or not self.hidden:
      raise ValueError(f"hidden={self.hidden!r} must be one or more positive sizes, e.g. (64, 64)")
    super().__post_init__()

  @property
  def head_kernel_init(self) -> nn.initializers.Initializer:
    """Initializer for the kernel of a classifier on these features."""
    return _KERNEL_INIT

  @property
  def head_bias_init(self) -> nn.initializers.Initializer:
    """Initializer for the bias of a classifier on these features."""
    return _bias_init(self.hidden[-1])

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps `[B, ...]` to features `[B, hidden[-1]]` of `dtype`; `train` changes nothing."""
    del train
    x = x.reshape(x.shape[0], -1)
    for i, size in enumerate(self.hidden, start=1):
      dense = nn.Dense(
        size, dtype=self.dtype, kernel_init=_KERNEL_INIT, bias_init=_bias_init(x.shape[-1]), name=f"dense{i}"
      )
      x = nn.relu(dense(x))
    return x
