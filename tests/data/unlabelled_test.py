"""Unlabelled images: those of the target's split and classes that the task does not use."""

import numpy as np
import pytest

from soseleto_jax.data import digits
from soseleto_jax.data.get_task import data_config, get_task
from soseleto_jax.data.unlabelled import get_unlabelled

CLASSES = (5, 6, 7, 8, 9)


def transfer_config():
  config = data_config()
  config.shared_classes = False
  config.source.update(dataset="digits", classes=(0, 1, 2, 3, 4), size=16)
  config.target.update(dataset="digits", classes=CLASSES, num_examples=21, num_validation=30, size=16)
  return config


def images(examples):
  return {image.tobytes() for image in examples["x"]}


def test_all_that_remain():
  config = transfer_config()
  found, held = get_unlabelled(config, 3), get_task(config, 3)
  assert found["x"].shape[1:] == held.target["x"].shape[1:] == (16, 16, 1)
  for part in (held.source, held.target, held.validation, held.test):
    assert images(found).isdisjoint(images(part))
  of_split = np.isin(digits.load("train")["label"], CLASSES)
  rows = np.concatenate([found["row"], held.target["row"], held.validation["row"]])
  assert sorted(rows) == np.flatnonzero(of_split).tolist()
  np.testing.assert_array_equal(found["label"] + 5, digits.load("train")["label"][found["row"]])


def test_draws():
  config = transfer_config()
  few, more, other = (get_unlabelled(config, *draw)["row"] for draw in ((3, 40), (3, 60), (4, 40)))
  assert (len(few), len(more)) == (40, 60)
  assert set(few) < set(more) and set(few) != set(other)
  np.testing.assert_array_equal(few, get_unlabelled(config, 3, 40)["row"])
  np.testing.assert_array_equal(few, np.sort(few))
  everything = get_unlabelled(config, 3)["row"]
  np.testing.assert_array_equal(get_unlabelled(config, 3, 10**6)["row"], everything)
  assert np.mean(few) > 0.5 * np.mean(everything)  # not just the first


def test_slices_that_overlap(tiny_dir):
  config = data_config()
  config.update(data_dir=str(tiny_dir), shared_classes=False)
  config.source.update(dataset="tiny", classes=(0, 1))
  config.target.update(dataset="tiny", classes=(0, 2), num_examples=4, split="train[:40]", test_split="train[20:]")
  found, held = get_unlabelled(config, 0), get_task(config, 0)
  assert len(found["x"])
  for part in (held.target, held.test):
    assert images(found).isdisjoint(images(part))


@pytest.mark.parametrize(
  ("field", "value", "match"),
  [("shared_classes", True, "config.data.shared_classes=True"), ("target.num_examples", 0, "num_examples=0")],
)
def test_configs_that_cannot_be_used(field, value, match):
  config = transfer_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=match):
    get_unlabelled(config, 0)


def test_a_negative_number():
  with pytest.raises(ValueError, match="num_examples=-1 is negative"):
    get_unlabelled(transfer_config(), 0, -1)


def test_nothing_remains():
  config = transfer_config()
  fives = int(np.sum(digits.load("train")["label"] == 5))
  config.target.update(classes=(5,), num_examples=fives - 30)
  with pytest.raises(ValueError, match="leave no images"):
    get_unlabelled(config, 0)
