"""What the experiments share: runs that are trained once, and their records."""

import datetime
import functools
import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest

from experiments import runs
from soseleto_jax.config import default_config
from soseleto_jax.methods import soseleto
from soseleto_jax.run import trial
from soseleto_jax.run.signals import Preempted
from soseleto_jax.run.workdir import claim
from tests import runs as tiny


class Train:
  """Stands for a training: notes how it was called and returns the seed as accuracy, or raises `error` once."""

  def __init__(self, error=None):
    self.folders, self.settings, self.error = [], [], error

  def __call__(self, config, workdir, **settings):
    with claim(workdir):
      self.folders.append(workdir)
      self.settings.append(settings)
      error, self.error = self.error, None
      if error:
        raise error
      return {"test_accuracy": config.seed / 10}


def make_run(train, key="ours", conditions=(("noise", 0.3),), settings=(), **fields):
  config = default_config()
  config.model = dict(name="mlp", hidden=(4, 4), dtype="float32")  # tuples become lists in a record
  config.update_from_flattened_dict({"alpha.params": ("classifier",)} | fields)
  return runs.Run(key, dict(conditions), config, train, dict(settings))


@pytest.fixture
def train_all(tmp_path):
  """Trains runs and returns the lines of the file of records."""
  path = tmp_path / "results" / "name.jsonl"

  def call(*chosen, protocol="small", after_each=lambda: None):
    runs.train_all(chosen, protocol, tmp_path / "work", path, after_each)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  call.path = path
  return call


def rewrite(path, change):
  """Changes every record of a file."""
  records = [json.loads(line) for line in path.read_text().splitlines()]
  for record in records:
    change(record)
  path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_record(train_all, monkeypatch):
  monkeypatch.setattr(runs, "_commit", lambda: "abc1234+")
  run = make_run(Train(), settings={"folds": 3}, seed=7)
  (record,) = train_all(run)
  assert record.pop("machine")
  assert record == {
    "protocol": "small",
    "method": "ours",
    "conditions": {"noise": 0.3},
    "metrics": {"test_accuracy": 0.7},
    "settings": {"folds": 3},
    "commit": "abc1234+",
    "versions": {"method soseleto": 1, "tests.experiments.runs_test": 1},
    "date": datetime.date.today().isoformat(),
    "config": json.loads(json.dumps(run.config.to_dict())),
  }
  assert run.train.settings == [{"folds": 3}]


def test_records_are_appended_and_no_run_is_repeated(train_all):
  train, rendered = Train(), []
  chosen = [make_run(train, seed=seed) for seed in (0, 1)]
  first = train_all(chosen[0], after_each=lambda: rendered.append(1))
  both = train_all(*chosen, after_each=lambda: rendered.append(1))
  assert both[:1] == first and [record["config"]["seed"] for record in both] == [0, 1]
  assert train_all(*chosen) == both
  assert len(train.folders) == len(set(train.folders)) == len(rendered) == 2


@pytest.mark.parametrize(
  "other",
  [
    {"key": "theirs"},
    {"conditions": {"noise": 0.4}},
    {"conditions": {"noise": 0.3, "draw": 1}},
    {"settings": {"folds": 4}},
    {"seed": 1},
    {"method_options.folds": 4},
    {"augment.source": ("flip",)},
    {"alpha.params": ("dense_0",)},
    {"model": dict(name="mlp", hidden=(4, 5), dtype="float32")},
    {"data.source.num_examples": 10},
  ],
)
def test_another_run_has_another_record_and_folder(train_all, other):
  train = Train()
  assert len(train_all(make_run(train, settings={"folds": 3}))) == 1
  assert len(train_all(make_run(train, **{"settings": {"folds": 3}} | other))) == 2
  assert len(set(train.folders)) == 2


@pytest.mark.parametrize("module", [soseleto, sys.modules[__name__]], ids=["method", "training"])
def test_what_another_version_computed_is_another_run(train_all, monkeypatch, module):
  """Of the method's module, or of the one that trains; records of before there were versions are of version 1."""
  train = Train()
  train_all(make_run(train))
  rewrite(train_all.path, lambda record: record.pop("versions"))
  train_all(make_run(train))
  assert len(train.folders) == 1
  monkeypatch.setattr(module, "VERSION", 2, raising=False)
  train_all(make_run(train))
  train_all(make_run(functools.partial(train)))
  assert len(train.folders) == 2
  train_all(make_run(train, method="joint"))
  monkeypatch.setattr(module, "VERSION", 3)
  train_all(make_run(train, method="joint"))
  assert len(train.folders) == (3 if module is soseleto else 4)  # plain training knows nothing of SOSELETO's version


