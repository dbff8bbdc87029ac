import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax import center_by_class, residual_normalize, standardize
from tests import problems

SIZE = 12
RNG = np.random.default_rng(0)
Q = RNG.normal(size=SIZE).astype(np.float32)
LOSSES = RNG.exponential(size=SIZE).astype(np.float32)
LABELS = np.int32([0, 0, 1, 2, 1, 0, 2, 2, 0, 3, 1, 0])
MASK = np.array([1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0], bool)


def _center(q, losses, labels):
  return q - np.array([q[labels == label].mean() for label in labels])


def _standardize(q, losses, labels):
  return q / np.std(q)


def _residual_normalize(q, losses, labels):
  return q / (1 - np.exp(-losses))


TRANSFORMS = pytest.mark.parametrize(
  "transform, definition",
  [(center_by_class(5), _center), (standardize(), _standardize), (residual_normalize(), _residual_normalize)],
  ids=["center_by_class", "standardize", "residual_normalize"],
)


def _batch(mask=MASK):
  return {"label": LABELS, "mask": mask}


@TRANSFORMS
@pytest.mark.parametrize("mask", [MASK, np.ones(SIZE, bool)], ids=["masked", "whole"])
def test_definition(transform, definition, mask):
  result = np.asarray(transform(Q, LOSSES, _batch(mask), None))
  assert result.shape == (SIZE,) and result.dtype == np.float32
  wide = (array[mask].astype(np.float64) for array in (Q, LOSSES))
  np.testing.assert_allclose(result[mask], definition(*wide, LABELS[mask]), rtol=1e-5, atol=1e-6)


@TRANSFORMS
def test_masked_rows_count_for_nothing(transform, definition):
  other_q, other_losses, other_labels = Q.copy(), LOSSES.copy(), LABELS.copy()
  other_q[~MASK], other_losses[~MASK], other_labels[~MASK] = [100, -100, 7], 0, [-1, 3, 77]
  result = transform(other_q, other_losses, {"label": other_labels, "mask": MASK}, None)
  problems.assert_same_bits(np.asarray(result)[MASK], np.asarray(transform(Q, LOSSES, _batch(), None))[MASK])


@TRANSFORMS
@pytest.mark.parametrize("shards", [2, 6])
def test_statistics_are_of_the_whole_batch(transform, definition, shards):
  """Under a mapped axis; with 6 shards of 2 rows no shard holds a whole class."""
  cut = functools.partial(jax.tree.map, lambda array: array.reshape(shards, -1))
  mapped = jax.vmap(functools.partial(transform, axis_name="data"), axis_name="data")
  result = mapped(*cut((Q, LOSSES, _batch()))).reshape(-1)
  np.testing.assert_allclose(result[MASK], transform(Q, LOSSES, _batch(), None)[MASK], rtol=1e-5, atol=1e-6)


def test_center_by_class_reads_labels_where_told():
  batch = {"noisy": LABELS, "label": LABELS[::-1], "mask": MASK}
  result = center_by_class(5, label_key="noisy")(Q, LOSSES, batch, None)
  np.testing.assert_array_equal(result, center_by_class(5)(Q, LOSSES, _batch(), None))


@TRANSFORMS
def test_a_batch_without_spread_stays_finite(transform, definition):
  for mask in (np.zeros(SIZE, bool), np.arange(SIZE) == 3):
    zeros = np.zeros(SIZE, np.float32)
    np.testing.assert_array_equal(transform(zeros, zeros, _batch(mask), None), zeros)


def test_residual_normalize_bounds_the_gain_of_a_perfect_example():
  gain = residual_normalize(epsilon=1e-3)(np.float32([2]), np.float32([1e-7]), None, None)
  np.testing.assert_allclose(gain, [2000], rtol=1e-5)


def test_standardize_leaves_nothing_of_equal_alignments():
  mask = jnp.array([True, False, False])
  assert standardize()(jnp.array([3.0, 0.0, 0.0]), jnp.ones(3), {"mask": mask}, None)[0] == 0
