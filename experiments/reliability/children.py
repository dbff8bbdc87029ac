"""Runs as children of this process, which has imported everything but started no JAX backend: a life takes a second.

They train a small network on two CPU devices and save every third step.
"""

import importlib
import json
import mmap
import os
import pathlib
import struct
import sys
import time
import traceback
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from soseleto_jax.config import default_config
from soseleto_jax.data.task import Task, from_arrays
from soseleto_jax.report import page
from soseleto_jax.run.signals import EXIT_PREEMPTED, Preempted
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate

NUM_STEPS = 96
_STEPS_PER_EPOCH = 12
_STATE_FILE = "final.npz"

# What runs import when they need it. Once here, or each life would take seconds more.
_LATE_IMPORTS = ("orbax.checkpoint", "sklearn.metrics", "tensorboardX.event_file_writer")


class Counter:
  """A number that a child writes and its parent reads."""

  def __init__(self):
    self._memory = mmap.mmap(-1, 8)

  @property
  def value(self) -> int:
    return struct.unpack("q", self._memory[:8])[0]

  @value.setter
  def value(self, number):
    self._memory[:8] = struct.pack("q", number)


def start(workdir: pathlib.Path, counter: Counter | None = None, log: pathlib.Path | None = None, prepare=None) -> int:
  """Forks a run, and returns its process id.

  Args:
    workdir: the folder of the run.
    counter: follows the steps that it begins.
    log: where its messages go; by default beside the folder.
    prepare: called in the child before it trains.
  """
  counter = counter or Counter()
  counter.value = -1

  def life():
    if prepare is not None:
      prepare(counter)
    _train(workdir, counter)

  return _fork(life, log or log_of(workdir))


def count_in_child(function: Callable[[], int], log: pathlib.Path) -> int:
  """Calls a function in a child, and returns the number that it returns; -1 where it failed."""
  counter = Counter()
  counter.value = -1

  def life():
    _set_up()
    counter.value = function()

  wait(_fork(life, log))
  return counter.value


def _fork(life, log):
  for name in _LATE_IMPORTS:
    importlib.import_module(name)
  pid = os.fork()
  if pid:
    return pid
  code = 1
  try:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    life()
    code = 0
  except Preempted:
    code = EXIT_PREEMPTED
  except BaseException as error:
    traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
  finally:
    sys.stderr.flush()
    os._exit(code)


def log_of(workdir: pathlib.Path) -> pathlib.Path:
  """Where the messages of a run's last life are."""
  return workdir.with_name(f"{workdir.name}.log")


def wait(pid: int) -> int:
  """Waits for a run and returns its exit code, or the negative number of the signal that ended it."""
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_step(pid: int, counter: Counter, step: int) -> None:
  """Returns when a run has begun the step after `step`, or has ended."""
  while counter.value < step and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
    time.sleep(0.001)


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """Names what two finished runs do not have in common, bit for bit; times aside."""
  found = []
  with np.load(a / _STATE_FILE) as x, np.load(b / _STATE_FILE) as y:
    if x.files != y.files:
      found.append("names of arrays")
    found += [name for name in x.files if x[name].dtype != y[name].dtype or x[name].tobytes() != y[name].tobytes()]
  return found + different_files(a, b)


def different_files(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """Names the files that two finished runs do not have in common, times aside."""
  found = []
  for name, times in (("metrics.jsonl", "steps_per_second"), ("summary.json", "seconds")):
    x, y = ([_without(times, part) for part in _json_parts(folder / name)] for folder in (a, b))
    if x != y:
      found.append(name)
  if (a / "source_weights.csv").read_bytes() != (b / "source_weights.csv").read_bytes():
    found.append("source_weights.csv")
  return found


def _json_parts(path):
  text = path.read_text()
  return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def _without(key, mapping):
  return {name: value for name, value in mapping.items() if name != key}


def repeat(workdir: pathlib.Path) -> None:
  """Runs the experiment in a folder, in this process."""
  train_and_evaluate(config(), workdir, task())


def _set_up():
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  page.write_report = lambda workdir, **_: workdir / "report.html"  # figures take longer than the whole training


def _train(workdir, counter):
  _set_up()
  advance = Experiment.advance

  def counted(self, state, step, limit):
    counter.value = step
    return advance(self, state, step, limit)

  Experiment.advance = counted
  result = train_and_evaluate(config(), workdir, task())
  leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(result.state)}
  np.savez(workdir / _STATE_FILE, **leaves)


def config() -> ConfigDict:
  """The experiment."""
  fields = default_config()
  fields.model.hidden = (8,)
  fields.update_from_flattened_dict(
    {
      "batch_size": 17,
      "target_batch_size": 6,
      "num_epochs": NUM_STEPS // _STEPS_PER_EPOCH,
      "optimizer.name": "adam",
      "alpha.step_size": 0.1,
      "checkpoint_every_epochs": 3 / _STEPS_PER_EPOCH,
    }
  )
  return fields


def task() -> Task:
  """Its data."""
  rng = np.random.default_rng(0)

  def examples(count):
    label = np.arange(count) % 3
    return rng.normal(size=(count, 6)) + 2 * np.eye(3, 6)[label], label

  (x, right), target, validation, test = (examples(count) for count in (201, 18, 30, 30))
  label = np.where(np.arange(201) < 60, (right + 1) % 3, right)
  return from_arrays(x, label, *target, *test, validation=validation, true_label=right)
