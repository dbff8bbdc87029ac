"""SOSELETO of a config against `make_train_step` with the options that each field stands for."""

import functools

import jax
import numpy as np
import optax
import pytest

from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.alignment_rules import (
  add_agreement,
  center_by_class,
  orthogonal,
  residual_normalize,
  scale_by_std,
)
from soseleto_jax.core.source_weights import burn_in, sharpened
from soseleto_jax.core.target_descent import TargetDescent
from soseleto_jax.core.train_step import make_train_step
from soseleto_jax.methods import soseleto
from soseleto_jax.models.losses import margin
from tests import problems, runs
from tests.methods import setups


def make(shared=True, **fields):
  setup = setups.make_setup("soseleto", shared=shared, **{f"alpha.{name}": value for name, value in fields.items()})
  return setup, soseleto.make_method(setup)


def alpha_init():
  return np.random.default_rng(1).uniform(size=runs.NUM_SOURCE).astype(np.float32)


def two_steps(step, setup, method):
  return setups.take_steps(step, setups.start(method, setup, alpha_init=alpha_init()), shared=setup.task.shared_classes)


@functools.cache
def without_options(shared):
  """The state after two steps of the published rule, in which the target acts through the weights alone."""
  setup, method = make(shared)
  step = make_train_step(setup.loss("source"), setup.loss("target"), setup.optimizer(), **STEP_SIZE)
  return two_steps(step, setup, method)[0]


def rule(**fields):
  return {"alignment": Alignment(**fields)}


def descends(**marks):
  return {"target_descent": TargetDescent(marks)}


STEP_SIZE = {"alpha_step_size": optax.cosine_decay_schedule(0.1, 8)}  # as the learning rate's
IN_ORDER = (center_by_class(runs.CLASSES), residual_normalize(), scale_by_std())
NAMES = ("center_by_class", "residual_normalize", "scale_by_std")


@pytest.mark.parametrize(
  "fields, shared, options",
  [
    ({}, True, {}),
    ({"step_size": 0.3}, True, {"alpha_step_size": optax.cosine_decay_schedule(0.3, 8)}),
    ({"first": True}, True, {"alpha_first": True}),
    ({"every": 2}, True, {"alpha_every": 2}),
    ({"until_epochs": 0.25}, True, {"alpha_until": 1}),
    ({"lookahead": 0.5}, True, {"lookahead": optax.cosine_decay_schedule(0.5, 8)}),
    ({"burn_in_epochs": 0.25}, True, {"source_weights": burn_in(1)}),
    ({"burn_in_epochs": 0.25, "burn_in_weight": 0.2}, True, {"source_weights": burn_in(1, 0.2)}),
    ({"gain": 3.0}, True, {"source_weights": sharpened(3.0)}),
    ({"gain": 3.0, "burn_in_epochs": 0.25}, True, {"source_weights": burn_in(1, then=sharpened(3.0))}),
    ({"transforms": ("add_agreement",)}, True, rule(transforms=(add_agreement(),))),
    ({"params": ("classifier",)}, True, rule(params={"representation": False, "classifier": True})),
    ({"params": ("dense1",)}, True, rule(params={"representation": True, "classifier": False})),
    ({"target_params": "classifier"}, True, descends(representation=False, classifier=True)),
    ({"target_params": "all"}, True, descends(representation=True, classifier=True)),
    ({"direction": "orthogonal"}, True, rule(direction=orthogonal)),
    ({"transforms": NAMES}, True, rule(transforms=IN_ORDER)),
    ({"transforms": NAMES[::-1]}, True, rule(transforms=IN_ORDER[::-1])),
    ({}, False, descends(representation=False, source_head=False, target_head=True)),
    (
      {"transforms": NAMES[:1]},
      False,
      rule(transforms=IN_ORDER[:1]) | descends(representation=False, source_head=False, target_head=True),
    ),
    ({"target_params": "all"}, False, descends(representation=True, source_head=False, target_head=True)),
    (
      {"params": ("representation",)},  # which is all that source and target share
      False,
      descends(representation=False, source_head=False, target_head=True),
    ),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, dict) else f"shared={value}",
)
def test_soseleto(fields, shared, options):
  """The published step; in transfer the target's own classifier descends the target loss."""
  setup, method = make(shared, **fields)
  (phase,) = method.phases
  assert (phase.num_steps, phase.step.sets, method.uses_alpha) == (8, ("source", "target"), True)
  expected = make_train_step(setup.loss("source"), setup.loss("target"), setup.optimizer(), **STEP_SIZE | options)
  state, metrics = two_steps(phase.step, setup, method)
  problems.assert_close((state, metrics), two_steps(expected, setup, method))
  once = not options.keys().isdisjoint({"alpha_every", "alpha_until"})  # of the two steps
  assert np.count_nonzero(state.alpha != alpha_init()) > (4 if once else 6)
  if options:
    pairs = zip(leaves(state), leaves(without_options(shared)), strict=True)
    assert not all(np.allclose(*pair, rtol=0, atol=1e-4) for pair in pairs)


