"""Pictures that are decoded when they are read."""

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Named, because Pillow otherwise tries one format after another on every image.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ASPECTS = ("crop", "pad", "stretch")

# Modes that Pillow turns into 8-bit colour or gray without loss of range.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class Unreadable(ValueError):
  """A file that is no image, or none that can be read; the message says why, and not which."""


@functools.cache
def formats() -> tuple[str, ...]:
  """The formats that are read: those named above that this Pillow knows."""
  from PIL import Image

  Image.init()
  return tuple(name for name in _FORMATS if name in Image.OPEN)


def colour(name: str) -> Any:
  """Returns a colour as Pillow has it, (red, green, blue).

  Raises:
    ValueError: there is none of this name.
  """
  from PIL import ImageColor

  try:
    return ImageColor.getrgb(name)[:3]
  except (ValueError, AttributeError) as error:
    raise ValueError(f"background={name!r} is no colour; give a name such as 'white', or '#ffffff'") from error


@dataclasses.dataclass(frozen=True)
class Look:
  """What an image is made into.

  Attributes:
    mode: Pillow's mode, one of `MODES`.
    size: height and width, in pixels; 0 keeps the image's.
    aspect: of `ASPECTS`, how an image that is no square becomes one: the middle of it is cut out, or it is laid on the
      background, or it is stretched.
    background: what shows through an alpha channel, and around an image that is padded; None drops the alpha channel.
    photo: whether the image is turned as its EXIF says, and a large JPEG is decoded at about the size that is needed.
  """

  mode: str = "RGB"
  size: int = 0
  aspect: str = "stretch"
  background: str | None = None
  photo: bool = False

  def of(self, image: Any) -> Any:
    """Returns a Pillow image made into this."""
    from PIL import Image, ImageOps

    if self.photo:
      if self.size and image.format == "JPEG":
        image.draft(None, (2 * self.size, 2 * self.size))
      image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_MODES:
      image = Image.fromarray(np.round(np.asarray(image, np.float32) / 257).astype(np.uint8))
    if image.mode not in _MODES:
      raise Unreadable(f"its pixels are of mode {image.mode!r}; save it with 8 bits for each channel")
    if self.background is not None and image.has_transparency_data:
      image = image.convert("RGBA")
      image = Image.alpha_composite(Image.new("RGBA", image.size, colour(self.background)), image)
    if image.mode != self.mode:
      image = image.convert(self.mode)
    return self._resized(image)

  def _resized(self, image):
    from PIL import Image, ImageOps

    size = (self.size, self.size)
    if not self.size or image.size == size:
      return image
    if self.aspect == "crop":
      return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if self.aspect == "pad":
      behind = Image.new("RGB", (1, 1), colour(self.background or "white")).convert(self.mode).getpixel((0, 0))
      return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=behind)
    return image.resize(size, Image.Resampling.BILINEAR)


class Images:
  """Stands in for an array uint8 `[N, H, W, C]` that is larger than memory; see `soseleto_jax.data.lazy`."""

  dtype = np.dtype(np.uint8)

  def __init__(
    self,
    read: Callable[[Sequence[int]], list[bytes]],
    name: Callable[[int], str],
    count: int,
    look: Look,
    *,
    first: int = 0,
  ):
    """Decodes one image, which gives the shape of all.

    Args:
      read: returns the encoded images of some rows; called by several threads.
      name: returns what to call the image of a row in messages.
      count: N.
      look: what images are made into.
      first: the row of the image to decode.

    Raises:
      Unreadable: for an image that cannot be read; also on reading, and there ValueError for one of another size.
    """
    self._read, self._name, self._look, self._first = read, name, look, first
    self.shape = (count, *self._decode(read([first])[0], first).shape)

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
      own, others = ("{1}x{0}".format(*shape) for shape in (image.shape, self.shape[1:]))
      raise ValueError(
        f"images have unequal sizes: {self._name(self._first)} is {others}, {self._name(row)} is {own}; "
        "set `size` (config.data.source.size, config.data.target.size) to resize them"
      )
    return image

  def _decode(self, encoded, row):
    from PIL import Image, UnidentifiedImageError

    try:
      with Image.open(io.BytesIO(encoded), formats=formats()) as image:
        pixels = np.asarray(self._look.of(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      why = error
      if isinstance(error, UnidentifiedImageError):  # whose own text is an address in memory
        why = f"it is none of {', '.join(formats())}" if encoded else "it is empty"
      raise Unreadable(f"{self._name(row)} cannot be read as an image: {why}; replace or remove it") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
