"""Augmentation of images, against SciPy's and Pillow's resampling and against what each name promises.

Where a test looks at the draws, it augments an image whose pixels hold their own coordinates: bilinear interpolation
returns them exactly, so each pixel of the result says where it came from.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
from jax.sharding import PartitionSpec as P

from soseleto_jax.core.sharding import make_mesh
from soseleto_jax.feed import resampling
from soseleto_jax.feed.augmentation import apply_per_example, make_augmentation
from tests import problems

EVERY = (
  "flip", "invert", "crop=4", "rotation=15", "shift=2", "scale=0.15", "shear=0.2", "aspect=0.15", "elastic=1.5",
  "brightness=0.2", "contrast=0.2", "cutout=8",
)  # fmt: skip
MOVES = ("rotation=15", "shift=2", "scale=0.15", "shear=0.2", "aspect=0.15", "elastic=1.5")
MANY = 2000  # examples: with all of one size, each name is compiled once


@functools.cache
def augment_fn(names):
  return problems.jit(functools.partial(apply_per_example, make_augmentation(names)))


def augmented(names, x, index=None, key=0):
  index = np.arange(len(x)) if index is None else index
  result = augment_fn(names)(jax.random.key(key), jnp.asarray(index, jnp.int32), jnp.asarray(x))
  assert result.dtype == jnp.float32
  return np.asarray(result)


def pixels(count, height=14, width=15, channels=3, seed=0):
  return np.random.default_rng(seed).integers(1, 256, (count, height, width, channels), np.uint8)


def origins(names, size=21, count=MANY):
  """Offsets from the middle `[count, 2, 7 x 7]` that the pixels about the middle come from, and their own."""
  grid = np.stack(np.mgrid[:size, :size], axis=-1).astype(np.float32)
  middle = slice(size // 2 - 3, size // 2 + 4)
  take = lambda x: np.moveaxis(x[..., middle, middle, :] - size // 2, -1, -3).reshape(*x.shape[:-3], 2, 49)
  return take(augmented(names, np.broadcast_to(grid, (count, *grid.shape)))), take(grid)


def moves(names):
  """The 2 x 2 matrices and the shifts that take pixels to where the images show them."""
  found, own = origins(names)
  design = np.concatenate([own, np.ones((1, own.shape[1]))])
  solution = found @ np.linalg.pinv(design)
  np.testing.assert_allclose(solution @ design, found, atol=1e-4)  # one affine map per image
  matrices = np.linalg.inv(solution[..., :2])
  return matrices, -np.squeeze(matrices @ solution[..., 2:], -1)


def assert_uniform(draws, low, high):
  """In the range, and spread over it.

  Of 2000 uniform draws, none in a given 25th happens once in 1e35; the mean is off by 1/20 of the range once in 1e14.
  """
  assert draws.min() >= low - 1e-4 and draws.max() <= high + 1e-4
  width = high - low
  assert draws.min() < low + width / 25 and draws.max() > high - width / 25
  assert abs(draws.mean() - (low + high) / 2) < width / 20


# The resampling itself.


def forward(angle, slant, factor, ratio):
  """The matrix that moves (row, column), counter-clockwise as rows grow downwards."""
  scale = np.diag([factor / math.sqrt(ratio), factor * math.sqrt(ratio)])
  turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
  return turn @ np.array([[1.0, 0.0], [slant, 1.0]]) @ scale


@pytest.mark.parametrize(
  "move",
  [
    dict(angle=math.radians(17)),
    dict(angle=math.radians(-75)),
    dict(slant=0.3),
    dict(factor=1.4),
    dict(ratio=0.6),
    dict(shift=(1.25, -2.5)),
    dict(angle=0.4, slant=-0.2, factor=0.8, ratio=1.3, shift=(-0.7, 1.1)),
  ],
  ids=str,
)
def test_moves_as_scipy(move):
  image = pixels(1, 11, 14, 2)[0].astype(np.float32)
  move = dict(angle=0.0, slant=0.0, factor=1.0, ratio=1.0, shift=(0.0, 0.0)) | move
  found = resampling.resample(jnp.asarray(image), resampling.source_coordinates((11, 14), **move))
  shift, middle = np.array(move.pop("shift")), np.array([5.0, 6.5])
  inverse = np.linalg.inv(forward(**move))
  offset = middle - inverse @ (middle + shift)
  for channel in range(2):
    expected = scipy.ndimage.affine_transform(image[..., channel], inverse, offset, order=1, mode="nearest")
    np.testing.assert_allclose(found[..., channel], expected, rtol=1e-4, atol=2e-3)


def test_turns_as_pillow():
  image = pixels(1, 21, 21, 1)[0].astype(np.float32)
  angle = 25.0
  coordinates = resampling.source_coordinates(
    (21, 21), angle=math.radians(angle), slant=0.0, factor=1.0, ratio=1.0, shift=(0.0, 0.0)
  )
  found = resampling.resample(jnp.asarray(image), coordinates)[..., 0]
  picture = PIL.Image.fromarray(image[..., 0]).rotate(angle, PIL.Image.Resampling.BILINEAR)
  disc = np.hypot(*(np.mgrid[:21, :21] - 10)) < 9  # outside of it Pillow fills with 0
  np.testing.assert_allclose(np.asarray(found)[disc], np.asarray(picture)[disc], rtol=1e-3, atol=1e-2)


def test_all_moves_are_one_interpolation():
  """A second one would blur: the middle's pixels are read from the stored ones, where their coordinates say."""
  size, count = 21, 20
  grid = np.broadcast_to(np.stack(np.mgrid[:size, :size], axis=-1), (count, size, size, 2))
  noise = np.random.default_rng(0).uniform(size=(count, size, size, 1))
  found = augmented(MOVES, np.concatenate([grid, noise], axis=-1).astype(np.float32))
  for result, image in zip(found, noise, strict=True):
    coordinates = np.moveaxis(result[..., :2], -1, 0)
    inside = ((coordinates > 0) & (coordinates < size - 1)).all(axis=0)
    assert inside.sum() > size**2 / 4
    expected = scipy.ndimage.map_coordinates(image[..., 0], coordinates, order=1)
    np.testing.assert_allclose(result[..., 2][inside], expected[inside], rtol=1e-4, atol=1e-4)


