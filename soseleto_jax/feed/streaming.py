"""Sets larger than memory: Grain reads the batch of each step when it comes near, and puts it on the devices.

Which examples a step uses is a pure function of seed and step, so Grain's elements are whole batches, and the index
that ties an example to its weight is attached where it is read.
"""

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.data import lazy
from soseleto_jax.data.selection import Examples
from soseleto_jax.feed.sampling import EpochSampler

_ON_DEVICES = 2  # batches that wait there


class Batches:
  """A source for Grain: element s holds the rows of step s's batch that one process feeds."""

  def __init__(self, examples: Examples, sampler: EpochSampler, num_steps: int, size: int, rows: np.ndarray):
    """Sets the source up.

    Args:
      examples: "x" (in memory or on disk) and "label".
      sampler: names the examples of each step.
      num_steps: the number of elements.
      size: rows of a batch, B or more; those past B are masked.
      rows: which of them to read, integers `[R]`, ascending.
    """
    self._x, self._label = examples["x"], examples["label"]
    self._sampler, self._num_steps, self._size, self._rows = sampler, num_steps, size, rows
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._num_steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """Reads "x" `[R, ...]` as stored, "label" and "index" int32 `[R]`, and "mask" bool `[R]`."""
    with self._lock:  # or threads that meet a new epoch would each draw its order
      index, mask = self._sampler.batch(step, self._size)
    index, mask = index[self._rows], mask[self._rows]
    return {"x": self._x[index], "label": self._label[index], "index": index, "mask": mask}


class Streaming:
  """Feeds the batches of a set that is read step by step; each process reads only the rows of its own devices."""

  def __init__(self, examples: Examples, sampler: EpochSampler, num_steps: int, mesh: Mesh):
    """Opens the stream for a mesh with one axis; reads nothing yet."""
    import grain  # seconds, which those whose sets live on the devices need not wait

    self._experimental = grain.experimental
    size = len(sampler.batch(0, mesh.size)[0])
    split = NamedSharding(mesh, P(None, *mesh.axis_names))
    slices = split.addressable_devices_indices_map((1, size)).values()
    rows = np.unique(np.concatenate([np.arange(size)[part[1]] for part in slices if part is not None]))
    self._source, self._put = Batches(examples, sampler, num_steps, size, rows), functools.partial(_put, split, size)
    on_devices = grain.MapDataset.source(self._source).to_iter_dataset(lazy.read_options()).map(self._put)
    self._iterator = iter(grain.experimental.ThreadPrefetchIterDataset(on_devices, prefetch_buffer_size=_ON_DEVICES))
    self._join = jax.jit(lambda parts: jax.tree.map(lambda *p: jnp.concatenate(p), *parts), out_shardings=split)

  def batches(self, step: int, count: int) -> dict[str, jax.Array]:
    """Returns the batches of `count` steps from `step`.

    Returns:
      "x" `[count, B, ...]` as stored, "label" and "index" int32 `[count, B]`, "mask" bool `[count, B]`, split over the
      devices along B, which masked rows lengthen to a multiple of the devices.
    """
    if self._experimental.get_next_index(self._iterator) != step:
      self._experimental.set_next_index(self._iterator, step)
    parts = [next(self._iterator) for _ in range(count)]
    return parts[0] if count == 1 else self._join(parts)

  def again(self, step: int) -> dict[str, jax.Array]:
    """Returns the batch of a step that was fed before, "x" `[B, ...]` and the rest; the stream stays where it is."""
    return jax.tree.map(lambda part: part[0], self._put(self._source[step]))

  def state(self) -> dict[str, Any]:
    """Returns the state of Grain's iterator after the batches that were handed out, a JSON-like dict."""
    return self._iterator.get_state()

  def restore(self, state: dict[str, Any] | None, step: int) -> None:
    """Goes on from what `state` returned at a step; from None, what the other feed returns, by the step alone.

    Raises:
      ValueError: the state belongs to another step.
    """
    if state is None:
      return
    self._iterator.set_state(state)
    position = self._experimental.get_next_index(self._iterator)
    if position != step:
      raise ValueError(
        f"the checkpoint of step {step} holds the iterator of step {position}; take the checkpoint before it"
      )


def _put(split: NamedSharding, size: int, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  def place(part):
    return jax.make_array_from_process_local_data(split, part[None], (1, size, *part.shape[1:]))

  return jax.tree.map(place, batch)
