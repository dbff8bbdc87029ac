"""Tasks made of arrays, and what is said of arrays that make none."""

import dataclasses

import numpy as np
import pytest

from soseleto_jax.data import task

RNG = np.random.default_rng(0)


def arrays(n=12, shape=(3, 3, 1), num_classes=3, dtype=np.float64):
  return RNG.normal(size=(n, *shape)).astype(dtype), np.arange(n) % num_classes


def test_from_arrays_shared():
  source, target, test = arrays(30), arrays(6), arrays(9)
  noisy = (source[1] + 1) % 3
  found = task.from_arrays(source[0], noisy, *target, *test, validation=arrays(3), true_label=source[1])
  assert found.source["x"].dtype == np.float32 and found.source["label"].dtype == np.int32
  assert found.source["true_label"].dtype == np.int32
  assert found.source_class_names == found.target_class_names == ("0", "1", "2")
  assert found.target_normalization is found.source_normalization
  np.testing.assert_allclose(found.source_normalization.mean, [source[0].mean()], rtol=1e-4)
  assert len(found.validation["x"]) == 3 and found.num_source == 30


def test_from_arrays_transfer():
  found = task.from_arrays(
    *arrays(30),
    *arrays(4, num_classes=2),
    *arrays(4, num_classes=2),
    shared_classes=False,
    target_class_names=("left", "right"),
    normalization="pixel_mean",
  )
  assert (found.num_source_classes, found.num_target_classes) == (3, 2)
  assert found.target_class_names == ("left", "right")
  np.testing.assert_allclose(found.target_normalization.mean, found.target["x"].mean(0), rtol=1e-5)


def test_from_arrays_keeps_uint8():
  x = RNG.integers(0, 256, (6, 2, 2, 1), np.uint8)
  label = np.arange(6) % 2
  found = task.from_arrays(x, label, x, label, x, label)
  assert found.source["x"].dtype == np.uint8


def replaced(index, value):
  given = [*arrays(12), *arrays(6), *arrays(6)]
  given[index] = value
  return given


with_nan = arrays(6)[0]
with_nan[4, 1, 1, 0] = np.nan
with_infinity = arrays(12)[0]
with_infinity[2, 0, 0, 0] = np.inf


@pytest.mark.parametrize(
  ("index", "value", "message"),
  [
    (0, with_infinity, r"source x\[2\] has pixels that are not finite \(1 such"),
    (2, with_nan, r"target x\[4\] has pixels that are not finite"),
    (4, with_nan, r"test x\[4\] has pixels that are not finite"),
    (0, np.zeros((12, 3, 3), np.uint8), r"source x has shape \(12, 3, 3\).*add a last axis"),
    (0, arrays(12)[0][..., 0], r"target images are \(3, 3, 1\) but source images are \(3, 3\)"),
    (0, arrays(12)[0] > 0, "source x has .*dtype bool"),
    (4, arrays(6, (4, 4, 1))[0], r"test images are \(4, 4, 1\) but source images are \(3, 3, 1\)"),
    (1, np.arange(12.0) % 3, r"source labels have dtype float64; .*whole numbers: label.astype\(int\) converts them"),
    (1, np.arange(11) % 3, "source has 12 examples but 11 of label"),
    (
      1,
      np.arange(12) % 3 - 1,
      "one side has: '-1' in the source alone .4 examples. and '2' in the target alone .4 examples.",
    ),
    (1, np.arange(12) % 2, "classes that only one side has: '2' in the target alone"),
    (3, np.arange(6) % 2, "target has no example of class 2"),
    (5, np.arange(6) % 4, "'3' in the target alone .1 examples.*drop_unshared=True"),
  ],
)
def test_from_arrays_checks(index, value, message):
  with pytest.raises(ValueError, match=message):
    task.from_arrays(*replaced(index, value))


def test_labels_outside_named_classes():
  with pytest.raises(ValueError, match=r"source label\[2\]=2 is outside the 2 classes"):
    task.from_arrays(*arrays(12), *arrays(6), *arrays(6), source_class_names=("a", "b"))


def test_a_class_that_noise_emptied_is_no_error():
  (source, target, test), true_label = (arrays(12), arrays(6), arrays(6)), np.arange(12) % 3
  noisy = np.minimum(true_label, 1)
  found = task.from_arrays(source[0], noisy, *target, *test, true_label=true_label)
  assert found.num_source_classes == 3


def test_task_is_checked_when_made_by_hand():
  found = task.from_arrays(*arrays(12), *arrays(6), *arrays(6))
  with pytest.raises(ValueError, match=r"target label\[0\]=3 is outside the 3 classes"):
    dataclasses.replace(found, target=found.target | {"label": found.target["label"] * 0 + 3})
