"""What becomes of photographs: turned, laid on a background, made square, and 16 bits made 8."""

import io

import numpy as np
import pytest
from PIL import Image

from soseleto_jax.data.images import Images, Look, Unreadable, colour, formats

PHOTO = Look(aspect="crop", background="white", photo=True)


def encoded(image, format="PNG", **options):
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def decoded(content, look):
  return Images(lambda rows: [content], lambda row: "it", 1, look)[np.array([0])][0]


def test_exif_orientation():
  """6: to be turned by 90 degrees clockwise, so that its left column becomes the top row, from below."""
  pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  exif = Image.Exif()
  exif[0x0112] = 6
  content = encoded(Image.fromarray(pixels), exif=exif)
  np.testing.assert_array_equal(decoded(content, PHOTO), np.rot90(pixels, -1))
  np.testing.assert_array_equal(decoded(content, Look()), pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("background, expected", [("white", 255), ("#000000", 0)])
def test_alpha_is_laid_on_a_colour(mode, background, expected):
  pixels = np.full((2, 4, 4), 100, np.uint8)
  pixels[:, :2, 3], pixels[:, 2:, 3] = 0, 255
  image = Image.fromarray(pixels).convert(mode)
  if mode == "P":
    image = Image.fromarray(np.array([[0, 0, 1, 1]] * 2, np.uint8), "P")
    image.putpalette([9, 9, 9, 100, 100, 100])
    content = encoded(image, transparency=0)
  else:
    content = encoded(image)
  found = decoded(content, Look(background=background))
  assert (found[:, :2] == expected).all() and (found[:, 2:] == 100).all()
  assert decoded(content, Look("L", background=background))[0, 0].tolist() == [expected]


@pytest.mark.parametrize("shape", [(4, 12), (12, 4)])
def test_aspect(shape):
  """The outer thirds are black, the middle is white, on gray."""
  pixels = np.zeros((4, 12), np.uint8)
  pixels[:, 4:8] = 255
  content = encoded(Image.fromarray(pixels if shape == (4, 12) else pixels.T))
  crop, pad, stretch = (
    decoded(content, Look("L", 12 if aspect == "pad" else 4, aspect, "#808080"))[..., 0]
    for aspect in ("crop", "pad", "stretch")
  )
  assert (crop == 255).all()
  pad, stretch = (pad, stretch) if shape == (4, 12) else (pad.T, stretch.T)
  assert (pad[:4] == 128).all() and (pad[8:] == 128).all()
  np.testing.assert_array_equal(pad[4:8], pixels)
  assert stretch.shape == (4, 4) and stretch[0, 0] < 128 < stretch[0, 1]


def test_16_bits_are_scaled():
  pixels = np.array([[0, 257, 65535, 32896]], np.uint16)
  assert decoded(encoded(Image.fromarray(pixels)), Look("L"))[0, :, 0].tolist() == [0, 1, 255, 128]


def test_a_large_photo_is_decoded_at_about_the_size_that_is_needed():
  ramp = np.tile(np.linspace(0, 255, 256, dtype=np.uint8), (256, 1))
  content = encoded(Image.fromarray(ramp), "JPEG")
  found, plain = (decoded(content, Look("L", 16, "crop", photo=photo))[..., 0].astype(int) for photo in (True, False))
  assert np.abs(found - plain).max() <= 3


def test_formats_and_colours():
  assert {"PNG", "JPEG"} <= set(formats())
  assert colour("white") == (255, 255, 255)
  with pytest.raises(ValueError, match="background='whiet' is no colour"):
    colour("whiet")


@pytest.mark.parametrize(
  "content, why",
  [
    (b"<html>", "it is none of PNG, JPEG, .*"),
    (b"", "it is empty"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "Truncated File Read"),
  ],
)
def test_what_is_no_image(content, why):
  with pytest.raises(Unreadable, match=f"it cannot be read as an image: {why}; replace or remove it") as error:
    decoded(content, PHOTO)
  assert "BytesIO" not in str(error.value)


def test_cmyk():
  red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
  assert np.abs(decoded(encoded(red, "JPEG"), PHOTO).astype(int) - (255, 0, 0)).max() <= 2
