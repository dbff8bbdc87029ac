"""Which examples make up the sets that a config describes, and what is said of configs that describe none."""

import numpy as np
import pytest

from soseleto_jax.data import deskewing, digits, isolation, lazy, tfds
from soseleto_jax.data.get_task import data_config, get_task
from soseleto_jax.data.normalization import resize
from soseleto_jax.data.reading import Split
from soseleto_jax.data.selection import Subset


def digits_config(**target):
  config = data_config()
  config.source.dataset = config.target.dataset = "digits"
  config.target.update(target or dict(num_examples=50, num_validation=40))
  return config


def tiny_config(data_dir, **target):
  config = data_config()
  config.data_dir = str(data_dir)
  config.source.dataset = config.target.dataset = "tiny"
  config.target.update(target or dict(examples_per_class=2))
  return config


def rows(examples):
  return set(examples["row"].tolist())


def images(examples):
  return {image.tobytes() for image in examples["x"]}


def test_fields_of_the_config():
  assert data_config().to_dict() == {
    "data_dir": None,
    "feed": "auto",
    "shared_classes": True,
    "drop_unshared": False,
    "on_unreadable": "stop",
    "source": {
      "dataset": "cifar10",
      "path": "",
      "split": "train",
      "label_key": "label",
      "classes": (),
      "num_examples": 0,
      "noise": "none",
      "noise_rate": 0.0,
      "noise_matrix": (),
      "noise_pairs": (),
      "noise_images": 0,
      "grayscale": False,
      "isolate": False,
      "deskew": False,
      "size": 0,
      "normalization": "channel",
      "mean": (),
      "std": (),
      "aspect": "crop",
      "background": "white",
    },
    "target": {
      "dataset": "cifar10",
      "path": "",
      "split": "train",
      "test_split": "test",
      "validation_split": "",
      "label_key": "label",
      "classes": (),
      "num_examples": 0,
      "examples_per_class": 0,
      "num_validation": 0,
      "num_test": 0,
      "grayscale": False,
      "isolate": False,
      "deskew": False,
      "size": 0,
      "normalization": "channel",
      "mean": (),
      "std": (),
      "aspect": "crop",
      "background": "white",
    },
  }


def test_sets_of_one_split_are_disjoint_and_complete():
  found = get_task(digits_config(), 0)
  parts = [rows(part) for part in (found.source, found.target, found.validation)]
  assert [len(part) for part in parts] == [1347, 50, 40] == [found.num_source, 50, 40]
  assert set.union(*parts) == set(range(1437))
  assert len(found.test["x"]) == 360
  whole = digits.load("train")
  for part in (found.source, found.target, found.validation):
    np.testing.assert_array_equal(part["x"], whole["x"][part["row"]])
    np.testing.assert_array_equal(part["label"], whole["label"][part["row"]])
    assert part["label"].dtype == part["row"].dtype == np.int32


def test_target_and_validation_are_balanced():
  found = get_task(digits_config(num_examples=53, num_validation=41), 0)
  for part, base in [(found.target, 5), (found.validation, 4)]:
    assert set(np.bincount(part["label"], minlength=10)) == {base, base + 1}
  found = get_task(digits_config(examples_per_class=7), 0)
  assert np.bincount(found.target["label"]).tolist() == [7] * 10
  assert found.validation is None


def test_draws_are_independent_of_each_other():
  base = get_task(digits_config(num_examples=50), 0)
  config = digits_config(num_examples=50, num_validation=30)
  config.source.update(noise="symmetric", noise_rate=0.4, num_examples=200)
  other = get_task(config, 0)
  assert rows(base.target) == rows(other.target)
  larger = digits_config(num_examples=100, num_validation=30)
  assert rows(base.target) < rows(get_task(larger, 0).target)
  config.source.noise_rate = 0.2
  less_noise = get_task(config, 0)
  for side in ("source", "target", "validation"):
    assert rows(getattr(less_noise, side)) == rows(getattr(other, side))


