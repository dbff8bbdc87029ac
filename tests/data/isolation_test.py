"""What is left of a picture: against scikit-image's and SciPy's parts where they have them, and drawn pictures."""

import numpy as np
import pytest
from scipy import ndimage

from soseleto_jax.data import isolation

# A digit of 4 x 12 pixels in the middle of 32 x 32, and a neighbour that does not touch it.
DIGIT, NEIGHBOUR = (slice(10, 22), slice(14, 18)), (slice(8, 24), slice(27, 31))


def picture(stroke, background):
  image = np.full((32, 32, 1), background, np.uint8)
  image[DIGIT] = image[NEIGHBOUR] = stroke
  return image


@pytest.mark.parametrize(("stroke", "background"), [(200, 40), (30, 180), (255, 0), (121, 118)])
def test_what_stands_in_the_middle_is_white_on_black(stroke, background):
  found = isolation.isolate(np.stack([picture(stroke, background)] * 3), 28)
  assert found.shape == (3, 28, 28, 1) and found.dtype == np.uint8
  image = found[2, ..., 0]
  assert image[14, 13] == 255 and image[11:17, 13].min() == 255
  assert not image[:, :10].any() and not image[:, 18:].any()  # without the neighbour
  rows, columns = np.nonzero(image > 127)
  assert 7 <= np.ptp(rows) + 1 <= 9 and 2 <= np.ptp(columns) + 1 <= 4  # 5/8 of the picture's 12 and 4


def test_each_picture_by_itself():
  """More than are handled at once, and the neighbours in the stack change nothing."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 16, 17, 1), np.uint8)
  alone = np.concatenate([isolation.isolate(image[None], 14) for image in images])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(isolation, "_CHUNK", 16)
    np.testing.assert_array_equal(isolation.isolate(images, 14), alone)


def test_the_threshold_is_otsus():
  """The one that leaves the least variance within the two classes, found by trying all."""
  rng = np.random.default_rng(1)
  pixels = np.concatenate([rng.normal(70, 20, (6, 90)), rng.normal(170, 30, (6, 60))], axis=1).clip(0, 255).astype(int)
  for row, found in zip(pixels, isolation._otsu(pixels), strict=True):
    within = [
      sum(part.var() * len(part) for part in (row[row <= level], row[row > level]))
      for level in range(row.min(), row.max())
    ]
    assert within[found - row.min()] == pytest.approx(min(within))


def test_strokes_are_the_parts_that_touch_the_middle():
  rng = np.random.default_rng(2)
  images = ndimage.gaussian_filter(rng.normal(size=(5, 24, 24)), (0, 2, 2))
  images = np.uint8(255 * (images - images.min()) / np.ptp(images))
  for found in isolation._strokes(images):
    parts, _ = ndimage.label(found > 0.5)
    touching = set(np.unique(parts[4:20, 9:15])) - {0}
    assert touching and set(np.unique(parts)) - {0} == touching
    assert found.min() >= 0 and found.max() <= 1


def test_a_picture_of_one_colour_is_black():
  assert not isolation.isolate(np.full((1, 32, 32, 1), 77, np.uint8), 28).any()


@pytest.mark.parametrize(
  "images", [np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 1)), np.zeros((2, 7, 9, 1), np.uint8)]
)
def test_pictures_that_are_refused(images):
  with pytest.raises(ValueError, match="isolate=True takes gray pictures of 8x8 pixels and more"):
    isolation.isolate(images, 28)


def test_a_size_that_is_refused():
  with pytest.raises(ValueError, match="isolate=True and size=0: give the size"):
    isolation.isolate(np.zeros((1, 32, 32, 1), np.uint8), 0)
