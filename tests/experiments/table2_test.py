"""Table 2: the same draws for every method, and differences draw by draw."""

from experiments import table2, transfer
from soseleto_jax import pretraining
from soseleto_jax.config import validate
from soseleto_jax.methods.base import check_options, find_method

SHARED = ("data", "model", "num_steps", "batch_size", "target_batch_size", "optimizer", "augment")


def test_every_method_has_the_same_data_network_steps_and_pretraining():
  shared, first = {}, {}
  chosen = table2.make_runs("full", [0, 1])
  for run in chosen:
    validate(run.config)
    check_options(run.config.method, find_method(run.config.method), run.config.method_options)
    config = run.config.to_dict()
    fields = {name: config[name] for name in SHARED}
    assert run.train is transfer.train and not run.settings
    key = (*run.conditions.values(), run.config.seed)
    assert shared.setdefault(key, fields) == fields, run.method
    assert config["data"]["target"]["num_examples"] == config["target_batch_size"] == run.conditions["num_target"]
    assert bool(config["augment"]["target"]) == run.conditions["augmented"]
    if run.method == "target_only":
      assert run.config.pretrain_epochs == 0
    else:
      before = pretraining.config_of(run.config)
      before.data.target.num_examples, before.name = 5, ""
      assert first.setdefault((run.config.seed, run.conditions["augmented"]), before.to_dict()) == before.to_dict()
  assert len(shared) == 8
  assert len({run.folder() for run in chosen}) == len(chosen) == 8 * len(table2.METHODS)


def of_first(name):
  return next(run.config for run in table2.make_runs("full", [0]) if run.method == name)


def test_methods_of_soseleto_differ_in_what_descends_the_target():
  assert of_first("soseleto").method == of_first(table2.BEST).method == "soseleto"
  assert [of_first(name).alpha.target_params for name in ("soseleto", table2.BEST)] == ["none", "all"]


def test_fine_tuning_is_training_on_the_target_after_the_pretraining():
  assert of_first("finetune").method == "target_only" and of_first("finetune").pretrain_epochs > 0


def test_ten_draws_unless_told_otherwise():
  assert len(set(table2.EXPERIMENT.seeds)) == 10


def test_cells(tmp_path):
  records = []
  for run in table2.make_runs("full", [0, 1, 2]):
    ahead = {table2.BEST: 0.01, "target_only": 0.02 * (run.config.seed == 2)}.get(run.method)
    if ahead is not None and run.conditions != {"num_target": 20, "augmented": False}:
      values = {"test_accuracy": 0.7 + run.config.seed / 10 + ahead, "num_source": 37_172}
      records.append(
        {"method": run.method, "conditions": run.conditions, "config": run.config.to_dict(), "metrics": values}
      )
  table2.render("full", records, tmp_path)
  text = (tmp_path / "table2_full.md").read_text(encoding="utf-8")
  assert "| SOSELETO, at its best | not run | 83.2 |  | 81.0 ± 10.0 (3) | 87.9 | -6.9 |" in text
  assert "| SOSELETO, at its best | 81.0 ± 10.0 (3) | 83.2 | -2.2 | 81.0 ± 10.0 (3) | 87.9 | -6.9 |" in text
  # By 1, 1 and -1 points: a standard error of 2/3, and Student's t of 4.303.
  assert "| target only | not run |  |  | 0.3 ± 1.2 (3) | -2.5 to 3.2 | 2 of 3 |" in text
  assert "37,172 source images" in text
