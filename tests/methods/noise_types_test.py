"""The loss against the E step, written out; what each phase trains; and the limit in which no label is noisy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import init_train_state
from soseleto_jax.methods import noise_types, plain
from soseleto_jax.models.network import as_network
from tests import problems, runs
from tests.methods import setups

K, B = 4, 6
FREE, RANDOM, CONFUSING = range(3)


def softmax(logits):
  exp = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
  return exp / np.sum(exp, axis=-1, keepdims=True)


def confusion(logits):
  return softmax(np.where(np.eye(K, dtype=bool), -np.inf, logits))


def noisy_label_tables(matrix):
  """p(ỹ | y, z), `[3, K, K]`: by type, class and label."""
  return np.stack([np.eye(K), (np.ones((K, K)) - np.eye(K)) / (K - 1), matrix])


def inputs():
  rng = np.random.default_rng(0)
  scores = 2 * rng.normal(size=(B, K)), 2 * rng.normal(size=(B, 3)), rng.normal(size=(K, K))
  return *scores, np.array([0, 1, 2, 3, 1, 1], np.int32)


def total(logits, type_logits, confusion_logits, label):
  return jnp.sum(noise_types.noisy_cross_entropy(logits, type_logits, label, confusion_logits))


def test_gradients_are_those_of_em(x64):
  """Of the cross-entropies of p(y | x), p(z | x) and C with the posterior of (y, z)."""
  logits, type_logits, confusion_logits, label = inputs()
  classes, kinds, matrix = softmax(logits), softmax(type_logits), confusion(confusion_logits)
  tables, likelihood, posterior = noisy_label_tables(matrix), np.zeros(B), np.zeros((B, 3, K))
  for b in range(B):
    for z in (FREE, RANDOM, CONFUSING):
      for y in range(K):
        posterior[b, z, y] = tables[z, y, label[b]] * classes[b, y] * kinds[b, z]
    likelihood[b] = posterior[b].sum()
    posterior[b] /= likelihood[b]
  confused = np.zeros((K, K))
  for b in range(B):
    confused[:, label[b]] += posterior[b, CONFUSING]

  losses = problems.jit(noise_types.noisy_cross_entropy)(logits, type_logits, label, confusion_logits)
  np.testing.assert_allclose(losses, -np.log(likelihood), rtol=1e-12)
  gradients = problems.jit(jax.grad(total, argnums=(0, 1, 2)))(logits, type_logits, confusion_logits, label)
  expected = (
    classes - posterior.sum(axis=1),
    kinds - posterior.sum(axis=2),
    confused.sum(axis=1, keepdims=True) * matrix - confused,
  )
  for gradient, value in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(gradient, value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", [FREE, RANDOM, CONFUSING])
@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_certain_networks(kind, scale):
  """Loss and gradients are finite where probabilities underflow, whatever the label."""
  logits = jnp.tile(scale * jax.nn.one_hot(0, K), (K, 1))
  type_logits = jnp.tile(scale * jax.nn.one_hot(kind, 3), (K, 1))
  differentiate = problems.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
  value, gradients = differentiate(logits, type_logits, scale * jnp.eye(K)[::-1], np.arange(K))
  assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


def make(**options):
  setup = setups.make_setup("noise_types", **options)
  return setup, noise_types.make_method(setup, joint_epochs=0.5, type_epochs=0.75)


def test_what_each_phase_trains():
  setup, method = make()
  assert [(phase.num_steps, phase.step.sets) for phase in method.phases] == [
    (2, ("source", "target")), (3, ("source",)), (8, ("source", "target")),
  ]  # fmt: skip
  params, moved = method.init(setup.params), []
  for phase in method.phases:
    state = init_train_state(params, phase.step.optimizer, runs.NUM_SOURCE, alpha_init=1.0)
    state, _ = setups.take_steps(phase.step, state)
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), params, state.params)
    parts = same["network"], same["extra"]["types"], same["extra"]["confusion"]
    moved.append([not any(jax.tree.leaves(part)) for part in parts])
    still = [all(jax.tree.leaves(part)) for part in parts]
    assert still == [not part for part in moved[-1]]
    params = state.params
  assert moved == [[True, False, False], [False, True, True], [True, True, False]]


def test_a_phase_has_one_step_at_least():
  method = noise_types.make_method(setups.make_setup("noise_types"), joint_epochs=0, type_epochs=0.01)
  assert [phase.num_steps for phase in method.phases] == [1, 1, 8]


def test_the_confusion_s_rate():
  """Adam's first step is its rate, whatever the gradient."""
  setup = setups.make_setup("noise_types")
  method = noise_types.make_method(setup, confusion_rate=0.3)
  state, _ = setups.take_steps(method.phases[1].step, setups.start(method, setup, 1), count=1)
  moved = np.abs(state.params["extra"]["confusion"])
  np.testing.assert_allclose(moved[moved > 0.1], 0.3, rtol=1e-3)
  assert np.sum(moved > 0.1) == runs.CLASSES * (runs.CLASSES - 1)  # all but the diagonal


