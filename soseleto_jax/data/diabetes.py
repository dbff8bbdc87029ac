"""scikit-learn's diabetes data as a regression with wrong values (Efron et al. 2004, "Least angle regression")."""

import numpy as np

from soseleto_jax.data import draws
from soseleto_jax.data.task import Task
from soseleto_jax.data.values import from_values


def make_task(
  seed: int, num_target: int = 50, num_validation: int = 50, num_test: int = 92, wrong_fraction: float = 0.3
) -> Task:
  """Returns a task of 442 patients: ten measurements "x" float32 `[N, 10]`, and how the illness has gone on since.

  "label" is float32 `[N]`, in standard deviations of all 442 about their mean. What target, validation and test leave
  is the source, where some values are permuted among each other; "true_label" has the right ones.

  Args:
    seed: the experiment's seed: which patients are where, and whose values are permuted.
    num_target: patients with right values, which steer.
    num_validation: for choosing settings.
    num_test: for reporting.
    wrong_fraction: of the source whose values are permuted.
  """
  from sklearn.datasets import load_diabetes

  x, y = load_diabetes(return_X_y=True)
  y = (y - y.mean()) / y.std()
  order = draws.permutation(len(y), seed, "diabetes", "sets")
  ends = np.cumsum([num_target, num_validation, num_test])
  target, validation, test, source = ((x[rows], y[rows]) for rows in np.split(order, ends))
  label = source[1].copy()
  wrong = draws.permutation(len(label), seed, "diabetes", "wrong")[: round(wrong_fraction * len(label))]
  label[wrong] = np.roll(label[wrong], 1)  # their order is random
  return from_values(
    source[0],
    label,
    *target,
    *test,
    validation=validation,
    true_label=source[1],
    name="diabetes",
  )
