"""Checkpoints of a run, by Orbax: the train state and the host's side of the loop."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from soseleto_jax.train_state import TrainState


class Checkpoints:
  """The checkpoints of a run's folder, newest last; a context manager that waits for the last save.

  Each process writes and reads the shards that its devices hold; `alpha` may be restored onto another number of them.
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
    loop = {"num_source": self._num_source, "loop": loop}
    self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(loop)))

  def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns the newest state, placed as `like` is, and the dict that was saved with it.

    Args:
      like: a state with the same shapes and dtypes, but for the padding of `alpha`.

    Raises:
      ValueError: what was saved has other shapes, such as another number of source examples.
    """
    step = self.latest_step
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
    restored = self._manager.restore(
        step,
        # Not strict: alpha may be padded to another length; what is then amiss is taken from `like` below.
        args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract, strict=False), loop=ocp.args.JsonRestore()),
    )
    shapes = {leaf.name: leaf.shape for leaf in jax.tree.leaves(self._manager.item_metadata(step).state.tree)}
    shapes["alpha"] = (restored.loop["num_source"],)
    for path, leaf in jax.tree.leaves_with_path(like):
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      shape = (self._num_source,) if name == "alpha" else leaf.shape
      if shape != shapes[name]:
        raise ValueError(
            f"{self.directory}, step {step}: state.{name} has shape {shapes[name]}, but {shape} here; "
            "choose another --workdir, or the data and network of that run"
        )
    owned = lambda alpha, padded: jnp.where(jnp.arange(len(alpha)) < self._num_source, alpha, padded)
    alpha = jax.jit(owned, out_shardings=like.alpha.sharding)(restored.state.alpha, like.alpha)
    return restored.state.replace(alpha=alpha), restored.loop["loop"]
