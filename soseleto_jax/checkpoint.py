"""Checkpoints of a run, by Orbax: the train state and the host's side of the loop."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from soseleto_jax.train_state import TrainState


class Checkpoints:
  """The checkpoints of a run's folder, newest last; a context manager that waits for the last save.

  `alpha` is stored without the padding that a mesh needs, so that another number of devices can restore it.
  """

  def __init__(self, workdir: str | pathlib.Path, *, max_to_keep: int, num_source: int):
    """Opens `workdir/checkpoints`, made if it is not there.

    Args:
      workdir: the run's folder.
      max_to_keep: how many checkpoints stay.
      num_source: N, the length of `alpha` without padding.
    """
    self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._num_source = num_source
    self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True),
        item_names=("state", "loop"),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exc_info) -> None:
    self.wait()
    self._manager.close()

  @property
  def latest_step(self) -> int | None:
    """The newest step that was saved whole, or None."""
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when what was saved is on disk."""
    self._manager.wait_until_finished()

  def save(self, state: TrainState, loop: dict[str, Any]) -> None:
    """Saves a state, with a JSON-like dict beside it; returns once the arrays are copied."""
    step = int(state.step)
    if step == self.latest_step:
      return
    host = jax.tree.map(np.asarray, state)
    host = host.replace(alpha=host.alpha[: self._num_source])
    self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(host), loop=ocp.args.JsonSave(loop)))

  def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns the newest state, as host arrays, and the dict that was saved with it.

    Args:
      like: a state with the same shapes and dtypes, `alpha` without padding.

    Raises:
      ValueError: what was saved has other shapes, such as another number of source examples.
    """
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    restored = self._manager.restore(
        self.latest_step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), loop=ocp.args.JsonRestore()),
    )
    for (path, leaf), saved in zip(jax.tree.leaves_with_path(abstract), jax.tree.leaves(restored.state), strict=True):
      if leaf.shape != saved.shape:
        raise ValueError(
            f"{self.directory}, step {self.latest_step}: state{jax.tree_util.keystr(path)} has shape {saved.shape}, "
            f"but {leaf.shape} here; choose another --workdir, or the data and network of that run"
        )
    return restored.state, restored.loop
