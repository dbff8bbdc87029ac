"""Cost of a long `alpha`: `python -m experiments.benchmarks.alpha_scale`.

A step with many source examples against the same step with few, on 1 device and split over 8 (virtual ones on a CPU).
The network is small, so that nothing hides what `alpha` costs. The two take turns, a few steps at a time, and printed
is a Markdown table of the medians, their ratio, and the bytes of one device by XLA's plan: those of `alpha`, all that
comes in (state and batches), how much of that is overwritten in place, and what is needed beside it.
"""

import time

import jax
import numpy as np
import optax
from absl import app, flags

from soseleto_jax import init_train_state, make_mesh, make_train_step, shard_train_state, shard_train_step
from soseleto_jax.models import get_model
from soseleto_jax.models.losses import classification_loss

_ROWS = flags.DEFINE_list("rows", ["50000", "100000000"], "N; each is compared with the first.")
_DEVICES = flags.DEFINE_list("devices", ["1", "8"], "How many devices alpha is split over.")
_SOURCE = flags.DEFINE_integer("batch_size", 256, "B", lower_bound=1)
_TARGET = flags.DEFINE_integer("target_batch_size", 32, "T", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 40, "How often each is timed.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of one timing.", lower_bound=1)

_FEATURES, _CLASSES = 256, 10


class Run:
  """A compiled step over `num_rows` weights, with its state and the milliseconds of each timing so far."""

  def __init__(self, num_rows, mesh):
    model = get_model("mlp", _CLASSES, hidden=(256, 256))
    optimizer, loss = optax.sgd(0.01, momentum=0.9), classification_loss(model)
    params = model.init(jax.random.key(0), np.zeros((1, _FEATURES), np.float32))["params"]
    step = make_train_step(loss, loss, optimizer, alpha_step_size=0.1, axis_name="data")
    self.state = shard_train_state(init_train_state(params, optimizer, num_rows), mesh)
    self.num_rows, self.milliseconds = num_rows, []
    rng = np.random.default_rng(0)
    self._batches = [(_batch(rng, _SOURCE.value, num_rows), _batch(rng, _TARGET.value)) for _ in range(_STEPS.value)]
    self.step = shard_train_step(step, mesh).lower(self.state, *self._batches[0]).compile()

  def time(self):
    """Takes a step on each batch, whose rows lie anywhere in `alpha`."""
    began = time.perf_counter()
    for batches in self._batches:
      self.state, _ = self.step(self.state, *batches)
    jax.block_until_ready(self.state)
    self.milliseconds.append(1e3 * (time.perf_counter() - began) / len(self._batches))


def _batch(rng, size, num_rows=None):
  batch = {"x": rng.normal(size=(size, _FEATURES)), "label": rng.integers(_CLASSES, size=size)}
  if num_rows:
    batch["index"] = rng.integers(num_rows, size=size)
  return {name: value.astype(np.float32 if name == "x" else np.int32) for name, value in batch.items()}


def main(_):
  """Times the steps and prints the table."""
  counts = [int(count) for count in _DEVICES.value]
  jax.config.update("jax_num_cpu_devices", max(counts))
  print(f"B={_SOURCE.value}, T={_TARGET.value}, {jax.devices()[0].device_kind}")
  print("| devices | rows of α | ms | ratio | α, MB | in, MB | in place, MB | beside, MB |")
  print("|---|---|---|---|---|---|---|---|")
  for count in counts:
    mesh = make_mesh(jax.devices()[:count])
    runs = [Run(int(rows), mesh) for rows in _ROWS.value]
    for run in runs * (_ROUNDS.value + 1):
      run.time()
    medians = [np.median(run.milliseconds[1:]) for run in runs]
    for run, median in zip(runs, medians, strict=True):
      memory = run.step.memory_analysis()
      sizes = (
        run.state.alpha.addressable_shards[0].data.nbytes,
        memory.argument_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
      )
      sizes = " | ".join(f"{size / 1e6:.2f}" for size in sizes)
      print(f"| {count} | {run.num_rows:,} | {median:.2f} | {median / medians[0]:.2f} | {sizes} |")


if __name__ == "__main__":
  app.run(main)
