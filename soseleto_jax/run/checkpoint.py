"""Checkpoints of a run, by Orbax: the train state and the host's side of the loop."""

import contextlib
import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from soseleto_jax import storage
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.run import damage, fingerprint, processes

_LOGGER = logging.getLogger(__name__)
_ASIDE = ".damaged"
_HANDLERS = {"state": ocp.StandardCheckpointHandler, "loop": ocp.JsonCheckpointHandler}
# What ends a read in one process ends it in all, the worst first.
_FAILURES = (OSError, ValueError, damage.Damaged)


class Checkpoints:
  """The checkpoints of a run's folder, newest last; a context manager that waits for the last save.

  Saves are asynchronous and atomic: a step's folder has its name once it is whole. Beside the state lie checksums of
  every array, which `restore` compares. Each process writes and reads the shards that its devices hold; `alpha` may be
  restored onto another number of them. Nothing here unpickles: the files are JSON and arrays.
  """

  def __init__(self, workdir: str | pathlib.Path, *, max_to_keep: int, num_source: int, num_steps: int | None = None):
    """Opens `workdir/checkpoints`, made if it is not there, and clears what unfinished saves left in it.

    Args:
      workdir: the run's folder; no other run may be using it.
      max_to_keep: how many of the newest checkpoints stay; the best one stays as well.
      num_source: N, the length of `alpha` without padding.
      num_steps: of the whole run; folders with a larger number are none of its checkpoints.

    Raises:
      OSError: `checkpoints` is no folder, or cannot be made.
      ValueError: processes see different checkpoints.
    """
    self.directory = _directory(workdir)
    if not self.directory.is_dir() and (self.directory.exists() or os.path.islink(self.directory)):
      raise OSError(f"{self.directory} is no folder; move it away, or choose another --workdir")
    self._num_source = num_source
    self._kept = _NewestAndBest(max_to_keep)
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._kept,
        step_name_format=_Steps(num_steps),
        create=True,
        cleanup_tmp_directories=True,
        # A folder that cannot be made in the background would leave those that write to it waiting for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
      ),
      item_names=tuple(_HANDLERS),
    )
    self._opened_at = self._place()
    processes.check_same("the list of checkpoints in --workdir", str(self.steps).encode())

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, *exc_info) -> None:
    try:
      self.wait()
    except OSError as error:
      if kind is None:
        raise
      _LOGGER.error("%s", error)  # what stopped the run is the news
    finally:
      self._manager.close()

  @property
  def steps(self) -> list[int]:
    """The steps that were saved, oldest first; the last one may still be on its way to the disk."""
    return list(self._manager.all_steps())

  @property
  def latest_step(self) -> int | None:
    """The newest of `steps`, or None."""
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when what was saved is on disk.

    Raises:
      OSError: the last save failed; the checkpoints before it are as they were.
    """
    with self._failures():
      self._manager.wait_until_finished()

  def save(self, state: TrainState, loop: dict[str, Any], best_step: int | None = None) -> None:
    """Saves a state, with a JSON-like dict beside it; returns once the arrays are copied.

    Args:
      state: the state of the step, as it lies on its devices.
      loop: what else a run needs in order to go on.
      best_step: the step whose checkpoint stays however old it is.

    Raises:
      OSError: this save or the one before failed; the checkpoints before it are as they were.
    """
    self._find_again()
    step = int(state.step)
    if step == self.latest_step:
      return
    checksums = self._checksums(state)
    arrays = {path: [kind, checksums[path]] for path, kind in self._describe(state).items()}
    content = {"loop": loop, "arrays": arrays}
    self._kept.best_step = best_step
    with self._failures():
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(damage.sealed(content))),
      )

  def _find_again(self):
    """Makes the folder anew where it was taken away, which ends a save on its way there."""
    if not processes.is_main() or self._place() == self._opened_at:
      return
    with contextlib.suppress(Exception):
      self._manager.wait_until_finished()
    _LOGGER.warning("%s was taken away, and with it the checkpoints so far", self.directory)
    with self._failures():
      self.directory.mkdir(parents=True, exist_ok=True)  # a save on its way there may have made it, too
    self._opened_at = self._place()
    self._manager.reload()

  def _place(self):
    """Tells the folder from another one of its name; None where there is none, or in a bucket."""
    if storage.is_bucket(self.directory) or not self.directory.is_dir():
      return None
    found = self.directory.stat()
    return found.st_dev, found.st_ino

  def restore(self, like: TrainState | Callable[[int], TrainState]) -> tuple[TrainState, dict[str, Any]]:
    """Returns the newest state that is undamaged, placed as `like` is, and the dict that was saved with it.

    Newer ones that are damaged are named in the log and set aside, under another name, so that the run saves these
    steps again. Damage that one of several processes finds is that of all.

    Args:
      like: a state with the same shapes and dtypes, but for the padding of `alpha`, which is taken from it; or a
        function of the step that returns one.

    Raises:
      ValueError: what was saved has other arrays, such as another number of source examples.
      RuntimeError: all checkpoints are damaged.
      OSError: one cannot be read, and nothing says that it is damaged; or the last save failed.
    """
    self.wait()
    damaged = {}
    for step in reversed(self.steps):
      try:
        state, loop = self._read(step, like(step) if callable(like) else like)
      except damage.Damaged as error:
        damaged[step] = str(error)
        continue
      for bad, what in damaged.items():
        aside = self._set_aside(bad)
        _LOGGER.warning(
          "the checkpoint of step %d is damaged: %s. It is now %s; going on from step %d", bad, what, aside, step
        )
      return state, loop
    found = "; ".join(f"step {step}: {what}" for step, what in damaged.items())
    raise RuntimeError(
      f"{self.directory}: no checkpoint can be used ({found}). Put back a copy of one, "
      "or choose another --workdir to start from the beginning"
    )

  def newest_loop(self) -> dict[str, Any] | None:
    """Returns the dict that was saved with the newest checkpoint in which it is undamaged; None where there is none.

    Raises:
      OSError: one cannot be read, and nothing says that it is damaged.
    """
    for step in reversed(self.steps):
      with contextlib.suppress(damage.Damaged):
        return processes.agree(functools.partial(self._open_loop, step), _FAILURES)["loop"]
    return None

  def _open_loop(self, step):
    return damage.opened("loop", self._read_item(step, "loop", ocp.args.JsonRestore()))

  def _read(self, step, like):
    loop, arrays = processes.agree(lambda: self._read_loop(step, like), _FAILURES)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
    # Not strict: alpha may be padded to another length.
    how = ocp.args.StandardRestore(abstract, strict=False)
    state = processes.agree(lambda: self._read_item(step, "state", how), _FAILURES)
    for path, checksum in self._checksums(state).items():
      if checksum != arrays[path][1]:
        raise damage.Damaged(f"state{path} does not have the checksum that it was saved with")
    return state.replace(alpha=self._with_padding(state.alpha, like.alpha)), loop

  def _read_loop(self, step, like):
    """Returns what was saved beside a state that has the arrays of `like`, and the kind and checksum of each array."""
    content = self._open_loop(step)
    here, arrays = self._describe(like), content["arrays"]
    for path in sorted(here.keys() | arrays.keys()):
      saved, _ = arrays.get(path, ("no such array", None))
      if saved != here.get(path):
        raise ValueError(
          f"{self.directory}, step {step}: state{path} is {saved}, but {here.get(path, 'no such array')} here; "
          "choose another --workdir, or the data and network of that run"
        )
    return content["loop"], arrays

  def _describe(self, state):
    return fingerprint.describe(state.replace(alpha=jax.ShapeDtypeStruct((self._num_source,), state.alpha.dtype)))

  def _checksums(self, state):
    return fingerprint.checksums(state.replace(alpha=self._with_padding(state.alpha, jnp.zeros_like(state.alpha))))

  def _with_padding(self, alpha, padded):
    """Returns `alpha` with the elements of `padded` in the rows that no example owns."""
    return _padder(alpha.sharding)(alpha, padded, self._num_source)

  def _read_item(self, step, name, how):
    try:
      # Without the manager's barrier, in which a process would wait for one that met damage.
      return _HANDLERS[name]().restore(epath.Path(self.directory) / str(step) / name, args=how)
    except Exception as error:  # whatever a reader makes of broken files
      raise damage.failure(name, step, error) from error

  def _set_aside(self, step):
    aside = self.directory / f"{step}{_ASIDE}"
    if processes.is_main():
      shutil.rmtree(aside, ignore_errors=True)
      (self.directory / str(step)).rename(aside)
    processes.wait_for_all()
    self._manager.reload()
    return aside

  @contextlib.contextmanager
  def _failures(self):
    try:
      yield
    except Exception as error:  # of whatever library the saving thread met it in
      self._manager.reload()  # it has forgotten what the new one was to replace
      raise OSError(f"a checkpoint could not be written: {error}") from error


def is_in(workdir: str | pathlib.Path) -> bool:
  """Returns whether a run's folder holds a checkpoint, sound or not."""
  directory = _directory(workdir)
  return directory.is_dir() and any(_Steps(None).find_all(directory))


