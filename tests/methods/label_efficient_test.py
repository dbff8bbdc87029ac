"""The terms of the label-efficient loss by their definitions, in NumPy, and which parameters each of them moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from soseleto_jax.core import sharding
from soseleto_jax.core.nonfinite import faulty_rows
from soseleto_jax.methods import label_efficient
from soseleto_jax.models import MLP, LeNet
from soseleto_jax.models.network import with_heads
from tests import problems, runs
from tests.methods import setups

PERCEPTRON = MLP(hidden=(6, 4))
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
  domain_losses = problems.jit(functools.partial(label_efficient.domain_losses, module))
  telling, hiding = domain_losses(params, source, target)
  of_source, of_target = source_probability(params, source), source_probability(params, target)
  np.testing.assert_allclose(telling, -np.log(of_source) - np.log(1 - of_target), rtol=1e-6)
  np.testing.assert_allclose(hiding, -np.log(of_target), rtol=1e-6)


def test_the_discriminator_and_the_features_are_opponents(discriminator):
  """Each has the gradient of its own loss alone, and what moves the features raises the discriminator's loss."""
  module, params = discriminator
  source, target = layers_of(1), layers_of(2)

  def total(params, target):
    return sum(part.sum() for part in label_efficient.domain_losses(module, params, source, target))

  of_params, of_target = problems.jit(jax.grad(total, argnums=(0, 1)))(params, target)

  def telling(params, target):
    source_logit, target_logit = (module.apply({"params": params}, layers) for layers in (source, target))
    return jnp.sum(jax.nn.softplus(-source_logit) + jax.nn.softplus(target_logit))

  expected, against = problems.jit(jax.grad(telling, argnums=(0, 1)))(params, target)
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


def make(representation=PERCEPTRON, **options):
  setup = setups.make_setup("label_efficient", shared=False, representation=representation)
  options = {"unlabelled": UNLABELLED, "adaptation_epochs": 0.5, "learning_rate": 0.01} | options
  return setup, label_efficient.make_method(setup, **options)


def source_batch(seed):
  return problems.batch(seed, 6, shape=(5,), index=problems.index(seed, 6, runs.NUM_SOURCE), mask=np.arange(6) < 5)


def loss_of(method, params, batch, key):
  """Of the second phase."""
  return problems.jit(method.phases[1].step.losses[0])(params, batch, key)


def test_the_source_s_network_is_what_training_on_the_source_made():
  """And stays so, while the copy and the discriminator go on."""
  setup, method = make()
  before, after = method.phases
  assert (before.num_steps, after.num_steps) == (8, 2)
  assert before.step.sets == after.step.sets == ("source",)
  state = setups.start(method, setup)
  start = state.params["extra"]
  problems.assert_same_bits(start["source"], setup.params)
  for number in range(2):
    state, _ = problems.jit(before.step)(state, source_batch(number))
  trained = state.params["network"]
  problems.assert_same_bits(state.params["extra"]["source"], trained)
  problems.assert_same_bits(state.params["extra"]["discriminator"], start["discriminator"])
  assert np.any(trained["representation"]["dense1"]["kernel"] != start["source"]["representation"]["dense1"]["kernel"])

  state = state.replace(opt_state=after.step.optimizer.init(state.params))
  state, _ = problems.jit(after.step)(state, source_batch(2))
  problems.assert_same_bits(state.params["extra"]["source"], trained)
  problems.assert_same_bits(state.params["network"]["source_head"], trained["source_head"])

  def moved(a, b):
    return all(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

  assert moved(state.params["network"]["representation"], trained["representation"])
  assert moved(state.params["extra"]["discriminator"], start["discriminator"])
  change = np.abs(state.params["network"]["target_head"]["bias"] - trained["target_head"]["bias"])
  np.testing.assert_allclose(change, 0.01, rtol=1e-3)  # Adam's first step is its rate


def test_the_whole_loss():
  """Equation 1, with the unlabelled images that the key draws, on two layers of a perceptron."""
  options = dict(adversarial_weight=0.3, semantic_weight=0.7, source_temperature=1.5, target_temperature=0.8, decay=0.4)
  setup, method = make(**options)
  task = setup.task

  def perturb(leaf):
    return leaf + 0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)

  params = jax.tree.map(perturb, method.init(setup.params))
  params["extra"]["source"] = jax.tree.map(lambda leaf: leaf + 0.05, params["extra"]["source"])
  batch, key = source_batch(3), jax.random.key(9)
  batch["label"] = np.int32([0, 1, 1, 0, 1, 2])  # the masked row is the only one of its class
  found = loss_of(method, params, batch, key)

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
  by_params = problems.jit(jax.grad(lambda params: method.phases[1].step.losses[0](params, batch, key).sum()))(params)
  assert not np.any(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(by_params["extra"]["source"])]))
  with_all = loss_of(method, params, {**batch, "mask": np.ones(6, bool)}, key)
  assert not np.allclose(with_all, expected, rtol=1e-3)


def test_layers_of_a_convolutional_network():
  model = with_heads(LeNet(), {"source": 3, "target": 4})
  x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
  params = problems.jit(model.init)(jax.random.key(0), x)["params"]
  forward = problems.jit(functools.partial(label_efficient.forward, model))
  layers, features, logits = forward(params, x, jax.random.key(1))
  assert [layer.shape for layer in layers] == [(2, 12, 12, 20), (2, 4, 4, 50), (2, 500)]
  np.testing.assert_allclose(features, np.maximum(layers[-1], 0))
  np.testing.assert_allclose(
    logits, problems.jit(functools.partial(model.apply, head="target"))({"params": params}, x), rtol=1e-5
  )


