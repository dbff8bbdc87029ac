"""Pictures of digits among other things, such as SVHN's, made to look like MNIST's: one digit, white on black."""

import numpy as np

from soseleto_jax.data.normalization import resize

_CHUNK = 2048  # images at once
_LEVELS = 256
_LEAST = 7
_SHARE = 5 / 7  # of the image's height and width that the picture gets: 20 pixels of MNIST's 28
_INSIDE = 0.5  # brightness from which a pixel is of a stroke


def isolate(images: np.ndarray, size: int) -> np.ndarray:
  """Returns what stands in the middle of each picture, white on black.

  A threshold by Otsu (1979) over the middle half of the columns tells strokes from background, which is the commoner of
  the two; contrast is stretched from the mean of the one to that of the other. What touches the middle of the picture
  stays, and the whole is made smaller, into the middle of a black image. Of pictures that cannot be told apart so, as
  when shadow lies across a digit, something else remains.

  Args:
    images: uint8 `[N, H, W, 1]`, of 8x8 pixels and more.
    size: height and width of the result, in pixels, at least 7.

  Returns:
    uint8 `[N, size, size, 1]`.

  Raises:
    ValueError: for other images or a smaller size.
  """
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 1 or min(images.shape[1:3]) < 8:
    raise ValueError(
      f"isolate=True takes gray pictures of 8x8 pixels and more, not {images.dtype} of shape {images.shape}; set "
      "grayscale=True"
    )
  if size < _LEAST:
    raise ValueError(f"isolate=True and size={size}: give the size of the result, at least {_LEAST} pixels")
  inner = round(_SHARE * size)
  border = (size - inner) // 2
  result = np.zeros((len(images), size, size, 1), np.uint8)
  for start in range(0, len(images), _CHUNK):
    found = _strokes(images[start : start + _CHUNK, ..., 0])
    pixels = np.round(255 * found).astype(np.uint8)[..., None]
    result[start : start + _CHUNK, border : border + inner, border : border + inner] = resize(pixels, inner)
  return result


def _strokes(images):
  """Returns brightness in [0, 1], 0 outside of what touches the middle: float32 `[N, H, W]`."""
  from scipy import ndimage

  height, width = images.shape[1:]
  middle = images[:, :, width // 4 : width - width // 4]
  threshold = _otsu(middle.reshape(len(images), -1))
  light = images > threshold[:, None, None]
  is_light = (middle > threshold[:, None, None]).mean(axis=(1, 2)) < 0.5
  stroke = light == is_light[:, None, None]
  on, off = _mean(images, stroke), _mean(images, ~stroke)
  contrast = np.where(np.abs(on - off) >= 1, on - off, 1)  # gray levels; of one colour alone nothing is seen
  bright = np.clip((images - off[:, None, None]) / contrast[:, None, None], 0, 1).astype(np.float32)

  within = np.zeros((3, 3, 3), int)
  within[1] = ndimage.generate_binary_structure(2, 1)  # each picture by itself
  parts, count = ndimage.label(bright > _INSIDE, within)
  kept = np.zeros(count + 1, bool)
  kept[parts[:, height // 5 : height - height // 5, width // 2 - width // 8 : width // 2 + width // 8]] = True
  kept[0] = False
  return bright * ndimage.binary_dilation(kept[parts], within)  # with the soft edge of each stroke


def _mean(images, mask):
  return (images * mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1)


def _otsu(pixels):
  """Returns the threshold of each row, the largest gray level of its darker class: integers `[N]`."""
  rows = np.arange(len(pixels))[:, None] * _LEVELS
  counts = np.bincount((rows + pixels).ravel(), minlength=len(pixels) * _LEVELS).reshape(-1, _LEVELS).astype(float)
  number, total = np.cumsum(counts, axis=1), np.cumsum(counts * np.arange(_LEVELS), axis=1)
  all_number, all_total = number[:, -1:], total[:, -1:]
  spread = number * (all_number - number)
  between = (all_total * number - total * all_number) ** 2 / np.where(spread > 0, spread, 1)
  return np.argmax(np.where(spread > 0, between, -1), axis=1)
