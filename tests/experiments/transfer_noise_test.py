"""The transfer source of which half harms: the same data for every method, and none of the harm for the oracle."""

import numpy as np
import pytest

from experiments import transfer, transfer_noise
from soseleto_jax.config import validate
from soseleto_jax.data.get_task import task_of
from soseleto_jax.data.reading import Split
from soseleto_jax.data.selection import Subset
from soseleto_jax.methods.base import check_options, find_method
from soseleto_jax.run import task_fit


def read(split):
  label = np.arange(400, dtype=np.int32) % 10
  shape = (400, split.size, split.size, 1)
  x = np.random.default_rng(len(split.dataset + split.split)).integers(0, 256, shape, np.uint8)
  row = np.arange(400, dtype=np.int32)
  return Subset({"x": x, "label": label, "row": row}, tuple("0123456789"), split.dataset, split.split)


def read_mnist():
  examples = read(Split("mnist", "train", size=14)).examples
  return examples["x"], examples["label"]


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
  monkeypatch.setattr(transfer_noise, "_read", read)
  monkeypatch.setattr(transfer_noise, "SIZE", 75)


def test_half_of_the_source_harms_and_the_oracle_drops_it():
  task, oracle = (transfer_noise.make_task(3, harm) for harm in (True, False))
  assert task.num_source == 150 and (task.wrong == (np.arange(150) >= 75)).all()
  assert oracle.num_source == 75 and oracle.wrong is None
  for column in ("x", "label"):
    np.testing.assert_array_equal(oracle.source[column], task.source[column][:75])
  for name in ("target", "test"):
    np.testing.assert_array_equal(getattr(oracle, name)["x"], getattr(task, name)["x"])
  assert task.target_class_names == tuple("56789") and not task.shared_classes
  images = {name: {image.tobytes() for image in getattr(task, name)["x"]} for name in ("target", "test")}
  harmful = [image.tobytes() for image in task.source["x"][75:]]
  of_mnist = {image.tobytes(): digit for image, digit in zip(*read_mnist(), strict=True)}
  assert {of_mnist[image] for image in harmful} == {5, 6, 7, 8, 9}
  assert not images["target"] & set(harmful) and not images["test"] & set(harmful)
  assert len(np.unique(task.source["label"][75:])) == 5


def test_every_method_has_the_same_steps():
  chosen = transfer_noise.make_runs("full", [0, 1])
  shared = ("data", "model", "num_steps", "batch_size", "target_batch_size", "optimizer", "augment", "task")
  first = {}
  for run in chosen:
    validate(run.config)
    task_fit.check(run.config, task_of(run.config))
    check_options(run.config.method, find_method(run.config.method), run.config.method_options)
    fields = [run.config[name] for name in shared]
    assert first.setdefault(tuple(run.conditions), fields) == fields
    assert run.config.task_options.harm == (run.method != "oracle") and run.train is transfer.train
  assert len({run.folder() for run in chosen}) == len(chosen) == 2 * 3 * len(transfer_noise.METHODS)


def test_conditions():
  configs = {
    name: next(run.config for run in transfer_noise.make_runs("full", [0]) if run.conditions == conditions)
    for name, conditions in transfer_noise.CONDITIONS.items()
  }
  assert {name: config.model.name for name, config in configs.items()} == {
    "LeNet": "lenet",
    "LeNet, target augmented": "lenet",
    "perceptron": "mlp",
  }
  assert [name for name, config in configs.items() if config.augment.target] == ["LeNet, target augmented"]
  sizes = {name: task_of(config).source["x"].shape[1:] for name, config in configs.items()}
  assert sizes == {name: (14, 14, 1) if name == "perceptron" else (28, 28, 1) for name in configs}


def records_of(accuracy, conditions=transfer_noise.CONDITIONS["LeNet"]):
  return [
    {
      "method": run.method,
      "conditions": run.conditions,
      "config": run.config.to_dict(),
      "metrics": {"test_accuracy": accuracy[run.method][run.config.seed]},
    }
    for run in transfer_noise.make_runs("full", [0, 1])
    if run.conditions == conditions and run.config.seed < len(accuracy.get(run.method, ()))
  ]


def test_cells(tmp_path):
  """Joint training has 70 and 72 %, the oracle 80 and 82, SOSELETO 79 and 80: 8.5 of 10 points."""
  accuracy = {"joint": (0.7, 0.72), "oracle": (0.8, 0.82), transfer_noise.BEST: (0.79, 0.8)}
  of_perceptron = {"joint": (0.6,), "oracle": (0.7,), transfer_noise.BEST: (0.68,)}
  records = records_of(accuracy) + records_of(of_perceptron, transfer_noise.CONDITIONS["perceptron"])
  transfer_noise.render("full", records, tmp_path)
  text = (tmp_path / "transfer_noise_full.md").read_text(encoding="utf-8")
  assert "| source and target jointly | 71.0 ± 1.4 (2) | not run | 60.0 (1) |" in text
  assert "| SOSELETO, at its best | 85% | not run | 80% |" in text
  assert "| source and target jointly | 0% | not run | 0% |" in text
  assert "| target only | not run | not run | not run |" in text
  assert (
    "| source and target jointly | 8.5 ± 0.7 (2) | 2.1 to 14.9 | 2 of 2 | not run |  |  | 8.0 (1) |  | 1 of 1 |" in text
  )


def test_what_is_gained_is_of_the_draws_that_all_have():
  accuracy, at = {"joint": (0.7, 0.5), "oracle": (0.8, 0.9), transfer_noise.BEST: (0.79,)}, {"network": "lenet"}
  assert transfer_noise.gained(records_of(accuracy), transfer_noise.BEST, at) == pytest.approx(0.9)
  assert transfer_noise.gained(records_of({"joint": (0.7,)}), transfer_noise.BEST, at) is None
  assert transfer_noise.gained(records_of(accuracy), transfer_noise.BEST, {}) is None