def test_same_seed_same_task_and_other_seed_another():
  config = digits_config()
  config.source.update(noise="symmetric", noise_rate=0.3, num_examples=300)
  one, two, three = (get_task(config, seed) for seed in (0, 0, 1))
  for side in ("source", "target", "validation", "test"):
    for key, value in getattr(one, side).items():
      np.testing.assert_array_equal(value, getattr(two, side)[key])
    if side != "test":
      assert rows(getattr(one, side)) != rows(getattr(three, side))


def test_golden_draw():
  config = digits_config(num_examples=10, num_validation=10)
  config.source.update(noise="symmetric", noise_rate=0.5, num_examples=60)
  found = get_task(config, 0)
  assert found.target["row"].tolist() == [703, 710, 898, 993, 1066, 1136, 1180, 1295, 1322, 1329]
  assert found.validation["row"].tolist() == [10, 26, 163, 493, 960, 1084, 1169, 1179, 1319, 1399]
  assert found.source["row"].tolist()[:12] == [
    8,
    24,
    86,
    100,
    106,
    114,
    137,
    182,
    225,
    227,
    272,
    290,
  ]
  assert found.source["label"].tolist()[:12] == [8, 6, 6, 2, 4, 1, 4, 4, 1, 6, 8, 4]


@pytest.mark.parametrize("kind", ["symmetric", "pair_flip"])
def test_noise_is_on_the_source_alone(kind):
  config = digits_config()
  config.source.update(noise=kind, noise_rate=0.3)
  found, clean = get_task(config, 0), get_task(digits_config(), 0)
  wrong = found.source["label"] != found.source["true_label"]
  assert np.count_nonzero(wrong) == round(0.3 * found.num_source)
  np.testing.assert_array_equal(found.source["true_label"], clean.source["label"])
  for side in ("target", "validation", "test"):
    np.testing.assert_array_equal(getattr(found, side)["label"], getattr(clean, side)["label"])
    assert "true_label" not in getattr(found, side)
  assert "true_label" not in clean.source


def test_a_rate_of_no_noise_is_told(caplog):
  config = digits_config()
  config.source.update(noise="none", noise_rate=0.3)
  np.testing.assert_array_equal(get_task(config, 0).source["label"], get_task(digits_config(), 0).source["label"])
  assert caplog.text.count("noise_rate=0.3 changes no label, since noise='none'") == 1


def test_matrix_noise_from_the_config():
  config = digits_config()
  swap = np.eye(10)[[1, 0, *range(2, 10)]]
  config.source.update(noise="matrix", noise_matrix=tuple(map(tuple, swap)))
  source = get_task(config, 0).source
  expected = np.array([1, 0, *range(2, 10)])[source["true_label"]]
  np.testing.assert_array_equal(source["label"], expected)


def test_noise_by_pairs_and_by_an_annotator_from_the_config():
  config = digits_config()
  config.source.update(noise="asymmetric", noise_rate=1.0, noise_pairs=((3, 5),))
  source = get_task(config, 0).source
  np.testing.assert_array_equal(source["label"], np.where(source["true_label"] == 3, 5, source["true_label"]))
  config.source.update(noise="instance", noise_images=30)
  source = get_task(config, 0).source
  assert 0.1 < np.mean(source["label"] != source["true_label"]) < 0.6


def test_classes_are_chosen_and_relabelled_on_every_set():
  config = digits_config(examples_per_class=3, num_validation=9, classes=(7, 2, 5))
  config.source.classes = (7, 2, 5)
  found, whole = get_task(config, 0), digits.load("train")
  assert found.source_class_names == found.target_class_names == ("7", "2", "5")
  for part in (found.source, found.target, found.validation):
    original = whole["label"][part["row"]]
    np.testing.assert_array_equal(np.array([7, 2, 5])[part["label"]], original)
  assert np.bincount(found.test["label"]).tolist() == [36] * 3


