"""Whole runs: exact resume, signals, refusals, and the folder that a run leaves."""

import contextlib
import csv
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import shutil
import signal
import threading
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats
from sklearn.metrics import roc_auc_score

from experiments.reliability import faults
from soseleto_jax import train
from soseleto_jax.core import sharding
from soseleto_jax.core.step import Step
from soseleto_jax.methods.base import Method, Phase
from soseleto_jax.report import page, writers
from soseleto_jax.run import loop
from soseleto_jax.run.checkpoint import Checkpoints
from soseleto_jax.run.signals import Preempted
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.run.workdir import claim
from soseleto_jax.train import train_and_evaluate
from tests import problems, runs

write_report, write = page.write_report, writers.MetricWriter.write


pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The result of the default experiment, not interrupted, in a folder that nobody changes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(page, "write_report", lambda workdir, **_: workdir / "report.html")
    return train_and_evaluate(runs.make_config(), tmp_path_factory.mktemp("straight"), runs.make_task())


def kill(number):
  return lambda: os.kill(os.getpid(), number)


def saved_steps(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def without(name, mapping):
  return {key: value for key, value in mapping.items() if key != name}


def assert_same_run(a, b):
  problems.assert_same_bits(a.state, b.state)
  problems.assert_same_bits(a.alpha, b.alpha)
  assert [without("steps_per_second", r) for r in a.records] == [without("steps_per_second", r) for r in b.records]
  assert without("seconds", a.summary) == without("seconds", b.summary)


class BatchNormNet(nn.Module):
  """Carries state, and draws."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Dense(3, name="dense")(x.reshape(len(x), -1))
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.8, name="norm")(x))
    return nn.Dropout(0.1, deterministic=not train)(x)


class NnxNet(nnx.Module):
  """The same in NNX."""

  def __init__(self, size, rngs):
    self.dense = nnx.Linear(size, 3, rngs=rngs)
    self.norm = nnx.BatchNorm(3, momentum=0.8, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x):
    return self.dropout(nnx.relu(self.norm(self.dense(x.reshape(len(x), -1)))))


# Resume.


@pytest.mark.parametrize(
  "checkpoints, fields",
  [
    pytest.param((3, 4, 6, 8), dict(eval_every_epochs=0.75, checkpoint_every_epochs=1.0), id="window of means"),
    pytest.param(
      (3, 4, 6, 8),
      dict(steps_per_call=3, checkpoint_every_epochs=0.75),
      id="several steps a call",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      (3, 4, 6, 8),  # the first phase ends at 4, in the middle of a window
      dict(
        method="finetune",
        num_epochs=1,
        eval_every_epochs=0.75,
        checkpoint_every_epochs=1.0,
        optimizer__name="adam",
      ),  # fmt: skip
      id="finetune",
    ),
    pytest.param((4, 8), dict(model__hidden=(4096,), shard_params=True), id="split parameters", marks=pytest.mark.slow),
    pytest.param(
      (4, 8),
      dict(augment__source=("flip", "rotation=20"), alpha__transforms=("scale_by_std",)),
      id="augmentation, dropout, state of the network",
    ),
  ],
)
def test_stopped_after_every_checkpoint(tmp_path, checkpoints, fields):
  """Such a run equals the uninterrupted one bit for bit."""
  config, task, given = runs.make_config(**fields), runs.make_task(), {}
  if config.augment.source:
    task, given = runs.make_task(shape=(3, 4, 1)), {"network": NnxNet(12, nnx.Rngs(0))}
  straight = train_and_evaluate(config, tmp_path / "straight", task, **given)
  workdir = tmp_path / "stopped"
  for step in checkpoints[:-1]:
    with runs.before_step(step, runs.crash), pytest.raises(runs.Crash):
      train_and_evaluate(config, workdir, task, **given)
    assert saved_steps(workdir)[-1] == step
  assert_same_run(train_and_evaluate(config, workdir, task, **given), straight)
  kept = sorted({*checkpoints[-2:], straight.summary["best_checkpoint"]})
  assert saved_steps(workdir) == saved_steps(tmp_path / "straight") == kept
  assert straight.state.step == 8


def test_several_steps_a_call_change_nothing(tmp_path, straight):
  """To rounding: XLA may order the sums of a loop's body otherwise."""
  result = train_and_evaluate(runs.make_config(steps_per_call=3), tmp_path, runs.make_task())
  problems.assert_close(result.state, straight.state)
  assert [r["step"] for r in result.records] == [r["step"] for r in straight.records]
  for record, expected in zip(result.records, straight.records, strict=True):
    problems.assert_close(without("steps_per_second", record), without("steps_per_second", expected))


@contextlib.contextmanager
def handled_by(handler, number):
  """Has a handler for a signal, whatever the tests were started with, and sees that it is there again in the end."""
  before = signal.signal(number, handler)
  try:
    yield
    assert signal.getsignal(number) == handler
  finally:
    signal.signal(number, before)


@pytest.mark.parametrize(
  "number, error",
  [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt), (signal.SIGHUP, Preempted)],
  ids=["SIGTERM", "SIGINT", "SIGHUP"],
)
def test_a_signal_saves_and_stops(tmp_path, straight, number, error):
  config, task = runs.make_config(), runs.make_task()
  with handled_by(signal.SIG_DFL, number), runs.before_step(5, kill(number)), pytest.raises(error):
    train_and_evaluate(config, tmp_path, task)
  assert saved_steps(tmp_path) == [4, 6]  # the step that it met is done first
  assert_same_run(train_and_evaluate(config, tmp_path, task), straight)