def test_displacement_is_smoothed_noise():
  shape, sigma, key = (9, 12), 2.0, jax.random.key(3)
  noise = jax.random.uniform(key, (2, *shape), jnp.float32, -math.sqrt(3), math.sqrt(3))
  smooth = scipy.ndimage.gaussian_filter(np.float64(noise), sigma, axes=(1, 2), mode="constant", truncate=20)
  for axis, size in enumerate(shape):  # the standard deviation of what noise of variance 1 becomes
    weights = scipy.ndimage.gaussian_filter1d(np.eye(size), sigma, mode="constant", truncate=20)
    smooth /= np.expand_dims(np.linalg.norm(weights, axis=0), 1 - axis)
  found = resampling.displacement(key, shape, sigma)
  np.testing.assert_allclose(found, np.clip(smooth, -3, 3), rtol=1e-4, atol=1e-5)


# What each name draws.


def test_rotation():
  matrices, shifts = moves(("rotation=15",))
  angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
  np.testing.assert_allclose(matrices, [forward(angle, 0, 1, 1) for angle in angles], atol=1e-4)
  np.testing.assert_allclose(shifts, 0, atol=1e-4)
  assert_uniform(np.degrees(angles), -15, 15)


def test_shift():
  matrices, shifts = moves(("shift=2",))
  np.testing.assert_allclose(matrices, np.broadcast_to(np.eye(2), matrices.shape), atol=1e-4)
  for axis in range(2):
    assert_uniform(shifts[:, axis], -2, 2)
  assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.15  # 6.7 standard deviations


@pytest.mark.parametrize(("name", "least", "most"), [("scale=0.15", 1 / 1.15, 1.15), ("scale=0.6/0.95", 0.6, 0.95)])
def test_scale(name, least, most):
  matrices, _ = moves((name,))
  np.testing.assert_allclose(matrices, matrices[:, :1, :1] * np.eye(2), atol=1e-4)
  assert_uniform(np.log(matrices[:, 0, 0]), math.log(least), math.log(most))


