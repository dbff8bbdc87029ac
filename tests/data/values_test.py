"""Tasks whose labels are no classes."""

import dataclasses

import numpy as np
import pytest

from soseleto_jax.data.values import from_values

RNG = np.random.default_rng(0)


def sequences(n, length=4):
  return RNG.integers(0, 9, (n, length)), RNG.integers(0, 9, (n, length))


def test_labels_that_are_no_classes():
  source, target, test = sequences(12), sequences(5), sequences(6)
  right = source[1].copy()
  right[[2, 7], 1] += 1
  found = from_values(*source, *target, *test, true_label=right, normalization="as_stored", validation=sequences(3))
  assert not found.has_classes and found.source_class_names is found.target_class_names is None
  assert found.source["x"].dtype == found.source["label"].dtype == np.int32
  assert found.source_normalization.apply(found.source["x"]) is found.source["x"]
  np.testing.assert_array_equal(np.flatnonzero(found.wrong), [2, 7])
  for number in ("num_source_classes", "num_target_classes"):
    with pytest.raises(ValueError, match="labels of 'arrays' are no classes"):
      getattr(found, number)
  wrong = np.arange(12) < 3
  found = from_values(*source, *target, *test, wrong=wrong)
  assert found.wrong is found.source["wrong"] and found.source["x"].dtype == np.float32


def test_inputs_of_any_shape_where_labels_are_no_classes():
  x, y = RNG.normal(size=(6, 2, 3)), RNG.normal(size=6)
  found = from_values(x, y, x, y, x, y)
  assert found.source["label"].dtype == np.float32 and found.wrong is None
  for shape in ((6,), (6, 2, 3), (6, 1, 2, 3, 1)):
    x = np.zeros(shape, np.uint8)
    assert from_values(x, y, x, y).source["x"].shape == shape


@pytest.mark.parametrize(
  ("options", "source_label", "target_label", "message"),
  [
    ({}, np.full(6, np.nan), np.zeros(6), r"source label\[0\] is not finite \(6 such"),
    ({}, np.zeros((6, 2)), np.zeros((6, 3)), r"target label has shape \(6, 3\)"),
    ({}, np.full(6, "a"), np.zeros(6), "give numbers"),
    ({"wrong": np.zeros(6)}, np.zeros(6), np.zeros(6), "source wrong has .*float64; give bools"),
    ({"wrong": np.zeros(5, bool)}, np.zeros(6), np.zeros(6), "6 examples but 5 of wrong"),
  ],
)
def test_labels_that_are_no_classes_are_checked(options, source_label, target_label, message):
  x = RNG.normal(size=(6, 2))
  with pytest.raises(ValueError, match=message):
    from_values(x, source_label, x, target_label, x, target_label, **options)


def test_one_side_alone_cannot_have_classes():
  x, y = RNG.normal(size=(6, 2)), np.zeros(6)
  found = from_values(x, y, x, y, x, y)
  with pytest.raises(ValueError, match="one side has classes"):
    dataclasses.replace(found, source_class_names=("a",))
