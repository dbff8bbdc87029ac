"""Table 1: fair runs, and cells in their places."""

import inspect
import json

import pytest

from configs import cifar_noise
from experiments import runs, table1
from soseleto_jax.config import validate
from soseleto_jax.methods import noise_types
from soseleto_jax.methods.base import check_options, find_method


@pytest.mark.parametrize("protocol", runs.PROTOCOLS)
def test_every_method_has_the_same_data_network_and_epochs(protocol):
  shared, own = {}, inspect.signature(noise_types.make_method).parameters
  in_advance = own["joint_epochs"].default + own["type_epochs"].default
  for run in table1.make_runs(protocol, [0, 1]):
    validate(run.config)
    check_options(run.config.method, find_method(run.config.method), run.config.method_options)
    config = run.config.to_dict()
    fields = {name: config[name] for name in ("data", "model", "num_epochs", "batch_size", "optimizer", "augment")}
    if run.method in ("learning_to_reweight", "meta_weight_net"):
      assert fields["optimizer"].pop("learning_rate") < 0.02  # at which they diverge
      fields["optimizer"]["learning_rate"] = 0.02
    if run.method == "noise_types_within":
      assert (fields["num_epochs"], fields["optimizer"].pop("drop_epochs")) == (18 - in_advance, (15 - in_advance,))
      fields["num_epochs"], fields["optimizer"]["drop_epochs"] = 18, (15,)
    assert shared.setdefault((*run.conditions.values(), run.config.seed), fields) == fields, run.method
    assert config["data"]["source"]["noise_rate"] == run.conditions["noise"]
    augmentation = ("flip", "crop=4") if run.conditions.get("augment") else ()
    assert config["augment"]["source"] == config["augment"]["target"] == augmentation
  assert len(shared) == 12
  assert {fields["data"]["source"]["num_examples"] for fields in shared.values()} == {
    {"full": 45_000, "small": 10_000}[protocol]
  }


def test_methods_differ_by_what_they_are_named_after():
  first = {run.method: run for run in table1.make_runs("small", [0])[: len(table1.METHODS)]}
  assert list(first) == list(table1.METHODS)
  assert len({run.folder() for run in table1.make_runs("small", [0, 1])}) == 2 * 6 * len(table1.METHODS)
  paper, best = first["soseleto_paper"].config, first["soseleto"].config
  jointly = first["soseleto_joint"].config
  assert paper.method == best.method == jointly.method == "soseleto"
  assert [config.alpha.target_params for config in (paper, best, jointly)] == ["none", "none", "all"]
  assert (paper.alpha.target_loss, paper.alpha.transforms, paper.alpha.params) == ("cross_entropy", (), ())
  assert best.alpha.transforms
  assert first["soseleto_default"].config.to_dict() == cifar_noise.get_config("small,noise=0.3").to_dict()
  own = {"soseleto_paper": "soseleto", "soseleto_joint": "soseleto", "confident_learning": "joint"}
  own |= {"noise_types_within": "noise_types", "soseleto_default": "soseleto"}
  assert {name: run.config.method for name, run in first.items()} == {name: own.get(name, name) for name in first}
  assert {name: run.settings for name, run in first.items() if run.settings} == {
    "confident_learning": {"num_folds": 3, "fold_epochs": 9}
  }
  assert {name: run.config.method_options.to_dict() for name, run in first.items() if run.config.method_options} == {
    "meta_weight_net": {"meta_learning_rate": 0.1}
  }


