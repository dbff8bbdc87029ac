"""CIFAR-10 Quick, the network of Caffe's examples/cifar10/cifar10_quick_train_test.prototxt."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from soseleto_jax.models.convolution import conv_few_channels
from soseleto_jax.models.pooling import avg_pool, max_pool

# Kernel initializers of conv1, conv2, conv3, dense and the classifier. Only conv1-3 feed a ReLU.
_HE, _LECUN = nn.initializers.he_normal(), nn.initializers.lecun_normal()
_KERNEL_INITS = {
  "caffe": tuple(nn.initializers.normal(std) for std in (1e-4, 1e-2, 1e-2, 0.1, 0.1)),
  "fan_in": (_HE, _HE, _HE, _LECUN, _LECUN),
}


class CifarQuick(nn.Module):
  """The representation of CIFAR-10 Quick: `[B, H, W, C]` to 64 features, with no ReLU after them.

  Three 5x5 convolutions, each halving the image by a 3x3 pool of stride 2 (maximum, then twice the
  mean over the pixels inside the image). On 32x32x3 with a 10-class Dense after it, 145,578
  parameters.

  Attributes:
    init: "fan_in" (He before a ReLU, LeCun elsewhere; for standardised pixels) or "caffe" (the
      Gaussians of Caffe's definition, standard deviations 1e-4, 1e-2, 1e-2, 0.1 and, for the
      classifier, 0.1; for 0-255 pixels minus their mean, on which alone the 1e-4 makes sense).
    dtype: dtype of the arithmetic; parameters are float32.
  """

  init: str = "fan_in"  # type: ignore[assignment]  # shadows Module.init, which runs on HeadedNetwork alone
  dtype: Any = jnp.float32

  def __post_init__(self):
    if self.init not in _KERNEL_INITS:
      raise ValueError(f"init={self.init!r} is unknown to cifar_quick; use 'fan_in' or 'caffe'")
    super().__post_init__()

  @property
  def head_kernel_init(self) -> nn.initializers.Initializer:
    """Initializer for the kernel of a classifier on these features."""
    return _KERNEL_INITS[self.init][-1]

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images `[B, H, W, C]` to features `[B, 64]` of `dtype`; `train` changes nothing."""
    del train
    if x.ndim != 4:
      raise ValueError(f"cifar_quick takes images [B, H, W, C], got shape {x.shape}")
    inits = _KERNEL_INITS[self.init]

    def conv(x, features, name, kernel_init):
      options = dict(dtype=self.dtype, kernel_init=kernel_init, conv_general_dilated=conv_few_channels)
      return nn.Conv(features, (5, 5), name=name, **options)(x)

    x = conv(x, 32, "conv1", inits[0])
    x = nn.relu(max_pool(x, window=3, stride=2))
    x = avg_pool(nn.relu(conv(x, 32, "conv2", inits[1])), window=3, stride=2)
    x = avg_pool(nn.relu(conv(x, 64, "conv3", inits[2])), window=3, stride=2)
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(64, dtype=self.dtype, kernel_init=inits[3], name="dense")(x)
