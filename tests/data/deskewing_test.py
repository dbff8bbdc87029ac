"""Upright writing: against moments and interpolation by their definitions, and lines that were drawn."""

import numpy as np
import pytest
from scipy import ndimage

from soseleto_jax.data import deskewing


def upright_by_definition(image):
  height, width = image.shape
  mass = {(row, column): float(image[row, column]) for row in range(height) for column in range(width)}
  total = sum(mass.values())
  y = sum(row * m for (row, _), m in mass.items()) / total
  x = sum(column * m for (_, column), m in mass.items()) / total
  lean = sum((row - y) * (column - x) * m for (row, column), m in mass.items())
  spread = sum((row - y) ** 2 * m for (row, _), m in mass.items())
  slant = np.clip(lean / spread, -1, 1) if spread else 0
  down, right = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
  places = y + down, x + right + slant * down

  def near(place, pixel):
    return np.maximum(0, 1 - np.abs(place - pixel))

  return sum(m * near(places[0], row) * near(places[1], column) for (row, column), m in mass.items())


def test_images_by_definition():
  rng = np.random.default_rng(0)
  images = ndimage.gaussian_filter(rng.normal(size=(6, 15, 12)), (0, 2, 2)) > 0
  images = np.uint8(images * rng.integers(1, 256, images.shape))
  images[:2] = 0
  images[0, 7, 2:10] = 200  # a line that lies has no slant
  images[1, 7, 2:6] = images[1, 8, 6:10] = 200  # and one that nearly does is not made to stand
  found = deskewing.deskew(images[..., None])[..., 0].astype(float)
  for image, upright in zip(images, found, strict=True):
    np.testing.assert_allclose(upright, upright_by_definition(image), atol=0.5 + 1e-6)


@pytest.mark.parametrize("slant", [-0.5, 0.0, 0.5, 1.0])
def test_a_slanted_line_stands_upright_in_the_middle(slant):
  image = np.zeros((1, 29, 29, 1), np.uint8)
  for row in range(5, 14):
    left, part = divmod(10 + slant * (row - 9), 1)
    image[0, row, int(left) : int(left) + 2, 0] = np.round([255 * (1 - part), 255 * part])
  upright = deskewing.deskew(image)[0, ..., 0].astype(float)
  np.testing.assert_allclose(upright[10:19].sum(axis=1), 255, atol=2)
  assert not upright[:10].any() and not upright[19:].any()
  middle = (upright * np.arange(29)).sum(axis=1)[10:19] / 255
  np.testing.assert_allclose(middle, 14, atol=0.1)


def test_each_image_by_itself_and_a_black_one_stays(monkeypatch):
  images = np.random.default_rng(1).integers(0, 256, (40, 9, 10, 1), np.uint8)
  images[17] = 0
  alone = np.concatenate([deskewing.deskew(image[None]) for image in images])
  monkeypatch.setattr(deskewing, "_CHUNK", 16)
  np.testing.assert_array_equal(deskewing.deskew(images), alone)
  assert not alone[17].any() and alone[16].any()


@pytest.mark.parametrize(
  "images", [np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1)), np.zeros((8, 8), np.uint8)]
)
def test_images_that_are_refused(images):
  with pytest.raises(ValueError, match="deskew=True takes gray images, .* set grayscale=True"):
    deskewing.deskew(images)