def test_cells(tmp_path):
  """Accuracies that tell method, noise and seed; of two methods, all that was run."""
  chosen = [run for run in table1.make_runs("small", [0, 1]) if run.method in ("source_only", "soseleto_joint")]

  def record(run, protocol):
    value = 0.6 + 0.1 * (run.method == "soseleto_joint") - run.conditions["noise"] / 10 + 0.01 * run.config.seed
    value += 0.2 * run.conditions.get("augment", False)
    metrics = {"test_accuracy": value, "test_accuracy_at_best": value + 0.05}
    if run.method == "soseleto_joint":
      metrics |= {"auc": 0.9 + run.config.seed / 100, "alpha_right": 0.8, "alpha_wrong": 0.2}
      metrics |= {"retention": [0.01, 0.02, run.conditions["noise"]]}
    return json.dumps(
      {"protocol": protocol, "method": run.method, "conditions": dict(run.conditions), "metrics": metrics}
      | {"settings": dict(run.settings), "config": run.config.to_dict()}
    )

  path = tmp_path / "table1.jsonl"
  lines = [record(run, "small") for run in chosen if run.conditions["noise"] < 0.5 or run.method == "source_only"]
  path.write_text("\n".join([*lines, record(table1.make_runs("full", [2])[0], "full")]) + "\n")
  for protocol in runs.PROTOCOLS:
    table1.render(protocol, runs.records_of(table1.EXPERIMENT, protocol, path), tmp_path)

  text = (tmp_path / "table1_small.md").read_text(encoding="utf-8")
  accuracy, at_best, paired, auc, main, *augmented = (_rows(part) for part in text.split(":\n\n")[1:])
  header = [f"{noise}: {what}" for noise in ("30%", "40%", "50%") for what in ("ours", "published", "difference")]
  assert accuracy.pop("") == header
  assert accuracy.pop("source only") == [
      "57.5 ± 0.7 (2)", "65.6", "-8.1", "56.5 ± 0.7 (2)", "62.4", "-5.9", "55.5 ± 0.7 (2)", "57.4", "-1.9",
  ]  # fmt: skip
  assert accuracy.pop("SOSELETO, for symmetric noise, and target jointly") == [
      "67.5 ± 0.7 (2)", "72.4", "-4.9", "66.5 ± 0.7 (2)", "70.0", "-3.5", "not run", "66.3", "",
  ]  # fmt: skip
  assert accuracy.pop("clean target only") == ["not run", "", ""] * 3
  assert len(accuracy) == len(table1.METHODS) - 3
  assert at_best["source only"] == ["62.5 ± 0.7 (2)", "61.5 ± 0.7 (2)", "60.5 ± 0.7 (2)"]
  assert paired["source only"] == ["10.0 ± 0.0 (2)", "10.0 to 10.0", "2 of 2"] * 2 + ["not run", "", ""]
  assert paired["SOSELETO, published rule"] == ["not run", "", ""] * 3
  assert auc == {
    "": ["30%", "40%", "50%"],
    "SOSELETO, published rule": ["not run"] * 3,
    "SOSELETO, for symmetric noise": ["not run"] * 3,
    "SOSELETO, for symmetric noise, and target jointly": ["0.905 ± 0.007 (2)"] * 2 + ["not run"],
    "SOSELETO, for any kind of wrong label: the default": ["not run"] * 3,
    "confident learning (Northcutt et al. 2021)": ["not run"] * 3,
  }

  assert main.pop("") == [
      "test accuracy, %", "AUC of 1 - α", "mean α of right labels", "mean α of wrong labels",
      "wrong labels in the best half, %",
  ]  # fmt: skip
  assert main == {
      "source only": ["57.5 ± 0.7 (2)", *[""] * 4],
      "noise layer (Sukhbaatar et al. 2014)": ["not run"] * 5,
      "noise types, reconstruction of Xiao et al. (2015)": ["not run"] * 5,
      "noise types, all within 18 epochs": ["not run"] * 5,
      "SOSELETO, for symmetric noise, and target jointly": [
          "67.5 ± 0.7 (2)", "0.905 ± 0.007 (2)", "0.80 ± 0.00 (2)", "0.20 ± 0.00 (2)", "1.0 ± 0.0 (2)",
      ],
  }  # fmt: skip

  accuracy, paired, auc = augmented
  assert accuracy.keys() == {"", "source only", "SOSELETO, for symmetric noise, and target jointly"}  # which were run
  assert accuracy["source only"] == ["77.5 ± 0.7 (2)", "76.5 ± 0.7 (2)", "75.5 ± 0.7 (2)"]
  assert paired["source only"] == ["10.0 ± 0.0 (2)", "10.0 to 10.0", "2 of 2"] * 2 + ["not run", "", ""]
  assert auc == {
    "": ["30%", "40%", "50%"],
    "SOSELETO, for symmetric noise, and target jointly": ["0.905 ± 0.007 (2)"] * 2 + ["not run"],
  }

  full = (tmp_path / "table1_full.md").read_text(encoding="utf-8")
  assert "flips" not in full  # of which it has no record
  assert full.count("(1)") == 3 and "(2)" not in full  # the one record that is of the full protocol, in three tables


def _rows(text):
  lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
  return {first.strip(): [cell.strip() for cell in cells] for first, *cells in lines}
