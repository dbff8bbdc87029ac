"""The step rate with the source streamed, as a fraction of that with it on the device.

    TFDS_DATA_DIR=... python -m experiments.benchmarks.streaming

CIFAR-10 of TensorFlow Datasets, CIFAR-10 Quick, the step of `configs/cifar_noise.py:paper`. Streamed images are read
from ArrayRecord and decoded for each batch. Both experiments train in turn, some steps each, so that whatever else the
machine does meets both alike; the fraction is the median over the turns. Processor seconds, of all threads of this
process, hardly depend on what else runs: they show what the reading itself costs.
"""

import time

import jax
import numpy as np
from absl import app, flags, logging

from configs import cifar_noise
from soseleto_jax.data.get_task import get_task
from soseleto_jax.run.trainer import Experiment

_STEPS = flags.DEFINE_integer("steps", 20, "Steps in a turn.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 10, "Turns of each.", lower_bound=1)
_SMALL = flags.DEFINE_bool("small", False, "With batches of 128 of 10,000 images.")

_FEEDS = ("resident", "streaming")


class Run:
  """An experiment and its state."""

  def __init__(self, feed):
    """Starts from step 0 and takes a first step, which compiles."""
    config = cifar_noise.get_config("paper,small" if _SMALL.value else "paper")
    config.data.feed = feed
    self._experiment = Experiment(config, get_task(config.data, config.seed))
    self._state, self._step = self._experiment.place(self._experiment.initial_state()), 0
    self.seconds(1)

  def seconds(self, steps):
    """Takes some steps and returns the seconds and processor seconds of one; reads metrics one late, as the trainer."""
    began, pending, limit = _clocks(), None, self._step + steps
    while self._step < limit:
      self._state, count, metrics = self._experiment.advance(self._state, self._step, limit)
      jax.block_until_ready(pending)
      pending, self._step = metrics, self._step + count
    jax.block_until_ready((pending, self._state))
    return (_clocks() - began) / steps


def _clocks():
  return np.array([time.perf_counter(), time.process_time()])


def main(_):
  """Times both and prints the table."""
  logging.set_verbosity(logging.WARNING)
  runs = {feed: Run(feed) for feed in _FEEDS}
  seconds = {feed: [] for feed in _FEEDS}
  for turn in range(_TURNS.value):
    for feed in _FEEDS[:: 1 if turn % 2 else -1]:
      seconds[feed].append(runs[feed].seconds(_STEPS.value))
  print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {_TURNS.value} turns of {_STEPS.value} steps each\n")
  print("| feed | steps/s | of the resident rate: median, least, most | processor seconds a step |")
  print("|---|---|---|---|")
  for feed in _FEEDS:
    fractions = np.divide(seconds["resident"], seconds[feed])[:, 0]
    spread = ", ".join(f"{100 * value:.0f} %" for value in (np.median(fractions), fractions.min(), fractions.max()))
    wall, processor = np.median(seconds[feed], axis=0)
    print(f"| {feed} | {1 / wall:.2f} | {spread} | {processor:.3f} |")


if __name__ == "__main__":
  app.run(main)