@pytest.mark.parametrize("confidence", [1e-3, 1.0, 1e3])
def test_noise_types_are_learned_from_classes(confidence):
  """However sure the first network is: its class is the label's, or one of the others by either kind of noise."""
  setup, method = make()
  params = with_types(method.init(setup.params), jnp.log(jnp.array([0.5, 0.2, 0.3])))
  classifier = jax.tree.map(lambda leaf: confidence * leaf, setup.params["classifier"])
  params["network"] = setup.params | {"classifier": classifier}
  batch, (loss,) = setups.batches(0)["source"], method.phases[1].step.losses
  logits, _ = setup.network.apply(params["network"], None, batch["x"])
  agree = np.asarray(jnp.argmax(logits, axis=-1) == batch["label"])
  assert 0 < agree.sum() < len(agree)
  expected = np.where(agree, 0.5, 0.5 / (runs.CLASSES - 1))  # C is even at first
  np.testing.assert_allclose(np.exp(-problems.jit(loss)(params, batch, jax.random.key(0))), expected, rtol=1e-5)


def with_types(params, bias):
  """Returns the parameters with a second network whose logits are `bias` for every image."""
  types = jax.tree.map(jnp.zeros_like, params["extra"]["types"])
  types["classifier"]["bias"] = bias
  return params | {"extra": params["extra"] | {"types": types}}


def em_and_joint(kind):
  """The steps and states of EM, with noise of one kind alone, and of joint training from the same network."""
  setup, method = make(target_weight=0.5)
  params = with_types(method.init(setup.params), 200 * jax.nn.one_hot(kind, 3))
  steps = method.phases[-1].step, plain.joint(setup).phases[0].step
  states = [
    init_train_state(start, step.optimizer, runs.NUM_SOURCE, alpha_init=1.0)
    for start, step in zip((params, setup.params), steps, strict=True)
  ]
  return steps, states


def test_without_noise_em_is_joint_training():
  em, joint = (setups.take_steps(*pair, count=3)[0] for pair in zip(*em_and_joint(FREE), strict=True))
  problems.assert_close(em.params["network"], joint.params)


def test_clean_examples_have_no_noise():
  em, joint = (setups.take_steps(*pair, count=1)[1] for pair in zip(*em_and_joint(RANDOM), strict=True))
  np.testing.assert_allclose(em["target_loss"], joint["target_loss"], rtol=1e-5)
  assert abs(em["source_loss"] - joint["source_loss"]) > 1e-3


def test_a_given_optimizer_is_that_of_both_networks():
  setup = setups.make_setup("noise_types", optimizer=optax.sgd(0.5))
  method = noise_types.make_method(setup)
  gradient = jax.tree.map(jnp.ones_like, method.init(setup.params))
  optimizer = method.phases[-1].step.optimizer
  updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
  for leaf in jax.tree.leaves((updates["network"], updates["extra"]["types"])):
    np.testing.assert_array_equal(leaf, -0.5)


def test_networks_with_state_are_refused(monkeypatch):
  """The network, and that of the noise types, which the config names where the first one is given."""
  with pytest.raises(ValueError, match="config.model.name='mlp' carries state"):
    make(representation=setups.Normed())
  monkeypatch.setattr(
    noise_types, "make_network", lambda model, num_classes, seed: as_network(setups.Normed(), num_classes)
  )
  with pytest.raises(ValueError, match="config.model.name='mlp' carries state"):
    make()
