"""Methods are found by name, get their options, and are made for what they can be used for."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax.core.step import make_plain_step
from soseleto_jax.methods import base
from soseleto_jax.methods.base import METHODS, Method, Phase
from soseleto_jax.models.losses import margin
from tests import problems, runs
from tests.methods import setups


def own_method(setup, *, num_steps=3):
  return Method((Phase(num_steps, make_plain_step(setup.loss("source"), setup.optimizer())),))


@pytest.mark.parametrize("name", METHODS)
def test_every_name_is_a_method_s(name):
  module, _, attribute = METHODS[name].partition(":")
  maker = base.find_method(name)
  assert (maker.__module__, maker.__name__) == (module, attribute)
  assert maker.__doc__


def test_a_method_by_its_import_path():
  assert base.find_method("tests.methods.base_test:own_method") is own_method


@pytest.mark.parametrize(
  "name, message",
  [
    ("sosleto", "config.method='sosleto': choose one of soseleto, source_only, .*; did you mean 'soseleto'"),
    ("noise-layer", "config.method='noise-layer': .*'my_package.my_module:make_method'; did you mean 'noise_layer'"),
    ("no_such_package.methods:mine", "config.method='no_such_package.methods:mine': No module named"),
    ("tests.methods.base_test:mine", "config.method='tests.methods.base_test:mine': .*no attribute 'mine'"),
    ("tests.methods.base_test:", "config.method='tests.methods.base_test:': choose one of"),
    (":own_method", "config.method=':own_method': choose one of"),
  ],
)
def test_a_name_that_no_method_has(name, message):
  with pytest.raises(ValueError, match=message):
    base.find_method(name)


def make(method, given=None, **options):
  setup = setups.make_setup(method)
  setup.config.method_options.update(options)
  return base.make_method(setup, given)


def test_options():
  assert make("tests.methods.base_test:own_method").num_steps == 3
  assert make("tests.methods.base_test:own_method", num_steps=5).num_steps == 5
  assert make("any name", own_method, num_steps=5).num_steps == 5
  assert make("any name", functools.partial(own_method, num_steps=7)).num_steps == 7


@pytest.mark.parametrize(
  "method, option, message",
  [
    (
      "noise_layer",
      "fixed_epoch",
      "fixed_epoch: method 'noise_layer' has fixed_epochs, .*; did you mean 'fixed_epochs'",
    ),
    ("joint", "weight", "config.method_options.weight: method 'joint' has no options$"),
  ],
)
def test_an_option_that_a_method_does_not_have(method, option, message):
  with pytest.raises(ValueError, match=message):
    make(method, **{option: 1})


def test_a_method_that_takes_any_option():
  seen = {}
  make("any name", lambda setup, **options: seen.update(options) or own_method(setup), anything=1)
  assert seen == {"anything": 1}


def test_what_a_method_requires():
  shared, apart = (setups.make_setup("noise_layer", shared=shared) for shared in (True, False))
  for setup in (shared, apart):
    setup.require()
    setup.require(stateless=True)
  shared.require(transfer=False)
  apart.require(transfer=True)
  with pytest.raises(ValueError, match="config.data.shared_classes=True: method 'noise_layer' is for transfer"):
    shared.require(transfer=True)
  with pytest.raises(ValueError, match="config.data.shared_classes=False: method 'noise_layer' is for noisy labels"):
    apart.require(transfer=False)
  normed = setups.make_setup("noise_layer", representation=setups.Normed())
  normed.require(transfer=False)
  with pytest.raises(
    ValueError, match="config.model.name='mlp' carries state .*which method 'noise_layer' has no room"
  ):
    normed.require(stateless=True)


def test_lengths_and_rates():
  setup = setups.make_setup("joint", optimizer__schedule="steps", optimizer__drop_epochs=(0.5,))
  assert (setup.num_steps, setup.steps_of(1.5), setup.steps_of(0.6)) == (8, 6, 2)
  np.testing.assert_allclose([setup.schedule()(step) for step in (0, 1, 2)], [0.1, 0.1, 0.01], rtol=1e-6)
  one, two = Phase(3, None), Phase(4, None)
  assert Method((one, two)).num_steps == 7


def first_update(optimizer):
  gradient, params = jnp.ones(2), jnp.full(2, 2.0)
  return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_the_optimizer_is_the_config_s_unless_one_is_given():
  own = setups.make_setup("joint", optimizer__schedule="constant")
  np.testing.assert_allclose(first_update(own.optimizer()), -0.1 * (1 + 1e-2 * 2), rtol=1e-6)
  np.testing.assert_allclose(first_update(own.optimizer(optax.constant_schedule(0.3))), -0.3 * 1.02, rtol=1e-6)
  given = dataclasses.replace(own, given_optimizer=optax.sgd(7.0))
  for optimizer in (given.optimizer(), given.optimizer(optax.constant_schedule(0.3))):
    np.testing.assert_allclose(first_update(optimizer), -7.0)


@pytest.mark.parametrize("shared", [True, False])
def test_losses_are_those_of_each_side_s_head(shared):
  setup = setups.make_setup("joint", shared=shared)
  for side, batch in setups.batches(0, shared).items():
    logits, _ = setup.network.apply(setup.params, None, batch["x"], head=None if shared else side)
    for loss in ({}, {"loss": margin}):
      expected = (loss.get("loss") or optax.softmax_cross_entropy_with_integer_labels)(logits, batch["label"])
      np.testing.assert_allclose(setup.loss(side, **loss)(setup.params, batch, None), expected, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_parameters_beside_the_network_s(shared):
  """Losses and predictions are the network's, whatever stands beside it."""
  setup = setups.make_setup("joint", shared=shared)
  params = base.beside_network({"more": jnp.ones(3)})(setup.params)
  problems.assert_same_bits(params, {"network": setup.params, "extra": {"more": jnp.ones(3)}})
  for side, batch in setups.batches(0, shared).items():
    loss = base.loss_of_network(setup, side)(params, batch, None)
    np.testing.assert_array_equal(loss, setup.loss(side)(setup.params, batch, None))
  logits, _ = setup.network.apply(setup.params, None, batch["x"], head=None if shared else "target")
  np.testing.assert_array_equal(base.predict_of_network(setup)(params, None, batch["x"]), logits)
  assert logits.shape == (4, runs.CLASSES if shared else runs.TARGET_CLASSES)
