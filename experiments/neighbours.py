"""Labels that examples take from their neighbours."""

import numpy as np


def spread(
  features: np.ndarray, probabilities: np.ndarray, *, num_neighbours: int = 10, num_rounds: int = 20
) -> np.ndarray:
  """Lets each example take the mean of its nearest neighbours' class probabilities and its own, round by round.

  What a network gets wrong lies scattered among its features, where most neighbours are right. Before each round the
  classes are brought to equal mass, or those that a network prefers would grow.

  Args:
    features: float `[N, F]`; neighbours are the k nearest by the cosine.
    probabilities: float `[N, K]`, of the classes, of which each is about as frequent.
    num_neighbours: k.
    num_rounds: how often.

  Returns:
    The probabilities float64 `[N, K]` after the last round.
  """
  from sklearn.neighbors import NearestNeighbors

  search = NearestNeighbors(n_neighbors=num_neighbours, metric="cosine", algorithm="brute").fit(features)
  nearest = search.kneighbors(return_distance=False)  # without the example itself
  values = balanced(probabilities)
  for _ in range(num_rounds):
    values = balanced((values + values[nearest].sum(axis=1)) / (num_neighbours + 1))
  return values


def balanced(probabilities: np.ndarray, num_rounds: int = 50) -> np.ndarray:
  """Scales probabilities `[N, K]` so that all classes have the same mass and each row adds up to 1 (Sinkhorn)."""
  values = np.maximum(np.asarray(probabilities, np.float64), 1e-12)
  for _ in range(num_rounds):
    values = values / values.sum(axis=0)
    values = values / values.sum(axis=1, keepdims=True)
  return values
