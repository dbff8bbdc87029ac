"""Batches read by Grain: the same as those gathered on the devices, whatever the threads, the set and the resume."""

import gc
import threading
import time

import jax
import numpy as np
import pytest

from soseleto_jax.core import sharding
from soseleto_jax.feed import streaming
from soseleto_jax.feed.resident import Resident
from soseleto_jax.feed.sampling import EpochSampler
from soseleto_jax.feed.streaming import Batches, Streaming
from tests import problems

N, B, SHAPE = 41, 13, (3, 2, 1)
STEPS = 12  # three epochs, each with a last batch of 2
PADDED = 16


@pytest.fixture
def examples(tmp_path):
  """Images that tell their row, in a memory map."""
  x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (N, *SHAPE))
  x[:] = np.arange(N)[:, None, None, None] + 100 * np.arange(2)[None, None, :, None]
  return {"x": np.load(tmp_path / "x.npy", mmap_mode="r"), "label": (np.arange(N) % 7).astype(np.int32)}


class Slow:
  """A set whose earlier batches come later than the ones after them."""

  def __init__(self, x):
    self.shape, self.dtype, self._x, self._turns = x.shape, x.dtype, x, iter(range(10**6))

  def __len__(self):
    return len(self._x)

  def __getitem__(self, index):
    time.sleep(0.02 if next(self._turns) % 4 == 0 else 0)
    return self._x[index]


class Recorded(Slow):
  """A set that notes the rows of each reading."""

  def __init__(self, x, read):
    super().__init__(x)
    self._read = read

  def __getitem__(self, index):
    self._read.append(index)
    return self._x[index]


def wait_until(holds, seconds=60):
  """However slow the machine is."""
  end = time.monotonic() + seconds
  while not holds():
    assert time.monotonic() < end, threading.enumerate()
    time.sleep(0.01)


def mesh(devices=8):
  return sharding.make_mesh(jax.devices()[:devices])


def stream(examples, devices=8, num_steps=STEPS):
  return Streaming(examples, EpochSampler(N, B, 5), num_steps, mesh(devices))


def feeds(examples, devices=8):
  return stream(examples, devices), Resident(examples, EpochSampler(N, B, 5), mesh(devices))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("counts", [[1] * STEPS, [5, 5, 2]])
def test_equal_to_the_resident_feed(examples, devices, counts):
  """In bits, dtypes and places on the devices."""
  streams, resident = feeds(examples, devices)
  step = 0
  for count in counts:
    found, expected = streams.batches(step, count), resident.batches(step, count)
    problems.assert_same_bits(found, expected)
    assert jax.tree.map(lambda part: part.sharding, found) == jax.tree.map(lambda part: part.sharding, expected)
    step += count


@pytest.mark.parametrize("kind", ["memory map", "array", "slow"])
def test_every_row_has_its_own_pixels_label_and_index(examples, kind):
  """Over several epochs, with the last short batches: each row once in an epoch, and nothing else."""
  x = {"memory map": lambda x: x, "array": np.array, "slow": Slow}[kind](examples["x"])
  streams = stream({**examples, "x": x})
  for epoch in range(3):
    seen = []
    for position in range(4):
      batch = {name: np.asarray(part)[0] for name, part in streams.batches(4 * epoch + position, 1).items()}
      assert batch["x"].shape == (PADDED, *SHAPE) and batch["x"].dtype == np.uint8
      assert batch["label"].dtype == batch["index"].dtype == np.int32
      index = batch["index"]
      np.testing.assert_array_equal(batch["x"][:, 0, :, 0], np.stack([index, index + 100], axis=1))
      np.testing.assert_array_equal(batch["label"], index % 7)
      assert batch["mask"].sum() == (2 if position == 3 else B) and len(set(index)) == PADDED
      seen += index[batch["mask"]].tolist()
    assert sorted(seen) == list(range(N))


def test_steps_may_be_asked_for_in_any_order(examples):
  streams, resident = feeds(examples)
  for step, count in [(7, 2), (3, 1), (3, 1), (4, 1), (0, 4), (11, 1)]:
    problems.assert_same_bits(streams.batches(step, count), resident.batches(step, count))


def test_the_state_is_that_of_the_batches_handed_out(examples):
  """Not of those read ahead."""
  read = []
  streams, resident = stream({**examples, "x": Recorded(examples["x"], read)}), feeds(examples)[1]
  for step in range(5):
    streams.batches(step, 1)
  wait_until(lambda: len(read) > 5)
  state = streams.state()
  other = stream(examples)
  other.restore(state, 5)
  problems.assert_same_bits(other.batches(5, 1), resident.batches(5, 1))
  with pytest.raises(ValueError, match="checkpoint of step 6 holds the iterator of step 5"):
    other.restore(state, 6)


def test_restored_at_the_end(examples):
  streams = stream(examples)
  streams.batches(0, STEPS)
  stream(examples).restore(streams.state(), STEPS)


def test_a_run_that_changes_its_feed_starts_from_the_step(examples):
  streams, resident = feeds(examples)
  assert resident.state() is None
  streams.restore(resident.state(), 6)
  problems.assert_same_bits(streams.batches(6, 1), resident.batches(6, 1))
  resident.restore(streams.state(), 7)


def test_a_process_reads_only_its_rows(examples):
  """Those of its devices: here the second and the fourth quarter of the padded batch."""
  read, rows = [], np.r_[4:8, 12:16]
  source = Batches({**examples, "x": Recorded(examples["x"], read)}, EpochSampler(N, B, 5), STEPS, 8, rows)
  assert len(source) == STEPS
  for step in range(STEPS):
    index, mask = (part[rows] for part in EpochSampler(N, B, 5).batch(step, 8))
    element = source[step]
    np.testing.assert_array_equal(element["index"], index)
    np.testing.assert_array_equal(element["mask"], mask)
    np.testing.assert_array_equal(element["x"], examples["x"][index])
    np.testing.assert_array_equal(read[-1], index)
  assert len(read) == STEPS


def test_what_a_reader_raises_reaches_the_caller(examples):
  class Broken(Slow):
    def __getitem__(self, index):
      raise ValueError("row 3 is broken")

  streams = stream({**examples, "x": Broken(examples["x"])})
  with pytest.raises(ValueError, match="row 3 is broken"):
    streams.batches(0, 1)


def test_no_more_than_a_few_batches_are_read_ahead(examples):
  read = []
  streams = stream({**examples, "x": Recorded(examples["x"], read)}, num_steps=1000)
  streams.batches(0, 1)
  time.sleep(0.2)  # for those who read on without end
  threads = streaming.lazy.read_options().prefetch_buffer_size
  assert len(read) <= 2 + streaming._ON_DEVICES + threads


def test_threads_end_with_the_feed(examples):
  before = set(threading.enumerate())  # those of the feeds of other tests too
  streams = stream(examples, num_steps=1000)
  streams.batches(0, 1)
  started = set(threading.enumerate()) - before
  assert started
  del streams
  gc.collect()
  wait_until(lambda: not any(thread.is_alive() for thread in started))