def test_a_signal_during_evaluation(tmp_path, monkeypatch, straight):
  evaluate = Experiment.evaluate

  def interrupted(self, state):
    kill(signal.SIGTERM)()
    return evaluate(self, state)

  with monkeypatch.context() as patch, pytest.raises(Preempted):
    patch.setattr(Experiment, "evaluate", interrupted)
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  assert saved_steps(tmp_path) == [4]
  assert_same_run(train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()), straight)


def test_a_closed_terminal_means_nothing_where_it_is_ignored(tmp_path, straight):
  """As `nohup` has it."""
  with handled_by(signal.SIG_IGN, signal.SIGHUP), runs.before_step(5, kill(signal.SIGHUP)):
    assert_same_run(train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()), straight)


def test_a_signal_before_training(tmp_path, monkeypatch, straight):
  """Has nothing to save."""

  def interrupted(*_):
    kill(signal.SIGTERM)()
    pytest.fail("it went on")

  handler = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch, pytest.raises(Preempted):
    patch.setattr(train, "task_of", interrupted)
    train_and_evaluate(runs.make_config(), tmp_path / "run")
  assert signal.getsignal(signal.SIGTERM) is handler
  assert_same_run(train_and_evaluate(runs.make_config(), tmp_path / "run", runs.make_task()), straight)


def test_no_checkpoint_can_be_used(tmp_path):
  """Then a run never starts from the beginning by itself."""
  with runs.before_step(6, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(runs.make_config(checkpoint_every_epochs=0.5), tmp_path, runs.make_task())
  assert saved_steps(tmp_path)[-2:] == [4, 6]
  for step in ("4", "6"):
    faults.DAMAGES["arrays missing"](tmp_path / "checkpoints" / step)
  (tmp_path / "checkpoints" / "2").mkdir(exist_ok=True)
  with pytest.raises(RuntimeError, match="step 6: .*step 4: .*step 2: .*another --workdir"):
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())


def test_the_newest_checkpoint_is_damaged_or_gone(tmp_path, caplog, straight):
  config = runs.make_config(checkpoint_every_epochs=0.5)
  for name, message in (("damaged", "step 8 is damaged"), ("gone", "records up to step 8 but no later checkpoint")):
    workdir = tmp_path / name
    train_and_evaluate(config, workdir, runs.make_task())
    newest = workdir / "checkpoints" / "8"
    faults.DAMAGES["state missing"](newest) if name == "damaged" else shutil.rmtree(newest)
    assert_same_run(train_and_evaluate(config, workdir, runs.make_task()), straight)
    assert message in caplog.text
    assert saved_steps(workdir)[-1] == 8


def test_a_record_whose_checkpoint_was_lost(tmp_path, monkeypatch, straight):
  """The record is written before the checkpoint, and again by the run that goes on from the one before."""
  save = Checkpoints.save
  lost = lambda self, state, *rest: runs.crash() if state.step == 8 else save(self, state, *rest)
  with monkeypatch.context() as patch, pytest.raises(runs.Crash):
    patch.setattr(Checkpoints, "save", lost)
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [4, 8]
  assert saved_steps(tmp_path) == [4]
  assert_same_run(train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()), straight)


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch, caplog):
  """Nor is training when only the report was lost."""
  config, task = runs.make_config(), runs.make_task()
  with monkeypatch.context() as patch, pytest.raises(runs.Crash):
    patch.setattr(page, "write_report", lambda *_, **__: runs.crash())
    train_and_evaluate(config, tmp_path, task)
  monkeypatch.setattr(Experiment, "advance", lambda *_: pytest.fail("it trains again"))
  caplog.set_level("INFO", "soseleto_jax")
  metrics = (tmp_path / "metrics.jsonl").read_bytes()
  first = train_and_evaluate(config, tmp_path, task)
  second = train_and_evaluate(config, tmp_path, task)
  assert_same_run(first, second)
  assert first.report == second.report == tmp_path / "report.html"
  assert len(first.records) == 2
  assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
  assert caplog.text.count("finished before, at step 8 of 8") == 2


