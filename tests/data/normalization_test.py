import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from soseleto_jax.data import normalization

RNG = np.random.default_rng(0)
# More than one chunk of statistics, so that a chunk left out or counted twice shows.
IMAGES = RNG.integers(0, 256, (1500, 4, 5, 3), np.uint8)
IMAGES[1024:] //= 2


def test_grayscale_is_pillows():
  expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in IMAGES])
  np.testing.assert_array_equal(normalization.grayscale(IMAGES), expected[..., None])


def test_grayscale_leaves_gray_images():
  gray = IMAGES[..., :1]
  np.testing.assert_array_equal(normalization.grayscale(gray), gray)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [2, 9])
def test_resize_is_pillows(channels, size):
  images = IMAGES[:5, ..., :channels]
  resized = normalization.resize(images, size)
  assert resized.shape == (5, size, size, channels) and resized.dtype == np.uint8
  for channel in range(channels):
    picture = Image.fromarray(images[3, ..., channel]).resize((size, size), Image.BILINEAR)
    np.testing.assert_array_equal(resized[3, ..., channel], np.asarray(picture))


def test_resize_antialiases():
  stripes = np.zeros((1, 8, 8, 1), np.uint8)
  stripes[:, :, ::2] = 200
  assert np.abs(normalization.resize(stripes, 2).astype(int) - 100).max() < 30


@pytest.mark.parametrize(
  ("transform", "images"),
  [
    (normalization.grayscale, IMAGES.astype(np.float32)),
    (normalization.grayscale, IMAGES[..., :2]),
    (lambda x: normalization.resize(x, 3), IMAGES[0]),
    (lambda x: normalization.resize(x, 3), IMAGES.astype(np.int32)),
    (lambda x: normalization.resize(x, -3), IMAGES),
  ],
)
def test_transforms_refuse_what_they_cannot_do(transform, images):
  with pytest.raises(ValueError, match="uint8 images|size=-3"):
    transform(images)


X = IMAGES.astype(np.float64)
EXPECTED = {
  "none": X,
  "image": (X - X.mean((1, 2, 3), keepdims=True)) / X.std((1, 2, 3), keepdims=True),
  "channel": (X - X.mean((0, 1, 2))) / X.std((0, 1, 2)),
  "pixel_mean": X - X.mean(0),
  "pixel_mean_scaled": (X - X.mean(0)) / (X - X.mean(0)).std(),
  "unit": X / 256,
  "fixed": (X / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6],
}
FIXED = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def test_every_kind_has_its_test():
  assert {*EXPECTED, "as_stored"} == set(normalization.NORMALIZATIONS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_as_stored_is_no_change(dtype):
  x = IMAGES.astype(dtype)
  assert normalization.fit_normalization("as_stored", x).apply(x) is x


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("xp", [np, jnp])
def test_normalization_against_numpy(kind, xp):
  fixed = FIXED if kind == "fixed" else {}
  fitted = normalization.fit_normalization(kind, IMAGES, **fixed)
  normalized = fitted.apply(xp.asarray(IMAGES))
  assert normalized.dtype == np.float32 and isinstance(normalized, type(xp.zeros(0)))
  np.testing.assert_allclose(normalized, EXPECTED[kind], atol=2e-4, rtol=1e-5)
  if kind != "image":
    assert fitted.mean.dtype == fitted.std.dtype == np.float32


@pytest.mark.parametrize("kind", ["channel", "image"])
def test_one_image_is_normalised_like_a_batch(kind):
  fitted = normalization.fit_normalization(kind, IMAGES)
  np.testing.assert_array_equal(fitted.apply(IMAGES[0]), fitted.apply(IMAGES)[0])


def test_apply_keeps_to_strict_rank_promotion():
  import jax

  fitted = normalization.fit_normalization("channel", IMAGES)
  with jax.numpy_rank_promotion("raise"):
    jax.jit(fitted.apply)(jnp.asarray(IMAGES))


def test_columns_of_points_are_channels():
  points = RNG.normal(3, [1, 5], (100, 2)).astype(np.float32)
  normalized = normalization.fit_normalization("channel", points).apply(points)
  np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(normalized.std(0), 1, atol=1e-5)
  fixed = normalization.fit_normalization("fixed", points, mean=(3, 3), std=(1, 5))
  np.testing.assert_array_equal(fixed.mean, [3, 3])


@pytest.mark.parametrize("kind", ["channel", "image", "pixel_mean_scaled"])
def test_constant_images_stay_finite(kind):
  constant = np.full((3, 2, 2, 1), 7, np.uint8)
  assert not normalization.fit_normalization(kind, constant).apply(constant).any()


@pytest.mark.parametrize(
  ("kind", "kwargs", "message"),
  [
    ("chanel", {}, "did you mean 'channel'"),
    ("fixed", {}, "give 3 numbers each"),
    ("fixed", dict(mean=(0.5,), std=(0.5,)), "give 3 numbers each"),
    ("fixed", dict(mean=(0, 0, 0), std=(1, 0, 1)), "std above 0"),
    ("fixed", dict(mean=(0, np.nan, 0), std=(1, 1, 1)), "finite"),
    ("channel", FIXED, "leave them empty"),
    ("image", FIXED, "leave them empty"),
  ],
)
def test_wrong_arguments(kind, kwargs, message):
  with pytest.raises(ValueError, match=message):
    normalization.fit_normalization(kind, IMAGES, **kwargs)


def test_noise_of_a_flat_image_stays_small():
  image = np.full((1, 6, 6, 1), 90, np.uint8)
  image[0, 0, 0, 0] = 91  # a deviation of 1/36 and less than 1/6
  normalized = normalization.fit_normalization("image", image).apply(image)
  np.testing.assert_allclose(normalized[0, 0, 0, 0], 6 * 35 / 36, rtol=1e-6)


def test_vectors_have_no_images_of_their_own():
  with pytest.raises(ValueError, match=r"images \[N, H, W, C\], not x of shape \(5, 2\)"):
    normalization.fit_normalization("image", np.zeros((5, 2), np.float32))