def test_a_version_is_that_of_the_module_whatever_it_is_run_as(monkeypatch):
  """`python -m experiments.unlabelled` calls it __main__."""
  spec = importlib.machinery.ModuleSpec("experiments.unlabelled", None)
  main = types.ModuleType("__main__")
  main.VERSION, main.__spec__ = 3, spec
  monkeypatch.setitem(sys.modules, "__main__", main)
  train = types.FunctionType((lambda config, workdir: {}).__code__, {"__name__": "__main__"})
  assert make_run(train).versions() == {"method soseleto": 1, "experiments.unlabelled": 3}
  main.__spec__ = None  # of a program that is run as a file
  assert make_run(train).versions() == {"method soseleto": 1, "__main__": 3}


def test_the_trial_s_version_counts_where_there_is_one():
  trials = {"alpha.trial_epochs": 3}
  versions = [make_run(Train(), **fields).versions() for fields in (trials, {}, trials | {"method": "joint"})]
  assert [counted.get("trial") for counted in versions] == [trial.VERSION, None, None]


def test_what_computes_the_same_is_the_same_run(train_all):
  train = Train()
  train_all(make_run(train))
  train_all(make_run(train, **{"name": "renamed", "steps_per_call": 5, "data.data_dir": "/elsewhere"}))
  assert len(train.folders) == 1


@pytest.mark.parametrize(
  ("method", "reads"),
  [("source_only", False), ("noise_layer", False), ("soseleto", True), ("my_package.nets:make_method", True)],
)
def test_settings_of_alpha_count_for_methods_that_may_read_them(train_all, method, reads):
  train = Train()
  for step_size in (0.1, 0.2):
    train_all(make_run(train, "theirs", **{"alpha.step_size": step_size}, method=method))
  assert len(train.folders) == 1 + reads


def test_a_field_that_is_younger_than_the_record_has_its_default(train_all):
  train = Train()
  train_all(make_run(train))

  def older(record):
    del record["config"]["alpha"]["target_params"], record["config"]["data"]["source"]["noise_matrix"]

  rewrite(train_all.path, older)
  train_all(make_run(train))
  assert len(train.folders) == 1
  train_all(make_run(train, **{"alpha.target_params": "all"}))
  assert len(train.folders) == 2


def test_a_field_that_is_no_more(train_all):
  train = Train()
  train_all(make_run(train))
  rewrite(train_all.path, lambda record: record["config"]["alpha"].update(temperature=2.0))
  train_all(make_run(train))
  assert len(train.folders) == 2


def test_a_run_of_another_process_is_left_to_it(train_all, tmp_path):
  train = Train()
  chosen = [make_run(train, seed=seed) for seed in (0, 1)]
  with claim(tmp_path / "work" / "small" / chosen[0].folder()):
    assert [record["config"]["seed"] for record in train_all(*chosen)] == [1]
  assert [record["config"]["seed"] for record in train_all(*chosen)] == [1, 0]


def test_a_run_that_another_process_recorded_meanwhile(train_all):
  train = Train()
  train_all(make_run(train))
  line = train_all.path.read_text()
  train_all.path.unlink()

  def slow(*args, **settings):
    train_all.path.write_text(line)
    return train(*args, **settings)

  assert len(train_all(make_run(slow))) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("all checkpoints are damaged")])
def test_an_interrupted_run_goes_on_in_its_folder(train_all, error):
  train = Train(error)
  with pytest.raises(type(error)):
    train_all(make_run(train))
  assert not train_all.path.exists()
  assert len(train_all(make_run(train))) == 1
  assert len(train.folders) == 2 and len(set(train.folders)) == 1


def test_protocols_share_no_record_and_no_folder(train_all):
  train = Train()
  train_all(make_run(train), protocol="full")
  assert [record["protocol"] for record in train_all(make_run(train))] == ["full", "small"]
  assert len(set(train.folders)) == 2


def make_experiment(train, rendered=None):
  def make_runs(protocol, seeds):
    return [make_run(train, method, seed=seed) for seed in seeds for method in ("ours", "theirs")]

  def render(protocol, records, folder):
    rendered.append((protocol, [(record["method"], record["config"]["seed"]) for record in records], folder))

  return runs.Experiment("name", make_runs, render, seeds=(8, 9))