def test_transfer_between_disjoint_classes():
  config = digits_config(examples_per_class=4, classes=(5, 6, 7, 8, 9))
  config.source.classes = (0, 1, 2)
  config.shared_classes = False
  found = get_task(config, 0)
  assert (found.num_source_classes, found.num_target_classes) == (3, 5)
  assert found.source_class_names == ("0", "1", "2")
  whole = digits.load("train")
  for normalization, classes in [
    (found.source_normalization, (0, 1, 2)),
    (found.target_normalization, (5, 6, 7, 8, 9)),
  ]:
    pixels = whole["x"][np.isin(whole["label"], classes)]
    np.testing.assert_allclose(normalization.mean, [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(normalization.std, [pixels.std()], rtol=1e-6)


@pytest.mark.parametrize("kind", ["channel", "pixel_mean"])
def test_shared_classes_share_the_source_normalization(kind):
  config = digits_config()
  config.source.update(normalization=kind, num_examples=100)
  found = get_task(config, 0)
  assert found.target_normalization is found.source_normalization
  axis = (0, 1, 2) if kind == "channel" else 0
  np.testing.assert_allclose(found.source_normalization.mean, found.source["x"].mean(axis), rtol=1e-6)


def test_fixed_normalization_on_each_side():
  config = digits_config(examples_per_class=4, normalization="fixed", mean=(0.2,), std=(0.5,))
  config.source.update(normalization="fixed", mean=(0.4,), std=(0.25,))
  config.shared_classes = False
  found = get_task(config, 0)
  np.testing.assert_allclose(found.source_normalization.mean, [0.4 * 255])
  np.testing.assert_allclose(found.target_normalization.std, [0.5 * 255])


def test_size():
  config = digits_config(num_examples=10, size=12)
  config.source.size = 12
  found = get_task(config, 0)
  assert found.source["x"].shape[1:] == found.test["x"].shape[1:] == (12, 12, 1)


def test_tfds_set(tiny_dir):
  config = tiny_config(tiny_dir, examples_per_class=2, num_validation=6, grayscale=True, size=4)
  config.source.update(grayscale=True, size=4)
  found = get_task(config, 0)
  assert found.name == "tiny" and found.source_class_names == ("zero", "one", "two")
  assert found.source["x"].shape == (48, 4, 4, 1) and len(found.test["x"]) == 15
  parts = [rows(part) for part in (found.source, found.target, found.validation)]
  assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_human_labels_and_clean_target_from_two_data_sets_share_no_image(tiny_dir):
  config = tiny_config(tiny_dir, examples_per_class=2, num_validation=6)
  config.source.update(dataset="tiny_n", label_key="human")
  found = get_task(config, 0)
  assert found.name == "tiny_n -> tiny" and found.num_source == 48
  assert not images(found.source) & (images(found.target) | images(found.validation))
  whole = tfds.load("tiny_n", "train", str(tiny_dir))
  np.testing.assert_array_equal(found.source["true_label"], whole["label"][found.source["row"]])
  assert (found.source["label"] != found.source["true_label"]).any()


def test_target_with_the_clean_column_of_a_set_with_human_labels(tiny_dir):
  config = tiny_config(tiny_dir, examples_per_class=2, split="train[:50%]", test_split="train[50%:]")
  config.source.update(dataset="tiny_n", label_key="human")
  config.target.dataset = "tiny_n"
  found = get_task(config, 0)
  whole = tfds.load("tiny_n", "train", str(tiny_dir))
  np.testing.assert_array_equal(found.test["label"], whole["label"][30:])
  assert found.num_source == 60 - 30 - 6


@pytest.mark.parametrize(
  ("split", "test_split"),
  [("train[:40]", "train[20:]"), ("train", "train[20:]"), ("train", "train+test")],
)
def test_overlapping_slices_never_leak(tiny_dir, split, test_split):
  config = tiny_config(tiny_dir, examples_per_class=2, split=split, test_split=test_split)
  if test_split == "train+test":
    with pytest.raises(ValueError, match="only 0 images left"):
      get_task(config, 0)
    return
  found = get_task(config, 0)
  test, target, source = images(found.test), images(found.target), images(found.source)
  assert not (test & target or test & source or target & source)
  assert found.num_source == 60 - 40 - 6


def synthetic_config(**source):
  config = data_config()
  config.source.dataset = config.target.dataset = "synthetic"
  config.source.update(normalization="none", **source)
  return config


def test_synthetic():
  found = get_task(synthetic_config(), 0)
  assert (found.num_source, len(found.target["x"]), len(found.test["x"])) == (500, 50, 50)
  assert found.validation is None and found.num_target_classes == 2
  assert np.count_nonzero(found.source["label"] != found.source["true_label"]) > 70
  np.testing.assert_array_equal(found.source_normalization.apply(found.source["x"]), found.source["x"])
  config = synthetic_config(num_examples=40)
  config.target.update(num_examples=10, num_validation=20)
  small = get_task(config, 0)
  sizes = [len(part["x"]) for part in (small.source, small.target, small.validation, small.test)]
  assert sizes == [40, 10, 20, 50]


def change(config, path, value):
  *parents, field = path.split(".")
  for parent in parents:
    config = config[parent]
  with config.unlocked():
    config[field] = value


DIGITS_ERRORS = [
  ("source.dataset", "", "config.data.source.dataset is missing"),
  ("target.dataset", "", "config.data.target.dataset is missing"),
  ("target", None, "config.data.target.dataset is missing"),
  ("target.dataset", "synthetic", "source.dataset='digits' beside 'synthetic'"),
  ("source.split", "trian", "config.data.source: split='trian' .*did you mean 'train'"),
  ("target.split", "trian", "config.data.target: split='trian'"),
  ("target.test_split", "tset", "config.data.target.test_split: split='tset'"),
  ("target.test_split", "train", "config.data.target.test_split='train' is also"),
  ("source.label_key", "human", "config.data.source: label_key='human'"),
  ("source.classes", (0, 10), r"config.data.source.classes=\(0, 10\)"),
  ("target.classes", (1, 1), r"config.data.target.classes=\(1, 1\) names a class twice"),
  ("source.classes", (0, 1, 2), "config.data.shared_classes=True: classes that only one side has: '3', '4'"),
  ("source.num_examples", -1, "config.data.source.num_examples=-1 is negative"),
  ("source.num_examples", 1348, "config.data.source.num_examples=1348 but only 1347"),
  ("source.num_examples", 5, "source has no example of class"),
  ("target.num_examples", 0, "examples_per_class=0; give one of the two"),
  ("target.examples_per_class", 3, "num_examples=50 and .*; give one of the two"),
  ("target.num_examples", 7, "config.data.target.num_examples=7 leaves some of the 10 classes"),
  ("target.num_examples", 1430, "config.data.target.num_examples=1430 but class . has only 1"),
  ("target.num_validation", 1380, "config.data.target.num_validation=1380 but class . has only 1"),
  ("target.num_validation", -2, "config.data.target.num_validation=-2 is negative"),
  ("source.noise", "symetric", "config.data.source.noise='symetric' .*did you mean 'symmetric'"),
  ("source.noise", "matrix", r"config.data.source.noise_matrix has shape .*\[10, 10\]"),
  ("source.noise", "asymmetric", r"config.data.source.noise_pairs=\(\) but"),
  ("source.noise", "instance", "config.data.source.noise_images=0"),
  ("source.normalization", "chanel", "config.data.source.normalization='chanel'"),
  ("source.normalization", "fixed", "config.data.source.normalization='fixed' .*1 numbers each"),
  ("source.mean", (0.5,), "config.data.source.mean="),
  ("target.normalization", "unit", "config.data.target.normalization='unit' but with shared"),
  ("source.size", 4, "images are"),
  ("source.size", -4, "config.data.source.size=-4 is negative"),
]


@pytest.mark.parametrize(("path", "value", "message"), DIGITS_ERRORS)
def test_errors_name_the_field(path, value, message):
  config = digits_config()
  change(config, path, value)
  with pytest.raises(ValueError, match=message):
    get_task(config, 0)


@pytest.mark.parametrize("rate", [-0.1, 1.01])
def test_noise_rate_outside_its_range(rate):
  config = digits_config()
  config.source.update(noise="symmetric", noise_rate=rate)
  with pytest.raises(ValueError, match=f"config.data.source.noise_rate={rate}"):
    get_task(config, 0)


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("source.noise", "symmetric"),
    ("source.noise_rate", 0.3),
    ("source.classes", (0,)),
    ("source.size", 3),
    ("target.examples_per_class", 3),
    ("target.classes", (1, 0)),
    ("target.dataset", "digits"),
    ("shared_classes", False),
  ],
)
def test_synthetic_refuses_what_it_does_not_use(path, value):
  config = synthetic_config()
  change(config, path, value)
  with pytest.raises(ValueError, match=f"config.data.{path}="):
    get_task(config, 0)


