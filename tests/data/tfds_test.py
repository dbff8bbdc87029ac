import importlib.util
import logging as std_logging

import numpy as np
import pytest
from PIL import Image

from soseleto_jax.data import normalization, tfds


def sorted_rows(x, label):
  return sorted((image.tobytes(), int(y)) for image, y in zip(x, label, strict=True))


@pytest.mark.parametrize(("split", "n", "seed"), [("train", 60, 0), ("test", 15, 1)])
def test_reads_what_was_written(tiny_dir, random_set, split, n, seed):
  examples = tfds.load("tiny", split, str(tiny_dir))
  assert examples["x"].dtype == np.uint8 and examples["label"].dtype == np.int32
  assert examples["class_names"] == ("zero", "one", "two")
  assert sorted_rows(examples["x"], examples["label"]) == sorted_rows(*random_set(n, seed))


def test_order_is_the_data_sources_own(tiny_dir):
  import tensorflow_datasets

  source = tensorflow_datasets.data_source("tiny", split="train", data_dir=str(tiny_dir))
  examples = tfds.load("tiny", "train", str(tiny_dir))
  np.testing.assert_array_equal(examples["x"], [example["image"] for example in source])
  np.testing.assert_array_equal(examples["label"], [example["label"] for example in source])


def test_more_images_than_one_chunk(tiny_dir, monkeypatch):
  whole = tfds.load("tiny", "train", str(tiny_dir))
  monkeypatch.setattr(tfds, "_CHUNK", 7)
  for key, value in tfds.load("tiny", "train", str(tiny_dir)).items():
    np.testing.assert_array_equal(value, whole[key])


def test_slices(tiny_dir):
  whole = tfds.load("tiny", "train", str(tiny_dir))
  part = tfds.load("tiny", "train[10:25]", str(tiny_dir))
  np.testing.assert_array_equal(part["x"], whole["x"][10:25])


def test_reading_shows_nothing(tiny_dir, capfd, caplog):
  with caplog.at_level(std_logging.WARNING):
    tfds.load("tiny", "train", str(tiny_dir))
  assert capfd.readouterr() == ("", "") and not caplog.records


def test_human_labels_come_with_the_true_ones(tiny_dir):
  plain = tfds.load("tiny_n", "train", str(tiny_dir))
  human = tfds.load("tiny_n", "train", str(tiny_dir), label_key="human")
  assert "true_label" not in plain
  np.testing.assert_array_equal(human["true_label"], plain["label"])
  assert np.count_nonzero(human["label"] != human["true_label"]) == 24


@pytest.mark.parametrize(
  ("names", "known"), [(("0", "1", "2"), True), (("a", "b", "c"), False), (("0", "1", "2", "3"), False)]
)
def test_human_labels_under_other_names(tmp_path, write_set, random_set, names, known):
  """TFDS knows the names of the column `label` of cifar10_n, and numbers for the human ones."""
  images, labels = random_set(9, 0)
  write_set(tmp_path, "other", {"train": (images, labels)}, noisy=np.zeros(9, int), noisy_names=names)
  found = tfds.load("other", "train", str(tmp_path), label_key="human")
  assert not found["label"].any() and ("true_label" in found) == known
  assert found["class_names"] == (("zero", "one", "two") if known else names)
  if known:
    assert sorted_rows(found["x"], found["true_label"]) == sorted_rows(images, labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_and_size_are_the_transforms(tmp_path, write_set, random_set, channels):
  images, labels = random_set(6, 2, (6, 6, channels))
  write_set(tmp_path, "square", {"train": (images, labels)})
  plain = tfds.load("square", "train", str(tmp_path))["x"]
  gray = normalization.grayscale(plain)
  for expected, kwargs in [
    (gray, dict(grayscale=True)),
    (normalization.resize(plain, 4), dict(size=4)),
    (normalization.resize(gray, 4), dict(size=4, grayscale=True)),
  ]:
    found = tfds.load("square", "train", str(tmp_path), **kwargs)["x"]
    np.testing.assert_array_equal(found, expected)


def test_unequal_images_need_a_size(tmp_path, write_set, random_set):
  small, large = random_set(3, 0, (4, 4, 3))[0], random_set(3, 0, (5, 6, 3))[0]
  write_set(tmp_path, "mixed", {"train": ([*small, *large], [0, 1, 2] * 2)})
  with pytest.raises(ValueError, match="unequal sizes.*set `size`"):
    tfds.load("mixed", "train", str(tmp_path))
  resized = tfds.load("mixed", "train", str(tmp_path), size=4)["x"]
  assert resized.shape == (6, 4, 4, 3)
  written = {image.tobytes() for image in small}
  written |= {np.asarray(Image.fromarray(i).resize((4, 4), Image.BILINEAR)).tobytes() for i in large}
  assert {image.tobytes() for image in resized} == written


def test_environment_names_the_folder(tiny_dir, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_dir))
  assert len(tfds.load("tiny", "test")["x"]) == 15