def test_a_run_says_that_it_goes_on(tmp_path, caplog):
  with runs.before_step(4, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  assert "going on" not in caplog.text
  caplog.set_level("INFO", "soseleto_jax")
  with runs.before_step(4, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  assert f"{tmp_path}: going on, at step 4 of 8" in caplog.text


@pytest.mark.parametrize(
  "changes",
  [
    {"seed": 1},
    {"num_epochs": 3},
    {"method": "joint"},
    {"alpha.step_size": 0.2},
    {"optimizer.learning_rate": 0.2, "model.hidden": (4, 4)},
    {"data.source.noise_rate": 0.2},
    {"alpha.lookahead": 0.1},
  ],
  ids=lambda changes: " ".join(changes),
)
def test_a_folder_refuses_another_experiment(straight, changes):
  workdir = straight.report.parent
  before = (workdir / "config.json").read_text()
  old = runs.make_config()
  with pytest.raises(ValueError) as raised:
    train_and_evaluate(runs.make_config(**changes), workdir, runs.make_task())
  for field, value in changes.items():
    was = json.loads(json.dumps(field_of(old, field)))
    now = json.loads(json.dumps(value))
    assert f"{field} (was {was!r}, now {now!r}" in str(raised.value)
  assert str(raised.value).count("(was") == len(changes)
  assert str(workdir) in str(raised.value) and "another --workdir" in str(raised.value)
  assert (workdir / "config.json").read_text() == before


def field_of(config, field):
  for name in field.split("."):
    config = config[name]
  return config


def test_a_folder_refuses_other_data(straight):
  task = runs.make_task()
  fewer = dataclasses.replace(task, source={name: column[:-1] for name, column in task.source.items()})
  with pytest.raises(ValueError, match=r"state.alpha is float32\[41\], but float32\[40\] here"):
    train_and_evaluate(runs.make_config(), straight.report.parent, fewer)


@pytest.mark.parametrize("change", ["source label", "target x", "validation label", "test x"])
def test_a_folder_refuses_other_data_of_the_same_size(straight, change):
  name, column = change.split()
  task = runs.make_task()
  examples = getattr(task, name)
  examples[column] = np.roll(examples[column], 1, axis=0)
  with pytest.raises(ValueError, match=f"{straight.report.parent} holds a run on other data: .*another --workdir"):
    train_and_evaluate(runs.make_config(), straight.report.parent, task)


def test_a_folder_refuses_data_that_is_normalized_in_another_way(straight):
  task = runs.make_task(normalization="none")
  with pytest.raises(ValueError, match="other data: source normalization, target normalization differ. Choose another"):
    train_and_evaluate(runs.make_config(), straight.report.parent, task)


def as_before(patch):
  """Lets checkpoints be saved as before records, config and the rest of the data lay in them."""
  save = Checkpoints.save

  def old(self, state, window, *rest):
    return save(self, state, {name: window[name] for name in window.keys() - {"identity", "records"}}, *rest)

  patch.setattr(Checkpoints, "save", old)


def test_a_folder_of_an_older_version_goes_on(tmp_path, monkeypatch, straight):
  with monkeypatch.context() as patch, runs.before_step(4, runs.crash), pytest.raises(runs.Crash):
    as_before(patch)
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  assert_same_run(train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()), straight)


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("metrics.jsonl", None, "metrics.jsonl lacks records of the steps before the checkpoint of step 8.*copy"),
    ("metrics.jsonl", b'{"step": 4', "metrics.jsonl lacks records .*another --workdir"),
    ("config.json", None, "config.json cannot be read: No such file.*copy.*another --workdir"),
    ("config.json", b"{", "config.json cannot be read: Expecting .*copy"),
    ("config.json", b"[1]", "config.json cannot be read: it holds a list, no fields"),
    ("config.json", b"\xff\xfe\xff", "config.json cannot be read: 'utf-.*copy"),
    ("config.json", 10**5 * b"[", "config.json cannot be read: maximum recursion .*copy"),
  ],
)
def test_what_an_older_version_cannot_do_without(tmp_path, monkeypatch, straight, name, content, message):
  """And what the checkpoints of today do: it is written anew."""
  config, task = runs.make_config(), runs.make_task()
  shutil.copytree(straight.report.parent, tmp_path, dirs_exist_ok=True)
  sound = (tmp_path / name).read_bytes()
  (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
  assert_same_run(train_and_evaluate(config, tmp_path, task), straight)
  assert (tmp_path / name).read_bytes() == sound

  def without(self):
    found = newest(self)
    return {key: found[key] for key in found.keys() - {"identity", "records"}}

  newest, read = Checkpoints.newest_loop, Checkpoints._read_loop

  def read_without(self, *args):
    found, arrays = read(self, *args)
    return {key: found[key] for key in found.keys() - {"identity", "records"}}, arrays

  monkeypatch.setattr(Checkpoints, "newest_loop", without)
  monkeypatch.setattr(Checkpoints, "_read_loop", read_without)
  (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    train_and_evaluate(config, tmp_path, task)


@pytest.mark.parametrize(
  "name",
  [".", "metrics.jsonl"]
  + [pytest.param(name, marks=pytest.mark.slow) for name in ("checkpoints", ".lock", "config.json", "tensorboard")],
)
def test_what_is_taken_away_in_mid_run_is_made_anew(tmp_path, straight, name):
  """With all that there is to come, and all records."""
  workdir = tmp_path / "run"

  def take_away():
    pathlib.Path(os.path.normpath(workdir / name)).rename(
      tmp_path / "elsewhere"
    )  # at once, whatever is being written in it

  with runs.before_step(5, take_away):
    assert_same_run(train_and_evaluate(runs.make_config(), workdir, runs.make_task()), straight)
  assert saved_steps(workdir)[-1] == 8
  expected = {path.name for path in straight.report.parent.iterdir()} - {"tensorboard"}
  assert {path.name for path in workdir.iterdir()} - {"tensorboard"} == expected
  assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2
  assert_same_run(train_and_evaluate(runs.make_config(), workdir, runs.make_task()), straight)


def test_a_folder_that_is_another_runs_by_now(tmp_path):
  """Gets no records and no whole checkpoint of this one."""
  workdir = tmp_path / "run"

  def replace():
    workdir.rename(tmp_path / "elsewhere")
    with claim(workdir):
      (workdir / "theirs").touch()

  with (
    runs.before_step(5, replace),
    pytest.raises(RuntimeError, match="run was taken away, and is another run's by now"),
  ):
    train_and_evaluate(runs.make_config(), workdir, runs.make_task())
  assert {path.name for path in workdir.iterdir()} <= {".lock", "theirs", "checkpoints"}  # a save was on its way
  assert not list((workdir / "checkpoints").glob("[0-9]"))


def test_a_forged_record_is_no_result(tmp_path, caplog, straight):
  shutil.copytree(straight.report.parent, tmp_path, dirs_exist_ok=True)
  path = tmp_path / "metrics.jsonl"
  sound = path.read_bytes()
  path.write_bytes(sound + b'{"step": 8, "epoch": 3, "test_accuracy": 1.0, "validation_accuracy": 1.0}\n')
  assert_same_run(train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()), straight)
  assert path.read_bytes() == sound
  assert "metrics.jsonl lacks records of the run, or has others: it is written anew" in caplog.text


@pytest.mark.parametrize("hindrance", ["not a folder", "in use"])
def test_a_folder_is_tried_before_data_is_read(tmp_path, monkeypatch, hindrance):
  monkeypatch.setattr(train, "task_of", lambda *_: pytest.fail("it reads data"))
  with contextlib.ExitStack() as stack:
    if hindrance == "in use":
      stack.enter_context(claim(tmp_path / "run"))
      error, message = RuntimeError, "is in use by process"
    else:
      (tmp_path / "run").touch()
      error, message = OSError, "cannot be written"
    with pytest.raises(error, match=message):
      train_and_evaluate(runs.make_config(), tmp_path / "run")


def test_a_disk_that_fills_up(tmp_path, monkeypatch, straight):
  """Wherever it is met: here, where a record is written."""

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch, pytest.raises(OSError) as raised:
    once_full = lambda self, step, *rest: (full if step == 8 else write)(self, step, *rest)
    patch.setattr(writers.MetricWriter, "write", once_full)
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  assert str(raised.value) == (
    "No space left on device; the checkpoint of step 4 is intact; free space and run the same command again"
  )
  assert_same_run(train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()), straight)


