"""LeNet, the network of Caffe's examples/mnist/lenet_train_test.prototxt."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from soseleto_jax.models.pooling import max_pool

# Caffe's "xavier": uniform on +-sqrt(3 / fan_in).
_KERNEL_INIT = nn.initializers.lecun_uniform()
_MIN_SIZE = 13  # Smaller images leave nothing after two 5x5 convolutions and two pools.


class LeNet(nn.Module):
  """The representation of LeNet: `[B, H, W, C]` to 500 features, through their ReLU.

  Two unpadded 5x5 convolutions, each followed by a 2x2 maximum pool, and a Dense. Caffe's have no ReLU, which costs
  transfer from SVHN to MNIST some points. On 28x28x1 with a 10-class Dense after it, 431,080 parameters.

  Attributes:
    relu: whether a ReLU follows each pool.
    dtype: dtype of the arithmetic; parameters are float32.
  """

  relu: bool = False
  dtype: Any = jnp.float32

  @property
  def head_kernel_init(self) -> nn.initializers.Initializer:
    """Initializer for the kernel of a classifier on these features."""
    return _KERNEL_INIT

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images `[B, H, W, C]` to features `[B, 500]` of `dtype`; `train` changes nothing."""
    del train
    if x.ndim != 4:
      raise ValueError(f"lenet takes images [B, H, W, C], got shape {x.shape}")
    if min(x.shape[1:3]) < _MIN_SIZE:
      raise ValueError(f"lenet takes images of {_MIN_SIZE}x{_MIN_SIZE} and more, got shape {x.shape}; resize them")
    for name, features in (("conv1", 20), ("conv2", 50)):
      x = nn.Conv(features, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=_KERNEL_INIT, name=name)(x)
      x = max_pool(x, window=2, stride=2)
      x = nn.relu(x) if self.relu else x
    x = x.reshape(x.shape[0], -1)
    return nn.relu(nn.Dense(500, dtype=self.dtype, kernel_init=_KERNEL_INIT, name="dense")(x))
