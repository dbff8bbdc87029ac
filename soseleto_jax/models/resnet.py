"""The CIFAR form of ResNet-18, with GroupNorm, BatchNorm or no normalisation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

_NORMS = ("group", "batch", "none")
_HEAD_KERNEL_INIT = nn.initializers.lecun_normal()


class ResNet(nn.Module):
  """The representation of a ResNet for small images, from the 3x3 stem to the global mean.

  The stages have `width`, `2 * width`, `4 * width`... channels; all but the first halve the image.
  With the defaults and a 10-class Dense after it, 11,173,962 parameters.

  Attributes:
    norm: "group" (32 groups, or as many as divide both 32 and the channels), "batch" (BatchNorm,
      whose statistics are the collection "batch_stats"; in training it couples the examples of a
      batch), or "none" (biases, and each residual branch times a learned scalar that starts at 0,
      so that every block starts as its shortcut: SkipInit, arXiv:2002.10444).
    width: channels of the first stage.
    stage_sizes: number of two-convolution blocks in each stage.
    dtype: dtype of the arithmetic; parameters and batch statistics are float32.
  """

  norm: str = "group"
  width: int = 64
  stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
  dtype: Any = jnp.float32

  def __post_init__(self):
    if self.norm not in _NORMS:
      raise ValueError(f"norm={self.norm!r} is unknown to resnet; use one of {', '.join(_NORMS)}")
    if self.width < 1:
      raise ValueError(f"width={self.width!r} must be positive")
    sizes = self.stage_sizes
    if not isinstance(sizes, tuple) or not sizes or min(sizes) < 1:
      raise ValueError(f"stage_sizes={sizes!r} must be one or more positive ints, as (2, 2, 2, 2)")
    super().__post_init__()

  @property
  def head_kernel_init(self) -> nn.initializers.Initializer:
    """Initializer for the kernel of a classifier on these features."""
    return _HEAD_KERNEL_INIT

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images `[B, H, W, C]` to features `[B, width * 2**(stages - 1)]` of `dtype`.

    With `norm="batch"`, `train=True` normalises by the batch's own statistics and updates the
    running ones, so that `apply` needs `mutable=["batch_stats"]`.
    """
    if x.ndim != 4:
      raise ValueError(f"resnet takes images [B, H, W, C], got shape {x.shape}")
    x = _conv_norm(x, self.width, 3, 1, "stem", self.norm, train, self.dtype)
    x = nn.relu(x)
    for stage, blocks in enumerate(self.stage_sizes):
      for block in range(blocks):
        x = _Block(
          features=self.width * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          norm=self.norm,
          dtype=self.dtype,
          name=f"stage{stage + 1}_block{block + 1}",
        )(x, train=train)
    return jnp.mean(x, axis=(1, 2))


class _Block(nn.Module):
  """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

  features: int
  stride: int
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x, *, train):
    how = (self.norm, train, self.dtype)
    branch = nn.relu(_conv_norm(x, self.features, 3, self.stride, "conv1", *how))
    branch = _conv_norm(branch, self.features, 3, 1, "conv2", *how)
    if self.norm == "none":
      gain = self.param("branch_gain", nn.initializers.zeros_init(), (), jnp.float32)
      branch = branch * gain.astype(self.dtype)
    if x.shape != branch.shape:
      x = _conv_norm(x, self.features, 1, self.stride, "shortcut", *how)
    return nn.relu(x + branch)


def _conv_norm(x, features, size, stride, name, norm, train, dtype):
  """Convolution and normalisation; called inside a compact method, whose submodules they become."""
  x = nn.Conv(
    features,
    (size, size),
    strides=(stride, stride),
    padding=size // 2,
    use_bias=norm == "none",
    kernel_init=nn.initializers.he_normal(),
    dtype=dtype,
    name=name,
  )(x)
  if norm == "group":
    groups = math.gcd(32, features)
    return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, name=f"{name}_norm")(x)
  if norm == "batch":
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype, name=f"{name}_norm")(x)
  return x