def test_what_may_change_on_resume(tmp_path, straight):
  with runs.before_step(4, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  changed = runs.make_config(
    name="renamed",
    steps_per_call=3,
    max_to_keep=1,
    checkpoint_every_epochs=0.75,
    eval_every_epochs=0.75,
    eval_batch_size=23,
    shard_params=True,
    data__data_dir="elsewhere",
  )
  result = train_and_evaluate(changed, tmp_path, runs.make_task())
  problems.assert_close(result.state, straight.state)
  assert [record["step"] for record in result.records] == [4, 6, 8]
  assert saved_steps(tmp_path) == sorted({result.summary["best_checkpoint"], 8})
  assert json.loads((tmp_path / "config.json").read_text())["name"] == "renamed"


def test_another_experiment_where_nothing_was_saved(tmp_path, straight):
  with runs.before_step(2, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(runs.make_config(seed=1), tmp_path, runs.make_task())
  assert_same_run(train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()), straight)


def test_seconds_are_those_of_all_parts(tmp_path, monkeypatch):
  def clock():
    """Reads 0, then 100 more each time; a run reads it at its start, when it saves, and at its end."""
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=itertools.count(0, 100).__next__))

  clock()
  with runs.before_step(4, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  clock()
  assert train_and_evaluate(runs.make_config(), tmp_path, runs.make_task()).summary["seconds"] == 300


# Losses that are not finite.


@pytest.mark.parametrize(
  "bad_step, metric, value, fields",
  [
    (5, "source_loss", np.nan, {}),
    (6, "target_loss", np.inf, {}),
    (6, "grad_norm", -np.inf, {"steps_per_call": 2}),  # the second of its call
  ],
)
def test_a_loss_that_is_not_finite(tmp_path, monkeypatch, straight, bad_step, metric, value, fields):
  advance = Experiment.advance

  def spoiled(self, state, step, limit):
    state, count, metrics = advance(self, state, step, limit)
    if step < bad_step <= step + count:
      metrics |= {metric: metrics[metric].at[bad_step - step - 1].set(value)}
    return state, count, metrics

  config = runs.make_config(checkpoint_every_epochs=0.5, **fields)
  with monkeypatch.context() as patch:
    patch.setattr(Experiment, "advance", spoiled)
    with pytest.raises(FloatingPointError) as raised:
      train_and_evaluate(config, tmp_path, runs.make_task())
  assert f"step {bad_step}: {metric} is {value}; the checkpoint of step 4 in " in str(raised.value)
  assert f"{tmp_path / 'checkpoints'} is kept" in str(raised.value)
  assert saved_steps(tmp_path) == [2, 4]
  if not fields:
    assert_same_run(train_and_evaluate(config, tmp_path, runs.make_task()), straight)


def spoil(task, name, row):
  getattr(task, name)["x"][row, 2] = np.nan  # behind the back of the task's own checks
  return task


@pytest.mark.parametrize(
  "name, row, fields, step",
  [
    ("source", 7, {}, None),
    ("source", 0, {}, None),  # which fills up the batches for the mesh
    ("target", 3, {"checkpoint_every_epochs": 0.25}, None),
    ("source", 7, {"method": "source_only", "steps_per_call": 2}, None),
    ("target", 3, {"method": "finetune", "num_epochs": 1}, 5),  # no checkpoint is newer than step 4
  ],
)
def test_an_error_names_the_examples(tmp_path, name, row, fields, step):
  config = runs.make_config(**fields)
  with pytest.raises(FloatingPointError) as raised:
    train_and_evaluate(config, tmp_path, spoil(runs.make_task(), name, row))
  message = str(raised.value)
  assert f"At fault: {name} example {row}, whose loss or gradient is not finite." in message
  assert "on_nonfinite=skip" in message
  if step:
    assert message.startswith(f"step {step}: ") and "the checkpoint of step 4" in message


@pytest.mark.parametrize("name, row", [("source", 7), ("source", 0), ("target", 3)])
def test_going_on_without_examples_that_are_not_finite(tmp_path, caplog, name, row):
  config = runs.make_config(on_nonfinite="skip", steps_per_call=3)
  result = train_and_evaluate(config, tmp_path / "skip", spoil(runs.make_task(), name, row))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state))
  assert f"goes on without {name} example {row}" in caplog.text
  assert result.records[-1]["skipped_rows"] > 0 and result.records[-1]["skipped_step"] == 0
  assert np.isfinite([value for record in result.records for value in record.values()]).all()
  assert (result.alpha[row] == 0) == (name == "source")
  assert (np.delete(result.alpha, row) > 0).all()


