"""The terms of the label-efficient loss by their definitions, in NumPy, and which parameters each of them moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparators import label_efficient
from soseleto_jax import init_train_state
from soseleto_jax.models import get_model
from soseleto_jax.train import train_and_evaluate
from tests import problems, runs

UNLABELLED = np.random.default_rng(5).normal(size=(30, 5)).astype(np.float32)


def softmax(logits):
  exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exp / exp.sum(axis=-1, keepdims=True)


def layers_of(seed, sizes=(6, 4)):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=(7, size)) for size in sizes]


@pytest.fixture(name="discriminator")
def discriminator_fixture(x64):
  module = label_efficient.Discriminator(decay=0.3, hidden=5)
  params = module.init(jax.random.key(0), layers_of(0))["params"]
  return module, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) + 0.1, params)


def source_probability(params, layers):
  """Equation 2 for two layers, then the number."""
  p = jax.tree.map(np.asarray, params)
  dense = lambda name, x: np.maximum(x, 0) @ p[name]["kernel"] + p[name]["bias"]
  first = dense("Dense_0", layers[0])
  second = dense("Dense_1", np.concatenate([0.3 * first, layers[1]], axis=1))
  return 1 / (1 + np.exp(-dense("Dense_2", second)[:, 0]))


def test_domain_losses(discriminator):
  """Equations 3 and 4."""
  module, params = discriminator
  source, target = layers_of(1), layers_of(2)
  telling, hiding = label_efficient.domain_losses(module, params, source, target)
  of_source, of_target = source_probability(params, source), source_probability(params, target)
  np.testing.assert_allclose(telling, -np.log(of_source) - np.log(1 - of_target), rtol=1e-6)
  np.testing.assert_allclose(hiding, -np.log(of_target), rtol=1e-6)


def test_the_discriminator_and_the_features_are_opponents(discriminator):
  """Each has the gradient of its own loss alone, and what moves the features raises the discriminator's loss."""
  module, params = discriminator
  source, target = layers_of(1), layers_of(2)
  losses = lambda params, target: label_efficient.domain_losses(module, params, source, target)
  total = lambda params, target: sum(part.sum() for part in losses(params, target))
  of_params, of_target = jax.grad(total, argnums=(0, 1))(params, target)

  def telling(params, target):
    source_logit, target_logit = (module.apply({"params": params}, layers) for layers in (source, target))
    return jnp.sum(jax.nn.softplus(-source_logit) + jax.nn.softplus(target_logit))

  expected, against = jax.grad(telling, argnums=(0, 1))(params, target)
  problems.assert_close(of_params, expected)
  products = [jnp.sum(a * b, axis=1) for a, b in zip(of_target, against, strict=True)]
  assert (sum(products) < 0).all()


def test_semantic_terms(x64):
  rng = np.random.default_rng(4)
  features, label = rng.normal(size=(8, 5)), np.array([0, 1, 1, 3, 0, 3, 1, 2])
  mask = np.arange(8) < 7  # the last is the only one of its class
  found, occurs = label_efficient.centroids(jnp.asarray(features), label, mask, 4)
  assert occurs.tolist() == [True, True, False, True]
  means = np.stack([features[mask & (label == c)].mean(axis=0) for c in (0, 1, 3)])
  expected = means / np.linalg.norm(means, axis=1, keepdims=True)
  np.testing.assert_allclose(np.asarray(found)[[0, 1, 3]], expected, rtol=1e-9)

  queries = 3 * rng.normal(size=(6, 5))
  probability = softmax(queries @ expected.T / 2.0)
  entropy = label_efficient.entropy(jnp.asarray(queries) @ found.T, 2.0, occurs)
  np.testing.assert_allclose(entropy, -np.sum(probability * np.log(probability), axis=1), rtol=1e-9)
  gradient = jax.grad(lambda queries: label_efficient.entropy(queries @ found.T, 2.0, occurs).sum())(queries)
  assert np.isfinite(gradient).all() and np.any(gradient)


def make(model="mlp", shape=(5,), **options):
  options = {"unlabelled": UNLABELLED, "adaptation_epochs": 0.5, "learning_rate": 0.01} | options
  task = runs.make_task(shape=shape, shared=False)
  config = runs.make_config(method="label_efficient", data__shared_classes=False)
  network = get_model(model, {"source": 3, "target": 4}, **({"hidden": (6, 4)} if model == "mlp" else {}))
  params = network.init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
  phases = label_efficient.make_phases(
      config, network, params, task, runs.STEPS_PER_EPOCH, mutable=False, axis_name=None, **options
  )
  params = {"network": params, "extra": phases[0].extra}
  state = init_train_state(params, phases[0].optimizer, runs.NUM_SOURCE, alpha_init=1.0)
  return network, task, phases, state


def source_batch(seed, shape=(5,)):
  return problems.batch(seed, 6, shape=shape, index=problems.index(seed, 6, runs.NUM_SOURCE), mask=np.arange(6) < 5)


