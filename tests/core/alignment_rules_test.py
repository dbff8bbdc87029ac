"""The transforms against NumPy, and the orthogonal direction against linear algebra in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core.alignment_rules import (
  add_agreement,
  center_by_class,
  orthogonal,
  residual_normalize,
  scale_by_std,
)
from tests import oracle, problems

SIZE = 12
RNG = np.random.default_rng(0)
Q = RNG.normal(size=SIZE).astype(np.float32)
LOSSES = RNG.exponential(size=SIZE).astype(np.float32)
LABELS = np.int32([0, 0, 1, 2, 1, 0, 2, 2, 0, 3, 1, 0])
MASK = np.array([1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0], bool)


def _center(q, losses, labels):
  return q - np.array([q[labels == label].mean() for label in labels])


def _scale(q, losses, labels):
  return q / np.std(q)


def _residual_normalize(q, losses, labels):
  return q / (1 - np.exp(-losses))


def _add_agreement(q, losses, labels):
  right = np.exp(-losses)
  return q + 0.7 * (right - right.mean()) / np.std(right)


DEFINITIONS = {
  "add_agreement": (add_agreement(0.7), _add_agreement),
  "center_by_class": (center_by_class(5), _center),
  "scale_by_std": (scale_by_std(), _scale),
  "residual_normalize": (residual_normalize(), _residual_normalize),
}
EACH = pytest.mark.parametrize("name", DEFINITIONS)


@functools.cache
def _compiled(name):
  return problems.jit(functools.partial(DEFINITIONS[name][0], axis_name=None))


def _batch(mask=MASK):
  return {"label": LABELS, "mask": mask}


@EACH
@pytest.mark.parametrize("mask", [MASK, np.ones(SIZE, bool)], ids=["masked", "whole"])
def test_definition(name, mask):
  result = np.asarray(_compiled(name)(Q, LOSSES, _batch(mask)))
  assert result.shape == (SIZE,) and result.dtype == np.float32
  wide = (array[mask].astype(np.float64) for array in (Q, LOSSES))
  np.testing.assert_allclose(result[mask], DEFINITIONS[name][1](*wide, LABELS[mask]), rtol=1e-5, atol=1e-6)


@EACH
def test_masked_rows_count_for_nothing(name):
  other_q, other_losses, other_labels = Q.copy(), LOSSES.copy(), LABELS.copy()
  other_q[~MASK], other_losses[~MASK], other_labels[~MASK] = [100, -100, 7], 0, [-1, 3, 77]
  result = _compiled(name)(other_q, other_losses, {"label": other_labels, "mask": MASK})
  problems.assert_same_bits(np.asarray(result)[MASK], np.asarray(_compiled(name)(Q, LOSSES, _batch()))[MASK])


@pytest.mark.parametrize("name", ["scale_by_std", "add_agreement"])
def test_rounding_is_not_blown_up(name):
  """Where all values are equal but for it there is nothing to tell apart; where they differ a little more there is."""
  noise = np.float32(0.3) * (1 + np.finfo(np.float32).eps * RNG.integers(-4, 5, SIZE)).astype(np.float32)
  few = np.float32(0.3) * (1 + 1e-3 * RNG.normal(size=SIZE)).astype(np.float32)
  transform = _compiled(name)
  if name == "scale_by_std":
    assert not np.any(transform(noise, LOSSES, _batch()))
    np.testing.assert_allclose(np.std(np.asarray(transform(few, LOSSES, _batch()))[MASK]), 1, rtol=1e-3)
  else:
    np.testing.assert_array_equal(transform(Q, noise, _batch()), Q)
    added = np.asarray(transform(Q, few, _batch()))[MASK] - Q[MASK]
    np.testing.assert_allclose(np.std(added), 0.7, rtol=1e-2)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_scale_by_std_of_any_size(size):
  """Also where the squares are no numbers of float32, and of several devices, one of which has the large values."""
  small = Q * np.where(np.arange(SIZE) < 2, 1, 1e-3).astype(np.float32)
  expected = _compiled("scale_by_std")(small, LOSSES, _batch())
  np.testing.assert_allclose(_compiled("scale_by_std")(np.float32(size) * small, LOSSES, _batch()), expected, rtol=1e-5)
  cut = functools.partial(jax.tree.map, lambda array: array.reshape(6, -1))
  mapped = problems.jit(jax.vmap(functools.partial(scale_by_std(), axis_name="data"), axis_name="data"))
  found = mapped(*cut((np.float32(size) * small, LOSSES, _batch()))).reshape(-1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_labels_past_the_classes_show():
  """As NaN, of these rows alone; under the mask they are whatever they are."""
  labels = np.where(np.arange(SIZE) == 2, 5, LABELS).astype(np.int32)
  found = np.asarray(_compiled("center_by_class")(Q, LOSSES, {"label": labels, "mask": MASK}))
  assert np.flatnonzero(np.isnan(found)).tolist() == [2]
  found = np.asarray(
    _compiled("center_by_class")(Q, LOSSES, {"label": np.where(labels == 5, -1, labels), "mask": MASK})
  )
  assert np.flatnonzero(np.isnan(found)).tolist() == [2]


@pytest.mark.parametrize("num_classes", [0, 2.0, None, True])
def test_error_for_a_number_of_classes(num_classes):
  with pytest.raises(ValueError, match=f"num_classes={num_classes}: give the number of classes"):
    center_by_class(num_classes)


@pytest.mark.parametrize(
  "batch, message",
  [
    ({"mask": MASK}, r"center_by_class reads batch\['label'\], and the batch has mask"),
    ({"mask": MASK, "label": Q}, r"batch\['label'\] has dtype float32, shape \(12,\): labels are integers \(12,\)"),
    ({"mask": MASK, "label": LABELS[:, None]}, r"batch\['label'\] has dtype int32, shape \(12, 1\)"),
  ],
)
def test_errors_for_labels(batch, message):
  with pytest.raises(ValueError, match=message):
    center_by_class(3)(Q, LOSSES, batch, None)


@EACH
def test_statistics_are_of_the_whole_batch(name):
  """Under a mapped axis, on which no shard holds a whole class."""
  cut = functools.partial(jax.tree.map, lambda array: array.reshape(6, -1))
  mapped = problems.jit(jax.vmap(functools.partial(DEFINITIONS[name][0], axis_name="data"), axis_name="data"))
  result = mapped(*cut((Q, LOSSES, _batch()))).reshape(-1)
  np.testing.assert_allclose(result[MASK], _compiled(name)(Q, LOSSES, _batch())[MASK], rtol=1e-5, atol=1e-6)


def test_center_by_class_reads_labels_where_told():
  batch = {"noisy": LABELS, "label": LABELS[::-1], "mask": MASK}
  result = problems.jit(functools.partial(center_by_class(5, label_key="noisy"), axis_name=None))(Q, LOSSES, batch)
  np.testing.assert_allclose(result, _compiled("center_by_class")(Q, LOSSES, _batch()), rtol=1e-5, atol=1e-6)


@EACH
def test_a_batch_without_spread_stays_finite(name):
  for mask in (np.zeros(SIZE, bool), np.arange(SIZE) == 3):
    zeros = np.zeros(SIZE, np.float32)
    np.testing.assert_array_equal(_compiled(name)(zeros, zeros, _batch(mask)), zeros)


def test_residual_normalize_bounds_the_gain_of_a_perfect_example():
  gain = residual_normalize(epsilon=1e-3)(np.float32([2]), np.float32([1e-7]), None, None)
  np.testing.assert_allclose(gain, [2000], rtol=1e-5)


def test_scale_by_std_leaves_nothing_of_equal_alignments():
  alone = np.arange(SIZE) == 2
  assert _compiled("scale_by_std")(np.where(alone, np.float32(3), 0), LOSSES, _batch(alone))[2] == 0


# The orthogonal direction.


def _matrix(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def _orthogonal():
  return problems.jit(orthogonal)


def test_orthogonal_is_the_polar_factor():
  """Of a kernel as a matrix of inputs by outputs; its length is the nuclear norm times the root of the rank."""
  gradients = [_matrix(*shape) for shape in ((6, 3), (3, 6), (1, 4), (4, 1), (5, 5, 3, 4))]
  for gradient, direction in zip(gradients, _orthogonal()(gradients), strict=True):
    assert direction.shape == gradient.shape and direction.dtype == jnp.float32
    flat = gradient.reshape(-1, gradient.shape[-1]).astype(np.float64)
    np.testing.assert_allclose(direction.reshape(flat.shape), oracle.orthogonal(flat), rtol=1e-4, atol=1e-4)
    nuclear, rank = np.linalg.norm(flat, "nuc"), min(flat.shape)
    np.testing.assert_allclose(np.linalg.norm(direction), nuclear * np.sqrt(rank), rtol=1e-4)


def test_orthogonal_is_the_steepest_in_the_spectral_norm():
  """No other direction of the same spectral norm has a larger inner product with the gradient."""
  gradient = _matrix(6, 3)

  def steepness(direction):
    return np.vdot(gradient, direction) / np.linalg.norm(direction, 2)

  best = steepness(np.asarray(_orthogonal()(gradient)))
  np.testing.assert_allclose(best, np.linalg.norm(gradient, "nuc"), rtol=1e-5)
  assert steepness(gradient) < 0.9 * best
  others = gradient + _matrix(50, 6, 3, seed=1)
  assert all(steepness(other) < best for other in others)


def test_orthogonal_of_what_spans_nothing_adds_nothing():
  """The gradient of a softmax has less than full rank: directions beside its span would be rounding errors."""
  columns = _matrix(6, 2)
  gradient = np.stack([columns[:, 0], columns[:, 1], -columns.sum(axis=1)], axis=1)
  direction = np.asarray(_orthogonal()(gradient))
  np.testing.assert_allclose(direction.sum(axis=1), 0, atol=1e-3)
  np.testing.assert_allclose(direction, oracle.orthogonal(gradient.astype(np.float64)), rtol=1e-3, atol=1e-3)
  problems.assert_same_bits(_orthogonal()(np.zeros((6, 3), np.float32)), np.zeros((6, 3), np.float32))


def test_orthogonal_scale_and_small_numbers():
  """In proportion to the gradient, as the gradient is itself, down to the smallest."""
  gradient = _matrix(6, 3)
  for scale in (1e-30, 1e-6, 1e6):
    scaled = _orthogonal()(np.float32(scale) * gradient)
    np.testing.assert_allclose(np.asarray(scaled) / scale, _orthogonal()(gradient), rtol=1e-3, atol=1e-3)


def test_orthogonal_leaves_vectors_and_dtypes():
  gradient = {"bias": jnp.float32([1, 0, -2]), "scale": jnp.float32(3), "kernel": jnp.ones((2, 3), jnp.bfloat16)}
  direction = _orthogonal()(gradient | {"left_out": None})
  problems.assert_same_bits((direction["bias"], direction["scale"]), (gradient["bias"], gradient["scale"]))
  assert direction["kernel"].dtype == jnp.bfloat16 and direction["left_out"] is None


def test_orthogonal_of_what_is_not_finite_shows():
  gradients = _matrix(2, 6, 3)
  gradients[0, 1, 2] = np.nan
  assert np.isnan(_orthogonal()(gradients[0])).any()
  assert np.isfinite(_orthogonal()(gradients[1])).all()
  directions = problems.jit(jax.vmap(orthogonal))(gradients)
  assert np.isnan(directions[0]).any() and np.isfinite(directions[1]).all()
