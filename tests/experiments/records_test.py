"""Records go on counting, whatever their fields were called when they were written: hours stand in them."""

import copy
import json

import pytest

from experiments import figure1, figure2, human_noise, runs, svhn_instances, table1, table2

# How many lines the committed files had when methods got options and the names of fields changed, and which of them,
# from 0, had stopped counting before, since settings had. Where an experiment's settings change on purpose, so that
# more stop counting, this changes with them.
COMMITTED = {
  figure1: (8, ()),
  table1: (130, (2, 3, 4, 10, 11, 12, 14, 15, 20, 21, 24, 28, 29)),
  table2: (180, range(180)),  # by the settings of the authors' release
  svhn_instances: (6, range(6)),  # likewise
  human_noise: (13, (0,)),
}


def name_of(module):
  return module.__name__.split(".")[-1] if hasattr(module, "__name__") else None


def counted(experiment, path):
  """The numbers of the lines of a file that are records of the experiment's runs."""
  lines = [runs.upgraded(json.loads(line)) for line in path.read_text().splitlines()]
  found = [record for protocol in runs.PROTOCOLS for record in runs.records_of(experiment, protocol, path)]
  numbers = [lines.index(record) for record in found]
  assert len(set(numbers)) == len(numbers)  # no line is of two runs
  return set(numbers)


@pytest.fixture
def committed(tmp_path):
  """Returns a file with the first lines of a committed one: later ones may take the place of these."""

  def first(name, count):
    lines = (runs.RESULTS / f"{name}.jsonl").read_text().splitlines()[:count]
    assert len(lines) == count
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return path

  return first


@pytest.mark.parametrize("module", COMMITTED, ids=name_of)
def test_committed_records(committed, module):
  """Those that counted before count, and no others."""
  count, dropped = COMMITTED[module]
  path = committed(module.EXPERIMENT.name, count)
  assert counted(module.EXPERIMENT, path) == set(range(count)) - set(dropped)


def test_figure_2_has_its_part_of_table_1(committed):
  count, _ = COMMITTED[table1]
  path = committed("table1", count)
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  expected = {number for number in counted(table1.EXPERIMENT, path) if lines[number]["method"] in figure2.METHODS}
  assert counted(figure2.EXPERIMENT, path) == expected and len(expected) == 30


@pytest.mark.parametrize(
  ("method", "settings", "expected"),
  [
    ("source_only", {}, ("source_only", {}, {})),
    ("soseleto", {"second": {"num_epochs": 2}}, ("soseleto", {}, {"second": {"num_epochs": 2}})),
    ("noise_layer", {}, ("noise_layer", {}, {})),
    ("meta_weight_net", {"meta_learning_rate": 0.1}, ("meta_weight_net", {"meta_learning_rate": 0.1}, {})),
    ("matching_networks", {}, ("matching_networks", {}, {})),
    ("matching_networks_tuned", {"finetune": True}, ("matching_networks", {"finetune": True}, {})),
    ("label_efficient", {"adversarial_weight": 0.01}, ("label_efficient", {"adversarial_weight": 0.01}, {})),
    ("adversarial", {"semantic_weight": 0.0}, ("label_efficient", {"semantic_weight": 0.0}, {})),
    ("confident_learning", {"num_folds": 3, "final_method": "joint"}, ("joint", {}, {"num_folds": 3})),
    ("confident_learning", {"final_method": "source_only"}, ("source_only", {}, {})),
  ],
)
def test_method_and_options(method, settings, expected):
  """The row's name, "method" of the record, stays."""
  record = {"method": "row", "config": {"method": method, "seed": 1}, "settings": settings, "metrics": {"x": 1}}
  before = copy.deepcopy(record)
  found = runs.upgraded(record)
  assert record == before
  config = found.pop("config")
  assert (config.pop("method"), config.pop("method_options"), found.pop("settings")) == expected
  assert config == {"seed": 1} and found == {"method": "row", "metrics": {"x": 1}}


def test_records_of_today_stay_as_they_are():
  config = {"method": "noise_layer", "method_options": {"fixed_epochs": 2}}
  record = {"method": "row", "config": config, "settings": {"folds": 2}}
  assert runs.upgraded(record) == record


def older(run):
  """What a run's record was before methods had options."""
  config = json.loads(json.dumps(run.config.to_dict()))
  del config["user"]
  config["flip_source"] = config.pop("augment") == {"source": ["flip"], "target": []}
  alpha = config["alpha"]
  alpha["transforms"] = ["standardize" if name == "scale_by_std" else name for name in alpha["transforms"]]
  settings = dict(run.settings) | config.pop("method_options")
  if not run.method.startswith("soseleto"):
    config["method"] = run.method
  if run.method == "confident_learning":
    settings["final_method"] = "joint"
  record = {"method": run.method, "conditions": dict(run.conditions), "settings": settings, "config": config}
  return json.loads(json.dumps(record))


@pytest.mark.parametrize(
  "module", [module for module in COMMITTED if module not in (table2, svhn_instances)], ids=name_of
)
@pytest.mark.parametrize("protocol", runs.PROTOCOLS)
def test_every_run_has_its_own_record_of_before(module, protocol):
  chosen = [run for run in module.EXPERIMENT.make_runs(protocol, [0, 1]) if not run.config.augment.target]  # as before
  chosen = [run for run in chosen if run.method not in ("noise_types_within", "soseleto_default")]  # no rows then
  records = [runs.upgraded(older(run)) for run in chosen]
  for run, record in zip(chosen, records, strict=True):
    assert [other for other in records if run.is_recorded_by(other)] == [record]


def set_field(path, value):
  def change(record):
    *parents, field = path.split(".")
    for parent in parents:
      record = record[parent]
    record[field] = value

  return change


@pytest.mark.parametrize(
  ("module", "method", "change"),
  [
    (table1, "source_only", set_field("config.num_epochs", 5)),
    (table1, "source_only", set_field("config.flip_source", True)),
    (table1, "soseleto", set_field("config.alpha.transforms", ["center_by_class", "residual_normalize"])),
    (table1, "soseleto", set_field("config.alpha.target_loss", "log_odds")),
    (table1, "meta_weight_net", set_field("settings.meta_learning_rate", 1.0)),
    (table1, "confident_learning", set_field("settings.final_method", "source_only")),
    (table1, "confident_learning", set_field("settings.num_folds", 5)),
  ],
)
def test_what_computed_something_else_does_not_count(module, method, change):
  run = next(run for run in module.EXPERIMENT.make_runs("small", [0]) if run.method == method)
  record = older(run)
  assert run.is_recorded_by(runs.upgraded(record))
  change(record)
  assert not run.is_recorded_by(runs.upgraded(record))