def test_the_source_s_network_is_what_training_on_the_source_made():
  """And stays so, while the copy and the discriminator go on."""
  _, _, (before, after), state = make()
  assert (before.num_steps, after.num_steps) == (8, 2)
  start = state.params["extra"]
  for number in range(2):
    state, _ = problems.jit(before.step)(state, source_batch(number))
  trained = state.params["network"]
  problems.assert_same_bits(state.params["extra"]["source"], trained)
  problems.assert_same_bits(state.params["extra"]["discriminator"], start["discriminator"])
  assert np.any(trained["representation"]["dense1"]["kernel"] != start["source"]["representation"]["dense1"]["kernel"])

  state = state.replace(opt_state=after.optimizer.init(state.params))
  state, _ = problems.jit(after.step)(state, source_batch(2))
  problems.assert_same_bits(state.params["extra"]["source"], trained)
  problems.assert_same_bits(state.params["network"]["source_head"], trained["source_head"])
  moved = lambda a, b: all(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
  assert moved(state.params["network"]["representation"], trained["representation"])
  assert moved(state.params["extra"]["discriminator"], start["discriminator"])


@pytest.mark.parametrize("stopped", [7, 8, 9])
def test_resumes_in_either_phase(tmp_path, compiled_once, no_report, stopped):
  """Whose optimizers have states of different structure."""
  config = runs.make_config(method="label_efficient", data__shared_classes=False, checkpoint_every_epochs=0.25)
  config.model.hidden = (6, 4)
  make_phases = functools.partial(
      label_efficient.make_phases, unlabelled=UNLABELLED, adaptation_epochs=0.5, learning_rate=0.01
  )
  train = lambda folder: train_and_evaluate(config, tmp_path / folder, runs.make_task(shared=False), make_phases)
  whole = train("whole")
  with runs.before_step(stopped, runs.crash), pytest.raises(runs.Crash):
    train("resumed")
  assert stopped in map(int, (path.name for path in (tmp_path / "resumed" / "checkpoints").iterdir()))
  problems.assert_same_bits(train("resumed").state, whole.state)


def test_the_whole_loss():
  """Equation 1, with the unlabelled images that the key draws, on two layers of a perceptron."""
  options = dict(adversarial_weight=0.3, semantic_weight=0.7, source_temperature=1.5, target_temperature=0.8, decay=0.4)
  network, task, (_, phase), state = make(**options)
  perturb = lambda leaf: leaf + 0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)
  params = jax.tree.map(perturb, state.params)
  params["extra"]["source"] = jax.tree.map(lambda leaf: leaf + 0.05, params["extra"]["source"])
  batch, key = source_batch(3), jax.random.key(9)
  found = phase.losses[0](params, batch, key)

  def layers(params, x):
    p = jax.tree.map(np.asarray, params["representation"])
    first = x @ p["dense1"]["kernel"] + p["dense1"]["bias"]
    return first, np.maximum(first, 0) @ p["dense2"]["kernel"] + p["dense2"]["bias"]

  normalize = task.target_normalization.apply
  drawn = normalize(UNLABELLED[np.asarray(jax.random.randint(key, (6,), 0, 30))])
  labelled, label = normalize(task.target["x"]), task.target["label"]
  of_source, of_drawn = layers(params["extra"]["source"], batch["x"]), layers(params["network"], drawn)
  discriminator = label_efficient.Discriminator(decay=0.4)
  telling, hiding = label_efficient.domain_losses(discriminator, params["extra"]["discriminator"], of_source, of_drawn)

  relu = lambda x: np.maximum(x, 0)
  known = relu(layers(params["network"], labelled)[1])
  head = jax.tree.map(np.asarray, params["network"]["target_head"])
  cross_entropy = lambda logits: -np.mean(np.log(softmax(logits)[np.arange(len(label)), label]))

  def to_classes(features, of_classes, label, num_classes):
    means = [of_classes[label == c].mean(axis=0) for c in range(num_classes) if np.any(label == c)]
    return features @ np.stack([mean / np.linalg.norm(mean) for mean in means]).T

  def entropy(similarity):
    p = softmax(similarity)
    return -np.sum(p * np.log(p), axis=1)

  of_five = relu(of_source[1])[:5], batch["label"][:5]  # the last is masked
  semantic = entropy(to_classes(relu(of_drawn[1]), *of_five, 3) / 1.5)
  semantic += entropy(to_classes(relu(of_drawn[1]), known, label, 4) / 0.8)
  semantic += cross_entropy(to_classes(known, known, label, 4))
  expected = cross_entropy(known @ head["kernel"] + head["bias"]) + telling + 0.3 * hiding + 0.7 * semantic
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_layers_of_a_convolutional_network():
  model = get_model("lenet", {"source": 3, "target": 4})
  x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
  params = model.init(jax.random.key(0), x)["params"]
  layers, features, logits = label_efficient.forward(model, params, x)
  assert [layer.shape for layer in layers] == [(2, 12, 12, 20), (2, 4, 4, 50), (2, 500)]
  np.testing.assert_allclose(features, np.maximum(layers[-1], 0))
  np.testing.assert_allclose(logits, model.apply({"params": params}, x, head="target"), rtol=1e-5)


@pytest.mark.parametrize("unlabelled", [UNLABELLED[:0], UNLABELLED[:, :3]])
def test_unlabelled_images_that_do_not_fit(unlabelled):
  with pytest.raises(ValueError, match=r"unlabelled has shape .*, target x \(12, 5\)"):
    make(unlabelled=unlabelled)
