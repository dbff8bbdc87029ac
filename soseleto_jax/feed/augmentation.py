"""Random changes of images on the device, before normalisation: named ones, and functions of a user's own.

Both are functions `(key, images [B, H, W, C]) -> images [B, H, W, C]`, and `apply_per_example` calls both alike.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import dm_pix as pix
import jax
import jax.numpy as jnp

from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.feed.resampling import displacement, resample, source_coordinates

AugmentFn = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What may stand behind the name of an augmentation."""

  example: str
  most: float = math.inf
  whole: bool = False
  in_pixels: bool = False  # then the image has to be larger


_KINDS = {
  "rotation": _Kind("rotation=15", most=180),
  "shift": _Kind("shift=2", in_pixels=True),
  "scale": _Kind("scale=0.15", most=1),
  "shear": _Kind("shear=0.2", most=1),
  "aspect": _Kind("aspect=0.15", most=1),
  "elastic": _Kind("elastic=1.5", in_pixels=True),
  "flip": _Kind("flip"),
  "invert": _Kind("invert"),
  "crop": _Kind("crop=4", whole=True, in_pixels=True),
  "brightness": _Kind("brightness=0.2", most=1),
  "contrast": _Kind("contrast=0.2", most=1),
  "cutout": _Kind("cutout=8", whole=True, in_pixels=True),
}
NAMES = tuple(_KINDS)  # in the order in which they are applied
_WITH_TWO = {"scale": "scale=0.6/0.95", "elastic": "elastic=1.5/4"}
_RESAMPLING = frozenset({"rotation", "shift", "scale", "shear", "aspect", "elastic"})


