"""What comes before a method, where the config asks for it: plain training on the source alone."""

import dataclasses

from ml_collections import ConfigDict

from soseleto_jax.config import default_config
from soseleto_jax.core.step import make_plain_step
from soseleto_jax.data.task import Task
from soseleto_jax.methods.base import Method, Phase, Setup

FOLDER = "pretraining"  # in the run's own


def config_of(config: ConfigDict) -> ConfigDict:
  """Returns the config of the training that comes before an experiment's, a run of its own.

  It has the source, batches and network of the experiment and its optimizer, at `config.pretrain_learning_rate`. What
  the experiment's method reads is at its default, so that all methods of an experiment have one pretraining.
  """
  first = config.copy_and_resolve_references()
  defaults = default_config()
  for field in (
    "method",
    "method_options",
    "alpha",
    "pretrain_epochs",
    "target_weight",
    "domain_weight",
    "target_balanced",
    "num_steps",
  ):
    first[field] = defaults[field]
  first.name = f"{config.name}: pretraining".lstrip(": ")
  first.num_epochs = 1
  first.target_batch_size = 1  # which is not drawn
  first.augment.target = ()
  first.optimizer.learning_rate = config.pretrain_learning_rate
  first.method_options = {"epochs": config.pretrain_epochs}
  return first


def without_held_out(task: Task) -> Task:
  """Returns the task of the pretraining, which trains no classifier of the target that could be tested."""
  return dataclasses.replace(task, validation=None, test=None)


def make_method(setup: Setup, *, epochs: float = 1.0) -> Method:
  """Plain training on the source for so many passes, with the schedule of that length; the target is not seen."""
  num_steps = max(1, setup.steps_of(epochs))
  step = make_plain_step(setup.loss("source"), setup.optimizer(setup.schedule(num_steps)), axis_name=setup.axis_name)
  return Method((Phase(num_steps, step),))
