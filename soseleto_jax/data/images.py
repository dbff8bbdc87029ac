"""Pictures that are decoded when they are read."""

import io
from collections.abc import Callable, Sequence

import numpy as np

# Named, because Pillow otherwise tries one format after another on every image.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Images:
  """Stands in for an array uint8 `[N, H, W, C]` that is larger than memory; see `soseleto_jax.data.lazy`."""

  dtype = np.dtype(np.uint8)

  def __init__(
    self,
    read: Callable[[Sequence[int]], list[bytes]],
    name: Callable[[int], str],
    count: int,
    *,
    mode: str,
    size: int,
  ):
    """Decodes the first image, which gives the shape of all.

    Args:
      read: returns the encoded images of some rows; called by several threads.
      name: returns what to call the image of a row in messages.
      count: N.
      mode: Pillow's mode to convert to, one of `MODES`.
      size: height and width to resize to, in pixels; 0 keeps the image's.

    Raises:
      ValueError: for an image that cannot be read; also on reading, and there for one of another size than the first.
    """
    self._read, self._name, self._mode, self._size = read, name, mode, size
    self.shape = (count, *self._decode(read([0])[0], 0).shape)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: np.ndarray) -> np.ndarray:
    rows = np.asarray(index).tolist()
    x = np.empty((len(rows), *self.shape[1:]), np.uint8)
    for place, row, encoded in zip(x, rows, self._read(rows), strict=True):
      place[:] = self.decode(encoded, row)
    return x

  def decode(self, encoded: bytes, row: int) -> np.ndarray:
    """Returns the image of a row, uint8 `[H, W, C]`, from its encoded bytes."""
    image = self._decode(encoded, row)
    if image.shape != self.shape[1:]:
      raise ValueError(
        f"images have unequal sizes: {self._name(0)} is {self.shape[1:]}, {self._name(row)} is {image.shape}; "
        "set `size` (config.data.source.size, config.data.target.size) to resize them"
      )
    return image

  def _decode(self, encoded, row):
    from PIL import Image

    try:
      with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.mode != self._mode:
          image = image.convert(self._mode)
        if self._size and image.size != (self._size, self._size):
          image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      raise ValueError(f"{self._name(row)} cannot be read as an image: {error}; replace or remove it") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