def test_aspect():
  matrices, _ = moves(("aspect=0.15",))
  np.testing.assert_allclose(matrices * [[0, 1], [1, 0]], 0, atol=1e-4)
  np.testing.assert_allclose(np.linalg.det(matrices), 1, rtol=1e-4)
  assert_uniform(np.log(matrices[:, 1, 1] / matrices[:, 0, 0]), -math.log(1.15), math.log(1.15))


def test_shear():
  matrices, _ = moves(("shear=0.2",))
  np.testing.assert_allclose(
    matrices - matrices * [[0, 0], [1, 0]], np.broadcast_to(np.eye(2), (MANY, 2, 2)), atol=1e-4
  )
  assert_uniform(matrices[:, 1, 0], -0.2, 0.2)


def test_moves_together():
  """What is drawn for one name does not follow what is drawn for another."""
  matrices, shifts = moves(tuple(name for name in MOVES if not name.startswith("elastic")))
  angles = np.arctan2(-matrices[:, 0, 1], matrices[:, 1, 1])
  areas = np.log(np.linalg.det(matrices))
  assert_uniform(areas, -2 * math.log(1.15), 2 * math.log(1.15))
  assert_uniform(np.degrees(angles), -15, 15)
  correlations = np.corrcoef([angles, areas, *shifts.T]) - np.eye(4)
  assert np.abs(correlations).max() < 0.15  # 6.7 standard deviations


@pytest.mark.parametrize(("name", "amplitude", "smoothing"), [("elastic=1.5", 1.5, 4), ("elastic=0.5/2", 0.5, 2)])
def test_elastic(name, amplitude, smoothing):
  found, own = origins((name,), size=25)
  moved = (found - own).reshape(MANY, 2, 7, 7)
  assert np.abs(moved).max() <= 3 * amplitude + 1e-4
  # 2000 draws of each pixel: a standard deviation of 0.016 where it is 1, and the bound takes 0.002.
  np.testing.assert_allclose(moved.std(axis=0) / amplitude, 1, atol=0.12)
  np.testing.assert_allclose(moved.mean(axis=0) / amplitude, 0, atol=0.16)
  neighbours = np.mean(moved[..., 1:] * moved[..., :-1]) / np.mean(moved**2)
  assert neighbours == pytest.approx(math.exp(-1 / (4 * smoothing**2)), abs=0.01)
  assert abs(np.mean(moved[:, 0] * moved[:, 1])) < 0.16 * amplitude**2


def test_displacement_has_no_weak_border():
  draw = problems.jit(jax.vmap(lambda key: resampling.displacement(key, (6, 20))))
  fields = draw(jax.random.split(jax.random.key(0), MANY))
  np.testing.assert_allclose(np.std(fields, axis=0), 1, atol=0.12)


def test_flip():
  x = pixels(4000, 2, 3)
  found = augmented(("flip",), x)
  same, mirrored = ((found == image).all(axis=(1, 2, 3)) for image in (x, x[:, :, ::-1]))
  palindromes = (x == x[:, :, ::-1]).all(axis=(1, 2, 3))
  assert ((same ^ mirrored) | palindromes).all()
  assert abs(mirrored.mean() - 0.5) < 0.053  # Hoeffding: once in 1e9


def test_invert():
  for x, top in ((pixels(4000, 2, 3), 255), (pixels(4000, 2, 3).astype(np.float32) / 512, 1)):
    found = augmented(("invert",), x)
    same, negative = ((found == image).all(axis=(1, 2, 3)) for image in (x, np.float32(top) - x))
    assert (same ^ negative).all()
    assert abs(negative.mean() - 0.5) < 0.053  # Hoeffding: once in 1e9


