"""Whole runs whose source streams: bit for bit those of resident ones, and within a memory limit that they exceed."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from soseleto_jax import methods
from soseleto_jax.data import lazy
from soseleto_jax.feed.streaming import Streaming
from soseleto_jax.run import trainer
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate
from tests import runs
from tests.train_test import BatchNormNet, assert_same_run

pytestmark = pytest.mark.usefixtures("no_report")


def on_disk(task, folder):
  """The task with its source in a memory map; images in a view of one, which is less like an array."""
  np.save(folder / "x.npy", task.source["x"])
  x = np.load(folder / "x.npy", mmap_mode="r")
  return dataclasses.replace(task, source=task.source | {"x": x if x.ndim == 2 else lazy.Rows(x)})


@pytest.mark.parametrize(
  "fields",
  [
    pytest.param({}, id="points"),
    pytest.param({"steps_per_call": 3, "eval_every_epochs": 0.75}, id="several steps a call"),
    pytest.param({"flip_source": True, "alpha.transforms": ("standardize",)}, id="flips, state of the network"),
    pytest.param({"method": "finetune", "num_epochs": 1}, id="finetune"),
  ],
)
def test_the_feed_changes_no_bit(tmp_path, monkeypatch, fields):
  """Of the state, alpha, records and summary; nor do stops in the middle of an epoch, or another feed after them."""
  task = runs.make_task()
  if "flip_source" in fields:
    task = runs.make_task(shape=(3, 4, 1))
    monkeypatch.setattr(trainer, "get_model", lambda **_: BatchNormNet())
  config = lambda feed: runs.make_config(checkpoint_every_epochs=0.5, data__feed=feed, **fields)
  straight = train_and_evaluate(config("resident"), tmp_path / "resident", task)
  task = on_disk(task, tmp_path)
  assert_same_run(train_and_evaluate(config("auto"), tmp_path / "streaming", task), straight)
  workdir = tmp_path / "stopped"
  for step, feed in [(2, "streaming"), (4, "streaming"), (6, "resident")]:
    with runs.before_step(step, runs.crash), pytest.raises(runs.Crash):
      train_and_evaluate(config(feed), workdir, task)
    saved = json.loads(next((workdir / "checkpoints" / str(step)).glob("loop/*")).read_text())["content"]
    assert (saved["loop"]["feed"] is None) == (feed == "resident")
  assert_same_run(train_and_evaluate(config("streaming"), workdir, task), straight)


def make_phases(config, *args, **options):
  """Phases of 2, 3, 4 and 1 steps on target, source, both, and source: the stream starts anew in each, or waits."""
  at = lambda method: methods.make_phases(runs.make_config(method=method), *args, **options)[0]
  lengths = {"target_only": 2, "source_only": 3, "soseleto": 4}
  phases = [dataclasses.replace(at(method), num_steps=steps) for method, steps in lengths.items()]
  return *phases, dataclasses.replace(phases[1], num_steps=1)


@pytest.mark.parametrize("stop", range(1, 10))
def test_stopped_in_any_phase(tmp_path, stop):
  task = runs.make_task()
  config = runs.make_config(method="mine", checkpoint_every_epochs=0.25, data__feed="streaming")
  straight = train_and_evaluate(config, tmp_path / "straight", task, make_phases)
  with runs.before_step(stop, runs.crash), pytest.raises(runs.Crash):
    train_and_evaluate(config, tmp_path / "stopped", task, make_phases)
  assert_same_run(train_and_evaluate(config, tmp_path / "stopped", task, make_phases), straight)


@pytest.mark.parametrize(
  "feed, lazily, processes, streams",
  [
    ("auto", False, 1, False),
    ("auto", True, 1, True),
    ("auto", False, 2, True),
    ("streaming", False, 1, True),
    ("resident", True, 1, False),
    ("resident", False, 2, False),
  ],
)
def test_which_feed_is_taken(tmp_path, monkeypatch, feed, lazily, processes, streams):
  task = on_disk(runs.make_task(), tmp_path) if lazily else runs.make_task()
  monkeypatch.setattr(trainer.jax, "process_count", lambda: processes)
  chosen = Experiment(runs.make_config(data__feed=feed), task)._feeds
  assert isinstance(chosen["source"], Streaming) == streams
  assert not isinstance(chosen["target"], Streaming)


def test_large_arrays_stream(monkeypatch):
  task = runs.make_task()
  monkeypatch.setattr(trainer.lazy, "MOST_RESIDENT_BYTES", task.source["x"].nbytes - 1)
  assert isinstance(Experiment(runs.make_config(), task)._feeds["source"], Streaming)
  monkeypatch.setattr(trainer.lazy, "MOST_RESIDENT_BYTES", task.source["x"].nbytes)
  assert not isinstance(Experiment(runs.make_config(), task)._feeds["source"], Streaming)


def test_a_checkpoint_whose_iterator_is_at_another_step(tmp_path, monkeypatch):
  config, task = runs.make_config(data__feed="streaming"), runs.make_task()
  feed_state = Experiment.feed_state
  with monkeypatch.context() as patch, runs.before_step(4, runs.crash), pytest.raises(runs.Crash):
    state = []
    patch.setattr(Experiment, "feed_state", lambda self: state.append(feed_state(self)) or {"next_index": 3})
    train_and_evaluate(config, tmp_path, task)
  assert state == [{"next_index": 4}]
  with pytest.raises(ValueError, match="checkpoint of step 4 holds the iterator of step 3"):
    train_and_evaluate(config, tmp_path, task)


# 1 GB of memory that is not a file's, which the kernel sees to; on two cores and with small stacks, for each thread's
# counts.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))
resource.setrlimit(resource.RLIMIT_STACK, (2**20, 2**20))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_set_larger_than_memory(tmp_path):
  """4 GiB of images, most of them holes of the file, under a limit of 1 GB."""
  shape = (2**32 // (64 * 64 * 3), 64, 64, 3)
  with open(tmp_path / "x.npy", "wb") as file:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start, size = file.tell(), math.prod(shape[1:])
    for row in range(0, shape[0], 2000):
      file.seek(start + row * size)
      file.write(np.random.default_rng(row).bytes(size))
    file.truncate(start + shape[0] * size)
  np.save(tmp_path / "label.npy", np.arange(shape[0]) % 2)
  child = subprocess.run(
    [sys.executable, "-c", LIMITED, "-m", "tests.data.limited_memory", tmp_path],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert child.returncode == 0, child.stderr
  moved, loaded = child.stdout.splitlines()[-2:]
  assert float(moved.removeprefix("moved ")) > 0.9
  assert loaded == "too large to load"
