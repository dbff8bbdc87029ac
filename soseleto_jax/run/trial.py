"""A trial before training: does the source, taken whole, help or harm? From the answer `alpha` starts."""

import dataclasses
import json
import logging
import pathlib
from statistics import NormalDist
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from soseleto_jax.data import selection
from soseleto_jax.data.task import Task
from soseleto_jax.report import writers
from soseleto_jax.run import processes
from soseleto_jax.run.given import Given
from soseleto_jax.run.progress import Progress
from soseleto_jax.run.trainer import Experiment, Shared

_LOGGER = logging.getLogger(__name__)
_FILE = "trial.json"

# Gains in accuracy by the source, and how far from 1/2 the weights of the burn-in then are, with the rest in
# proportion, as small gains may be chance. A weight outside of [0, 1] is clipped, but is longer in coming or going.
_GAINS, _FROM_HALF = (-0.12, 0.0, 0.05), (-0.96, 0.0, 0.8)
_LEAST = 0.1  # of burn-in, in which a weight of 0 would learn nothing of the source

VERSION = 4  # raised where another start follows: records of experiments count by it

# In a burn-in `alpha` falls behind its start as a normal variable does whose standard deviation is so many times what
# it moves by in as many steps of q = 1. Measured on CIFAR-10 with wrong labels of four kinds.
_SPREAD = 1.2
_OUT = (0.02, 0.5)  # least and most of the source that is to be out after the burn-in
_SEEN = 0.4  # of an annotator's or of people's wrong labels; on the rest the target's network is wrong like them
_BEFORE, _WORTH = 0.25, 100  # what is thought to show before anything is seen, and for how many images that counts
_NOT_TRUSTED = -0.03  # gain in accuracy at which the labels' agreement with the target says nothing any more

# Agreement over accuracy from which on labels err as the target's network does, and so by whole classes. On CIFAR-10 it
# was 1.6 and more where such a network gave them, and 1.0 at most where others did.
_ALIKE = 1.2
_CENTERED = "center_by_class"


def is_wanted(config: ConfigDict, given: Given) -> bool:
  """Whether the run's `alpha` is to start from a trial."""
  own = given.method is None and not config.init_from
  return config.method == "soseleto" and own and config.alpha.trial_epochs > 0


def with_start(
  shared: Shared, given: Given, workdir: pathlib.Path, resumes: bool, before: dict[str, Any] | None = None
) -> tuple[ConfigDict, dict[str, Any]]:
  """Returns the config with `alpha.init` and `alpha.burn_in_weight` from a trial.

  For a few epochs one network learns from the target alone and one from source and target alike. Both are then tried
  on the validation images or, where there are none, on a third of the target's, held back from both. Source examples
  start with a weight of 1/2 where both networks are as good, of 1 where the source gains 3 points or more, and of 0
  where it costs 6 or more; from there on the more it costs, up to 12, the longer they wait until `alpha` lets them
  in. A source whose labels are wrong systematically is then kept out until its examples are told apart.

  With a burn-in, in which all examples have that weight, the start decides how many count afterwards. The first
  network has learned from right labels alone, so that it should agree with the source's as often as it is right on
  the images held back. What is missing shows wrong labels, about two in five of those that are wrong systematically;
  more agreement than that shows labels that err as the network does. Where less than half of the source is to be
  doubted for it, `alpha` starts so much higher that about this part is below 1/2 when the burn-in ends.

  Where that network agrees a fifth more often than it is right, on more than a few images, "center_by_class" is left
  out of `alpha.transforms`: it would hide that whole classes are wrong.

  Args:
    shared: of the run's experiment.
    given: what the caller gave it.
    workdir: its folder, where trial.json keeps the answer.
    resumes: whether the run goes on from a checkpoint, and with the answer that it started with.
    before: that answer, where the checkpoint has it.

  Returns:
    The config, and what to say of it: "alpha_init", "burn_in_weight", the accuracies "trial_target" and "trial_joint",
    and, where source and target have the same classes, "trial_agreement": how many of the source's labels, of as many
    as were held back, the first network agrees with; and "center_by_class", whether it stays, where the config has it.
  """
  found = before or (_read(workdir / _FILE) if resumes else None) or _try(shared, given)
  config = shared.setup.config.copy_and_resolve_references()
  if "burn_in_weight" not in found:  # of a run that an older version began
    weight = 0.5 + config.alpha.gain * (found["alpha_init"] - 0.5)
    found = found | {"burn_in_weight": float(np.clip(weight, _LEAST, 1.0))}
  if processes.is_main():
    write(workdir, found)
  config.alpha.init, config.alpha.burn_in_weight = found["alpha_init"], found["burn_in_weight"]
  if not found.get(_CENTERED, True):
    config.alpha.transforms = tuple(name for name in config.alpha.transforms if name != _CENTERED)
  return config, found


def write(workdir: pathlib.Path, found: dict[str, Any]) -> None:
  """Writes trial.json: what `with_start` returned."""
  writers.write_json(workdir / _FILE, found)


def _read(path):
  """Returns the answer in a file, or None where it has none: the trial, taken again, gives the same."""
  try:
    found = json.loads(path.read_bytes())
    weights = found["alpha_init"], found.get("burn_in_weight", 1.0)
    return found if all(0 <= weight <= 1 for weight in weights) else None
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return None


