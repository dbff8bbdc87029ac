"""Values of the diabetes data, some of them permuted."""

import numpy as np

from soseleto_jax.data import diabetes


def test_sets_and_wrong_values():
  task = diabetes.make_task(0, num_target=40, num_validation=30, num_test=72)
  sets = [task.source, task.target, task.validation, task.test]
  assert [len(part["label"]) for part in sets] == [300, 40, 30, 72]
  rows = np.concatenate([part["x"] for part in sets])
  assert len(np.unique(rows, axis=0)) == 442
  label, right = task.source["label"], task.source["true_label"]
  np.testing.assert_array_equal(np.sort(label), np.sort(right))
  assert 85 <= task.wrong.sum() <= 90  # two patients may have the same value
  everything = np.concatenate([right, *(part["label"] for part in sets[1:])])
  np.testing.assert_allclose([everything.mean(), everything.std()], [0, 1], atol=1e-6)