def test_an_unknown_data_set_is_named(tiny_dir):
  config = tiny_config(tiny_dir)
  config.source.dataset = "cifra10"
  with pytest.raises(ValueError, match="config.data.source: .*'cifra10'.*did you mean 'cifar10'"):
    get_task(config, 0)


def test_same_classes_in_another_order_meet_by_name(tmp_path, tiny_dir, write_set, random_set):
  write_set(tmp_path, "one", {"train": random_set(30, 2)}, class_names=("cat", "dog", "owl"))
  splits = {"train": random_set(30, 3), "test": random_set(9, 4)}
  write_set(tmp_path, "two", splits, class_names=("dog", "cat", "owl"))
  config = tiny_config(tmp_path)
  config.source.dataset, config.target.dataset = "one", "two"
  found = get_task(config, 0)
  assert found.source_class_names == found.target_class_names == ("cat", "dog", "owl")
  config.shared_classes = False
  apart = get_task(config, 0)
  assert apart.target_class_names == ("dog", "cat", "owl")
  np.testing.assert_array_equal(found.test["label"], np.array([1, 0, 2])[apart.test["label"]])


def test_numbered_classes_share_with_named_ones(tmp_path, write_set, random_set):
  write_set(tmp_path, "numbered", {"train": random_set(30, 2)}, class_names=("0", "1", "2"))
  write_set(tmp_path, "named", {"train": random_set(30, 3), "test": random_set(9, 4)})
  config = tiny_config(tmp_path)
  config.source.dataset, config.target.dataset = "numbered", "named"
  assert get_task(config, 0).target_class_names == ("zero", "one", "two")