def _directory(workdir):
  root = storage.as_path(workdir)
  return (root if storage.is_bucket(root) else root.absolute()) / "checkpoints"


@functools.cache
def _padder(sharding):
  """Compiles `Checkpoints._with_padding` once for all saves."""

  def pad(alpha, padded, num_source):
    return jnp.where(jnp.arange(len(alpha)) < num_source, alpha, padded)

  return jax.jit(pad, out_shardings=sharding)


class _Steps:
  """Orbax's names of steps; other folders in their place, such as copies, are told once and left alone."""

  def __init__(self, most: int | None):
    self._standard = ocp.path.step.standard_name_format()
    self._most = most
    self._told: set[str] = set()

  def build_name(self, step: int) -> str:
    return self._standard.build_name(step)

  def find_all(self, base_path: Any) -> Iterator[Any]:
    for found in self._standard.find_all(base_path):
      name = found.path.name
      if name == str(found.step) and (self._most is None or found.step <= self._most):
        yield found
      elif name not in self._told and not name.endswith(_ASIDE):
        self._told.add(name)
        _LOGGER.warning("%s is no checkpoint of this run, and is left as it is", found.path)

  def find_step(self, base_path: Any, step: int) -> Any:
    return self._standard.find_step(base_path, step)


class _NewestAndBest:
  """Orbax's preservation policy: the newest few and the best one."""

  def __init__(self, count):
    self._count = count
    self.best_step = None

  def should_preserve(self, checkpoints, *, context):
    del context
    old = len(checkpoints) - self._count
    return [number >= old or info.step == self.best_step for number, info in enumerate(checkpoints)]
