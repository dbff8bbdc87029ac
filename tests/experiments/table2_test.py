"""Table 2: the same draws for every method, and differences draw by draw."""

import pytest

from experiments import runs, table2
from soseleto_jax.config import validate
from soseleto_jax.methods.base import check_options, find_method


@pytest.mark.parametrize("protocol", runs.PROTOCOLS)
def test_every_method_has_the_same_data_network_and_epochs(protocol):
  shared = {}
  chosen = table2.make_runs(protocol, [0, 1])
  for run in chosen:
    validate(run.config)
    check_options(run.config.method, find_method(run.config.method), run.config.method_options)
    config = run.config.to_dict()
    fields = {name: config[name] for name in ("data", "model", "num_epochs", "batch_size", "optimizer", "augment")}
    assert run.train is runs.train_run and not run.settings
    assert shared.setdefault((run.conditions["num_target"], run.config.seed), fields) == fields, run.method
    assert config["data"]["target"]["num_examples"] == run.conditions["num_target"]
    assert config["data"]["source"]["num_examples"] == {"full": 0, "small": 10_000}[protocol]
  assert set(shared) == {(20, 0), (25, 0), (20, 1), (25, 1)}
  assert len({run.folder() for run in chosen}) == len(chosen) == 4 * len(table2.METHODS)


def test_methods_of_soseleto_differ_in_what_descends_the_target():
  first = {run.method: run.config for run in table2.make_runs("small", [0])[: len(table2.METHODS)]}
  assert first["soseleto"].method == first["soseleto_joint"].method == "soseleto"
  assert [first[name].alpha.target_params for name in ("soseleto", "soseleto_joint")] == ["none", "all"]
  assert first["soseleto_joint"].alpha.init < first["soseleto"].alpha.init


def test_ten_draws_unless_told_otherwise():
  assert len(set(table2.EXPERIMENT.seeds)) == 10


def test_methods_that_share_a_name_differ_in_their_options():
  first = {run.method: run.config for run in table2.make_runs("full", [0])[: len(table2.METHODS)]}
  options = {name: (config.method, config.method_options.to_dict()) for name, config in first.items()}
  assert options["matching_networks"] == ("matching_networks", {})
  assert options["matching_networks_tuned"] == ("matching_networks", {"finetune": True})
  assert options["label_efficient"] == ("label_efficient", {"adversarial_weight": 0.01})
  assert options["adversarial"] == ("label_efficient", {"adversarial_weight": 0.01, "semantic_weight": 0.0})


def test_cells(tmp_path):
  records = []
  for run in table2.make_runs("small", [0, 1, 2]):
    ahead = {"soseleto_joint": 0.01, "target_only": 0.02 * (run.config.seed == 2)}.get(run.method)
    if ahead is not None and (run.method, run.conditions["num_target"]) != ("target_only", 20):
      values = {"test_accuracy": 0.7 + run.config.seed / 10 + ahead, "num_source": 10_000}
      records.append(
        {"method": run.method, "conditions": run.conditions, "config": run.config.to_dict(), "metrics": values}
      )
  table2.render("small", records, tmp_path)
  text = (tmp_path / "table2_small.md").read_text(encoding="utf-8")
  assert "| SOSELETO, and target jointly | 81.0 ± 10.0 (3) | 83.2 | -2.2 | 81.0 ± 10.0 (3) | 87.9 | -6.9 |" in text
  assert "| target only | not run | 80.1 |  | 80.7 ± 11.0 (3) | 84.0 | -3.3 |" in text
  assert "| target only | not run |  | 0.3 ± 1.2 (3) | 2 of 3 |" in text  # by 1, 1 and -1 points
  assert "10,000 source images" in text
