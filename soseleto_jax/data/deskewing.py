"""Handwriting made upright."""

import numpy as np

_CHUNK = 2048  # images at once
_STEEPEST = 1.0  # columns that a line of writing leans over in a row, at most


def deskew(images: np.ndarray) -> np.ndarray:
  """Returns writing upright and in the middle, as LeCun et al. (1998, section III-A) make the deslanted MNIST.

  Rows are moved sideways until the principal axis by the second moments of brightness is vertical, and the centre of
  mass is brought to the middle. What leaves the image is lost.

  Args:
    images: uint8 `[N, H, W, 1]`, white on black.

  Returns:
    uint8 `[N, H, W, 1]`.

  Raises:
    ValueError: for other images.
  """
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 1:
    raise ValueError(
      f"deskew=True takes gray images, uint8 [N, H, W, 1], not {images.dtype} of shape {images.shape}; set "
      "grayscale=True"
    )
  result = np.empty_like(images)
  for start in range(0, len(images), _CHUNK):
    chunk = slice(start, start + _CHUNK)
    result[chunk, ..., 0] = _upright(images[chunk, ..., 0].astype(float))
  return result


def _upright(images):
  from scipy import ndimage

  y, x, slant = _moments(images)
  down, right = (np.arange(size) - (size - 1) / 2 for size in images.shape[1:])
  down = down[:, None]
  each = np.arange(len(images))[:, None, None]
  places = np.broadcast_arrays(each, y + down, x + right + slant * down)
  return np.round(ndimage.map_coordinates(images, places, order=1, mode="grid-constant")).astype(np.uint8)


def _moments(images):
  """Returns row and column of the centre of mass, and columns to the right for a row down, each `[N, 1, 1]`."""
  mass = images / np.maximum(images.sum(axis=(1, 2), keepdims=True), 1)
  rows, columns = np.arange(images.shape[1])[:, None], np.arange(images.shape[2])

  def mean(values):
    return (mass * values).sum(axis=(1, 2), keepdims=True)

  y, x = mean(rows), mean(columns)
  spread, lean = mean((rows - y) ** 2), mean((rows - y) * (columns - x))
  return y, x, np.clip(lean / np.where(spread > 0, spread, 1), -_STEEPEST, _STEEPEST)