def test_going_on_where_it_began_to_stop(tmp_path):
  """The option may change in the middle of a run."""
  task = spoil(runs.make_task(), "source", 7)
  with pytest.raises(FloatingPointError):
    train_and_evaluate(runs.make_config(checkpoint_every_epochs=0.25), tmp_path, task)
  result = train_and_evaluate(runs.make_config(on_nonfinite="skip"), tmp_path, task)
  assert result.state.step == 8 and result.alpha[7] == 0


def test_skipping_every_step_is_diverging(tmp_path, monkeypatch):
  runs.use_devices(monkeypatch, 1)
  with pytest.raises(FloatingPointError, match="no gradient .* was finite. Try a smaller learning rate"):
    config = runs.make_config(on_nonfinite="skip", optimizer__learning_rate=1e30, num_epochs=3)
    train_and_evaluate(config, tmp_path, runs.make_task())


def test_a_run_that_diverges(tmp_path, monkeypatch):
  runs.use_devices(monkeypatch, 1)
  with pytest.raises(FloatingPointError, match=r"step [23]: \w+ is (nan|inf); no checkpoint was saved yet.*smaller"):
    train_and_evaluate(runs.make_config(optimizer__learning_rate=1e30), tmp_path, runs.make_task())
  assert saved_steps(tmp_path) == []


# What a run computes.