class Bare(nn.Module):
  """Without layers of its own."""

  @nn.compact
  def __call__(self, x):
    return x * self.param("scale", nn.initializers.ones, x.shape[1:])


class Dropped(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))


@pytest.mark.parametrize("representation", [Bare(), Dropped()], ids=["bare", "dropout"])
def test_other_representations(representation):
  setup, method = make(representation)
  params, loss = method.init(setup.params), problems.jit(method.phases[1].step.losses[0])
  losses = [loss(params, source_batch(0), jax.random.key(0)) for _ in range(2)]
  np.testing.assert_array_equal(*losses)
  assert np.isfinite(losses[0]).all()


def test_centroids_are_those_of_the_whole_batch():
  """Which devices share, one class on one device alone."""
  rng = np.random.default_rng(4)
  features, label = rng.normal(size=(2, 4, 5)).astype(np.float32), np.array([[0, 1, 1, 0], [0, 2, 1, 2]])
  mask = np.ones((2, 4), bool)
  whole = label_efficient.centroids(features.reshape(8, 5), label.ravel(), mask.ravel(), 4)
  split = jax.vmap(lambda *part: label_efficient.centroids(*part, 4, "data"), axis_name="data")(features, label, mask)
  for device in range(2):
    problems.assert_close(jax.tree.map(lambda leaf: leaf[device], split), whole)


@pytest.mark.parametrize("option", ["adversarial_weight", "semantic_weight"])
def test_target_images_are_prepared_as_the_trainer_feeds_them(option):
  """The unlabelled and the labelled ones, which the terms of the loss see."""
  setup = setups.make_setup("label_efficient", shared=False, representation=PERCEPTRON)
  prepared = setup.preparations["target"]

  def scaled(batch, key):
    return prepared({**batch, "x": 30 * batch["x"]}, key)

  def loss(preparation, unlabelled, target_x):
    of_task = dataclasses.replace(setup.task, target=setup.task.target | {"x": target_x})
    other = dataclasses.replace(setup, preparations={"target": preparation}, task=of_task)
    weights = {"adversarial_weight": 0.0, "semantic_weight": 0.0} | {option: 1.0}
    method = label_efficient.make_method(other, unlabelled=unlabelled, **weights)
    return loss_of(method, method.init(setup.params), source_batch(0), jax.random.key(0))

  x = setup.task.target["x"]
  expected = loss(prepared, 30 * UNLABELLED, 30 * x)
  np.testing.assert_allclose(loss(scaled, UNLABELLED, x), expected, rtol=1e-5)
  for part in (loss(prepared, UNLABELLED, 30 * x), loss(prepared, 30 * UNLABELLED, x)):
    assert not np.allclose(part, expected, rtol=1e-3)


def test_rows_at_fault_are_found_on_devices_shares():
  """Whose sums over classes are of all devices."""
  setup = setups.make_setup("label_efficient", shared=False, representation=PERCEPTRON, axis_name="data")
  method = label_efficient.make_method(setup, unlabelled=UNLABELLED)
  batch = source_batch(0)
  batch["x"][2] = np.inf
  mesh, state = sharding.make_mesh(jax.devices("cpu")[:2]), setups.start(method, setup, 1)
  find = functools.partial(faulty_rows, method.phases[1].step)
  split = jax.P(sharding.AXIS)
  mapped = jax.shard_map(find, mesh=mesh, in_specs=(sharding.state_specs(), split), out_specs=split)
  (found,) = problems.jit(mapped)(sharding.shard_train_state(state, mesh), batch)
  assert found.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("unlabelled", [UNLABELLED[:0], UNLABELLED[:, :3]])
def test_unlabelled_images_that_do_not_fit(unlabelled):
  with pytest.raises(ValueError, match=r"unlabelled has shape .*, target x \(12, 5\)"):
    make(unlabelled=unlabelled)


def test_unlabelled_images_of_the_config(monkeypatch):
  """Where none are given."""
  seen = []

  def get_unlabelled(config, seed):
    seen.append((config, seed))
    return {"x": UNLABELLED, "label": np.zeros(30, np.int32)}

  monkeypatch.setattr(label_efficient, "get_unlabelled", get_unlabelled)
  setup, method = make(unlabelled=None)
  assert seen == [(setup.config.data, setup.config.seed)]
  _, given = make()
  losses = [loss_of(m, m.init(setup.params), source_batch(0), jax.random.key(0)) for m in (method, given)]
  np.testing.assert_array_equal(*losses)


class OfNnx(nnx.Module):
  def __init__(self):
    self.dense = nnx.Linear(5, 3, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.dense(x)


def test_what_it_is_not_for():
  with pytest.raises(ValueError, match="method 'label_efficient' reads the outputs of each layer, .*a Linen module"):
    make(OfNnx())
  with pytest.raises(ValueError, match="carries state .* method 'label_efficient'"):
    make(setups.Normed())
  with pytest.raises(ValueError, match="config.data.shared_classes=True: method 'label_efficient' is for transfer"):
    label_efficient.make_method(setups.make_setup("label_efficient"), unlabelled=UNLABELLED)
