"""Trains on the set of a folder, in a process of its own; then tries to load it: see `streaming_runs_test`."""

import pathlib
import sys

import flax.linen as nn
import numpy as np

from soseleto_jax.data.task import from_arrays
from soseleto_jax.report import page
from soseleto_jax.train import train_and_evaluate
from tests import runs


class FewPixels(nn.Module):
  """So that reading the images takes the time, not the network."""

  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Dense(4)(x[:, ::16, ::16].reshape(len(x), -1)))


def main(folder):
  """Prints the share of weights that moved, and whether loading the set whole failed."""
  page.write_report = lambda workdir, **_: workdir
  x, label = np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "label.npy")
  few = np.arange(0, len(x), len(x) // 64)[:64]
  task = from_arrays(x, label, x[few], np.arange(64) % 2, x[few], np.arange(64) % 2)

  def run(feed):
    config = runs.make_config(data__feed=feed, batch_size=1024, num_epochs=1)
    return train_and_evaluate(config, folder / feed, task, network=FewPixels())

  print(f"moved {np.mean(run('auto').alpha != 0.5):.3f}")
  try:
    run("resident")
  except MemoryError:
    print("too large to load")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