def test_devices_change_nothing(tmp_path, monkeypatch, straight):
  """To rounding; nor does it matter when they change on the way."""
  with runs.before_step(4, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(runs.make_config(), tmp_path / "moved", runs.make_task())
  runs.use_devices(monkeypatch, 1)
  assert sharding.make_mesh().size == 1 and jax.device_count() == 8
  for name in ("moved", "one"):
    result = train_and_evaluate(runs.make_config(), tmp_path / name, runs.make_task())
    assert result.alpha.shape == (runs.NUM_SOURCE,)
    problems.assert_close(result.state, straight.state)
    for record, expected in zip(result.records, straight.records, strict=True):
      problems.assert_close(without("steps_per_second", record), without("steps_per_second", expected))


def test_training_never_reads_the_true_labels(tmp_path, straight):
  task = runs.make_task()
  task.source["true_label"] = np.roll(task.source["true_label"], 1)
  other = train_and_evaluate(runs.make_config(), tmp_path / "other", task)
  problems.assert_same_bits(other.state, straight.state)
  assert other.records[-1]["auc"] != straight.records[-1]["auc"]
  assert other.summary["auc"] != straight.summary["auc"]

  unknown = train_and_evaluate(runs.make_config(), tmp_path / "unknown", runs.make_task(true_label=False))
  problems.assert_same_bits(unknown.state, straight.state)
  detection = {"wrong_fraction", "alpha_right", "alpha_wrong", "auc", "average_precision"}
  assert unknown.records[-1].keys() == straight.records[-1].keys() - detection
  assert unknown.summary.keys() == straight.summary.keys() - detection - {"list_auc"}


def test_source_only_is_soseleto_with_weights_of_one(tmp_path, monkeypatch):
  runs.use_devices(monkeypatch, 1)
  plain = train_and_evaluate(runs.make_config(method="source_only"), tmp_path / "plain", runs.make_task())
  fixed = runs.make_config(alpha__init=1.0, alpha__step_size=0.0)
  fixed = train_and_evaluate(fixed, tmp_path / "fixed", runs.make_task())
  problems.assert_close(plain.state, fixed.state)
  np.testing.assert_array_equal(plain.alpha, 1)
  problems.assert_close(
    [record["test_loss"] for record in plain.records], [record["test_loss"] for record in fixed.records]
  )


@pytest.mark.parametrize("method", ["soseleto", "finetune"])
def test_transfer_is_evaluated_by_the_target_classifier(tmp_path, monkeypatch, method):
  runs.use_devices(monkeypatch, 1)
  task = runs.make_task(shared=False)
  config = runs.make_config(method=method, data__shared_classes=False, checkpoint_every_epochs=0.5)
  result = train_and_evaluate(config, tmp_path, task)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), result.state.params)
  for name in ("validation", "test"):
    examples = getattr(task, name)
    x = (examples["x"] - task.target_normalization.mean) / task.target_normalization.std
    dense, head = params["representation"]["dense1"], params["target_head"]
    logits = np.maximum(x @ dense["kernel"] + dense["bias"], 0) @ head["kernel"] + head["bias"]
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    label = examples["label"]
    assert result.records[-1][f"{name}_accuracy"] == np.mean(np.argmax(logits, axis=1) == label)
    np.testing.assert_allclose(result.records[-1][f"{name}_loss"], -logits[np.arange(len(label)), label].mean(), 1e-5)
  moved = np.ptp(result.alpha) > 0
  assert moved == (method == "soseleto") == ("auc" in result.summary)
  assert result.summary["steps"] == (8 if method == "soseleto" else 12)
  assert result.summary["epochs"] == result.summary["steps"] / 4


def test_records_and_summary(straight):
  assert [(record["step"], record["epoch"]) for record in straight.records] == [(4, 1.0), (8, 2.0)]
  record = straight.records[-1]
  assert {"source_loss", "target_loss", "alpha_mean", "alignment_mean", "grad_norm", "target_grad_norm"} < record.keys()
  assert np.unique(straight.alpha).size > 10 and straight.alpha.dtype == np.float32
  right, wrong = straight.alpha[12:], straight.alpha[:12]
  pairs = np.mean((wrong[:, None] < right) + 0.5 * (wrong[:, None] == right))
  np.testing.assert_allclose(record["auc"], pairs)
  np.testing.assert_allclose(record["alpha_wrong"], wrong.mean())
  best = max(straight.records, key=lambda record: record["validation_accuracy"])
  expected = {
    "method": "soseleto",
    "task": "arrays",
    "num_source": 41,
    "num_target": 12,
    "seed": 0,
    "epochs": 2.0,
    "steps": 8,
    "test_accuracy": record["test_accuracy"],
    "validation_accuracy": record["validation_accuracy"],
    "best_validation_accuracy": best["validation_accuracy"],
    "best_step": best["step"],
    "best_checkpoint": best["step"],
    "test_accuracy_at_best": best["test_accuracy"],
    "auc": record["auc"],
  }
  assert expected.items() <= straight.summary.items()


def test_the_best_record_is_chosen_on_validation(tmp_path, monkeypatch):
  """And the earliest of those that tie."""
  shown = {2: (0.1, 0.9), 4: (0.7, 0.3), 6: (0.7, 0.4), 8: (0.2, 0.8)}
  values = iter([{"validation_accuracy": v, "test_accuracy": t} for v, t in shown.values()])
  monkeypatch.setattr(Experiment, "evaluate", lambda *_: next(values))
  summary = train_and_evaluate(runs.make_config(eval_every_epochs=0.5), tmp_path, runs.make_task()).summary
  names = ("test_accuracy", "validation_accuracy", "best_validation_accuracy", "best_step", "test_accuracy_at_best")
  assert [summary[name] for name in names] == [0.8, 0.2, 0.7, 4, 0.3]
  assert summary["best_checkpoint"] == 4 and saved_steps(tmp_path) == [4, 6, 8]


@pytest.mark.parametrize("fields", [{}, {"method": "finetune", "num_epochs": 1}], ids=["soseleto", "finetune"])
def test_means_are_of_the_steps_since_the_last_record(tmp_path, monkeypatch, fields):
  """Whatever is saved in between; of a loss, of the steps that had it (one phase of finetune ends at 4)."""
  seen = []
  advance = Experiment.advance

  def watched(self, state, step, limit):
    state, count, metrics = advance(self, state, step, limit)
    seen.append({name: float(value[0]) for name, value in metrics.items()})
    return state, count, metrics

  monkeypatch.setattr(Experiment, "advance", watched)
  config = runs.make_config(eval_every_epochs=0.75, checkpoint_every_epochs=0.5, **fields)
  records = train_and_evaluate(config, tmp_path, runs.make_task()).records
  assert [record["step"] for record in records] == [3, 6, 8]
  for record, steps in zip(records, (seen[:3], seen[3:6], seen[6:]), strict=True):
    for name in {name for metrics in steps for name in metrics}:
      mean = np.mean([metrics[name] for metrics in steps if name in metrics])
      np.testing.assert_allclose(record[name], mean, rtol=1e-12)
  if fields:
    losses = [{name for name in ("source_loss", "target_loss") if name in record} for record in records]
    assert losses == [{"source_loss"}, {"source_loss", "target_loss"}, {"target_loss"}]


