"""Sets that live on the devices: batches are gathered there by index."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import arrays
from soseleto_jax.data import lazy
from soseleto_jax.data.selection import Examples
from soseleto_jax.feed.sampling import EpochSampler, TargetSampler


def put_set(examples: Examples, mesh: Mesh) -> dict[str, jax.Array]:
  """Places the pixels and labels of a set on every device of a mesh."""
  seen = {"x": lazy.load(examples["x"]), "label": examples["label"]}  # never true_label
  return arrays.put(seen, NamedSharding(mesh, P()))


class Resident:
  """Feeds the batches of a set on the devices."""

  def __init__(self, examples: Examples, sampler: EpochSampler | TargetSampler, mesh: Mesh):
    """Puts the set on every device of a mesh with one axis."""
    self._set, self._sampler, self._mesh = put_set(examples, mesh), sampler, mesh
    self._split = NamedSharding(mesh, P(None, *mesh.axis_names))

  def batches(self, step: int, count: int) -> dict[str, jax.Array]:
    """Returns the batches of `count` steps from `step`, as `Streaming.batches` does."""
    rows = [self._sampler.batch(s, self._mesh.size) for s in range(step, step + count)]
    index, mask = (np.stack(parts) for parts in zip(*rows, strict=True))
    return _gather(self._split)(self._set, *arrays.put((index, mask), self._split))

  def again(self, step: int) -> dict[str, jax.Array]:
    """Returns the batch of a step that was fed before, as `Streaming.again` does."""
    return jax.tree.map(lambda part: part[0], self.batches(step, 1))

  def state(self) -> None:
    """Returns None: the sampler's step is all."""

  def restore(self, state: Any, step: int) -> None:
    """Takes what `state`, of this or of the other feed, returned at a step; there is nothing to restore."""


@functools.cache
def _gather(split):
  """Compiles the gathering of batches once for all sets of the same shapes."""

  def gather(examples, index, mask):
    return {"x": examples["x"][index], "label": examples["label"][index], "index": index, "mask": mask}

  mapped = jax.shard_map(gather, mesh=split.mesh, in_specs=(P(), split.spec, split.spec), out_specs=split.spec)
  return jax.jit(mapped, out_shardings=split)
