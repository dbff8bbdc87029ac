"""The loss against the E step, written out; what each phase trains; and the limit in which no label is noisy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparators import noise_types
from soseleto_jax import init_train_state, methods
from soseleto_jax.models import get_model
from tests import problems, runs

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

  losses = noise_types.noisy_cross_entropy(logits, type_logits, label, confusion_logits)
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


def phases_of(config):
  task, model = runs.make_task(), get_model("mlp", runs.CLASSES, hidden=(4,))
  network = model.init(jax.random.key(0), jnp.zeros((1, 5)))["params"]
  options = dict(mutable=False, axis_name=None)
  arguments = config, model, network, task, runs.STEPS_PER_EPOCH
  return network, arguments, options, noise_types.make_phases(*arguments, **options, joint_epochs=0.5, type_epochs=0.75)


def batches(seed):
  source, target = (problems.batch(2 * seed + side, 6, classes=runs.CLASSES, shape=(5,)) for side in range(2))
  return {"source": source | {"index": problems.index(seed, 6, runs.NUM_SOURCE)}, "target": target}


def test_what_each_phase_trains():
  network, _, _, phases = phases_of(runs.make_config(method="noise_types"))
  assert [(phase.num_steps, phase.sets) for phase in phases] == [
      (2, ("source", "target")), (3, ("source",)), (8, ("source", "target")),
  ]  # fmt: skip
  params = {"network": network, "extra": phases[0].extra}
  moved = []
  for phase in phases:
    state = init_train_state(params, phase.optimizer, runs.NUM_SOURCE, alpha_init=1.0)
    take_step = problems.jit(phase.step)
    for number in range(2):
      sets = batches(number)
      state, _ = take_step(state, *(sets[name] for name in phase.sets))
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), params, state.params)
    parts = same["network"], same["extra"]["types"], same["extra"]["confusion"]
    moved.append([not any(jax.tree.leaves(part)) for part in parts])
    still = [all(jax.tree.leaves(part)) for part in parts]
    assert still == [not part for part in moved[-1]]
    params = state.params
  assert moved == [[True, False, False], [False, True, True], [True, True, False]]


@pytest.mark.parametrize("confidence", [1e-3, 1.0, 1e3])
def test_noise_types_are_learned_from_classes(confidence):
  """However sure the first network is: its class is the label's, or one of the others by either kind of noise."""
  network, arguments, _, phases = phases_of(runs.make_config(method="noise_types"))
  network["classifier"] = jax.tree.map(lambda leaf: confidence * leaf, network["classifier"])
  types = jax.tree.map(jnp.zeros_like, phases[1].extra["types"])
  types["classifier"]["bias"] = jnp.log(jnp.array([0.5, 0.2, 0.3]))
  params = {"network": network, "extra": {**phases[1].extra, "types": types}}
  batch, (loss,) = batches(0)["source"], phases[1].losses
  classes = jnp.argmax(arguments[1].apply({"params": network}, batch["x"]), axis=-1)
  agree = np.asarray(classes == batch["label"])
  assert 0 < agree.sum() < len(agree)
  expected = np.where(agree, 0.5, 0.5 / (runs.CLASSES - 1))  # C is even at first
  np.testing.assert_allclose(np.exp(-loss(params, batch, jax.random.key(0))), expected, rtol=1e-5)


def em_and_joint(kind):
  """The steps and states of EM, with noise of one kind alone, and of joint training from the same network."""
  network, arguments, options, phases = phases_of(runs.make_config(method="noise_types"))
  types = jax.tree.map(jnp.zeros_like, phases[0].extra["types"])
  types["classifier"]["bias"] = 200 * jax.nn.one_hot(kind, 3)
  params = {"network": network, "extra": {**phases[0].extra, "types": types}}
  (joint,) = methods.make_phases(runs.make_config(method="joint"), *arguments[1:], **options)
  states = [
      init_train_state(start, phase.optimizer, runs.NUM_SOURCE, alpha_init=1.0)
      for start, phase in ((params, phases[-1]), (network, joint))
  ]
  return [problems.jit(phase.step) for phase in (phases[-1], joint)], states


def test_without_noise_em_is_joint_training():
  steps, states = em_and_joint(FREE)
  for number in range(3):
    states = [step(state, *batches(number).values())[0] for step, state in zip(steps, states, strict=True)]
  problems.assert_close(states[0].params["network"], states[1].params, rtol=1e-6, atol=1e-7)


def test_clean_examples_have_no_noise():
  steps, states = em_and_joint(RANDOM)
  em, joint = (step(state, *batches(0).values())[1] for step, state in zip(steps, states, strict=True))
  np.testing.assert_allclose(em["target_loss"], joint["target_loss"], rtol=1e-6)
  assert abs(em["source_loss"] - joint["source_loss"]) > 1e-3


def test_a_network_with_state_is_refused():
  with pytest.raises(ValueError, match="config.model.name='mlp' carries state"):
    noise_types.make_phases(runs.make_config(), None, None, None, 4, mutable=True, axis_name=None)