# What a caller gives.


def to_host(tree):
  return jax.tree.map(np.asarray, tree)


def test_a_network_of_ones_own(tmp_path, monkeypatch):
  """Linen, NNX, and two functions; each gets classifiers or is taken as it is, and trains."""
  runs.use_devices(monkeypatch, 1)
  task = runs.make_task()

  class Functions:
    def init(self, key, x):
      return {"w": 0.1 * jax.random.normal(key, (x.shape[1], runs.CLASSES))}

    def apply(self, params, x):
      return x @ params["w"]

  networks = {"linen": BatchNormNet(), "nnx": NnxNet(5, nnx.Rngs(0)), "functions": Functions()}
  for name, network in networks.items():
    result = train_and_evaluate(runs.make_config(), tmp_path / name, task, network=network)
    assert np.unique(result.alpha).size > 10
    assert (result.state.model_state is None) == (name == "functions")
    given = json.loads((tmp_path / name / "config.json").read_text())["given"]
    assert type(network).__name__ in given["network"]
    with pytest.raises(ValueError, match=r"given.network \(was .*now None\)"):
      train_and_evaluate(runs.make_config(), tmp_path / name, task)


def test_parameters_to_start_from(tmp_path, straight):
  """Those of a run whose weights stay and whose parameters rest are the run's own."""
  rests = runs.make_config(alpha__step_size=0.0)
  start = to_host(straight.state.params)
  result = train_and_evaluate(rests, tmp_path, runs.make_task(), params=start, optimizer=optax.set_to_zero())
  problems.assert_same_bits(to_host(result.state.params), start)
  assert result.records[-1]["test_accuracy"] == straight.records[-1]["test_accuracy"]


def test_an_optimizer_that_rests_on_a_part(tmp_path):
  """A frozen part keeps its bits, and the rest moves."""
  frozen = {"representation": "frozen", "classifier": "free"}
  optimizer = optax.partition({"frozen": optax.set_to_zero(), "free": optax.adam(0.1)}, frozen)
  start = to_host(Experiment(runs.make_config(), runs.make_task()).initial_state().params)
  params = train_and_evaluate(runs.make_config(), tmp_path, runs.make_task(), optimizer=optimizer).state.params
  problems.assert_same_bits(to_host(params["representation"]), start["representation"])
  assert (np.asarray(params["classifier"]["kernel"]) != start["classifier"]["kernel"]).all()


def test_an_augmentation_of_ones_own(tmp_path, straight):
  """Nothing of the target's is seen where the source's is; the identity changes nothing."""
  same = train_and_evaluate(
    runs.make_config(), tmp_path / "same", runs.make_task(), augment={"target": lambda key, x: x}
  )
  problems.assert_close(same.state, straight.state)
  noisy = {"source": lambda key, x: x + jax.random.normal(key, x.shape)}
  other = train_and_evaluate(runs.make_config(), tmp_path / "other", runs.make_task(), augment=noisy)
  assert not np.allclose(other.alpha, straight.alpha)
  with pytest.raises(ValueError, match=r"augment\['sorce'\].*did you mean 'source'"):
    train_and_evaluate(runs.make_config(), tmp_path / "none", runs.make_task(), augment={"sorce": noisy["source"]})


def test_a_method_of_ones_own(tmp_path):
  """It gets the options, and says what it does with alpha; a step without metrics or losses will do, also to skip."""

  def make_method(setup, *, rate):
    def gradients(state, batch):
      del batch
      return jax.tree.map(lambda leaf: jnp.full_like(leaf, rate), state.params), state, {}

    step = Step(gradients, optax.sgd(1.0), sets=("target",))
    return Method((Phase(3, step),), uses_alpha=True, alpha_init=0.25)

  for name, skip in (("stop", "stop"), ("skip", "skip")):
    config = runs.make_config(method_options__rate=0.5, on_nonfinite=skip, eval_every_epochs=0.5)
    result = train_and_evaluate(config, tmp_path / name, runs.make_task(), method=make_method)
    assert result.summary["steps"] == 3 and result.summary["auc"] == 0.5
    np.testing.assert_array_equal(result.alpha, 0.25)
    start = Experiment(runs.make_config(), runs.make_task()).initial_state().params
    expected = jax.tree.map(lambda leaf: leaf - 1.5, start)
    problems.assert_close(to_host(result.state.params), to_host(expected))
  with pytest.raises(ValueError, match="method_options.rats: .* has rate; did you mean 'rate'"):
    config = runs.make_config(method_options__rats=0.5)
    train_and_evaluate(config, tmp_path / "none", runs.make_task(), method=make_method)