def leaves(state):
  return jax.tree.leaves((state.params, state.alpha))


def test_the_target_descends_its_cross_entropy_whatever_steers():
  """With weights that stay, the steering loss makes no difference."""
  fields = {"step_size": 0.0, "target_params": "all"}
  states = []
  for name in ("cross_entropy", "margin"):
    setup, method = make(**fields, target_loss=name)
    states.append(two_steps(method.phases[0].step, setup, method)[0])
  problems.assert_close(states[0].params, states[1].params)
  pairs = zip(leaves(states[0]), leaves(without_options(True)), strict=True)
  assert not all(np.allclose(*pair, rtol=0, atol=1e-4) for pair in pairs)


def test_the_target_s_weight():
  """Of its gradient in the descent, beside 1 for the source's."""
  setup = setups.make_setup("soseleto", **{"alpha.target_params": "all", "target_weight": 0.25})
  method = soseleto.make_method(setup)
  expected = make_train_step(
    setup.loss("source"),
    setup.loss("target"),
    setup.optimizer(),
    **STEP_SIZE,
    target_descent=TargetDescent(True, weight=0.25),
  )
  problems.assert_close(two_steps(method.phases[0].step, setup, method), two_steps(expected, setup, method))


def test_the_margin_steers():
  setup, method = make(target_loss="margin")
  data = setups.batches(0)
  _, metrics = problems.jit(method.phases[0].step)(setups.start(method, setup), *data.values())
  logits, _ = setup.network.apply(setup.params, None, data["target"]["x"])
  expected = np.mean(margin(logits, data["target"]["label"])[data["target"]["mask"]])
  np.testing.assert_allclose(metrics["target_loss"], expected, rtol=1e-4)


@pytest.mark.parametrize(
  "contraction, microbatch_size, message",
  [("vmap_grad", 0, "microbatch_size=0"), ("jvp", 4, "microbatch_size=4 with contraction='jvp'")],
)
def test_the_contraction_is_the_configs(contraction, microbatch_size, message):
  with pytest.raises(ValueError, match=message):
    make(contraction=contraction, microbatch_size=microbatch_size)
  setup, method = make(contraction="vmap_grad", microbatch_size=2)
  alignment = method.phases[0].step.alignment
  assert (alignment.contraction, alignment.microbatch_size) == ("vmap_grad", 2)
  assert make()[1].phases[0].step.alignment.contraction == "auto"


def test_weights_start_from_those_of_the_config():
  assert make(init=0.3)[1].alpha_init == 0.3


def test_a_layer_that_is_not_there():
  with pytest.raises(ValueError, match="config.alpha.params names 'conv9'; .*classifier, .*dense1"):
    make(params=("classifier", "conv9"))


@pytest.mark.parametrize("names", [("target_head",), ("source_head", "target_head")])
def test_layers_that_source_and_target_do_not_share(names):
  """No gradient of the one set meets one of the other there."""
  with pytest.raises(ValueError, match=r"config.alpha.params=\('.*_head',?\) names no layer .* 'representation'"):
    make(False, params=names)