def test_crop():
  x = pixels(MANY, 6, 7)
  found = augmented(("crop=2",), x)
  padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 7), axis=(1, 2))  # [N, 5, 5, C, 6, 7]
  hits = (np.moveaxis(windows, 3, -1) == found[:, None, None]).all(axis=(-3, -2, -1))
  np.testing.assert_array_equal(hits.sum(axis=(1, 2)), 1)
  share = hits.mean(axis=0)
  np.testing.assert_allclose(share, 1 / 25, atol=0.03)  # each of 25 offsets; 6.8 standard deviations


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout(size):
  x = pixels(MANY, 6, 7)
  black = (augmented((f"cutout={size}",), x) == 0).all(axis=-1)
  starts = set()
  for found in black:
    rows, columns = np.nonzero(found.any(axis=1))[0], np.nonzero(found.any(axis=0))[0]
    expected = np.zeros((6, 7), bool)
    expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    np.testing.assert_array_equal(found, expected)
    for side, length in ((rows, 6), (columns, 7)):
      cut_off = side[0] == 0 or side[-1] == length - 1
      assert len(side) == size or (cut_off and size // 2 <= len(side) < size)
    starts.add((rows[0], rows[-1], columns[0], columns[-1]))
  assert len(starts) == 6 * 7  # the middle is any pixel
  np.testing.assert_array_equal(augmented((f"cutout={size}",), x)[~black], x[~black])


def test_brightness():
  x = pixels(MANY, 3, 4)
  found = augmented(("brightness=0.2",), x)
  assert found.min() == 0 and found.max() == 255
  change = np.median((found - x).reshape(MANY, -1), axis=1)[:, None, None, None]
  np.testing.assert_allclose(found, np.clip(x + change, 0, 255), atol=1e-3)
  assert_uniform(change, -51, 51)


def test_contrast():
  x = pixels(MANY, 3, 4)
  found = augmented(("contrast=0.2",), x)
  offset = x - x.mean(axis=(1, 2), keepdims=True)
  inside = (found > 0) & (found < 255)
  factor = np.sum((found - x + offset) * offset * inside, axis=(1, 2, 3)) / np.sum(offset**2 * inside, axis=(1, 2, 3))
  factor = factor[:, None, None, None]
  np.testing.assert_allclose(found, np.clip(factor * offset + x - offset, 0, 255), atol=1e-2)
  assert_uniform(factor, 0.8, 1.2)


def test_floats_have_range_1_and_are_not_clipped():
  x = np.random.default_rng(0).uniform(size=(MANY, 3, 4, 1)).astype(np.float32)
  change = augmented(("brightness=0.2",), x) - x
  np.testing.assert_allclose(change, np.broadcast_to(change[:, :1, :1], x.shape), atol=1e-6)
  assert_uniform(change[:, 0, 0, 0], -0.2, 0.2)


def test_bright_pixels_are_clipped_before_the_cut():
  found = augmented(("cutout=3", "brightness=0.5"), pixels(200))
  assert (found == 0).all(axis=-1).any(axis=(1, 2)).all()


# What the draws depend on.


@pytest.mark.parametrize("names", [EVERY, ("flip", "crop=4", "cutout=8")])
def test_index_decides_and_not_the_place_in_the_batch(names):
  x, index = pixels(16), np.random.default_rng(1).permutation(1000)[:16]
  order = np.random.default_rng(2).permutation(16)
  found = augmented(names, x, index)
  np.testing.assert_array_equal(augmented(names, x[order], index[order]), found[order])
  others = pixels(16, seed=5)
  others[3] = x[3]
  np.testing.assert_array_equal(augmented(names, others, np.where(np.arange(16) == 3, index, 7))[3], found[3])


def test_key_and_index_change_the_draws():
  x = np.repeat(pixels(1), 16, axis=0)
  found = augmented(EVERY, x)
  assert len({image.tobytes() for image in found}) == 16
  assert (augmented(EVERY, x, key=1) != found).any(axis=(1, 2, 3)).all()
  np.testing.assert_array_equal(augmented(EVERY, x, np.zeros(16)), np.repeat(found[:1], 16, axis=0))


def test_devices_change_nothing():
  x, index = jnp.asarray(pixels(16)), jnp.asarray(np.random.default_rng(1).permutation(16), jnp.int32)
  for names, exact in ((EVERY, False), (("flip", "crop=4", "cutout=8"), True)):
    augment = functools.partial(apply_per_example, make_augmentation(names))
    specs = dict(in_specs=(P(), P("data"), P("data")), out_specs=P("data"))
    mapped = problems.jit(jax.shard_map(augment, mesh=make_mesh(), **specs))
    found, expected = mapped(jax.random.key(0), index, x), augmented(names, x, index)
    if exact:
      np.testing.assert_array_equal(found, expected)
    else:  # XLA compiles 2 examples otherwise than 16
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)


