import numpy as np
import pytest

from soseleto_jax.data import selection

RNG = np.random.default_rng(0)


def subset(labels, true_label=None, dataset="set", split="train", x=None):
  labels = np.asarray(labels, np.int32)
  x = RNG.integers(0, 256, (len(labels), 2, 2, 1), np.uint8) if x is None else x
  examples = {"x": x, "label": labels, "row": np.arange(len(labels), dtype=np.int32)}
  if true_label is not None:
    examples["true_label"] = np.asarray(true_label, np.int32)
  return selection.Subset(examples, ("a", "b", "c", "d"), dataset, split)


def test_take_classes_relabels_in_the_order_given():
  kept = subset([0, 1, 2, 3, 1, 3]).take_classes((3, 1), "source")
  assert kept.examples["label"].tolist() == [1, 0, 1, 0]
  assert kept.examples["row"].tolist() == [1, 3, 4, 5]
  assert kept.class_names == ("d", "b")


def test_take_classes_wants_both_labels_among_them():
  kept = subset([0, 1, 2, 0], true_label=[0, 2, 1, 3]).take_classes((0, 1), "source")
  assert kept.examples["row"].tolist() == [0]


def test_no_classes_means_all():
  whole = subset([0, 3])
  assert whole.take_classes((), "source") is whole


@pytest.mark.parametrize(
  ("classes", "message"),
  [
    ((0, 4), r"source.classes=\(0, 4\) .*0..3; take 4 out"),
    ((-1,), "take -1 out"),
    ((1.5,), "take 1.5 out"),
    ((True,), "take True out"),
    ((2, 0, 2), "a class twice"),
  ],
)
def test_wrong_classes(classes, message):
  with pytest.raises(ValueError, match=message):
    subset([0, 1, 2, 3]).take_classes(classes, "source")


def test_labels_outside_the_classes():
  with pytest.raises(ValueError, match=r"source: label\[1\]=-1 is outside the 4 classes"):
    subset([0, -1]).take_classes((), "source")


def test_without_goes_by_row_in_one_split_and_keeps_duplicates():
  x = np.zeros((4, 2, 2, 1), np.uint8)
  whole = subset([0, 1, 2, 3], x=x)
  left = whole.without(whole.take([1]), whole.take([3, 1]))
  assert left.examples["row"].tolist() == [0, 2]


@pytest.mark.parametrize(
  ("dataset", "split", "left"),
  [
    ("set", "test", [0, 1, 2, 3]),
    ("set", "train[1:3]", [0, 3]),
    ("other", "train", [0, 3]),
  ],
)
def test_without_goes_by_pixels_where_splits_may_overlap(dataset, split, left):
  whole = subset([0, 1, 2, 3])
  other = subset([0, 0], dataset=dataset, split=split, x=whole.examples["x"][1:3])
  assert whole.without(other).examples["row"].tolist() == left


def test_what_is_left_out_is_counted_by_its_reason():
  whole = subset([0, 1, 2, 3, 1])
  assert whole.left_out == {} and whole.without(whole.take([])) is whole
  left = whole.take_classes((1, 3), "source").without(whole.take([1])).leave_out(np.array([True, False]), "dull")
  drawn = "drawn from the same set for target, validation or test"
  assert left.left_out == {"of other classes": 2, drawn: 1, "dull": 1}
  copies = subset([0, 0], dataset="other", x=whole.examples["x"][1:3])
  assert whole.without(whole.take([1]), copies).left_out == {drawn: 1, "also in the target, validation or test set": 1}
  assert left.leave_out(np.array([True]), "dull").left_out["dull"] == 2
  assert left.examples["row"].tolist() == [4]


def test_images_of_another_shape_are_others():
  whole = subset([0, 1])
  other = subset([0, 1], dataset="other", x=whole.examples["x"].reshape(2, 4, 1, 1))
  assert len(whole.without(other)) == 2


def test_balanced_draw():
  labels = np.repeat([0, 1, 2], [10, 20, 30])
  index = selection.balanced(labels, np.array([3, 0, 5]), 0, "target", "n=8")
  assert np.bincount(labels[index], minlength=3).tolist() == [3, 0, 5]
  assert (np.diff(index) > 0).all()
  larger = selection.balanced(labels, np.array([4, 2, 6]), 0, "target", "n=12")
  assert set(index) < set(larger)
  others = [
    selection.balanced(labels, np.array([3, 0, 5]), seed, stream, "n=8")
    for seed, stream in [(1, "target"), (0, "validation")]
  ]
  assert not any(np.array_equal(index, other) for other in others)


def test_balanced_names_the_class_that_is_short():
  with pytest.raises(ValueError, match="n=9 but class 1 has only 2 images left, not 3; ask for"):
    selection.balanced(np.array([0, 0, 0, 1, 1]), np.array([3, 3]), 0, "target", "n=9")


def test_every_class_is_drawn_alike():
  first = [selection.balanced(np.arange(40) // 20, [1, 1], s, "t", "") for s in range(400)]
  counts = np.bincount(np.concatenate(first), minlength=40)
  assert counts.min() > 4 and counts.max() < 42  # 20 expected, standard deviation 4.4


def test_remainder_goes_to_random_classes():
  extras = np.array([selection.per_class_counts(23, 10, seed, "target") for seed in range(200)])
  assert (extras.sum(axis=1) == 23).all() and set(extras.ravel()) == {2, 3}
  assert (extras == 3).sum(axis=0).min() > 30  # 60 expected of each class
  assert selection.per_class_counts(20, 10, 0, "target").tolist() == [2] * 10
