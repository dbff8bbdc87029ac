"""How well the weights tell wrong labels from right ones: detection, retention."""

import numpy as np


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
  alpha = check_alpha(alpha)
  wrong = check_column("wrong", wrong, alpha).astype(bool)
  result = {"wrong_fraction": float(wrong.mean())}
  if not wrong.all():
    result["alpha_right"] = float(alpha[~wrong].mean(dtype=np.float64))
  if wrong.any():
    result["alpha_wrong"] = float(alpha[wrong].mean(dtype=np.float64))
  if (area := roc_auc(alpha, wrong)) is not None:
    from sklearn import metrics

    result["auc"] = area
    result["average_precision"] = float(metrics.average_precision_score(wrong, -alpha))
  return result


def roc_auc(trust: np.ndarray, wrong: np.ndarray) -> float | None:
  """Area under the ROC curve of a low trust `[N]` as detector of wrong labels; None without examples of both kinds."""
  if wrong.all() or not wrong.any():
    return None
  from sklearn import metrics  # which takes two seconds

  # The order of 1 - trust without its rounding, which would tie small weights.
  return float(metrics.roc_auc_score(wrong, -trust))


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
  alpha = check_alpha(alpha)
  wrong = check_column("wrong", wrong, alpha).astype(bool)
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


def check_alpha(alpha: np.ndarray) -> np.ndarray:
  """Returns weights `[N]` as float32; raises ValueError for none, another shape, or one that is not finite."""
  alpha = np.asarray(alpha, np.float32)
  if alpha.ndim != 1 or not alpha.size:
    raise ValueError(f"alpha has shape {alpha.shape}; give one weight per source example, [N]")
  if not np.isfinite(alpha).all():
    row = int(np.flatnonzero(~np.isfinite(alpha))[0])
    raise ValueError(f"alpha[{row}]={alpha[row]} is not finite; look for where the run diverged")
  return alpha


def check_column(name: str, column: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """Returns a column as an array; raises ValueError unless it has one entry for each weight."""
  column = np.asarray(column)
  if column.shape != alpha.shape:
    raise ValueError(f"{name} has shape {column.shape} but alpha has {alpha.shape}; give one entry per weight")
  return column