def test_order_of_names_changes_nothing():
  x = pixels(16)
  np.testing.assert_array_equal(augmented(EVERY[::-1], x), augmented(EVERY, x))


def test_one_name_more_leaves_the_draws_of_the_others():
  x = pixels(16)
  cut_out = augmented(("cutout=3",), x) == 0
  np.testing.assert_array_equal(augmented(("flip", "cutout=3"), x), np.where(cut_out, 0, augmented(("flip",), x)))


def test_float32_whatever_the_default(x64):
  x = pixels(4)
  augment = functools.partial(apply_per_example, make_augmentation(EVERY))
  for dtype in (np.uint8, np.float64, jnp.bfloat16):
    result = jax.eval_shape(augment, jax.random.key(0), jnp.arange(4), jnp.asarray(x, dtype))
    assert result.dtype == jnp.float32 and result.shape == x.shape


# A user's own function.


def test_own_function_sees_one_example_as_stored():
  seen = []

  def own(key, images):
    seen.append((images.shape, images.dtype))
    return images + jax.random.uniform(key, (len(images), 1, 1, 1))

  x, index, key = pixels(5), np.int32([4, 0, 9, 4, 2]), jax.random.key(7)
  found = problems.jit(functools.partial(apply_per_example, own))(key, index, x)
  assert seen == [((1, *x.shape[1:]), jnp.uint8)]
  for row, image, result in zip(index, x, found, strict=True):
    np.testing.assert_allclose(result, image + jax.random.uniform(jax.random.fold_in(key, row), (1, 1, 1)), rtol=1e-6)


def test_own_function_may_use_a_named_one():
  own = lambda key, images: 255 - make_augmentation(("flip",))(key, images)
  x, index = pixels(16), jnp.arange(16)
  found = problems.jit(functools.partial(apply_per_example, own))(jax.random.key(0), index, x)
  np.testing.assert_array_equal(found, 255 - augmented(("flip",), x))


def test_own_function_of_vectors():
  x = np.arange(12, dtype=np.float32).reshape(4, 3)
  np.testing.assert_array_equal(apply_per_example(lambda key, x: 2 * x, jax.random.key(0), jnp.arange(4), x), 2 * x)


def test_own_function_that_returns_integers():
  x = pixels(3)
  found = apply_per_example(lambda key, images: images[:, ::-1], jax.random.key(0), jnp.arange(3), x)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, x[:, ::-1])


@pytest.mark.parametrize(
  ("own", "returned"),
  [
    (lambda key, images: images[:, 1:], r"uint8\[1, 13, 15, 3\]"),
    (lambda key, images: images[0], r"uint8\[14, 15, 3\]"),
    (lambda key, images: images + 1j, r"complex64\[1, 14, 15, 3\]"),
    (lambda key, images: (images, images), r"\('uint8.*', 'uint8.*'\)"),
  ],
)
def test_what_an_own_function_must_not_return(own, returned):
  with pytest.raises(ValueError, match=rf"lambda.*returned {returned}.*for uint8\[1, 14, 15, 3\]"):
    apply_per_example(own, jax.random.key(0), jnp.arange(2), jnp.asarray(pixels(2)))


# What is refused.


def test_no_names_are_no_augmentation():
  assert make_augmentation(()) is None and make_augmentation([]) is None


def test_equal_names_make_equal_augmentations():
  assert make_augmentation(("flip", "crop=4")) == make_augmentation(["flip", "crop=4"])
  assert hash(make_augmentation(EVERY)) == hash(make_augmentation(list(EVERY)))


