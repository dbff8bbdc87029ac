"""Faults that need no process of their own: many of them, one after another, in a child of this one.

Each function returns how many of `count` faults were survived, by what it says itself.
"""

import functools
import json
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable

import jax
import numpy as np

from experiments.reliability import children
from soseleto_jax.data.task import from_arrays
from soseleto_jax.run import checkpoint
from soseleto_jax.run.checkpoint import Checkpoints
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate

_PERMISSION, _DISK, _MEMORY = PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), MemoryError()


def flipped_bits(workdir: pathlib.Path, rng: np.random.Generator, count: int) -> int:
  """Inverts a bit of some file of the newest checkpoint: it, or the one before, is restored bit for bit."""
  return _restored(workdir, rng, count, _flip)


def cut_files(workdir: pathlib.Path, rng: np.random.Generator, count: int) -> int:
  """Cuts some file of the newest checkpoint anywhere, or takes it away; survived as by `flipped_bits`."""
  return _restored(workdir, rng, count, _cut)


def failing_reads(workdir: pathlib.Path, rng: np.random.Generator, count: int) -> int:
  """Lets a sound checkpoint meet errors while it is read: the run stops, says why, and finds it there afterwards."""
  survived = 0
  with _Restoring(workdir) as restoring:
    for _ in range(count):
      error = (_PERMISSION, _DISK, _MEMORY)[rng.integers(3)]
      part = ("loop", "state")[rng.integers(2)]
      handler = checkpoint._HANDLERS[part]
      checkpoint._HANDLERS[part] = functools.partial(types.SimpleNamespace, restore=_failing(error))
      try:
        restoring()
      except OSError as met:
        told = "cannot be read" in str(met)
      else:
        told = False
      checkpoint._HANDLERS[part] = handler
      survived += told and restoring() == restoring.newest
  return survived


def records(straight: pathlib.Path, rng: np.random.Generator, count: int) -> int:
  """Cuts, forges, replaces or removes a file of records beside a finished run, whose command is then repeated."""
  survived = 0
  for _ in range(count):
    with tempfile.TemporaryDirectory() as folder:
      workdir = pathlib.Path(folder) / "run"
      shutil.copytree(straight, workdir)
      name = ("metrics.jsonl", "config.json", "summary.json", "source_weights.csv", "task.json")[rng.integers(5)]
      _spoil(workdir / name, rng)
      children.repeat(workdir)
      survived += not children.different_files(straight, workdir)
  return survived


def bad_input(workdir: pathlib.Path, rng: np.random.Generator, count: int) -> int:
  """Gives configs and arrays that no run can use: each is refused by a ValueError, and leaves no folder."""
  survived = 0
  for number in range(count):
    try:
      if number % 2:
        config = children.config()
        config.update_from_flattened_dict({_FIELDS[rng.integers(len(_FIELDS))]: _NUMBERS[rng.integers(len(_NUMBERS))]})
        train_and_evaluate(config, workdir, children.task())
      else:
        train_and_evaluate(children.config(), workdir, from_arrays(**_spoilt_arrays(rng)))
    except ValueError as error:
      survived += bool(str(error)) and not workdir.exists()
  return survived


_FIELDS = (
  "target_weight", "finetune_epochs", "optimizer.learning_rate", "optimizer.momentum", "optimizer.weight_decay",
  "alpha.init", "alpha.step_size", "alpha.burn_in_epochs", "alpha.burn_in_weight", "alpha.gain", "alpha.lookahead",
)  # fmt: skip
_NUMBERS = (float("inf"), float("nan"), -float("inf"), -1.0, 1e39)


def _spoilt_arrays(rng):
  x = rng.normal(size=(60, 6))
  label = np.arange(60) % 3
  arrays = dict(source_x=x, source_label=label, target_x=x[:12], target_label=label[:12], test_x=x, test_label=label)
  row = int(rng.integers(12))
  side = ("source", "target", "test")[rng.integers(3)]
  spoil: list[Callable[[], None]] = [
    lambda: arrays[f"{side}_x"].__setitem__((row, 2), [np.nan, np.inf][rng.integers(2)]),
    lambda: arrays.update({f"{side}_label": arrays[f"{side}_label"][:-1]}),
    lambda: arrays.update({f"{side}_label": arrays[f"{side}_label"] + 0.5}),
    lambda: arrays.update({f"{side}_label": np.where(np.arange(len(arrays[f"{side}_label"])) == row, None, "a")}),
    lambda: arrays.update({f"{side}_x": arrays[f"{side}_x"][:, :-1]}),
    lambda: arrays.update({f"{side}_x": arrays[f"{side}_x"][:0]}),
    lambda: arrays.update({f"{side}_x": arrays[f"{side}_x"].astype(complex)}),
    lambda: arrays.update({f"{side}_x": [[1.0, 2.0], [3.0]]}),
  ]
  arrays = {name: array.copy() for name, array in arrays.items()}
  spoil[rng.integers(len(spoil))]()
  return arrays


def _flip(path, rng):
  data = bytearray(path.read_bytes())
  if data:
    bit = int(rng.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _cut(path, rng):
  size = path.stat().st_size
  if rng.random() < 0.3:
    path.unlink()
  else:
    os.truncate(path, int(rng.integers(size)) if size else 0)


def _spoil(path, rng):
  text = path.read_bytes()
  forged = json.dumps({"step": children.NUM_STEPS, "epoch": 3, "test_accuracy": 1.0, "validation_accuracy": 1.0})
  kind = rng.integers(4)
  if kind == 0:
    path.unlink()
  elif kind == 1:
    path.write_bytes(text[: rng.integers(len(text))])
  elif kind == 2:
    path.write_bytes(text + forged.encode() + b"\n")
  else:
    path.write_bytes(rng.bytes(50))


def _failing(error):
  def restore(*args, **kwargs):
    raise error

  return restore


def _restored(workdir, rng, count, fault):
  survived = 0
  with _Restoring(workdir) as restoring:
    for _ in range(count):
      with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        shutil.copytree(workdir / "checkpoints", copy / "checkpoints")
        newest = copy / "checkpoints" / str(restoring.newest)
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        fault(files[rng.integers(len(files))], rng)
        survived += restoring(copy) in restoring.expected
  return survived


class _Restoring:
  """Restores checkpoints of a folder or of a copy, each compared bit for bit with what it was."""

  def __init__(self, workdir):
    self._workdir = workdir
    experiment = Experiment(children.config(), children.task())
    self._like, self._num_source = experiment.state_like, experiment.task.num_source
    self.expected: dict[int, list[bytes]] = {}

  def __enter__(self):
    with self._open(self._workdir) as checkpoints:
      steps = checkpoints.steps
    self.newest = steps[-1]
    for step in steps:
      with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        shutil.copytree(self._workdir / "checkpoints" / str(step), copy / "checkpoints" / str(step))
        self.expected[step] = self._bits(copy)[1]
    return self

  def __exit__(self, *_):
    pass

  def __call__(self, workdir=None):
    """Returns the step that was restored; None where it was not restored as it was."""
    step, bits = self._bits(workdir or self._workdir)
    return step if bits == self.expected[step] else None

  def _bits(self, workdir):
    with self._open(workdir) as checkpoints:
      state, _ = checkpoints.restore(self._like)
    return int(state.step), [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]

  def _open(self, workdir):
    return Checkpoints(workdir, max_to_keep=2, num_source=self._num_source, num_steps=children.NUM_STEPS)
