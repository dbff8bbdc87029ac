"""Grayscale, resizing and normalisation of images."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from soseleto_jax.data import checks, draws, lazy

NORMALIZATIONS = ("none", "as_stored", "image", "channel", "pixel_mean", "pixel_mean_scaled", "unit", "fixed")

# Images handled at once, so that temporaries stay small beside the set itself.
_CHUNK = 1024

# Statistics of sets with more numbers are taken from a sample with about as many.
_MOST_NUMBERS = 2**28


def grayscale(images: np.ndarray) -> np.ndarray:
  """Returns the luma of RGB images (ITU-R 601-2, rounded as Pillow does).

  Args:
    images: uint8 `[N, H, W, 3]`; `[N, H, W, 1]` is returned as it is.

  Returns:
    uint8 `[N, H, W, 1]`.

  Raises:
    ValueError: for another dtype or number of channels.
  """
  _check_uint8_images(images, "grayscale", channels=(1, 3))
  if images.shape[-1] == 1:
    return images
  gray = np.empty((*images.shape[:-1], 1), np.uint8)
  for start in range(0, len(images), _CHUNK):
    red, green, blue = np.moveaxis(images[start : start + _CHUNK].astype(np.uint32), -1, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    gray[start : start + _CHUNK, ..., 0] = luma
  return gray


def resize(images: np.ndarray, size: int) -> np.ndarray:
  """Returns images resized to size x size by Pillow's bilinear filter (antialiased when shrinking).

  Args:
    images: uint8 `[N, H, W, C]`, C = 1, 3 or 4.
    size: new height and width, in pixels.

  Returns:
    uint8 `[N, size, size, C]`.

  Raises:
    ValueError: for another dtype or number of channels, or a size below 1.
  """
  from PIL import Image

  _check_uint8_images(images, "resize", channels=(1, 3, 4))
  if size < 1:
    raise ValueError(f"size={size}; give a height and width of at least 1 pixel")
  if images.shape[1:3] == (size, size):
    return images
  resized = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
  for image, out in zip(images, resized, strict=True):
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    out[:] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(out.shape)
  return resized


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
  """The map x -> (x - mean) / std, in the units of the stored pixels.

  Attributes:
    mean: float32, broadcastable to `[H, W, C]`; None leaves everything as it is stored.
    std: float32, broadcastable to `[H, W, C]`, nowhere 0; None likewise.
    per_image: whether mean and std are each image's own, over its pixels and channels; those above are then None.
  """

  mean: np.ndarray | None
  std: np.ndarray | None
  per_image: bool = False

  def apply(self, x: Any) -> Any:
    """Returns (x - mean) / std as float32 `[..., H, W, C]`, for a NumPy or a JAX array."""
    if self.per_image:
      return _by_image(x.astype(np.float32))
    if self.mean is None or self.std is None:
      return x
    mean, std = (np.reshape(part, (1,) * (x.ndim - np.ndim(part)) + np.shape(part)) for part in (self.mean, self.std))
    return (x.astype(np.float32) - mean) / std


def fit_normalization(kind: str, images: Any, mean: Sequence[float] = (), std: Sequence[float] = ()) -> Normalization:
  """Returns the normalisation of a kind, with statistics taken from images in float64, in one pass.

  Those of a set with more than 2**28 numbers are of a sample of its images with about as many, the same in every run.

  | kind | mean | std |
  |---|---|---|
  | `none` | 0 | 1 |
  | `as_stored` | no change, and integers stay integers: tokens | |
  | `image` | of the image itself | of the image itself, at least 1 / √(H W C) |
  | `channel` | of each channel | of each channel |
  | `pixel_mean` | of each pixel and channel, as Caffe does | 1 |
  | `pixel_mean_scaled` | of each pixel and channel | one number: of what is left |
  | `unit` | 0 | 256: uint8 pixels to [0, 1), as Caffe's LeNet |
  | `fixed` | `mean` | `std`, both for pixels in [0, 1]: times 255 where pixels are uint8 |

  A channel that never varies is divided by 1.

  Args:
    kind: one of the table above.
    images: `[N, H, W, C]`, or `[N, D]` whose D columns are the channels; in memory or on disk.
    mean: C numbers, for `fixed` only.
    std: C positive numbers, for `fixed` only.

  Raises:
    ValueError: for an unknown kind, or a mean or std that does not fit the kind.
  """
  checks.choice("normalization", kind, NORMALIZATIONS)
  if kind == "fixed":
    return _fixed(images, mean, std)
  if len(mean) or len(std):
    raise ValueError(
      f"mean={tuple(mean)} and std={tuple(std)} are for normalization='fixed', not {kind!r}; leave them empty"
    )
  if kind == "as_stored":
    return Normalization(None, None)
  if kind == "image":
    if len(images.shape) != 4:
      raise ValueError(f"normalization='image' takes images [N, H, W, C], not x of shape {images.shape}")
    return Normalization(None, None, per_image=True)
  if kind == "none":
    return _normalization(0.0, 1.0)
  if kind == "unit":
    return _normalization(0.0, 256.0)
  pixel_mean, pixel_variance = _moments(_sample(images))
  if kind == "pixel_mean":
    return _normalization(pixel_mean, 1.0)
  if kind == "pixel_mean_scaled":
    return _normalization(pixel_mean, _nonzero(np.sqrt(pixel_variance.mean())))
  over_pixels = tuple(range(pixel_mean.ndim - 1))
  channel_mean = pixel_mean.mean(axis=over_pixels)
  variance = (pixel_variance + (pixel_mean - channel_mean) ** 2).mean(axis=over_pixels)
  return _normalization(channel_mean, _nonzero(np.sqrt(variance)))


def _fixed(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Normalization:
  channels = images.shape[-1]
  if len(mean) != channels or len(std) != channels:
    raise ValueError(
      f"normalization='fixed' with mean={tuple(mean)} and std={tuple(std)}, but the images have "
      f"{channels} channels; give {channels} numbers each"
    )
  if not (np.isfinite(mean).all() and np.isfinite(std).all() and np.min(std) > 0):
    raise ValueError(f"std={tuple(std)}, mean={tuple(mean)}; give finite numbers and std above 0")
  scale = 255.0 if images.dtype == np.uint8 else 1.0
  return _normalization(scale * np.asarray(mean), scale * np.asarray(std))


def _by_image(x: Any) -> Any:
  """Standardises each image by itself; the least deviation is that of `tf.image.per_image_standardization`."""
  axes = (-3, -2, -1)
  centered = x - x.mean(axis=axes, keepdims=True)
  std = (centered**2).mean(axis=axes, keepdims=True) ** 0.5
  return centered / std.clip(1 / math.sqrt(math.prod(x.shape[-3:])))


def _normalization(mean: Any, std: Any) -> Normalization:
  return Normalization(np.asarray(mean, np.float32), np.asarray(std, np.float32))


def _sample(images: Any) -> Any:
  count = _MOST_NUMBERS // math.prod(images.shape[1:])
  if len(images) <= count:
    return images
  rows = draws.integers(max(1, count), len(images), 0, "normalization")
  return lazy.take(images, np.unique(rows))


def _moments(images: Any) -> tuple[np.ndarray, np.ndarray]:
  """Mean and variance over images, float64, shaped as one image; merged by Chan, Golub and LeVeque (1983)."""
  count, mean, squares = 0, np.zeros(images.shape[1:]), np.zeros(images.shape[1:])
  for chunk in lazy.chunks(images):
    chunk = chunk.astype(np.float64)
    chunk_mean = chunk.mean(axis=0)
    shift, total = chunk_mean - mean, count + len(chunk)
    squares = squares + ((chunk - chunk_mean) ** 2).sum(axis=0) + shift**2 * (count * len(chunk) / total)
    mean = mean + shift * (len(chunk) / total)
    count = total
  return mean, squares / count


def _nonzero(std: np.ndarray) -> np.ndarray:
  return np.where(std > 0, std, 1.0)


def _check_uint8_images(images: np.ndarray, name: str, channels: tuple[int, ...]) -> None:
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in channels:
    raise ValueError(
      f"{name} takes uint8 images [N, H, W, C] with C in {channels}, not {images.dtype} of shape {images.shape}"
    )
