"""What the trainer adds to a step: `python -m experiments.benchmarks.trainer`.

The trainer's loop (drawing, gathering and placing batches, dispatching, reading metrics) is timed around a step that
does nothing, and the compiled step alone on batches that lie ready; printed are both and their ratio, processor time on
a CPU. The config is `cifar_noise.py:small` on pixels drawn at random. Evaluations and checkpoints are left out.
"""

import jax
import numpy as np
from absl import app, flags

from configs import cifar_noise
from experiments.benchmarks import timing
from soseleto_jax.core.step import Step
from soseleto_jax.data.normalization import fit_normalization
from soseleto_jax.data.task import Task
from soseleto_jax.run import loop
from soseleto_jax.run.trainer import Experiment

_METHOD = flags.DEFINE_string("method", "soseleto", "config.method")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of the network, each timed.", lower_bound=1)
_LOOPS = flags.DEFINE_integer("loops", 5, "Epochs of the loop around nothing, each timed.", lower_bound=1)


class _Around(Experiment):
  """An experiment whose evaluation says nothing, and whose step can be taken away."""

  metrics = None

  def evaluate(self, state):
    """Returns no numbers."""
    return {}

  def _compile(self, phase, step, count):
    compiled = super()._compile(phase, step, count)
    return compiled if self.metrics is None else lambda state, batches: (state, self.metrics)


class _NoCheckpoints:
  def save(self, *_):
    """Saves nothing."""


def _task():
  rng, names = np.random.default_rng(0), tuple("abcdefghij")

  def examples(count):
    return {
      "x": rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
      "label": rng.integers(0, 10, count).astype(np.int32),
    }

  source = examples(10_000)
  normalization = fit_normalization("channel", source["x"])
  return Task(
    "random pixels", source, examples(1000), None, examples(100), names, names, True, normalization, normalization
  )


def _experiment(task, metrics=None):
  config = cifar_noise.get_config("small")
  config.update(method=_METHOD.value, num_epochs=1)
  config.alpha.trial_epochs = 0
  experiment = _Around(config, task)
  experiment.metrics = metrics
  return experiment


def _bare(task):
  """Returns the seconds of each bare step, and the metrics of one."""
  experiment = _experiment(task)
  phase = experiment.method.phases[0]
  step: Step = phase.step
  batches = {name: experiment._feeds[name].batches(0, 1) for name in step.sets}
  state = experiment.place(experiment.initial_state())
  compiled = experiment._compile(phase, step, 1).lower(state, batches).compile()
  _, now = timing.clock()
  seconds = []
  for _ in range(_STEPS.value + 1):
    began = now()
    state, metrics = jax.block_until_ready(compiled(state, batches))
    seconds.append(now() - began)
  return np.array(seconds[1:]), metrics


def _loop(task, metrics):
  """Returns the seconds of a step of the loop around nothing, in each epoch."""
  _, now = timing.clock()
  experiment, seconds = _experiment(task, metrics), []
  state = experiment.place(experiment.initial_state())
  for _ in range(_LOOPS.value + 1):
    began = now()
    loop.train(experiment, state, loop.Window("", {}), None, _NoCheckpoints())
    seconds.append((now() - began) / experiment.num_steps)
  return np.array(seconds[1:])


def main(_):
  """Times both and prints them."""
  task = _task()
  bare, metrics = _bare(task)
  around = _loop(task, metrics)
  what, _ = timing.clock()
  print(f"cifar_noise.py:small, {_METHOD.value}, {jax.devices()[0].device_kind}, {what} of a step, medians\n")
  print("| the step alone, ms | the trainer around it, ms | part |\n|---|---|---|")
  part = np.median(around) / np.median(bare)
  print(f"| {1e3 * np.median(bare):.1f} | {1e3 * np.median(around):.2f} | {part:.1%} |")


if __name__ == "__main__":
  app.run(main)
