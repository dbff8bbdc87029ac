"""The paper's Figure 1, trained: what the algorithm is for."""

import numpy as np

from experiments import figure1_seeds


def test_most_wrong_labels_are_found_and_clean_ones_kept():
  alpha, wrong, _, _, _ = figure1_seeds.train(list(range(8)))
  found = alpha < 0.1
  kept = np.array([np.mean(~f[~w]) for f, w in zip(found, wrong, strict=True)])
  caught = np.array([np.mean(f[w]) for f, w in zip(found, wrong, strict=True)])
  assert np.all(kept >= 0.99)
  assert np.sum(caught >= 0.85) >= 6  # an unlucky draw of points, or ReLUs that start dead, spoils a seed now and then
