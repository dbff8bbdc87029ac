"""The step against its definition, by autodiff through the lookahead step and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import init_train_state
from soseleto_jax.methods import meta_weight_net
from tests import problems, runs
from tests.methods import setups

RATE, META_RATE = 0.3, 20.0


def weigh(weigher, losses):
  """The weight network, written out."""
  first, second = weigher["params"]["Dense_0"], weigher["params"]["Dense_1"]
  hidden = jnp.maximum(losses[:, None] * first["kernel"] + first["bias"], 0)
  return 1 / (1 + jnp.exp(-(hidden @ second["kernel"] + second["bias"])[:, 0]))


def of_network(params, batch, rng):
  return problems.tanh_loss()(params["network"], batch, rng)


def setting():
  network = meta_weight_net.WeightNetwork(hidden=6)
  to_double = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
  weigher = to_double(network.init(jax.random.key(3), jnp.zeros(1)))
  params = {"network": problems.tanh_params(dtype=np.float64), "extra": weigher}
  optimizer = optax.partition(
    {"network": optax.sgd(0.2, momentum=0.9), "weigher": optax.sgd(META_RATE)},
    {"network": "network", "extra": "weigher"},
  )
  step = meta_weight_net.make_meta_step(
    of_network, of_network, network.apply, optimizer, learning_rate=lambda _: RATE, meta_learning_rate=META_RATE
  )
  return step, init_train_state(params, optimizer, 20)


def batches(number):
  source = problems.batch(2 * number, 7, dtype=np.float64, mask=np.arange(7) < 6)
  return source, problems.batch(2 * number + 1, 5, dtype=np.float64, mask=np.arange(5) < 4)


def weighted_loss(network, weigher, source):
  losses = problems.tanh_loss()(network, source, None)[:6]
  return jnp.mean(jax.lax.stop_gradient(weigh(weigher, losses)) * losses)


def target_after_step(weigher, network, source, target):
  """L_t(θ̂(Θ)); the weights are constants of the step by θ, but not of Θ."""
  losses = lambda network: problems.tanh_loss()(network, source, None)[:6]
  weights = weigh(weigher, losses(network))
  gradient = jax.grad(lambda network: jnp.mean(weights * losses(network)))(network)
  moved = jax.tree.map(lambda p, g: p - RATE * g, network, gradient)
  return jnp.mean(problems.tanh_loss()(moved, target, None)[:4])


def test_two_steps(x64):
  """The weight network by autodiff through the lookahead step; the network with the new weights."""
  step, state = setting()
  take_step = problems.jit(step)
  params, velocity = state.params, jax.tree.map(jnp.zeros_like, state.params["network"])
  for number in range(2):
    source, target = batches(number)
    value, meta = jax.value_and_grad(target_after_step)(params["extra"], params["network"], source, target)
    weigher = jax.tree.map(lambda p, g: p - META_RATE * g, params["extra"], meta)
    loss, gradient = jax.value_and_grad(weighted_loss)(params["network"], weigher, source)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
    network = jax.tree.map(lambda p, v: p - 0.2 * v, params["network"], velocity)
    old, params = params, {"network": network, "extra": weigher}
    state, metrics = take_step(state, source, target)
    problems.assert_close(state.params, params, rtol=1e-6, atol=1e-9)  # counts of rows are float32
    np.testing.assert_allclose([metrics["target_loss"], metrics["source_loss"]], [value, loss], rtol=1e-5)
    weights = [weigh(w, problems.tanh_loss()(old["network"], source, None)[:6]) for w in (old["extra"], weigher)]
    np.testing.assert_allclose(metrics["weight_mean"], np.mean(weights[1]), rtol=1e-5)
    assert np.max(np.abs(weights[1] - weights[0])) > 1e-2  # so that it shows which of them the network is moved by


def test_meta_gradient_by_finite_differences(x64):
  step, state = setting()
  source, target = batches(0)
  gradient, _, _ = step.gradients(state, source, target)
  leaves, structure = jax.tree.flatten(state.params["extra"])
  after = lambda leaves: target_after_step(structure.unflatten(leaves), state.params["network"], source, target)
  for number, (leaf, expected) in enumerate(zip(leaves, jax.tree.leaves(gradient["extra"]), strict=True)):
    for place in np.ndindex(leaf.shape):
      moved = lambda by: after([*leaves[:number], leaf.at[place].add(by), *leaves[number + 1 :]])
      slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
      np.testing.assert_allclose(expected[place], slope, rtol=1e-5, atol=1e-10)


def test_the_method():
  """The network's optimizer and schedule are the config's, the weight network's SGD with a rate of its own."""
  setup = setups.make_setup("meta_weight_net")
  method = meta_weight_net.make_method(setup, hidden=3, meta_learning_rate=META_RATE)
  (phase,) = method.phases
  assert (phase.num_steps, phase.step.sets) == (runs.STEPS_PER_EPOCH * 2, ("source", "target"))
  start = method.init(setup.params)
  assert start["extra"]["params"]["Dense_0"]["kernel"].shape == (1, 3)

  def loss(params, batch, rng):
    return setup.loss("source")(params["network"], batch, rng)

  expected = meta_weight_net.make_meta_step(
    loss,
    loss,
    meta_weight_net.WeightNetwork(3).apply,
    phase.step.optimizer,
    learning_rate=setup.schedule(),
    meta_learning_rate=META_RATE,
  )
  state = setups.start(method, setup)
  problems.assert_close(setups.take_steps(phase.step, state), setups.take_steps(expected, state))
  gradient = jax.tree.map(jnp.ones_like, start)
  updates, _ = phase.step.optimizer.update(gradient, phase.step.optimizer.init(start), start)
  for leaf in jax.tree.leaves(updates["extra"]):
    np.testing.assert_allclose(leaf, -META_RATE)
  of_config = setup.optimizer()
  problems.assert_close(
    updates["network"], of_config.update(gradient["network"], of_config.init(setup.params), setup.params)[0]
  )


def test_masked_rows_change_nothing():
  """Whatever finite loss they have, also where the weight network overflows for it."""
  setup = setups.make_setup("meta_weight_net")
  method = meta_weight_net.make_method(setup, hidden=3)
  state, results = setups.start(method, setup), []
  extra = jax.tree.map(lambda leaf: 1e3 * leaf, state.params["extra"])
  state = state.replace(params={**state.params, "extra": extra})
  take_step = problems.jit(method.phases[0].step)
  for value in (0.0, 1e37):
    data = setups.batches(0)
    data["source"]["x"] = np.where(data["source"]["mask"][:, None], data["source"]["x"], np.float32(value))
    results.append(take_step(state, *data.values()))
  problems.assert_close(*results)
  assert np.isfinite(list(results[1][1].values())).all()


def test_what_it_is_not_for():
  with pytest.raises(ValueError, match="config.model.name='mlp' carries state .* method 'meta_weight_net'"):
    meta_weight_net.make_method(setups.make_setup("meta_weight_net", representation=setups.Normed()))
  with pytest.raises(ValueError, match="config.data.shared_classes=False: method 'meta_weight_net'"):
    meta_weight_net.make_method(setups.make_setup("meta_weight_net", shared=False))