def _try(shared, given):
  config, task = shared.setup.config, shared.setup.task
  held_out = _hold_out(task, config.seed)
  if held_out is None:
    _LOGGER.warning("no trial: no clean images to try on; take num_validation of them, or 3 a class for the target")
    return {"alpha_init": 0.5, "burn_in_weight": 0.5}
  tried = {method: _evaluation(shared, held_out, given, method) for method in ("target_only", "joint")}
  target, joint = (float(tried[method]["test_accuracy"]) for method in ("target_only", "joint"))
  said, gain = {"trial_target": target, "trial_joint": joint}, joint - target
  from_half = float(np.interp(gain, _GAINS, _FROM_HALF))
  init, which = 0.5 + from_half / config.alpha.gain, ""
  if held_out.validation is not None:
    agreement = float(tried["target_only"]["validation_accuracy"])
    ratio, count = min(2.0, agreement / max(target, 1e-6)), len(held_out.test["label"])
    wrong = _weighed(abs(1 - ratio), _BEFORE, count)
    init += float(np.clip(1 - gain / _NOT_TRUSTED, 0, 1)) * _above(config, wrong)
    said["trial_agreement"] = agreement
    which = f", whose network agrees with {100 * agreement:.1f} % of the source's labels"
    if _CENTERED in config.alpha.transforms:
      said[_CENTERED] = _weighed(ratio, 1 - _BEFORE, count) <= _ALIKE
      which += "" if said[_CENTERED] else ", so that whole classes may be wrong, and nothing is centered by class"
  init, weight = float(np.clip(init, 0.0, 1.0)), float(np.clip(0.5 + from_half, _LEAST, 1.0))
  _LOGGER.info(
    "trial of %d epochs, on %d clean images: %.1f %% from the target alone%s; %.1f %% with the source; so alpha starts "
    "at %.3f, and the source with weight %.2f",
    config.alpha.trial_epochs, len(held_out.test["label"]), 100 * target, which, 100 * joint, init, weight,
  )  # fmt: skip
  return {"alpha_init": init, "burn_in_weight": weight} | said


def _weighed(shown, before, count):
  """What to think after `count` images have shown it; few leave it near what was thought before."""
  return (count * shown + _WORTH * before) / (count + _WORTH)


def _above(config, wrong):
  """How far above 1/2 `alpha` has to start for what may be wrong to end the burn-in below."""
  spread = _SPREAD * config.alpha.step_size * config.alpha.burn_in_epochs
  return spread * NormalDist().inv_cdf(1 - float(np.clip(wrong / _SEEN, *_OUT)))


def _hold_out(task: Task, seed: int) -> Task | None:
  """Returns the task with what the trial is judged by as its test set.

  Its validation set are as many of the source of each class, where source and target have the same.
  """
  target, test = task.target, task.validation
  if test is None:
    label = target["label"]
    index = selection.balanced(label, np.bincount(label) // 3, seed, "trial", "config.alpha.trial_epochs")
    if not len(index):
      return None
    held = np.isin(np.arange(len(label)), index)
    target, test = selection.take(target, ~held), selection.take(target, held)
  source = None
  if task.shared_classes:
    label, counts = task.source["label"], np.bincount(test["label"], minlength=task.num_source_classes)
    counts = np.minimum(counts, np.bincount(label, minlength=task.num_source_classes))
    index = selection.balanced(label, counts, seed, "trial source", "config.alpha.trial_epochs")
    source = selection.take(task.source, index)
  return dataclasses.replace(task, target=target, validation=source, test=test)


def _evaluation(shared, task, given, method):
  """Trains by another method for the trial's epochs; returns the accuracies on validation and test set.

  Those of the mean of the parameters over the last third (Izmailov et al. 2018): at a rate that has not fallen yet, one
  step's accuracy is several points from the next one's, and the lower the noisier its gradients.
  """
  config = shared.setup.config.copy_and_resolve_references()
  epochs = min(config.alpha.trial_epochs, config.num_epochs)
  config.update(method=method, domain_weight=0.0, num_epochs=epochs, num_steps=0, steps_per_call=1)
  config.target_batch_size = min(config.target_batch_size, len(task.target["label"]))
  experiment = Experiment(config, task, dataclasses.replace(given, evaluators=()), shared, compiles_quickly=True)
  state, step, mean = experiment.place(experiment.initial_state()), 0, None
  averaged_from = experiment.num_steps - max(1, experiment.num_steps // 3)
  _LOGGER.info("trial by %s: %d steps", method, experiment.num_steps)
  with Progress(experiment.num_steps, step) as progress:
    while step < experiment.num_steps:
      state, count, metrics = experiment.advance(state, step, experiment.num_steps)
      step += count
      if step > averaged_from:
        mean = _toward(state.params if mean is None else mean, state.params, 1 / (step - averaged_from))
      progress.advance(step, {name: float(values[-1]) for name, values in metrics.items()})
  return experiment.evaluate(state.replace(params=mean))


@jax.jit
def _toward(mean, params, part):
  return optax.incremental_update(params, mean, part)
