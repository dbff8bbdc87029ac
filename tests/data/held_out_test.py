"""Clean sets as people have them: of unequal classes, without a test set, or with one drawn from the target."""

import numpy as np
import pytest

from soseleto_jax.data.get_task import data_config, get_task
from tests.data.written import write_arrays


@pytest.fixture(name="config")
def config_fixture(tmp_path):
  rng = np.random.default_rng(0)
  for name, counts in (("many", (20, 20, 20)), ("few", (8, 3, 5)), ("few/test", (0, 2, 2)), ("few/held", (1, 1, 1))):
    label = np.repeat(np.arange(3), counts)
    write_arrays(tmp_path / name, x=rng.normal(size=(len(label), 2)), label=label)
  config = data_config()
  for side, name in ((config.source, "many"), (config.target, "few")):
    side.update(dataset="arrays", path=str(tmp_path / name))
  config.target.test_split = ""
  return config


def counts(examples):
  return np.bincount(examples["label"], minlength=3).tolist()


def test_all_of_an_unequal_target(config):
  found = get_task(config, 0)
  assert found.test is None and found.validation is None
  assert counts(found.target) == [8, 3, 5] and found.num_source == 60


def test_splits_for_both(config):
  config.target.update(test_split="test", validation_split="held")
  found = get_task(config, 0)
  assert (counts(found.test), counts(found.validation)) == ([0, 2, 2], [1, 1, 1])  # by name: no class moves up


def test_drawn_from_the_target(config):
  config.target.update(num_test=6, num_validation=4)
  found = get_task(config, 0)
  parts = [found.target, found.validation, found.test]
  assert [sum(counts(part)) for part in parts] == [6, 4, 6] and counts(found.test) == [2, 2, 2]
  rows = np.concatenate([part["row"] for part in parts])
  assert sorted(rows) == list(range(16))  # each once
  assert min(counts(found.target)) >= 1
  config.target.update(num_test=10)
  with pytest.raises(ValueError, match="num_validation=4 but the target has 6 examples, and one of each class stays"):
    get_task(config, 0)


def test_beside_a_target_of_given_size(config):
  config.target.update(num_test=3, num_validation=3, examples_per_class=1)
  found = get_task(config, 0)
  assert [counts(part) for part in (found.target, found.validation, found.test)] == [[1, 1, 1]] * 3


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"test_split": "test", "num_test": 3}, "test_split='test' and config.data.target.num_test=3; give one of the two"),
    ({"validation_split": "train"}, "validation_split='train' is also target.split"),
    ({"num_examples": 3, "examples_per_class": 1}, "num_examples=3 and .*; give one of the two"),
  ],
)
def test_fields_that_exclude_each_other(config, fields, message):
  config.target.update(fields)
  with pytest.raises(ValueError, match=message):
    get_task(config, 0)
