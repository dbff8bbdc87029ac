"""The paper's synthetic set (Figure 1): points of the plane, one class on each side of x = 0."""

import numpy as np

from soseleto_jax.data import draws

CLASS_NAMES = ("left", "right")


def make(
  seed: int,
  num_source: int = 500,
  num_target: int = 50,
  num_validation: int = 0,
  num_test: int = 50,
  num_flips: int | None = None,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns points uniform in [-1, 1]^2 whose class is the sign of the first coordinate.

  Some source points get the other class. They are drawn with replacement, as in the authors' code,
  and a point drawn twice stays flipped: 100 draws from 500 points mislabel about 91.

  Args:
    seed: the experiment's seed.
    num_source: number of source points.
    num_target: number of clean target points.
    num_validation: number of clean validation points.
    num_test: number of clean test points.
    num_flips: draws of source points to flip; None: a fifth of `num_source`.

  Returns:
    `source`, `target`, `validation` and `test`, each a dict of `x` float32 `[N, 2]` and `label`
    int32 `[N]`; `source` also has `true_label`.
  """
  sizes = {
    "source": num_source,
    "target": num_target,
    "validation": num_validation,
    "test": num_test,
  }
  sets = {}
  for name, n in sizes.items():
    x = (2 * draws.uniform(2 * n, seed, "synthetic", name) - 1).astype(np.float32).reshape(n, 2)
    sets[name] = {"x": x, "label": (x[:, 0] > 0).astype(np.int32)}
  source = sets["source"]
  source["true_label"] = source["label"].copy()
  num_flips = num_source // 5 if num_flips is None else num_flips
  flipped = draws.integers(num_flips, num_source, seed, "synthetic", "flips")
  source["label"][flipped] = 1 - source["true_label"][flipped]
  return sets
