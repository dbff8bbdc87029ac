"""Label noise: which labels flip, and to what, as a pure function of the seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from soseleto_jax.data import annotator, checks, draws

KINDS = ("none", "symmetric", "uniform", "pair_flip", "asymmetric", "matrix", "instance")


def corrupt(
  labels: np.ndarray,
  num_classes: int,
  kind: str,
  rate: float,
  seed: int,
  matrix: Sequence[Sequence[float]] | np.ndarray | None = None,
  *,
  pairs: Sequence[tuple[int, int]] = (),
  x: Any = None,
  num_images: int = 0,
) -> np.ndarray:
  """Returns a noisy copy of labels.

  | kind | which examples | new label |
  |---|---|---|
  | `none` | none | |
  | `symmetric` | exactly round(rate N) | drawn from the other classes: all of them are wrong |
  | `uniform` | exactly round(rate N) | drawn from all classes: 1 in K keeps its label |
  | `pair_flip` | exactly round(rate N) | the next class, c + 1 mod K |
  | `asymmetric` | exactly round(rate n) of the n whose class has a pair | the other class of the pair |
  | `matrix` | all | drawn from row c of `matrix`; `rate` is not used |
  | `instance` | round(rate N) of those that a weak annotator gets wrong; all where it gets fewer wrong | what it says |

  The examples chosen at a low rate are among those chosen at a higher one. The weak annotator of `instance` is a
  classifier that learned from few of the examples (`soseleto_jax.data.annotator`): its errors are systematic, as those
  of people and of models are. With a rate of 1 all its labels are taken.

  Args:
    labels: integers `[N]` in 0..num_classes-1.
    num_classes: K.
    kind: one of the table above.
    rate: fraction of examples to choose, in [0, 1].
    seed: the experiment's seed.
    matrix: `[K, K]`, row c holds the probabilities of each label for an example of class c.
    pairs: for `asymmetric`, (class, the class that it is taken for).
    x: for `instance`, the examples `[N, ...]`, in memory or on disk.
    num_images: for `instance`, how many of them the annotator learns from, with their right labels.

  Returns:
    int32 `[N]`.

  Raises:
    ValueError: for an unknown kind, a rate outside [0, 1], fewer than two classes, labels outside
      the classes, a matrix that is not `[K, K]` with rows that are probabilities, pairs that are none, or a number of
      images that no annotator can learn from.
  """
  checks.choice("noise", kind, KINDS)
  labels = np.asarray(labels)
  checks.labels("labels", labels, num_classes)
  labels = labels.astype(np.int32)
  if kind == "none":
    return labels
  if num_classes < 2:
    raise ValueError(f"noise={kind!r} needs at least 2 classes, not {num_classes}; use 'none'")
  if kind == "matrix":
    return _redraw(labels, _checked_matrix(matrix, num_classes), seed)
  if not 0 <= rate <= 1:
    raise ValueError(f"noise_rate={rate} is outside [0, 1]; give the fraction of labels to change")

  order = draws.permutation(len(labels), seed, "noise", "chosen")
  count = round(rate * len(labels))
  chosen = order[:count]
  if kind == "symmetric":
    new = (labels[chosen] + 1 + draws.integers(count, num_classes - 1, seed, "noise", "class")) % num_classes
  elif kind == "uniform":
    new = draws.integers(count, num_classes, seed, "noise", "class")
  elif kind == "pair_flip":
    new = (labels[chosen] + 1) % num_classes
  elif kind == "asymmetric":
    other = _other_of_pair(pairs, num_classes)
    paired = order[other[labels[order]] >= 0]
    chosen = paired[: round(rate * len(paired))]
    new = other[labels[chosen]]
  else:
    said = annotator.labels(x, labels, num_images, seed)
    chosen = order[said[order] != labels[order]][:count]
    new = said[chosen]
  labels[chosen] = new
  return labels


def _redraw(labels: np.ndarray, matrix: np.ndarray, seed: int) -> np.ndarray:
  """Draws a new label for each example from its class's row of `matrix`."""
  u = draws.uniform(len(labels), seed, "noise", "matrix")
  noisy = np.empty_like(labels)
  for c, row in enumerate(matrix):
    # Divided by its last entry the sum ends at 1 > u, so no class of probability 0 is ever drawn.
    cumulative = np.cumsum(row)
    cumulative /= cumulative[-1]
    of_class = labels == c
    noisy[of_class] = np.searchsorted(cumulative, u[of_class], side="right")
  return noisy


def _other_of_pair(pairs, num_classes: int) -> np.ndarray:
  """Returns int32 `[K]`: the class that each is taken for, -1 where it has no pair."""
  other = np.full(num_classes, -1, np.int32)
  for pair in pairs:
    known = np.shape(pair) == (2,) and all(c in range(num_classes) for c in pair)
    if not known or pair[0] == pair[1] or other[int(pair[0])] >= 0:
      raise ValueError(
        f"noise_pairs has {pair}; give (class, the class that it is taken for), two of 0..{num_classes - 1}, "
        "each class first once"
      )
    other[int(pair[0])] = pair[1]
  if not len(pairs):
    raise ValueError("noise_pairs=() but noise='asymmetric' needs pairs, such as ((3, 5), (5, 3))")
  return other


def _checked_matrix(matrix, num_classes: int) -> np.ndarray:
  matrix = np.asarray(() if matrix is None else matrix, np.float64)
  if matrix.shape != (num_classes, num_classes):
    raise ValueError(
      f"noise_matrix has shape {matrix.shape}; noise='matrix' needs one row and one column for "
      f"each class, [{num_classes}, {num_classes}]"
    )
  if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
    row = np.flatnonzero(~(np.isfinite(matrix) & (matrix >= 0)).all(axis=1))[0]
    raise ValueError(f"noise_matrix row {row} has an entry that is no probability: {matrix[row]}")
  sums = matrix.sum(axis=1)
  wrong = np.flatnonzero(np.abs(sums - 1) > 1e-6)
  if wrong.size:
    raise ValueError(f"noise_matrix row {wrong[0]} sums to {sums[wrong[0]]:.6g}; each row must sum to 1")
  return matrix
