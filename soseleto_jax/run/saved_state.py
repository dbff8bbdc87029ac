"""The network and weights of a checkpoint, read beside a run that may be writing others, without its optimizer."""

import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from soseleto_jax import storage
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.run import damage, fingerprint
from soseleto_jax.run.damage import Damaged

_LOGGER = logging.getLogger(__name__)
CHOICES = ("last", "best")
_BESIDE = ".params['extra']"  # what `beside_network` adds, and predictions do not need


def read_state(workdir: pathlib.Path, which: str, params: Any, model_state: Any) -> TrainState:
  """Returns a checkpoint's state on the host, with `opt_state` None; writes nothing.

  A newest checkpoint that is damaged is passed over with a warning, as in training.

  Args:
    workdir: the run's folder.
    which: "last", or "best": that of the best validation accuracy.
    params: with the arrays to be read, or a part of the saved ones, by shape and dtype.
    model_state: likewise, or None.

  Raises:
    ValueError: no such checkpoint, or one of other arrays.
    RuntimeError: it, or all, are damaged.
    OSError: it cannot be read, and nothing says that it is damaged.
  """
  folder = (workdir if storage.is_bucket(workdir) else workdir.absolute()) / "checkpoints"
  steps = _saved_steps(folder)
  if which not in CHOICES:
    raise ValueError(f"checkpoint={which!r}: choose {' or '.join(map(repr, CHOICES))}")
  if not steps:
    raise ValueError(f"{folder} holds no checkpoint: give the folder of a run that has saved one")
  if which == "best":
    steps = [_best_step(folder, steps)]
  damaged = {}
  for step in reversed(steps):
    try:
      state = _read(folder / str(step), params, model_state)
    except Damaged as error:
      damaged[step] = str(error)
      _LOGGER.warning("the checkpoint of step %d is damaged: %s", step, error)
      continue
    return state
  found = "; ".join(f"step {step}: {what}" for step, what in damaged.items())
  raise RuntimeError(f"{folder}: no checkpoint can be used ({found}). Put back a copy of one")


def _saved_steps(folder):
  if not folder.is_dir():
    return []
  saved = [path for path in folder.iterdir() if path.name.isdigit()]
  if storage.is_bucket(folder):  # where a folder has its name before it is whole
    saved = [path for path in saved if (path / "commit_success.txt").exists()]
  return sorted(int(path.name) for path in saved)


def _best_step(folder, steps):
  for step in reversed(steps):
    try:
      loop, _ = _read_loop(folder / str(step))
    except Damaged:
      continue
    if loop["best_step"] is None:
      raise ValueError("checkpoint='best': the run has no validation images to choose it by; take 'last'")
    if loop["best_step"] in steps:
      return loop["best_step"]
    raise ValueError(f"checkpoint='best': that of step {loop['best_step']} is no longer there; take 'last'")
  raise RuntimeError(f"{folder}: no checkpoint can be used. Put back a copy of one")


def _read(path, params, model_state):
  _, arrays = _read_loop(path)
  like = TrainState(
    step=np.int32(0), params=params, opt_state=None, alpha=np.zeros(0), model_state=model_state, seed=np.uint32(0)
  )
  here = fingerprint.describe(like.replace(alpha=None))
  saved = {name: kind for name, (kind, _) in arrays.items()}
  own = {name for name in saved if name.startswith(".params") and not name.startswith(_BESIDE)} if params else set()
  for name in sorted(here.keys() | own):
    there, ours = (kinds.get(name, "no such array") for kinds in (saved, here))
    if there != ours:
      raise ValueError(
        f"{path}: state{name} is {there}, but {ours} here; give the network that the run trained: "
        "load(workdir, network=...)"
      )
  wanted = {name: part for name, part in vars(like).items() if part is not None}
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
  read = _item(
    path / "state",
    ocp.PyTreeCheckpointHandler(),
    ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
  )
  state = like.replace(**read)
  count = int(arrays[".alpha"][0].split("[")[1].rstrip("]"))
  state = state.replace(alpha=np.asarray(state.alpha)[:count])  # without padding
  for name, checksum in fingerprint.checksums(state).items():
    if checksum != arrays[name][1]:
      raise Damaged(f"state{name} does not have the checksum that it was saved with")
  return state


def _read_loop(path):
  content = damage.opened("loop", _item(path / "loop", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore()))
  return content["loop"], content["arrays"]


def _item(path, handler, how):
  try:
    with ocp.Checkpointer(handler) as reader:
      return reader.restore(path, args=how)
  except Exception as error:  # whatever a reader makes of broken files
    raise damage.failure(path.name, int(path.parent.name), error) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the contents of a JSON file of the run; {} where it is not there yet."""
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
