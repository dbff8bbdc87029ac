"""Labels that examples take from their neighbours."""

import numpy as np

from experiments import neighbours


def test_what_neighbours_say_puts_scattered_labels_right():
  """Three bundles of directions, whatever their lengths; a tenth of the probabilities point elsewhere."""
  rng = np.random.default_rng(0)
  truth = np.arange(300) % 3
  features = (np.eye(3)[truth] + 0.1 * rng.normal(size=(300, 3))) * rng.uniform(0.1, 10, (300, 1))
  said = np.where(rng.uniform(size=300) < 0.1, (truth + 1) % 3, truth)
  values = neighbours.spread(features, 0.4 * np.eye(3)[said] + 0.2, num_neighbours=8, num_rounds=10)
  assert np.mean(said != truth) > 0.05
  np.testing.assert_array_equal(np.argmax(values, axis=1), truth)
  np.testing.assert_allclose(values.sum(axis=0), 100, rtol=1e-6)  # the classes in balance, as they are


def test_one_round_by_hand():
  """Two pairs, each the other's one neighbour: both of a pair get the mean of what they were."""
  features = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]])
  start = np.array([[0.9, 0.1], [0.7, 0.3], [0.3, 0.7], [0.1, 0.9]])  # in balance
  values = neighbours.spread(features, start, num_neighbours=1, num_rounds=1)
  np.testing.assert_allclose(values, [[0.8, 0.2]] * 2 + [[0.2, 0.8]] * 2, rtol=1e-12)


def test_classes_are_brought_to_equal_mass():
  rng = np.random.default_rng(1)
  values = neighbours.balanced(rng.dirichlet([9, 3, 1], size=60))
  np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-12)
  np.testing.assert_allclose(values.sum(axis=0), 20, rtol=1e-6)
