"""Label noise: which labels flip, and to what, as a pure function of the seed."""

from collections.abc import Sequence

import numpy as np

from soseleto_jax.data import checks, draws

KINDS = ("none", "symmetric", "uniform", "pair_flip", "matrix")


def corrupt(
  labels: np.ndarray,
  num_classes: int,
  kind: str,
  rate: float,
  seed: int,
  matrix: Sequence[Sequence[float]] | np.ndarray | None = None,
) -> np.ndarray:
  """Returns a noisy copy of labels.

  | kind | which examples | new label |
  |---|---|---|
  | `none` | none | |
  | `symmetric` | exactly round(rate N) | drawn from the other classes: all of them are wrong |
  | `uniform` | exactly round(rate N) | drawn from all classes: 1 in K keeps its label |
  | `pair_flip` | exactly round(rate N) | the next class, c + 1 mod K |
  | `matrix` | all | drawn from row c of `matrix`; `rate` is not used |

  The examples chosen at a low rate are among those chosen at a higher one.

  Args:
    labels: integers `[N]` in 0..num_classes-1.
    num_classes: K.
    kind: one of the table above.
    rate: fraction of examples to choose, in [0, 1].
    seed: the experiment's seed.
    matrix: `[K, K]`, row c holds the probabilities of each label for an example of class c.

  Returns:
    int32 `[N]`.

  Raises:
    ValueError: for an unknown kind, a rate outside [0, 1], fewer than two classes, labels outside
      the classes, or a matrix that is not `[K, K]` with rows that are probabilities.
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

  count = round(rate * len(labels))
  chosen = draws.permutation(len(labels), seed, "noise", "chosen")[:count]
  if kind == "symmetric":
    new = labels[chosen] + 1 + draws.integers(count, num_classes - 1, seed, "noise", "class")
  elif kind == "uniform":
    new = draws.integers(count, num_classes, seed, "noise", "class")
  else:
    new = labels[chosen] + 1
  labels[chosen] = new % num_classes
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
