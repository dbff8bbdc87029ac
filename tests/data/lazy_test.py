"""Sets on disk: views of rows, passes in chunks, and that neither loads them whole."""

import numpy as np
import pytest

from soseleto_jax.data import checks, lazy, normalization, selection, tfds
from soseleto_jax.data.lazy import Rows


class Watched:
  """A set that remembers how many rows were asked for at once."""

  def __init__(self, x):
    self.shape, self.dtype, self._x, self.most, self.rows = x.shape, x.dtype, x, 0, 0

  def __len__(self):
    return len(self._x)

  def __getitem__(self, index):
    assert np.asarray(index).dtype.kind == "i" and np.ndim(index) == 1
    self.most, self.rows = max(self.most, len(index)), self.rows + len(index)
    return self._x[index]


@pytest.fixture
def x():
  return np.random.default_rng(0).integers(0, 256, (50, 3, 2, 1), np.uint8)


@pytest.fixture
def chunks_of_7(monkeypatch):
  """And nothing is loaded whole."""
  monkeypatch.setattr(lazy, "load", lambda _: pytest.fail("loaded"))
  monkeypatch.setattr(lazy, "_CHUNK", 7 * 6)


def test_what_is_on_disk(tmp_path, x):
  np.save(tmp_path / "x.npy", x)
  memory_map = np.load(tmp_path / "x.npy", mmap_mode="r")
  assert lazy.is_lazy(memory_map) and lazy.is_lazy(Rows(x)) and lazy.is_lazy(Watched(x))
  assert not lazy.is_lazy(x) and not lazy.is_lazy(memory_map[np.arange(3)])


def test_rows_of_rows(x):
  mask = np.arange(50) % 3 == 0
  found = lazy.take(lazy.take(Watched(x), mask), np.array([4, 4, 0]))
  assert found.shape == (3, 3, 2, 1) and len(found) == 3 and found.dtype == np.uint8
  np.testing.assert_array_equal(found[np.array([2, 0])], x[[0, 12]])
  assert found._base.most == 2
  np.testing.assert_array_equal(lazy.load(found), x[[12, 12, 0]])
  np.testing.assert_array_equal(lazy.take(x, mask), x[mask])


def test_conversion_on_reading(x):
  found = lazy.take(Rows(Watched(x), dtype=np.float32), np.array([3, 1]))
  assert found.dtype == np.float32 and lazy.num_bytes(found) == 2 * 6 * 4
  assert found[np.array([0])].dtype == np.float32
  np.testing.assert_array_equal(lazy.load(found), x[[3, 1]])


@pytest.mark.parametrize("kind", [np.array, Watched])
def test_chunks(x, chunks_of_7, kind):
  found = kind(x)
  assert [len(part) for part in lazy.chunks(found)] == [7] * 7 + [1]
  np.testing.assert_array_equal(np.concatenate(list(lazy.chunks(found))), x)
  if kind is Watched:
    assert found.most == 7


def test_images_larger_than_a_chunk(x, monkeypatch):
  monkeypatch.setattr(lazy, "_CHUNK", 1)
  assert [len(part) for part in lazy.chunks(Watched(x))] == [1] * 50


@pytest.mark.parametrize(
  "feed, processes, limit",
  [
    ("auto", 1, 2**31),
    ("auto", 2, -1),
    ("streaming", 1, -1),
    ("streaming", 2, -1),
    ("resident", 1, np.inf),
    ("resident", 2, np.inf),
  ],
)
def test_limits(feed, processes, limit):
  assert lazy.memory_limit(feed, processes) == limit


# What passes over whole sets.


def test_pixels_are_checked_in_chunks(chunks_of_7):
  x = np.zeros((50, 6), np.float32)
  checks.pixels("x", Watched(x))
  x[[20, 41], [1, 5]] = np.nan, np.inf
  for given in (x, Watched(x)):
    with pytest.raises(ValueError, match=r"x\[20\] has pixels that are not finite \(2 such examples\)"):
      checks.pixels("x", given)
  assert given.most == 7


def test_bytes_are_never_looked_at(x):
  watched = Watched(x)
  checks.pixels("x", watched)
  assert not watched.rows


@pytest.mark.parametrize("kind", ["channel", "pixel_mean", "pixel_mean_scaled"])
def test_statistics_in_one_pass(x, chunks_of_7, kind):
  """To the last bit those of the same images in memory."""
  watched = Watched(x)
  found, expected = normalization.fit_normalization(kind, watched), normalization.fit_normalization(kind, x)
  assert watched.rows == 50 and watched.most == 7
  for part in ("mean", "std"):
    assert getattr(found, part).tobytes() == getattr(expected, part).tobytes()
  normalised = found.apply(x).astype(np.float64)
  axis = (0, 1, 2) if kind == "channel" else 0
  np.testing.assert_allclose(normalised.mean(axis), 0, atol=1e-4)
  if kind != "pixel_mean":
    np.testing.assert_allclose(normalised.std(axis if kind == "channel" else None), 1, rtol=1e-4)


def test_statistics_far_from_zero():
  """A sum of squares would lose them."""
  x = 1e6 + np.random.default_rng(0).normal(size=(3000, 2))
  np.testing.assert_allclose(normalization.fit_normalization("channel", x).std, x.std(axis=0), rtol=1e-6)


def test_statistics_of_a_sample(monkeypatch):
  """The same for the set in memory and on disk; of about as many numbers as the limit, from all over the set."""
  x = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32) + np.linspace(0, 9, 4000)[:, None]
  whole = normalization.fit_normalization("channel", x)
  monkeypatch.setattr(normalization, "_MOST_NUMBERS", 3 * 1000)
  watched = Watched(x)
  found, again = (normalization.fit_normalization("channel", images) for images in (watched, x))
  assert 800 < watched.rows <= 1000
  assert found.mean.tobytes() == again.mean.tobytes() != whole.mean.tobytes()
  np.testing.assert_allclose(found.mean, whole.mean, atol=0.4)  # 3.5 standard deviations
  np.testing.assert_allclose(found.std, whole.std, rtol=0.1)
  monkeypatch.setattr(normalization, "_MOST_NUMBERS", 3 * 4000)
  assert normalization.fit_normalization("channel", x).mean.tobytes() == whole.mean.tobytes()


def test_copies_are_found_in_chunks(x, chunks_of_7):
  subset = lambda images, name: selection.Subset(
    {"x": images, "label": np.zeros(len(images), np.int32)}, ("a",), name, "train"
  )
  watched = Watched(x)
  left = subset(watched, "one").without(subset(x[[3, 30]], "two"))
  assert watched.most == 7 and lazy.is_lazy(left.examples["x"])
  np.testing.assert_array_equal(left.examples["x"][np.arange(48)], np.delete(x, [3, 30], axis=0))


@pytest.mark.parametrize("options", [{}, {"grayscale": True, "size": 4}])
def test_tfds_images_on_disk(tiny_dir, options):
  whole = tfds.load("tiny", "train", str(tiny_dir), **options)
  found = tfds.load("tiny", "train", str(tiny_dir), most_bytes=whole["x"].nbytes - 1, **options)
  assert lazy.is_lazy(found["x"]) and not lazy.is_lazy(whole["x"])
  assert found["x"].shape == whole["x"].shape and found["x"].dtype == np.uint8
  np.testing.assert_array_equal(lazy.load(found["x"]), whole["x"])
  np.testing.assert_array_equal(found["x"][np.array([9, 2])], whole["x"][[9, 2]])
  np.testing.assert_array_equal(found["label"], whole["label"])
