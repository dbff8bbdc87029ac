"""What the weights say about the source: detection of wrong labels, retention, the ranked list."""

from __future__ import annotations

import os

import numpy as np

from soseleto_jax.report import writers


def detection(alpha: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
  """Scores 1 - alpha as a detector of wrong labels.

  Args:
    alpha: float `[N]`, the weights.
    wrong: bool `[N]`, True where the given label is not the true one.

  Returns:
    "wrong_fraction"; "alpha_right" and "alpha_wrong", the mean weights of the two kinds; "auc", the
    area under the ROC curve (0.5 is chance, 1 perfect, ties count one half), and
    "average_precision" (chance is "wrong_fraction"). What is undefined is left out: the mean of a
    kind without examples, and both scores unless there are examples of both kinds.

  Raises:
    ValueError: the arrays are empty, differ in length, or hold a weight that is not finite.
  """
  alpha = _checked_alpha(alpha)
  wrong = _checked_column("wrong", wrong, alpha).astype(bool)
  result = {"wrong_fraction": float(wrong.mean())}
  if not wrong.all():
    result["alpha_right"] = float(alpha[~wrong].mean(dtype=np.float64))
  if wrong.any():
    result["alpha_wrong"] = float(alpha[wrong].mean(dtype=np.float64))
  if wrong.any() and not wrong.all():
    from sklearn import metrics  # which takes two seconds

    # The order of 1 - alpha without its rounding, which would tie small weights.
    score = -alpha
    result["auc"] = float(metrics.roc_auc_score(wrong, score))
    result["average_precision"] = float(metrics.average_precision_score(wrong, score))
  return result


def retention_curve(alpha: np.ndarray, wrong: np.ndarray, points: int = 101) -> tuple[np.ndarray, np.ndarray]:
  """Fraction of wrong labels among the examples that are kept, largest weights first.

  This is Figure 2 of the paper. Among equal weights the order is taken as random, and the curve is
  the expectation over it; between whole numbers of examples it interpolates the expected count.

  Args:
    alpha: float `[N]`, the weights.
    wrong: bool `[N]`, True where the given label is not the true one.
    points: number P of points on the curve, at least 2.

  Returns:
    `kept_fraction` `[P]`, evenly spaced from 0 to 1, and `wrong_fraction` `[P]`, both float64. At 0
    the curve has its limit: the wrong fraction of the examples tied for the largest weight.

  Raises:
    ValueError: as `detection`, or `points` is below 2.
  """
  if points < 2:
    raise ValueError(f"points={points}; a curve needs at least 2")
  alpha = _checked_alpha(alpha)
  wrong = _checked_column("wrong", wrong, alpha).astype(bool)
  _, group, size = np.unique(-alpha, return_inverse=True, return_counts=True)
  wrong_in_group = np.bincount(group, weights=wrong, minlength=len(size))
  kept_at = np.concatenate([[0], np.cumsum(size)])
  wrong_at = np.concatenate([[0], np.cumsum(wrong_in_group)])
  kept_fraction = np.linspace(0, 1, points)
  kept = kept_fraction * len(alpha)
  wrong_kept = np.interp(kept, kept_at, wrong_at)
  wrong_fraction = np.full(points, wrong_in_group[0] / size[0])
  np.divide(wrong_kept, kept, out=wrong_fraction, where=kept > 0)
  return kept_fraction, wrong_fraction


def source_weights(alpha: np.ndarray, label: np.ndarray, true_label: np.ndarray | None = None) -> dict[str, np.ndarray]:
  """The list of source examples, the most suspect first.

  Args:
    alpha: float `[N]`, the weights.
    label: int `[N]`, the given labels.
    true_label: int `[N]`, where known.

  Returns:
    Columns of length N, lowest weight first and equal weights by index: "index" int64, "label",
    "alpha" float32, "rank" int64 (0 is the lowest weight), and "true_label" where given.

  Raises:
    ValueError: the arrays are empty, differ in length, or hold a weight that is not finite.
  """
  alpha = _checked_alpha(alpha)
  order = np.argsort(alpha, kind="stable")
  columns = {
    "index": order,
    "label": _checked_column("label", label, alpha)[order],
    "alpha": alpha[order],
    "rank": np.arange(len(alpha)),
  }
  if true_label is not None:
    columns["true_label"] = _checked_column("true_label", true_label, alpha)[order]
  return columns


def write_source_weights(
  path: str | os.PathLike,
  alpha: np.ndarray,
  label: np.ndarray,
  true_label: np.ndarray | None = None,
) -> None:
  """Writes `source_weights(alpha, label, true_label)` as CSV, atomically.

  Weights have the fewest digits that name their float32 uniquely, so reading them back is exact.

  Args:
    path: the file.
    alpha: float `[N]`, the weights.
    label: int `[N]`, the given labels.
    true_label: int `[N]`, where known.
  """
  columns = source_weights(alpha, label, true_label)
  rows = zip(*(column.astype(str) for column in columns.values()), strict=True)
  lines = [",".join(columns), *(",".join(row) for row in rows)]
  writers.write_text(path, "\n".join(lines) + "\n")


def _checked_alpha(alpha: np.ndarray) -> np.ndarray:
  alpha = np.asarray(alpha, np.float32)
  if alpha.ndim != 1 or not alpha.size:
    raise ValueError(f"alpha has shape {alpha.shape}; give one weight per source example, [N]")
  if not np.isfinite(alpha).all():
    row = int(np.flatnonzero(~np.isfinite(alpha))[0])
    raise ValueError(f"alpha[{row}]={alpha[row]} is not finite; look for where the run diverged")
  return alpha


def _checked_column(name: str, column: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  column = np.asarray(column)
  if column.shape != alpha.shape:
    raise ValueError(f"{name} has shape {column.shape} but alpha has {alpha.shape}; give one entry per weight")
  return column