def test_records_that_count(train_all):
  """The newest of each run that the experiment has today, in its order and of one protocol."""
  train = Train()
  experiment = make_experiment(train)
  chosen = experiment.make_runs("small", [1, 0])
  train_all(*chosen)
  train_all(*chosen[:1], protocol="full")
  train_all(make_run(train, "ours", settings={"folds": 3}), make_run(train, "dropped", seed=2))
  lines = train_all.path.read_text().splitlines()
  newer = json.loads(lines[0]) | {"metrics": {"test_accuracy": 0.9}}
  train_all.path.write_text("\n".join([*lines, json.dumps(newer)]) + "\n")

  found = runs.records_of(experiment, "small", train_all.path)
  assert [(record["method"], record["config"]["seed"]) for record in found] == [
      ("ours", 0), ("theirs", 0), ("ours", 1), ("theirs", 1),
  ]  # fmt: skip
  assert [record["metrics"]["test_accuracy"] for record in found] == [0.0, 0.0, 0.9, 0.1]
  assert len(runs.records_of(experiment, "full", train_all.path)) == 1
  assert runs.records_of(experiment, "full", train_all.path.with_name("other.jsonl")) == []


def test_the_command(tmp_path):
  train, rendered = Train(), []
  folders = [f"--workdir={tmp_path / 'work'}", f"--results={tmp_path / 'results'}"]
  command = lambda *arguments: runs.main(make_experiment(train, rendered), [*folders, *arguments])
  command("--seeds=3", "--methods=theirs")
  assert rendered == 2 * [("small", [("theirs", 3)], tmp_path / "results")]  # after the run, and at the end
  command("--seeds=3,4", "--protocol=full")
  command("--seeds=4")
  assert rendered[-1] == ("small", [("theirs", 3), ("ours", 4), ("theirs", 4)], tmp_path / "results")
  assert len((tmp_path / "results" / "name.jsonl").read_text().splitlines()) == len(train.folders) == 1 + 4 + 2
  command()
  assert [seed for method, seed in rendered[-1][1] if method == "ours"] == [4, 8, 9]
  assert {folder.parent for folder in train.folders} == {tmp_path / "work" / name for name in runs.PROTOCOLS}


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--methods=ours,their,sours", "--methods=their,sours: the methods are ours, theirs"),
    ("--seeds=0,x", "--seeds: '0,x': give whole numbers, such as 0,1,2"),
    ("--protocol=fast", "invalid choice: 'fast' (choose from 'full', 'small')"),
    ("--seed=0", "unrecognized arguments: --seed=0"),
  ],
)
def test_wrong_arguments(tmp_path, capsys, argument, message):
  train = Train()
  with pytest.raises(SystemExit) as error:
    runs.main(make_experiment(train, []), [f"--workdir={tmp_path}", f"--results={tmp_path}", argument])
  assert error.value.code == 2 and message in capsys.readouterr().err
  assert not train.folders and not list(tmp_path.iterdir())


def test_a_run_that_fails_says_why_and_ends_the_command(tmp_path):
  experiment = make_experiment(Train(FloatingPointError("step 3: source_loss is nan")), [])
  with pytest.raises(SystemExit, match="error: step 3: source_loss is nan"):
    runs.main(experiment, [f"--workdir={tmp_path}", f"--results={tmp_path}"])


def test_a_run_that_has_to_stop_says_so_by_its_exit_code(tmp_path):
  experiment = make_experiment(Train(Preempted()), [])
  with pytest.raises(SystemExit) as error:
    runs.main(experiment, [f"--workdir={tmp_path}", f"--results={tmp_path}"])
  assert error.value.code == 75


@pytest.mark.usefixtures("no_report")
def test_one_network(tmp_path, monkeypatch):
  """`train_run` trains by the config's method and its options, and returns what counts of the summary."""
  task = tiny.make_task()
  monkeypatch.setattr(runs, "task_of", lambda config: task)
  config = tiny.make_config(method="source_only", num_epochs=1)
  values = runs.train_run(config, tmp_path)
  assert values.keys() >= {"test_accuracy", "seconds", "steps"} and values["num_source"] == tiny.NUM_SOURCE
  assert values.keys().isdisjoint({"method", "task", "seed", "device", "best_checkpoint", "retention"})
  config.method_options.folds = 2
  with pytest.raises(ValueError, match="config.method_options.folds"):
    runs.train_run(config, tmp_path)


def test_runs_share_what_was_read(monkeypatch):
  config = default_config()
  config.data.source.dataset = config.data.target.dataset = "digits"
  config.data.target.num_examples = 50
  first, second = runs.task_of(config), runs.task_of(config)
  assert np.shares_memory(first.test["x"], second.test["x"])


def test_the_retention_curve_is_recorded_where_wrong_labels_are_known():
  # The 30 lowest weights are those of the wrong labels.
  source = {"label": np.where(np.arange(100) < 30, 1, 0), "true_label": np.zeros(100, int)}
  result = types.SimpleNamespace(summary={"auc": 1.0}, alpha=np.linspace(0, 1, 100, dtype=np.float32))
  values = runs.recorded_metrics(result, source)
  kept = np.arange(2, 101, 2)
  np.testing.assert_allclose(values["retention"], np.maximum(0, kept - 70) / kept, atol=1e-5)
  json.dumps(values)
