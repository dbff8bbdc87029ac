"""scikit-learn's bundled handwritten digits: a real image set that needs no download."""

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
  from sklearn import datasets

  stored = datasets.load_digits()
  x = np.round(stored.images[..., None] * (255 / 16)).astype(np.uint8)
  label = stored.target.astype(np.int32)
  is_test = np.zeros(len(label), bool)
  for digit in range(10):
    rows = np.flatnonzero(label == digit)
    is_test[rows[draws.permutation(len(rows), 0, "digits", "test", digit)[:_TEST_PER_CLASS]]] = True
  chosen = is_test if split == "test" else ~is_test
  return {"x": x[chosen], "label": label[chosen], "class_names": CLASS_NAMES}
