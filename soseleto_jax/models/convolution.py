"""A convolution of images with few channels that is fast on CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def conv_few_channels(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
  """Does what `jax.lax.conv_general_dilated` does, for `flax.linen.Conv(conv_general_dilated=...)`.

  On CPU, XLA takes the gradient by the kernel as a convolution by a kernel as large as the image. With 3 channels of
  32x32 pixels that is six times as slow as what stands here, a product of matrices for each image, and more cores do
  not help it.

  Args:
    x: images `[B, H, W, C]`.
    kernel: `[K, K, C, F]`.
    strides: all 1.
    padding: "SAME", "VALID", or as many pixels before and after each axis.
    **options: the others, at their defaults.
  """
  plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)

  @jax.custom_jvp
  def conv(x, kernel):
    return plain(x, kernel)

  def conv_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    y = conv(x, kernel)
    parts = [] if _is_zero(dx) else [plain(dx, kernel)]
    if not _is_zero(dkernel):
      pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
      by_image = functools.partial(_by_image, pads=pads)
      parts.append(jax.lax.platform_dependent(x, dkernel, cpu=by_image, default=plain))
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)

  conv.defjvp(conv_jvp, symbolic_zeros=True)
  return conv(x, kernel)


def _is_zero(tangent):
  return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _by_image(x, kernel, pads):
  """Convolves image by image, as the product of its patches `[H * W, K * K * C]` and the kernel."""
  size, _, channels, features = kernel.shape
  height, width = (pixels + sum(pad) - size + 1 for pixels, pad in zip(x.shape[1:3], pads, strict=True))

  @jax.checkpoint  # or the patches of all images are kept for the gradient
  def convolve(image):
    image = jnp.pad(image, (*pads, (0, 0)))
    places = [(row, column) for row in range(size) for column in range(size)]
    patches = jnp.concatenate([image[row : row + height, column : column + width] for row, column in places], -1)
    return (patches.reshape(-1, size**2 * channels) @ kernel.reshape(-1, features)).reshape(height, width, features)

  return jax.lax.map(convolve, x)