def test_strengths():
  found = make_augmentation(("flip", "crop=4", "elastic=1.5", "scale=1e-1")).strengths
  assert found == {"flip": (), "crop": (4.0,), "elastic": (1.5,), "scale": (0.1,)}
  assert make_augmentation(("elastic=1.5/6",)).strengths == {"elastic": (1.5, 6.0)}


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (
      "rotaton=15",
      "'rotaton=15': unknown augmentation 'rotaton'; known are rotation, .*cutout; did you mean 'rotation'",
    ),
    ("", "unknown augmentation ''.*cutout$"),
    (" flip", "did you mean 'flip'"),
    (4, "4: give a string, such as 'flip' or 'crop=4'"),
    ("flip=0.5", "'flip=0.5': 'flip' has no strength"),
    ("flip=", "no strength"),
    ("crop", "'crop': the strength is missing; give for instance 'crop=4'"),
    ("crop=", "the strength is missing"),
    ("rotation=much", "'rotation=much': give a number above 0 and up to 180, such as 'rotation=15', or leave it out"),
    ("rotation=0", "above 0"),
    ("rotation=-15", "above 0"),
    ("rotation=nan", "above 0"),
    ("shift=inf", "above 0"),
    ("rotation=181", "up to 180"),
    ("rotation=15/4", "above 0"),
    ("rotation=15=4", "above 0"),
    ("invert=1", "'invert' has no strength"),
    ("scale=15", "up to 1, .*or two such as 'scale=0.6/0.95'"),
    ("scale=0.95/0.6", "or two such as 'scale=0.6/0.95'"),
    ("contrast=1.01", "up to 1"),
    ("crop=1.5", "whole number"),
    ("cutout=0.5", "whole number"),
    ("elastic=1.5/0", "or two such as 'elastic=1.5/4'"),
    ("elastic=1/2/3", "or two such as 'elastic=1.5/4'"),
    ("elastic=/4", "or two such as 'elastic=1.5/4'"),
  ],
)
def test_entries_that_are_refused(entry, message):
  with pytest.raises(ValueError, match=message):
    make_augmentation(("brightness=0.1", entry))


def test_a_name_that_stands_twice():
  with pytest.raises(ValueError, match="'crop=2': 'crop' stands twice"):
    make_augmentation(("crop=4", "flip", "crop=2"))


def test_a_string_in_place_of_a_tuple():
  with pytest.raises(ValueError, match=r"'flip': give a tuple of names, such as \('flip',\)"):
    make_augmentation("flip")


@pytest.mark.parametrize(
  ("names", "shape", "dtype", "message"),
  [
    (("flip",), (4, 5), np.float32, r"\('flip',\) is for images \[B, H, W, C\], but x has shape \(1, 5\)"),
    (("flip",), (4, 5, 5), np.uint8, r"images \[B, H, W, C\]"),
    (("flip",), (4, 5, 0, 1), np.uint8, r"images \[B, H, W, C\]"),
    (("flip",), (4, 5, 5, 1), np.int32, "but x is int32"),
    (("flip", "crop=5"), (4, 9, 5, 1), np.uint8, "'crop=5': give less than the images' 5 pixels"),
    (("cutout=9",), (4, 9, 12, 1), np.uint8, "'cutout=9': give less than"),
    (("shift=9.5",), (4, 9, 12, 1), np.uint8, "'shift=9.5': give less than"),
    (("elastic=9",), (4, 9, 12, 1), np.uint8, "'elastic=9': give less than"),
  ],
)
def test_pixels_that_are_refused(names, shape, dtype, message):
  augment = functools.partial(apply_per_example, make_augmentation(names))
  arguments = jax.random.key(0), jnp.arange(4), jnp.zeros(shape, dtype)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(augment, *arguments)


def test_the_largest_that_fit():
  found = augmented(("crop=4", "cutout=4", "shift=4.9"), pixels(4, 5, 6))
  assert found.shape == (4, 5, 6, 3)
