"""Whole runs whose source streams: bit for bit those of resident ones, and within a memory limit that they exceed."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from soseleto_jax.data import lazy
from soseleto_jax.data.task import from_arrays
from soseleto_jax.feed.streaming import Streaming
from soseleto_jax.methods.base import Method, Phase, find_method
from soseleto_jax.report import page
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


ONE_STEP, SEVERAL = {}, {"steps_per_call": 3, "eval_every_epochs": 0.75}
AUGMENTED = {"augment.source": ("flip", "crop=1"), "alpha.transforms": ("scale_by_std",)}
STOPS = ((2, "streaming"), (4, "streaming"), (6, "resident"))


@pytest.mark.parametrize(
  ("fields", "stops"),
  [
    pytest.param(ONE_STEP, STOPS, id="points"),
    pytest.param(SEVERAL, STOPS, id="several steps a call", marks=pytest.mark.slow),
    pytest.param(AUGMENTED, (), id="augmented, with a state"),
    pytest.param({"method": "finetune", "num_epochs": 1}, (), id="finetune", marks=pytest.mark.slow),
  ],
)
def test_the_feed_changes_no_bit(tmp_path, fields, stops):
  """Of the state, alpha, records and summary; nor do stops in the middle of an epoch, or another feed after them."""
  images = "augment.source" in fields
  task = runs.make_task(shape=(3, 4, 1)) if images else runs.make_task()

  def train(feed, folder, task):
    config = runs.make_config(checkpoint_every_epochs=0.5, data__feed=feed, **fields)
    return train_and_evaluate(config, tmp_path / folder, task, network=BatchNormNet() if images else None)

  straight = train("resident", "resident", task)
  task = on_disk(task, tmp_path)
  assert_same_run(train("auto", "streaming", task), straight)
  for step, feed in stops:
    with runs.before_step(step, runs.crash), pytest.raises(runs.Crash):
      train(feed, "stopped", task)
    saved = json.loads(next((tmp_path / "stopped" / "checkpoints" / str(step)).glob("loop/*")).read_text())["content"]
    assert (saved["loop"]["feed"] is None) == (feed == "resident")
  if stops:
    assert_same_run(train("streaming", "stopped", task), straight)


def make_method(setup):
  """Phases of 2, 3, 4 and 1 steps on target, source, both, and source: the stream starts anew in each, or waits."""
  lengths = {"target_only": 2, "source_only": 3, "soseleto": 4}
  phases = [Phase(steps, find_method(name)(setup).phases[0].step) for name, steps in lengths.items()]
  return Method((*phases, Phase(1, phases[1].step)), uses_alpha=True, alpha_init=0.5)


@pytest.fixture(scope="module")
def in_phases(tmp_path_factory):
  """Trains in these phases, in a folder; and the result of a run that was not stopped."""
  task = runs.make_task()
  config = runs.make_config(method="mine", checkpoint_every_epochs=0.25, data__feed="streaming")

  def train(folder):
    return train_and_evaluate(config, folder, task, method=make_method)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(page, "write_report", lambda workdir, **_: workdir / "report.html")
    return train, train(tmp_path_factory.mktemp("phases"))


@pytest.mark.parametrize("stop", [2, 7, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 3, 5, 9))])
def test_stopped_in_any_phase(tmp_path, in_phases, stop):
  """In the middle of each, and between them."""
  train, straight = in_phases
  with runs.before_step(stop, runs.crash), pytest.raises(runs.Crash):
    train(tmp_path)
  assert_same_run(train(tmp_path), straight)


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


class Watched:
  """A set that notes how many rows were asked for at once."""

  def __init__(self, x):
    self.shape, self.dtype, self.x, self.most = x.shape, x.dtype, x, 0

  def __len__(self):
    return len(self.x)

  def __getitem__(self, index):
    self.most = max(self.most, len(index))
    return self.x[index]


def test_no_run_asks_for_more_than_a_batch(tmp_path, monkeypatch):
  """At once: from reading the set to its list of weights. What `test_a_set_larger_than_memory` shows of all memory."""
  monkeypatch.setattr(lazy, "_CHUNK", 7 * 5)  # rows of a pass over the set, times numbers of each
  task = runs.make_task()
  source, few = Watched(task.source["x"]), [(part["x"], part["label"]) for part in (task.target, task.test)]
  task = from_arrays(source, task.source["label"], *few[0], *few[1])
  result = train_and_evaluate(runs.make_config(num_epochs=1), tmp_path, task)
  assert np.mean(result.alpha != 0.5) > 0.9
  assert source.most == runs.BATCH_SIZE + 3  # and the padding to 8 devices


# 1 GB of memory that is not a file's, which the kernel sees to; on two cores and with small stacks, for each thread's
# counts.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))
resource.setrlimit(resource.RLIMIT_STACK, (2**20, 2**20))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
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
    [sys.executable, "-c", LIMITED, "-m", "tests.feed.limited_memory", tmp_path],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert child.returncode == 0, child.stderr
  moved, loaded = child.stdout.splitlines()[-2:]
  assert float(moved.removeprefix("moved ")) > 0.9
  assert loaded == "too large to load"
