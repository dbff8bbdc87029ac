"""Images read between their pixels: where each pixel of a moved or distorted image comes from, and what is there."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

_SMOOTHING = 4.0  # of elastic's displacement, in pixels: Simard et al. (2003), for images of 29x29
_FARTHEST = 3.0  # displacement of elastic in units of its amplitude; Gaussian fields have no bound of their own


def source_coordinates(
  shape: tuple[int, int], *, angle: jax.Array, slant: jax.Array, factor: jax.Array, ratio: jax.Array, shift: jax.Array
) -> jax.Array:
  """Returns where each pixel of an image that was moved about its middle comes from.

  The image is first scaled, then slanted, then turned, then shifted; this undoes the four, last first. There is no
  product of matrices in it, which GPUs and TPUs round to few bits by default.

  Args:
    shape: (H, W).
    angle: radians, counter-clockwise as one sees the image.
    slant: columns per row.
    factor: magnification.
    ratio: by which width to height grows, at the same area.
    shift: rows down, columns to the right; in pixels.

  Returns:
    float32 `[2, H, W]`: row and column, in pixels.
  """
  middle = [(size - 1) / 2 for size in shape]
  grid = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in shape), indexing="ij")
  y, x = (axis - half - move for axis, half, move in zip(grid, middle, shift, strict=True))
  cos, sin, root = jnp.cos(angle), jnp.sin(angle), jnp.sqrt(ratio)
  y, x = cos * y + sin * x, cos * x - sin * y
  x = x - slant * y
  y, x = y * root / factor, x / (root * factor)
  return jnp.stack([y + middle[0], x + middle[1]])


def displacement(key: jax.Array, shape: tuple[int, int], smoothing: float = _SMOOTHING) -> jax.Array:
  """Returns a smooth random displacement of each pixel, as elastic distortions have it (Simard et al., 2003).

  `pix.elastic_deformation` smooths by a convolution per image, which takes longer on a CPU than a training step of a
  small network; two products with constant matrices do the same in a hundredth of the time. They are scaled so that
  the displacement has the same variance at the border as within.

  Args:
    key: for uniform noise at each pixel.
    shape: (H, W).
    smoothing: standard deviation of the Gaussian that smooths the noise, in pixels.

  Returns:
    float32 `[2, H, W]`: along rows and columns, with mean 0 and, but for the bound, variance 1 everywhere; in [-3, 3].
  """

  def smoother(size):
    offsets = np.subtract.outer(np.arange(size), np.arange(size))
    weights = np.exp(-0.5 * (offsets / smoothing) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)

  noise = jax.random.uniform(key, (2, *shape), jnp.float32, -math.sqrt(3), math.sqrt(3))  # of variance 1
  rows, columns = (smoother(size) for size in shape)
  smooth = jnp.einsum("ij,cjk,lk->cil", rows, noise, columns, precision=jax.lax.Precision.HIGHEST)
  return jnp.clip(smooth, -_FARTHEST, _FARTHEST)


def resample(image: jax.Array, coordinates: jax.Array) -> jax.Array:
  """Reads an image between its pixels, bilinearly; outside of it, its nearest edge.

  The edge is right for digits on black and for photographs alike, where 0 would draw black wedges into the corners.
  Not by `pix.flat_nd_linear_interpolate`, which takes several times longer on a CPU under `jax.vmap`.

  Args:
    image: float32 `[H, W, C]`.
    coordinates: float32 `[2, H', W']`: row and column, in pixels.

  Returns:
    float32 `[H', W', C]`.
  """
  read = functools.partial(map_coordinates, coordinates=list(coordinates), order=1, mode="nearest")
  return jax.vmap(read, in_axes=-1, out_axes=-1)(image)