def test_evaluators(tmp_path, straight):
  """Their numbers stand in the records; they see inputs as stored, and logits."""

  def confusion(predict, sets):
    logits = predict(sets["test"]["x"])
    assert logits.shape == (runs.NUM_TEST, runs.CLASSES) and set(sets) == {"test", "validation"}
    hits = np.argmax(logits, axis=1) == sets["test"]["label"]
    return {"hits": np.sum(hits), "validation_size": len(predict(sets["validation"]["x"]))}

  result = train_and_evaluate(runs.make_config(), tmp_path, runs.make_task(), evaluators=[confusion])
  for record, expected in zip(result.records, straight.records, strict=True):
    assert record["hits"] == round(expected["test_accuracy"] * runs.NUM_TEST)
    assert record["validation_size"] == runs.NUM_VALIDATION
  problems.assert_same_bits(result.state, straight.state)


# The folder, and what is refused.


def test_the_folder(tmp_path, monkeypatch, straight):
  """Has all that a run leaves, and no more."""
  monkeypatch.setattr(page, "write_report", write_report)
  config, task, workdir = runs.make_config(name="A <name>"), runs.make_task(), tmp_path / "new" / "run"
  with matplotlib.rc_context({"savefig.dpi": 20}):
    result = train_and_evaluate(config, str(workdir), task)
  assert_same_run(result, straight)
  names = {path.name for path in workdir.iterdir()}
  files = {"config.json", "task.json", "metrics.jsonl", "report.html", "summary.json", "source_weights.csv"}
  assert names == files | {"alpha.npy"} | {"checkpoints", "figures", "tensorboard", ".lock"}
  written = json.loads((workdir / "config.json").read_text())
  assert written.pop("given") == {
    "task": "arrays: float32[5], source 41, target 12, validation 10, test 23, 3 source classes"
  }
  assert written == json.loads(json.dumps(config.to_dict()))
  assert [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()] == result.records
  assert json.loads((workdir / "summary.json").read_text()) == result.summary
  assert result.report == workdir / "report.html"
  assert "<title>A &lt;name&gt;</title>" in result.report.read_text()
  assert saved_steps(workdir) == [4, 8]
  assert any("tfevents" in path.name for path in (workdir / "tensorboard").iterdir())
  assert len(list((workdir / "figures").glob("*.png"))) >= 3

  with (workdir / "source_weights.csv").open() as file:
    rows = list(csv.DictReader(file))
  order = [int(row["index"]) for row in rows]
  assert sorted(order) == list(range(runs.NUM_SOURCE))
  weights, probability = (np.float32([row[name] for row in rows]) for name in ("alpha", "given_probability"))
  np.testing.assert_array_equal(weights, result.alpha[order])
  places = stats.rankdata(weights) + stats.rankdata(probability)
  assert (np.diff(places) >= 0).all() and np.ptp(places)
  wrong = task.source["label"] != task.source["true_label"]
  assert result.summary["list_auc"] == roc_auc_score(wrong[order], -places)
  np.testing.assert_array_equal(np.load(workdir / "alpha.npy"), result.alpha)
  assert [int(row["rank"]) for row in rows] == list(range(runs.NUM_SOURCE))
  for column in ("label", "true_label"):
    np.testing.assert_array_equal([int(row[column]) for row in rows], task.source[column][order])


def test_without_a_task_the_config_says_which(tmp_path, monkeypatch, straight):
  asked = []
  monkeypatch.setattr(train, "task_of", lambda *args: asked.append(args) or runs.make_task())
  config = runs.make_config()
  assert_same_run(train_and_evaluate(config, tmp_path, None), straight)
  assert asked == [(config, 1)]


def test_a_run_in_a_thread(tmp_path, straight):
  """Signals belong to the main thread; without them a run works all the same."""
  results = []
  arguments = runs.make_config(), tmp_path, runs.make_task()
  thread = threading.Thread(target=lambda: results.append(train_and_evaluate(*arguments)))
  thread.start()
  thread.join()
  assert_same_run(results[0], straight)


@pytest.mark.parametrize(
  "fields, task, message",
  [
    ({"method": "sosleto"}, {}, "config.method='sosleto'.*soseleto"),
    ({"batch_size": 42}, {}, "config.batch_size=42 .* 41 examples"),
    ({"target_batch_size": 13}, {}, "config.target_batch_size=13 .* 12 examples"),
    ({"model.name": "mpl"}, {}, "'mpl'.*did you mean 'mlp'"),
    ({"data.shared_classes": False, "method": "source_only"}, {"shared": False}, "shared_classes=False.*finetune"),
    ({}, {"shared": False}, "config.data.shared_classes=True.*task"),
    ({"data.shared_classes": False}, {}, "config.data.shared_classes=False.*task"),
    ({"augment.source": ("flip",)}, {}, r"config.augment.source: .*\(1, 5\)"),
    ({"augment.target": ("flap",)}, {"shape": (3, 4, 1)}, "config.augment.target: .*did you mean 'flip'"),
    ({"method_options.rate": 1.0}, {}, "config.method_options.rate: method 'soseleto' has no options"),
  ],
)
def test_what_cannot_run_leaves_no_folder(tmp_path, fields, task, message):
  workdir = pathlib.Path(tmp_path / "run")
  with pytest.raises(ValueError, match=message):
    train_and_evaluate(runs.make_config(**fields), workdir, runs.make_task(**task))
  assert not workdir.exists()