def test_given_folder_goes_before_the_environment(tiny_dir, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert len(tfds.load("tiny", "test", str(tiny_dir))["x"]) == 15


@pytest.mark.parametrize(
  ("name", "split", "kwargs", "message"),
  [
    ("cifra10", "train", {}, "'cifra10'.*did you mean 'cifar10'"),
    ("tiny", "trian", {}, "split='trian'.*train, test"),
    ("tiny", "train[:x]", {}, r"split='train\[:x\]'.*train, test"),
    ("tiny", "train[:0]", {}, r"split='train\[:0\]'"),
    ("tiny", "train", dict(label_key="lable"), "label_key='lable'.*it has label"),
    ("tiny_n", "train", dict(label_key="image"), "label_key='image'.*it has .*human"),
    ("tiny:9.9.9", "train", {}, "tiny:9.9.9"),
  ],
)
def test_wrong_names(tiny_dir, name, split, kwargs, message):
  with pytest.raises(ValueError, match=message):
    tfds.load(name, split, str(tiny_dir), **kwargs)


def test_missing_set_says_how_to_get_it(tmp_path, monkeypatch):
  without("tensorflow", monkeypatch)
  with pytest.raises(RuntimeError) as error:
    tfds.load("mnist", "train", str(tmp_path))
  for part in (
    "'mnist'",
    str(tmp_path),
    "TensorFlow, which is not installed",
    "soseleto_jax[tensorflow]",
    "tfds build mnist --file_format=array_record",
    "config.data.data_dir",
    "TFDS_DATA_DIR",
  ):
    assert part in str(error.value)


def test_failed_download_names_its_cause(tmp_path, monkeypatch):
  import tensorflow_datasets

  def fail(*_, **__):
    raise OSError("no route to host")

  present("tensorflow", monkeypatch)
  monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", fail)
  with pytest.raises(RuntimeError, match="OSError: no route to host.*tfds build mnist"):
    tfds.load("mnist", "train", str(tmp_path))


def test_a_missing_set_is_prepared(tmp_path, monkeypatch, random_set, png):
  import tensorflow_datasets

  images, labels = random_set(9, 0, (28, 28, 1))
  examples = [
    (n, {"image": png(image), "label": int(label)}) for n, (image, label) in enumerate(zip(images, labels, strict=True))
  ]
  present("tensorflow", monkeypatch)
  builder_class = type(tensorflow_datasets.builder("mnist", data_dir=str(tmp_path)))
  monkeypatch.setattr(builder_class, "_split_generators", lambda *_: {"train": iter(examples)})
  found = tfds.load("mnist", "train", str(tmp_path))
  assert sorted_rows(found["x"], found["label"]) == sorted_rows(images, labels)


def test_a_missing_set_is_not_prepared_against_ones_will(tmp_path, monkeypatch):
  import tensorflow_datasets

  asked = []
  present("tensorflow", monkeypatch)
  monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", lambda *_, **__: asked.append(1))
  with pytest.raises(RuntimeError, match="was not to be prepared.*tfds build mnist"):
    tfds.load("mnist", "train", str(tmp_path), prepare=False)
  assert not asked


def test_a_set_in_another_format_is_explained(tiny_dir, monkeypatch):
  import tensorflow_datasets

  def refuse(*_, **__):
    raise NotImplementedError("tfrecord")

  monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "as_data_source", refuse)
  with pytest.raises(RuntimeError, match="not as ArrayRecord.*tfds build tiny"):
    tfds.load("tiny", "train", str(tiny_dir))


def test_missing_pillow_is_named(tiny_dir, monkeypatch):
  without("PIL", monkeypatch)
  with pytest.raises(ImportError, match="pip install pillow"):
    tfds.load("tiny", "train", str(tiny_dir))


def without(module, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == module else find(name, *args))


def present(module, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: name == module or find(name, *args))
