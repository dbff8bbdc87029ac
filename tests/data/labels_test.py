"""Labels of any kind, and the lines that convert those that are of none."""

import numpy as np
import pandas as pd
import pytest

from soseleto_jax.data import labels


@pytest.mark.parametrize(
  "given, codes, names",
  [
    ([3, 1, 3], [1, 0, 1], ("1", "3")),
    (np.array([-1, 10, 9], np.int8), [0, 2, 1], ("-1", "9", "10")),
    (np.array([2**60, 0, 5]), [2, 0, 1], ("0", "5", str(2**60))),
    (np.array([2**64 - 1, 2**64 - 2], np.uint64), [1, 0], (str(2**64 - 2), str(2**64 - 1))),
    ([True, False], [1, 0], ("False", "True")),
    (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
    (["10", "9", "9"], [1, 0, 0], ("9", "10")),
    (np.array([b"b", b"a"]), [1, 0], ("a", "b")),
    (pd.Series(["b", "a"], index=[7, 3]), [1, 0], ("a", "b")),
    (pd.Series([4, 2], dtype="Int64"), [1, 0], ("2", "4")),
    (pd.Series(["lo", "hi", "lo"]).astype(pd.CategoricalDtype(["lo", "mid", "hi"])), [0, 1, 0], ("lo", "hi")),
    (pd.Categorical([30, 4, 30]), [1, 0, 1], ("4", "30")),
    (np.array(["x", "y"], object), [0, 1], ("x", "y")),
  ],
)
def test_labels_become_numbers_and_keep_their_names(given, codes, names):
  found = labels.encode("labels", given)
  assert found[0].dtype == np.int32 and found[0].tolist() == codes
  assert found[1] == names


@pytest.mark.parametrize(
  "given, message",
  [
    (np.array([1.0, 0.0]), r"labels have dtype float64; .*label.astype\(int\) converts them"),
    (np.array([1.0, np.nan]), "1 are missing, the first of example 1: leave these examples out"),
    (np.array([0.5, 1.0]), "these are no whole numbers"),
    (np.eye(3), r"labels have shape \(3, 3\); one-hot rows become numbers by label.argmax\(axis=1\)"),
    (np.zeros((4, 1), int), r"label.ravel\(\) makes one column of them"),
    (np.zeros((4, 2), int), r"give one for each example"),
    ([], "give one for each example"),
    (["a", None], "labels: 1 are missing, the first of example 1"),
    (pd.Series(["a", pd.NA, np.nan]), "labels: 2 are missing, the first of example 1"),
    (pd.Categorical(["a", None]), "labels: 1 are missing"),
    (np.array(["a", 1], object), "labels are of kind int, str; give strings, whole numbers or bools, all of one kind"),
    (np.array([1j]), "dtype complex128"),
  ],
)
def test_labels_that_are_none(given, message):
  with pytest.raises(ValueError, match=message):
    labels.encode("labels", given)


@pytest.mark.parametrize(
  "first, second, expected",
  [
    (("a", "c"), ("b",), ("a", "b", "c")),
    (("2", "10"), ("3",), ("2", "3", "10")),
    (("lo", "hi"), ("hi", "mid"), ("lo", "hi", "mid")),
    (("a",), ("a",), ("a",)),
  ],
)
def test_union(first, second, expected):
  assert labels.union(first, second) == expected


def test_numbers_are_spelled_alike():
  assert labels.same_spelling(("01", "2"), ("1", "02", "3")) == ("1", "02")
  assert labels.same_spelling(("01", "x"), ("1", "x")) == ("01", "x")