def test_pictures_are_isolated_before_they_are_made_smaller():
  config = data_config()
  for side in ("source", "target"):
    config[side].update(dataset="digits", isolate=True, size=14)
  config.target.update(num_examples=20)
  task = get_task(config, 0)
  whole = isolation.isolate(digits.load("train")["x"], 14)
  assert task.source["x"].shape[1:] == (14, 14, 1)
  np.testing.assert_array_equal(task.source["x"], whole[task.source["row"]])


@pytest.mark.parametrize("isolate", [False, True])
def test_pictures_are_made_upright_at_their_size(isolate):
  config = data_config()
  for side in ("source", "target"):
    config[side].update(dataset="digits", isolate=isolate, deskew=True, size=14)
  config.target.update(num_examples=20)
  task = get_task(config, 0)
  digits_of_set = digits.load("train")["x"]
  small = isolation.isolate(digits_of_set, 14) if isolate else resize(digits_of_set, 14)
  np.testing.assert_array_equal(task.source["x"], deskewing.deskew(small)[task.source["row"]])


def test_what_reads_a_split_is_told_all_of_the_config():
  asked = []

  def read(split):
    asked.append(split)
    x = np.random.default_rng(len(asked)).integers(0, 256, (40, 2, 2, 1), np.uint8)
    examples = {"x": x, "label": np.arange(40) % 2, "row": np.arange(40)}
    return Subset(examples, ("0", "1"), split.dataset, split.split)

  config = data_config()
  config.update(data_dir="sets", on_unreadable="skip", feed="streaming", shared_classes=False)
  same = dict(label_key="worse_label", grayscale=True, size=2, isolate=True, deskew=True, aspect="pad")
  config.source.update(same | dict(dataset="many", background="black"))
  config.target.update(same | dict(dataset="few", path="", background="gray", num_examples=4))
  get_task(config, 0, read=read)
  same |= dict(data_dir="sets", on_unreadable="skip", most_bytes=lazy.memory_limit("streaming", 1))
  few = [Split("few", split, background="gray", **same) for split in ("test", "train")]
  assert asked == [*few, Split("many", "train", background="black", **same)]