def make_augmentation(names: Sequence[str]) -> "Augmentation | None":
  """Returns the augmentation that a tuple of names and strengths describes; of the empty one, None.

  The order of the names does not matter. They are applied in the order of this table, those before `flip` as one
  bilinear resampling about the image's middle. All draws are uniform unless the table says otherwise.

  | name | what an image goes through | outside of the image |
  |---|---|---|
  | `rotation=R` | turned by up to ±R degrees | edge |
  | `shift=P` | moved by up to ±P pixels along each axis, by fractions of a pixel too | edge |
  | `scale=F` or `scale=A/B` | magnified by a factor of 1/(1 + F) to 1 + F, or of A to B, log-uniform | edge |
  | `shear=F` | slanted: rows move along themselves by up to ±F of their distance from the middle | edge |
  | `aspect=F` | width to height times 1/(1 + F) to 1 + F, log-uniform; the area stays | edge |
  | `elastic=P` or `elastic=P/S` | pixels move smoothly, by P pixels along each axis (rms; 3 P at most) | edge |
  | `flip` | mirrored left to right with probability 1/2 | |
  | `invert` | its negative, range - x, with probability 1/2 | |
  | `crop=P` | padded with P pixels on every side, then cropped to its size: moved by whole pixels up to ±P | 0 |
  | `brightness=F` | plus up to ±F of the pixels' range | |
  | `contrast=F` | distance from each channel's mean times 1 - F to 1 + F | |
  | `cutout=P` | 0 in a square of P x P pixels; its middle is any pixel, so the border may cut it off | 0 |

  0 is the stored pixel's: black. The range is 255 for uint8 pixels, which brightness and contrast never leave, and 1
  for floats, which are not clipped. S, 4 by default, is the standard deviation of elastic's smoothing in pixels; with
  P above S / 2 images begin to fold.

  Args:
    names: such as `("flip", "crop=4")`.

  Raises:
    ValueError: naming the entry: an unknown name, one that stands twice, a strength that is missing, not a number, not
      above 0 (leave out what is not wanted), or more than can be meant.

  >>> make_augmentation(("flip", "elastic=1.5/6")).strengths
  {'flip': (), 'elastic': (1.5, 6.0)}
  """
  if isinstance(names, str):
    raise ValueError(f"{names!r}: give a tuple of names, such as ({names!r},)")
  return Augmentation(tuple(names)) if names else None


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Named augmentations of images, each image with draws of its own.

  What one name draws depends on the key and the name alone, so that one name more or less leaves the others' draws.

  Attributes:
    names: see `make_augmentation`.
  """

  names: tuple[str, ...]

  def __post_init__(self):
    self.strengths  # raises for names that are wrong  # noqa: B018

  @functools.cached_property
  def strengths(self) -> dict[str, tuple[float, ...]]:
    """The numbers behind each name."""
    strengths = {}
    for entry in self.names:
      name, values = _parse(entry)
      if name in strengths:
        raise ValueError(f"{entry!r}: {name!r} stands twice in {self.names}; give it once")
      strengths[name] = values
    return strengths

  def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """Augments images, each independently of the others.

    Args:
      key: split between the images.
      images: `[B, H, W, C]` as stored: uint8, or floats whose range counts as 1.

    Returns:
      float32 `[B, H, W, C]`, in the units of the stored pixels.

    Raises:
      ValueError: while it is traced: x is no images, of another dtype, or not larger than a strength in pixels.
    """
    self._check(images)
    return jax.vmap(self._augment)(jax.random.split(key, len(images)), images)

  def _augment(self, key, image):
    pixel_range = 255.0 if image.dtype == jnp.uint8 else 1.0
    clip = image.dtype == jnp.uint8
    image = image.astype(jnp.float32)
    strength = {name: values[0] if values else None for name, values in self.strengths.items()}
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in strength}
    if _RESAMPLING & strength.keys():
      image = resample(image, self._coordinates(keys, image.shape[:2]))
    if "flip" in strength:
      image = pix.random_flip_left_right(keys["flip"], image)
    if "invert" in strength:
      image = jnp.where(jax.random.bernoulli(keys["invert"]), pixel_range - image, image)
    if "crop" in strength:
      pad = int(strength["crop"])
      image = pix.random_crop(keys["crop"], jnp.pad(image, ((pad, pad), (pad, pad), (0, 0))), image.shape)
    if "brightness" in strength:
      image = pix.random_brightness(keys["brightness"], image, pixel_range * strength["brightness"])
    if "contrast" in strength:
      image = pix.random_contrast(keys["contrast"], image, 1 - strength["contrast"], 1 + strength["contrast"])
    if clip and not strength.keys().isdisjoint({"brightness", "contrast"}):
      image = jnp.clip(image, 0.0, pixel_range)
    if "cutout" in strength:
      image = _cutout(keys["cutout"], image, int(strength["cutout"]))
    return image

  def _coordinates(self, keys, shape):
    def draw(name, number=()):
      most = self.strengths[name][0]
      return jax.random.uniform(keys[name], number, jnp.float32, -most, most)

    def factor(name):
      least, most = self._factors(name)
      return jnp.exp(jax.random.uniform(keys[name], (), jnp.float32, math.log(least), math.log(most)))

    coordinates = source_coordinates(
      shape,
      angle=jnp.radians(draw("rotation")) if "rotation" in keys else 0.0,
      slant=draw("shear") if "shear" in keys else 0.0,
      factor=factor("scale") if "scale" in keys else 1.0,
      ratio=factor("aspect") if "aspect" in keys else 1.0,
      shift=draw("shift", (2,)) if "shift" in keys else (0.0, 0.0),
    )
    if "elastic" in keys:
      amplitude, *smoothing = self.strengths["elastic"]
      coordinates += amplitude * displacement(keys["elastic"], shape, *smoothing)
    return coordinates

  def _factors(self, name):
    values = self.strengths[name]
    return values if len(values) == 2 else (1 / (1 + values[0]), 1 + values[0])

  def _check(self, images):
    if images.ndim != 4 or 0 in images.shape[1:]:
      raise ValueError(
        f"augmentation {self.names} is for images [B, H, W, C], but x has shape {images.shape}; leave it out"
      )
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(f"augmentation {self.names} takes pixels of uint8 or floats in [0, 1], but x is {images.dtype}")
    size = min(images.shape[1:3])
    for entry, (name, values) in zip(self.names, self.strengths.items(), strict=True):
      if _KINDS[name].in_pixels and values[0] >= size:
        raise ValueError(f"{entry!r}: give less than the images' {size} pixels (x has shape {images.shape})")


def apply_per_example(augment: AugmentFn, key: jax.Array, index: jax.Array, x: jax.Array) -> jax.Array:
  """Augments each example of a batch with a key of its own.

  An example's draws depend on `key` and its index alone: not on its place in the batch, on the other examples, or on
  how many devices the batch is split over. Therefore `augment` sees one example at a time, and cannot mix several.
  The draws are the same to the bit; the arithmetic on pixels is so to rounding, as XLA compiles another program for
  another number of examples on a device.

  Args:
    augment: an `Augmentation`, or any traceable function `(key, images [B, H, W, C]) -> images`, of the same shape;
      called with B = 1, under `jax.vmap`, with the pixels as they are stored.
    key: of the step and the side.
    index: int32 `[B]`, the examples' rows in their set.
    x: `[B, ...]` as stored.

  Returns:
    float32 `[B, ...]`.

  Raises:
    ValueError: `augment` returns another shape, or no real numbers.
  """

  def augment_one(row, example):
    return augment(jax.random.fold_in(key, row), example[None])

  result = jax.vmap(augment_one)(index, x)
  shape = (len(x), 1, *x.shape[1:])
  if not isinstance(result, jax.Array) or result.shape != shape or not jnp.isrealobj(result):
    made = jax.tree.map(lambda array: f"{array.dtype}{list(array.shape[1:])}", result)
    raise ValueError(
      f"augmentation {augment} returned {made} for {x.dtype}{list(shape[1:])}; return real numbers of that shape"
    )
  return result[:, 0].astype(jnp.float32)


def _cutout(key, image, size):
  """DeVries and Taylor (2017): the square may reach over the border, which they found to matter."""
  inside = []
  for axis_key, length in zip(jax.random.split(key), image.shape[:2], strict=True):
    start = jax.random.randint(axis_key, (), 0, length) - size // 2
    position = jnp.arange(length)
    inside.append((position >= start) & (position < start + size))
  rows, columns = inside
  return jnp.where((rows[:, None] & columns[None])[..., None], 0.0, image)


def _parse(entry):
  """Returns the name of "name" or "name=strength", and its numbers."""
  if not isinstance(entry, str):
    raise ValueError(f"{entry!r}: give a string, such as 'flip' or 'crop=4'")
  name, equals, text = entry.partition("=")
  if name not in _KINDS:
    raise ValueError(
      f"{entry!r}: unknown augmentation {name!r}; known are {', '.join(NAMES)}{did_you_mean(name, NAMES)}"
    )
  kind = _KINDS[name]
  if name in ("flip", "invert"):
    if equals:
      raise ValueError(f"{entry!r}: {name!r} has no strength, and probability 1/2; give {name!r}")
    return name, ()
  if not text:
    raise ValueError(f"{entry!r}: the strength is missing; give for instance {kind.example!r}")
  parts = text.split("/") if name in _WITH_TWO else [text]
  try:
    values = tuple(float(part) for part in parts)
  except ValueError:
    values = ()
  largest = values[1] if name == "scale" and len(values) == 2 else kind.most  # of factors the smaller one is first
  valid = len(values) in (1, 2) and all(0 < value < math.inf for value in values) and values[0] <= largest
  if not valid or (kind.whole and values[0] % 1):
    number = "whole number" if kind.whole else "number"
    most = f" and up to {kind.most:g}" if kind.most < math.inf else ""
    both = f", or two such as {_WITH_TWO[name]!r}" if name in _WITH_TWO else ""
    raise ValueError(f"{entry!r}: give a {number} above 0{most}, such as {kind.example!r}{both}, or leave it out")
  return name, values
