"""Tiny experiments that the tests of the trainer share."""

import contextlib

import jax
import numpy as np
import pytest

from soseleto_jax.config import default_config
from soseleto_jax.core import sharding
from soseleto_jax.data.task import from_arrays
from soseleto_jax.run.trainer import Experiment

NUM_SOURCE, BATCH_SIZE, STEPS_PER_EPOCH = 41, 13, 4  # neither divides by 8, nor the one by the other
NUM_TARGET, NUM_VALIDATION, NUM_TEST = 12, 10, 23
CLASSES, TARGET_CLASSES = 3, 4  # the latter where the classes are not shared


def make_config(**fields):
  """The smallest experiment that uses momentum, decay and a schedule; fields by their dotted names."""
  config = default_config()
  config.model.hidden = (4,)
  config.update_from_flattened_dict(
    {
      "batch_size": BATCH_SIZE,
      "target_batch_size": 5,
      "num_epochs": 2,
      "eval_batch_size": 9,
      "finetune_epochs": 1.0,
      "finetune_learning_rate": 0.05,
      "optimizer.learning_rate": 0.1,
      "optimizer.weight_decay": 1e-2,
      "optimizer.schedule": "cosine",
      "alpha.step_size": 0.1,
    }
    | {name.replace("__", "."): value for name, value in fields.items()}
  )
  return config


def make_task(*, shape=(5,), shared=True, true_label=True, seed=0, **options):
  """Points (or uint8 images) around one centre for each class; the first 12 source labels are wrong."""
  rng = np.random.default_rng(seed)
  classes = CLASSES if shared else TARGET_CLASSES
  centers = 2 * rng.normal(size=(max(classes, CLASSES), *shape))

  def examples(count, classes):
    label = np.arange(count) % classes
    x = centers[label] + rng.normal(size=(count, *shape))
    return (x if len(shape) == 1 else np.clip(128 + 30 * x, 0, 255).astype(np.uint8)), label

  source_x, right = examples(NUM_SOURCE, CLASSES)
  label = np.where(np.arange(NUM_SOURCE) < 12, (right + 1) % CLASSES, right)
  target, validation, test = (examples(count, classes) for count in (NUM_TARGET, NUM_VALIDATION, NUM_TEST))
  return from_arrays(
    source_x,
    label,
    *target,
    *test,
    validation=validation,
    true_label=right if true_label else None,
    shared_classes=shared,
    **options,
  )


def use_devices(monkeypatch, count):
  """Lets experiments run on the first `count` devices only."""
  make_mesh = sharding.make_mesh
  monkeypatch.setattr(sharding, "make_mesh", lambda: make_mesh(jax.devices()[:count]))


class Crash(Exception):
  """Stands for whatever kills a run."""


def crash():
  raise Crash


@contextlib.contextmanager
def before_step(number, action):
  """Calls `action` when a run is about to take the step after `number`."""
  advance = Experiment.advance

  def patched(self, state, step, limit):
    if step == number:
      action()
    return advance(self, state, step, limit)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Experiment, "advance", patched)
    yield
