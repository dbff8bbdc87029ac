"""A weak annotator: a classifier that learned from few examples and labels all of them, with systematic errors."""

from typing import Any

import numpy as np

from soseleto_jax.data import draws, lazy

_SIZE = 8  # the height and width, in pixels, at which it sees images


def labels(x: Any, right: np.ndarray, num_images: int, seed: int) -> np.ndarray:
  """Returns the labels that a logistic regression gives to examples, after learning from some of them.

  It sees images as means over 8 x 8 fields, so that it is weak whatever their size, and quick.

  Args:
    x: `[N, H, W, C]` or `[N, D]`, in memory or on disk.
    right: int `[N]`, their right labels.
    num_images: how many it learns from, drawn by the seed, with their right labels.
    seed: the experiment's seed.

  Returns:
    int32 `[N]`. Where two classes are equally likely to rounding, machines may differ.

  Raises:
    ValueError: `num_images` is not between 2 and N, or those drawn are all of one class.
  """
  if not 2 <= num_images <= len(right):
    raise ValueError(f"noise_images={num_images}: the annotator learns from 2 to {len(right)} images")
  own = np.sort(draws.permutation(len(right), seed, "noise", "annotator")[:num_images])
  if len(np.unique(right[own])) < 2:
    raise ValueError(f"noise_images={num_images}: those drawn are of one class; ask for more")
  from sklearn.linear_model import LogisticRegression  # takes seconds to import

  seen = _see(lazy.load(lazy.take(x, own)))
  mean, scale = seen.mean(axis=0), max(seen.std(), np.finfo(np.float64).tiny)
  model = LogisticRegression(tol=1e-6, max_iter=2000).fit((seen - mean) / scale, right[own])
  return np.concatenate([model.predict((_see(part) - mean) / scale) for part in lazy.chunks(x)]).astype(np.int32)


def _see(x: np.ndarray) -> np.ndarray:
  """Returns examples as float64 `[n, D]`, images as means over fields."""
  x = x.astype(np.float64)
  if x.ndim == 4:
    for axis in (1, 2):
      edges = np.linspace(0, x.shape[axis], min(_SIZE, x.shape[axis]) + 1).astype(int)
      sizes = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(4)])
      x = np.add.reduceat(x, edges[:-1], axis=axis) / sizes
  return x.reshape(len(x), -1)
