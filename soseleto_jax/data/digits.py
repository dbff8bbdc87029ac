"""scikit-learn's bundled handwritten digits: a real image set that needs no download."""

import importlib.util
import pathlib

import numpy as np

from soseleto_jax.data import checks, draws

CLASS_NAMES = tuple(str(digit) for digit in range(10))
_TEST_PER_CLASS = 36


def load(split: str) -> dict:
  """Returns a split of the digits.

  The 1,797 images of 8x8 pixels are split once and for all: 36 of each digit, drawn at random, are
  the test images.

  Args:
    split: `"train"` (1,437 images) or `"test"` (360 images).

  Returns:
    A dict of `x` uint8 `[N, 8, 8, 1]` (the stored 0..16 scaled to 0..255), `label` int32 `[N]` and
    `class_names`.

  Raises:
    ValueError: for another split.
  """
  checks.choice("split", split, ("train", "test"))
  rows = _stored()
  x = np.round(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  label = rows[:, -1].astype(np.int32)
  is_test = np.zeros(len(label), bool)
  for digit in range(10):
    of_digit = np.flatnonzero(label == digit)
    is_test[of_digit[draws.permutation(len(of_digit), 0, "digits", "test", digit)[:_TEST_PER_CLASS]]] = True
  chosen = is_test if split == "test" else ~is_test
  return {"x": x[chosen], "label": label[chosen], "class_names": CLASS_NAMES}


def _stored() -> np.ndarray:
  """Returns pixels and label of each image, float64 `[1797, 65]`, from the file itself: importing takes two seconds."""
  package = importlib.util.find_spec("sklearn")
  for folder in (package and package.submodule_search_locations) or ():
    path = pathlib.Path(folder, "datasets", "data", "digits.csv.gz")
    if path.exists():
      return np.loadtxt(path, delimiter=",")
  from sklearn import datasets

  stored = datasets.load_digits()
  return np.column_stack([stored.data, stored.target])
