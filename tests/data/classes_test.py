"""Classes of two sides meet by name; what only one side has is named, or dropped."""

import numpy as np
import pytest

from soseleto_jax.data import task

RNG = np.random.default_rng(0)


def make(source, target, test=None, **options):
  x = [RNG.normal(size=(len(label), 2)) for label in (source, target, test or [])]
  tests = (x[2], test) if test else ()
  return task.from_arrays(x[0], source, x[1], target, *tests, **options)


def test_by_name_and_in_one_order():
  found = make(["owl", "cat", "dog", "cat"], ["dog", "cat", "owl"], ["dog", "owl"])
  assert found.source_class_names == found.target_class_names == ("cat", "dog", "owl")
  assert found.source["label"].tolist() == [2, 0, 1, 0]
  assert found.target["label"].tolist() == [1, 0, 2]
  assert found.test["label"].tolist() == [1, 2]  # which has no cat


def test_numbers_meet_by_value():
  found = make(["10", "9", "08"], [8, 9, 10, 10])
  assert found.source_class_names == ("08", "9", "10")
  assert found.source["label"].tolist() == [2, 1, 0] and found.target["label"].tolist() == [0, 1, 2, 2]


def test_numbers_from_0_number_the_other_sides_names():
  found = make([0, 2, 1], ["cat", "dog", "owl"])
  assert found.source["label"].tolist() == [0, 2, 1] and found.target["label"].tolist() == [0, 1, 2]
  with pytest.raises(ValueError, match="one side has: '1', '2', '3' in the source alone"):
    make([1, 3, 2], ["cat", "dog", "owl"])
  with pytest.raises(ValueError, match="'-1' in the source alone"):
    make([-1, 0, 1], [0, 1, 2])


def test_classes_of_one_side_are_named_or_dropped(caplog):
  source, target = ["cat", "dog", "bat", "cat", "bat"], ["cat", "dog", "emu"]
  message = (
    r"'bat' in the source alone \(2 examples\) and 'emu' in the target alone \(2 examples\); .*"
    "config.data.drop_unshared=True"
  )
  with pytest.raises(ValueError, match=message):
    make(source, target, ["emu", "cat"])
  found = make(source, target, ["emu", "cat"], true_label=["cat", "dog", "cat", "cat", "dog"], drop_unshared=True)
  assert found.source_class_names == found.target_class_names == ("cat", "dog")
  assert found.source["label"].tolist() == found.source["true_label"].tolist() == [0, 1, 0]
  assert found.source["row"].tolist() == [0, 1, 3]
  assert found.target["label"].tolist() == [0, 1] and found.test["label"].tolist() == [0]
  assert found.left_out == {"of classes that one side lacks": 2}
  assert "left 2 examples of source out" in caplog.text and "left 2 examples of target out" in caplog.text


def test_nothing_in_common():
  with pytest.raises(ValueError, match="have 0 of their classes in common: .*shared_classes=False"):
    make(["a", "b"], ["c", "d"], drop_unshared=True)
  found = make(["a", "b"], ["c", "d"], shared_classes=False)
  assert (found.source_class_names, found.target_class_names) == (("a", "b"), ("c", "d"))


def test_true_labels_have_classes_too():
  found = make(["a", "b", "b"], ["a", "b", "c"], true_label=["a", "b", "c"])
  assert found.source_class_names == ("a", "b", "c") and found.source["true_label"].tolist() == [0, 1, 2]


def test_one_class_alone():
  with pytest.raises(ValueError, match="source has one class alone, 'a'"):
    make(["a", "a"], ["a"])


@pytest.mark.parametrize(
  "source, target, expected",
  [
    ([3, 7, 7], [7, 3], (3, 7)),
    (["b", "a", "a"], ["a", "b"], ("a", "b")),
    ([True, False, True], [False, True], (False, True)),
    (["03", "7", "7"], [7, 3], (3, 7)),
    ([0, 1, 1], ["a", "b"], ("a", "b")),
    (["a", "b", "b"], [0, 1], (0, 1)),
  ],
)
def test_predictions_are_called_as_the_targets_labels_are(source, target, expected):
  assert make(source, target).target_labels == expected
