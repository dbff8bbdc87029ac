"""Which examples make up the batch of a step: indices only, a pure function of (seed, step).

A resumed run needs nothing but its step. Both samplers keep the current permutation as a cache: 8 bytes an example, and
three times as much while it is drawn.
"""

import numpy as np

from soseleto_jax.data import draws

_FIELDS = {"target": "target_batch_size"}  # by the set; the source's is batch_size


class EpochSampler:
  """Goes through all examples once an epoch, in a new order each epoch.

  The last batch of an epoch is filled up to the full batch size, so that every step has one shape, with examples that
  the epoch began with. They are masked, and there for layers that look at a whole batch, such as BatchNorm: copies of
  one example would distort what these see, and a few rows alone be too few for them.
  """

  def __init__(self, num_examples: int, batch_size: int, seed: int, name: str = "source"):
    """Sets the sampler up.

    Args:
      num_examples: N.
      batch_size: B, at most N.
      seed: the experiment's seed.
      name: tells this sampler's draws from those of others with the same seed.

    Raises:
      ValueError: where the batch is empty or larger than the set.
    """
    _check_batch_size(name, num_examples, batch_size)
    self._num_examples = num_examples
    self._batch_size = batch_size
    self._passes = _ShuffledPasses(num_examples, seed, name, "epoch")
    self.steps_per_epoch = -(-num_examples // batch_size)

  def batch(self, step: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns step's (index int32 `[B]`, mask bool `[B]`), filled up to a multiple of the devices.

    The examples of a batch are different, as long as there are as many.
    """
    epoch, position = divmod(int(step), self.steps_per_epoch)
    rows = np.arange(self._batch_size + -self._batch_size % multiple)
    slots = position * self._batch_size + rows
    mask = (rows < self._batch_size) & (slots < self._num_examples)
    index = self._passes.at(epoch * self._num_examples + slots % self._num_examples)
    return index.astype(np.int32), mask


class TargetSampler:
  """Serves an endless stream of shuffled passes over a small set in batches that are always full.

  With `balanced`, slot p of the stream serves the classes in turn (p mod K) and each class has
  shuffled passes of its own, so that any K slots in a row hold one example of each class.
  """

  def __init__(self, labels: np.ndarray, batch_size: int, seed: int, balanced: bool = False):
    """Sets the sampler up.

    Args:
      labels: integers `[N]`; the K classes served are those that occur.
      batch_size: T, at most N; a batch of N holds every example once in each step (unless balanced
        over classes of unequal size).
      seed: the experiment's seed.
      balanced: whether batches are balanced by class.

    Raises:
      ValueError: where the batch is empty or larger than the set.
    """
    labels = np.asarray(labels)
    _check_batch_size("target", len(labels), batch_size)
    self._batch_size = batch_size
    if balanced:
      self._groups = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    else:
      self._groups = [np.arange(len(labels))]
    self._passes = [
      _ShuffledPasses(len(group), seed, "target", "balanced" if balanced else "all", g)
      for g, group in enumerate(self._groups)
    ]

  def batch(self, step: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns step's (index int32 `[T]`, mask bool `[T]`), filled up to a multiple of the devices by those that follow.

    All are True but those that fill up.
    """
    rows = np.arange(self._batch_size + -self._batch_size % multiple)
    turn, group_of_slot = np.divmod(int(step) * self._batch_size + rows, len(self._groups))
    index = np.empty(len(rows), np.int32)
    for g, (group, passes) in enumerate(zip(self._groups, self._passes, strict=True)):
      served = group_of_slot == g
      index[served] = group[passes.at(turn[served])]
    return index, rows < self._batch_size


class _ShuffledPasses:
  """The endless stream of permutations of 0..n-1, one after another, read at any positions."""

  def __init__(self, n: int, seed: int, *stream: str | int):
    self._n, self._seed, self._stream = n, seed, stream
    self._latest = (-1, np.empty(0, np.int64))

  def at(self, positions: np.ndarray) -> np.ndarray:
    passes, slots = np.divmod(positions, self._n)
    values = np.empty(len(positions), np.int64)
    for number in np.unique(passes):
      here = passes == number
      values[here] = self._order(number)[slots[here]]
    return values

  def _order(self, number: int) -> np.ndarray:
    cached, order = self._latest
    if number != cached:
      order = draws.permutation(self._n, self._seed, *self._stream, number)
      self._latest = (number, order)
    return order


def _check_batch_size(name: str, num_examples: int, batch_size: int) -> None:
  if not 1 <= batch_size <= num_examples:
    raise ValueError(
      f"config.{_FIELDS.get(name, 'batch_size')}={batch_size} but the {name} set has {num_examples} examples; "
      f"choose a batch size in 1..{num_examples}"
    )
