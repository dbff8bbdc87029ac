"""What the tests of methods make them for: the tiny data of `tests.runs`, and a perceptron."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from soseleto_jax import init_train_state
from soseleto_jax.feed.preparation import Preparation
from soseleto_jax.methods.base import Setup
from soseleto_jax.models import MLP
from soseleto_jax.models.network import as_network
from tests import problems, runs

PERCEPTRON = MLP(hidden=(4,))


class Normed(nn.Module):
  """A representation that carries state."""

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))


def make_setup(method, *, shared=True, task=None, representation=PERCEPTRON, optimizer=None, axis_name=None, **fields):
  """A `Setup` with the fields of a config, by their dotted names."""
  task = make_task(shared) if task is None else task
  classes = {"source": runs.CLASSES, "target": runs.TARGET_CLASSES}
  network = as_network(representation, runs.CLASSES if shared else classes)
  return Setup(
    config=runs.make_config(method=method, data__shared_classes=shared, **fields),
    network=network,
    task=task,
    **dict(zip(("params", "model_state"), _start(network, task.source["x"].shape[1:]), strict=True)),
    steps_per_epoch=runs.STEPS_PER_EPOCH,
    axis_name=axis_name,
    given_optimizer=optimizer,
    preparations={
      "source": Preparation(task.source_normalization),
      "target": Preparation(task.target_normalization),
    },
  )


@functools.cache
def make_task(shared):
  return runs.make_task(shared=shared)


@functools.cache
def _start(network, shape):
  return network.init(jax.random.key(0), jnp.zeros((1, *shape)))


def start(method, setup, phase=0, alpha_init=None):
  """The state that a phase of a method starts from, with the parameters of the method's start."""
  return init_train_state(
    method.init(setup.params),
    method.phases[phase].step.optimizer,
    runs.NUM_SOURCE,
    alpha_init=method.alpha_init if alpha_init is None else alpha_init,
    model_state=setup.model_state,
  )


def batches(number, shared=True, shape=(5,)):
  """Source and target of a step, the last rows of both masked."""
  source = problems.batch(2 * number, 7, classes=runs.CLASSES, shape=shape, mask=np.arange(7) < 6)
  target_classes = runs.CLASSES if shared else runs.TARGET_CLASSES
  target = problems.batch(2 * number + 1, 4, classes=target_classes, shape=shape, mask=np.arange(4) < 3)
  source["index"], target["index"] = (
    problems.index(number, size, rows) for size, rows in ((7, runs.NUM_SOURCE), (4, runs.NUM_TARGET))
  )
  return {"source": source, "target": target}


def take_steps(step, state, count=2, shared=True):
  """The state and the metrics after some steps."""
  compiled = problems.jit(step)
  for number in range(count):
    data = batches(number, shared)
    state, metrics = compiled(state, *(data[side] for side in step.sets))
  return state, metrics
