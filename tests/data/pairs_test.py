"""Examples as a Python program holds them."""

import numpy as np
import pandas as pd
import pytest

from soseleto_jax.data import lazy, pairs

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
