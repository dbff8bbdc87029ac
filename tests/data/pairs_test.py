"""Examples as a Python program holds them."""

import contextlib

import numpy as np
import pandas as pd
import pytest

from soseleto_jax.data import lazy, pairs
from soseleto_jax.data.task import from_arrays

LABEL = ["b", "a", "b"]


def test_a_data_frame_and_its_labels():
  frame = pd.DataFrame({"p": [1, 2, 3], "q": [0.5, 0.25, 0.125], "r": [True, False, True]}, index=[5, 6, 9])
  found = pairs.read("source", frame, pd.Series(LABEL, index=[5, 6, 9]))
  np.testing.assert_array_equal(found.examples["x"], np.float32([[1, 0.5, 1], [2, 0.25, 0], [3, 0.125, 1]]))
  assert found.examples["x"].dtype == np.float32
  assert found.class_names == ("a", "b") and found.examples["label"].tolist() == [1, 0, 1]
  assert found.examples["row"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
  "x", [[[1, 2], [3, 4], [5, 6]], pd.Series([[1, 2], [3, 4], [5, 6]]), np.arange(1, 7).reshape(3, 2)]
)
def test_vectors_of_any_kind(x):
  found = pairs.read("source", x, LABEL).examples["x"]
  assert found.dtype == np.float32 and found.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_what_stays_as_it_is(tmp_path):
  np.save(tmp_path / "x.npy", np.arange(12, dtype=np.int64).reshape(3, 2, 2))
  found = pairs.read("source", np.load(tmp_path / "x.npy", mmap_mode="r"), LABEL).examples["x"]
  assert lazy.is_lazy(found) and found.dtype == np.float32 and found.shape == (3, 2, 2)
  assert pairs.read("source", np.zeros((3, 2, 2, 1), np.uint8), LABEL).examples["x"].dtype == np.uint8


class Sparse:
  shape = (3, 2)

  def toarray(self):
    return np.zeros(self.shape)


@pytest.mark.parametrize(
  "x, label, message",
  [
    (
      pd.DataFrame({"p": [1, 2, 3], "name": LABEL}),
      LABEL,
      "source x: the columns 'name' hold no plain numbers; .*dummies",
    ),
    (pd.DataFrame({"p": [1, 2, 3]}), pd.Series(LABEL, index=[2, 1, 0]), "index of the examples and that of the labels"),
    (Sparse(), LABEL, r"sparse matrix; x.toarray\(\)"),
    (pd.Series([[1, 2], [3], [4, 5]]), LABEL, "no numbers, or examples of unequal shape"),
    (np.zeros((3, 2)), LABEL[:2], "source has 3 examples but 2 of label"),
    (np.zeros((3, 2)), np.eye(3), "source labels have shape"),
  ],
)
def test_what_cannot_be_used(x, label, message):
  with pytest.raises(ValueError, match=message):
    pairs.read("source", x, label)


class Set:
  """One on disk that gives rows of another number, width or kind than it says."""

  def __init__(self, shape=(6, 3), gives=None, dtype=np.float32, length=6):
    self.shape, self.dtype, self._gives, self._length = shape, dtype, gives, length

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    rows = len(index) if self._gives is None else self._gives[0]
    return np.ones((rows, 3 if self._gives is None else self._gives[1]), np.float32)


@pytest.mark.parametrize("given", [{}, {"dtype": np.dtype("float32")}, {"dtype": "float32"}])
def test_a_set_of_ones_own(given):
  """Whose dtype may be a class or a name."""
  x = pairs.read("source", Set(**given), np.arange(6)).examples["x"]
  assert x.dtype == np.float32 and x[np.array([1, 1, 4])].shape == (3, 3)


@pytest.mark.parametrize(
  "given, message",
  [
    ({"length": 7}, "source x: a set of type Set cannot be read: it has shape .6, 3. and length 7; a set has"),
    ({"dtype": "nonsense"}, "source x: a set of type Set cannot be read: .*nonsense"),
    ({"shape": ()}, "source x: a set of type Set cannot be read"),
    ({"gives": (2, 3)}, r"a set of shape \(6, 3\) gave \(2, 3\) for 3 of its rows; a set has a shape"),
    ({"gives": (3, 4)}, r"a set of shape \(6, 3\) gave \(3, 4\) for 3 of its rows"),
  ],
)
def test_a_set_that_does_not_give_what_it_says(given, message):
  with pytest.raises(ValueError, match=message):
    pairs.read("source", Set(**given), np.arange(6)).examples["x"][np.arange(3)]


@contextlib.contextmanager
def stored(kind, folder, values):
  library = pytest.importorskip(kind)
  if kind == "zarr":
    yield library.create_array(str(folder / "x.zarr"), data=values, chunks=(4, *values.shape[1:]))
  else:
    with library.File(folder / "x.h5", "w") as file:
      yield file.create_dataset("x", data=values)


@pytest.mark.parametrize("kind", lazy.STORED)
@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_arrays_of_h5py_and_zarr_stay_on_disk(tmp_path, kind, dtype):
  """Which take rows in order, and each once."""
  values = np.arange(60).astype(dtype).reshape(10, 3, 2, 1)
  with stored(kind, tmp_path, values) as array:
    x = pairs.read("source", array, np.arange(10)).examples["x"]
    assert lazy.streams(x, "auto", 1) and x.dtype == (np.float32 if dtype == np.float64 else np.uint8)
    for rows in ([7, 2, 2, 9], [3], []):
      np.testing.assert_array_equal(x[np.array(rows, int)], values[rows])
    np.testing.assert_array_equal(
      lazy.load(lazy.take(x, values[:, 0, 0, 0] % 4 == 0)), values[values[:, 0, 0, 0] % 4 == 0]
    )
    task = from_arrays(array, np.arange(10) % 2, values[:4], np.arange(4) % 2)
    assert lazy.is_lazy(task.source["x"])
    np.testing.assert_array_equal(task.source["x"][np.array([4, 1])], values[[4, 1]])


@pytest.mark.parametrize(
  "x, label, message",
  [
    (np.ma.masked_less(np.ones((6, 3)) * [[0, 1, 1]], 1), np.arange(6), "source x has masked elements"),
    (np.ones((6, 3)), np.ma.masked_less(np.arange(6), 2), "source labels have masked elements"),
    (np.float32(3), np.arange(6), "source x is one number or object, float32"),
    ([[1.0], [1.0, 2.0]], [0, 1], "source x is no array of numbers"),
    (np.ones((6, 3)), 3, "source labels are of type int; give one for each example"),
    (np.ones((6, 3)), np.array(3), "source labels are of type ndarray; give one for each example"),
    (np.ones((6, 3)), iter(range(6)), "source labels are of type range_iterator"),
  ],
)
def test_what_is_no_set(x, label, message):
  with pytest.raises(ValueError, match=message):
    pairs.read("source", x, label)
