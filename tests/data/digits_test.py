import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from soseleto_jax.data import digits


def test_splits_partition_the_set_and_the_test_is_balanced():
  train, test = digits.load("train"), digits.load("test")
  assert train["x"].shape == (1437, 8, 8, 1) and test["x"].shape == (360, 8, 8, 1)
  assert np.bincount(test["label"]).tolist() == [36] * 10
  assert train["label"].dtype == np.int32 and train["x"].dtype == np.uint8
  stored = datasets.load_digits()
  x, label = (np.concatenate([train[key], test[key]]) for key in ("x", "label"))
  rows = sorted((image.tobytes(), int(digit)) for image, digit in zip(x, label, strict=True))
  scaled = np.rint(stored.images * 255 / 16).astype(np.uint8)
  assert rows == sorted((i.tobytes(), int(n)) for i, n in zip(scaled, stored.target, strict=True))
  assert train["x"].max() == 255


def test_split_is_fixed():
  assert digits.load("test")["label"][:10].tolist() == [9, 5, 9, 5, 1, 2, 8, 0, 1, 2]
  assert int(digits.load("test")["x"].astype(int).sum()) == 1794078


def test_unknown_split():
  with pytest.raises(ValueError, match="split='tset' is unknown; choose from train, test; did you mean 'test'"):
    digits.load("tset")


def test_the_file_is_read_without_the_library(monkeypatch):
  """And with it, where the library has no such file, to the same numbers."""
  command = "import sys; from soseleto_jax.data import digits; digits.load('train'); print('sklearn' in sys.modules)"
  shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
  assert shown == "False\n"
  own = digits.load("test")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for column, values in digits.load("test").items():
    np.testing.assert_array_equal(values, own[column])
