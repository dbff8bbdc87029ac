import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from soseleto_jax import models
from soseleto_jax.models import losses as loss_functions
from soseleto_jax.models.losses import classification_loss, margin, predict_fn
from tests import problems


def _init(model, batch, **options):
  return problems.jit(lambda key, x: model.init(key, x, **options))(jax.random.key(0), batch["x"])


def _cross_entropy(logits, labels):
  logits = np.asarray(logits, np.float64)
  log_sum = np.log(np.sum(np.exp(logits), axis=1))
  return log_sum - logits[np.arange(len(labels)), labels]


def test_is_the_cross_entropy_of_each_example():
  model, batch = models.get_model("mlp", problems.CLASSES, hidden=(5,)), problems.batch(0, 6)
  variables = _init(model, batch)
  losses = classification_loss(model)(variables["params"], batch, jax.random.key(0))
  assert losses.shape == (6,) and losses.dtype == jnp.float32
  logits = predict_fn(model)(variables["params"], None, batch["x"])
  assert logits.shape == (6, problems.CLASSES)
  np.testing.assert_allclose(losses, _cross_entropy(logits, batch["label"]), rtol=1e-5)


def test_margin():
  """The same pull on every example, whatever its logits."""
  logits = np.random.default_rng(0).normal(scale=3, size=(3, 4)).astype(np.float32)
  label = np.int32([0, 3, 1])
  losses = margin(logits, label)
  assert losses.shape == (3,) and losses.dtype == jnp.float32
  expected = [np.mean(np.delete(row, y)) - row[y] for row, y in zip(logits, label, strict=True)]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(margin(x, label)))(logits)
  np.testing.assert_allclose(gradient, np.where(np.eye(4)[label], -1, 1 / 3), rtol=1e-6)

  model, batch = models.get_model("mlp", problems.CLASSES, hidden=(5,)), problems.batch(0, 6)
  params = _init(model, batch)["params"]
  losses = classification_loss(model, loss=margin)(params, batch, jax.random.key(0))
  np.testing.assert_allclose(losses, margin(predict_fn(model)(params, None, batch["x"]), batch["label"]), rtol=1e-5)


@pytest.mark.parametrize("head, other", [("source", "target"), ("target", "source")])
def test_a_head_has_no_gradient_from_the_other_side(head, other):
  model = models.get_model("mlp", {"source": 3, "target": 2}, hidden=(5,))
  batch = problems.batch(0, 6, classes=2)
  params = _init(model, batch)["params"]

  def total(params):
    return jnp.sum(classification_loss(model, head=head)(params, batch, jax.random.key(0)))

  gradient = problems.jit(jax.grad(total))(params)
  assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient[f"{other}_head"]))
  for name in (f"{head}_head", "representation"):
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient[name]))
  logits = predict_fn(model, head=head)(params, None, batch["x"])
  assert logits.shape == (6, {"source": 3, "target": 2}[head])


class _Net(nn.Module):
  """Dropout and BatchNorm, each if asked for."""

  dropout: float = 0.0
  norm: bool = False

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Dense(8, name="dense")(x)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(problems.CLASSES)(x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_key_is_for_dropout_alone(dropout):
  model, batch = _Net(dropout), problems.batch(0, 6)
  params = _init(model, batch)["params"]
  loss = problems.jit(classification_loss(model))
  first, second = (loss(params, batch, jax.random.key(key)) for key in (0, 1))
  problems.assert_same_bits(first, loss(params, batch, jax.random.key(0)))
  assert np.all(np.asarray(first) == np.asarray(second)) == (dropout == 0)
  logits = predict_fn(model)(params, None, batch["x"])
  assert np.allclose(first, _cross_entropy(logits, batch["label"]), rtol=1e-5) == (dropout == 0)


def test_model_state():
  """Training normalises by the batch and moves the statistics; prediction normalises by the statistics."""
  model, batch = _Net(norm=True), problems.batch(0, 6)
  variables = _init(model, batch)
  params, model_state = variables["params"], {"batch_stats": variables["batch_stats"]}
  losses, new_state = classification_loss(model)(params, batch, jax.random.key(0), model_state)
  assert jax.tree.structure(new_state) == jax.tree.structure(model_state)

  dense = np.asarray(batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"], np.float64)
  mean, var = np.mean(dense, axis=0), np.var(dense, axis=0)
  problems.assert_close(new_state["batch_stats"]["norm"], {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var})

  def logits(mean, var):
    return (dense - mean) / np.sqrt(var + 1e-5) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

  np.testing.assert_allclose(losses, _cross_entropy(logits(mean, var), batch["label"]), rtol=1e-4)
  predicted = predict_fn(model)(params, new_state, batch["x"])
  np.testing.assert_allclose(predicted, logits(0.1 * mean, 0.9 + 0.1 * var), rtol=1e-4, atol=1e-5)


class _NnxNet(nnx.Module):
  def __init__(self, *, rngs):
    self.dense = nnx.Linear(problems.FEATURES, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)

  def __call__(self, x):
    return self.norm(self.dense(x))


def test_a_network_of_any_kind():
  batch = problems.batch(0, 6)
  network = models.as_network(_NnxNet(rngs=nnx.Rngs(0)), {"source": problems.CLASSES, "target": 2})
  params, model_state = network.init(jax.random.key(0), batch["x"])
  losses, new_state = classification_loss(network, head="source")(params, batch, jax.random.key(0), model_state)
  logits, moved = network.apply(params, model_state, batch["x"], head="source", train=True)
  np.testing.assert_allclose(losses, _cross_entropy(logits, batch["label"]), rtol=1e-4)
  problems.assert_close(new_state, moved)
  predicted = predict_fn(network, head="target")(params, new_state, batch["x"])
  assert predicted.shape == (6, 2)
  problems.assert_close(predicted, network.apply(params, new_state, batch["x"], head="target")[0])


def test_squared_error():
  rng = np.random.default_rng(0)
  outputs, label = rng.normal(size=(5, 3, 2)).astype(np.float32), rng.normal(size=(5, 3, 2)).astype(np.float32)
  losses = loss_functions.squared_error(outputs, label)
  assert losses.shape == (5,) and losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, ((outputs - label) ** 2).mean((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(loss_functions.squared_error(outputs[:, 0, :1], label[:, 0, 0]),
                             (outputs[:, 0, 0] - label[:, 0, 0]) ** 2, rtol=1e-5)  # fmt: skip
  with pytest.raises(ValueError, match=r"outputs of shape \(5, 3\) for labels of shape \(5,\)"):
    loss_functions.squared_error(outputs[:, :, 0], label[:, 0, 0])


def test_sequence_cross_entropy():
  logits = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
  label = np.int32([[0, 1, 2, 3], [5, -1, 4, -1], [-1, -1, -1, -1]])
  losses, gradient = jax.jacrev(lambda x: (loss_functions.sequence_cross_entropy(x, label),) * 2, has_aux=True)(
    jnp.asarray(logits)
  )[::-1]
  rows = zip(logits, label, strict=True)
  expected = [_cross_entropy(row[y >= 0], y[y >= 0]).mean() if (y >= 0).any() else 0 for row, y in rows]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert losses.dtype == jnp.float32 and np.isfinite(gradient).all()
  assert not gradient[:, label < 0].any()
  with pytest.raises(ValueError, match=r"outputs of shape \(3, 6\)"):
    loss_functions.sequence_cross_entropy(logits[:, 0], label)


def test_a_loss_by_its_name():
  assert loss_functions.find_loss("squared_error") is loss_functions.squared_error
  assert loss_functions.find_loss("optax:l2_loss") is optax.l2_loss
  with pytest.raises(ValueError, match="config.loss='squared_eror': choose .*did you mean 'squared_error'"):
    loss_functions.find_loss("squared_eror")
  with pytest.raises(ValueError, match="config.loss='optax:l3_los': optax has no"):
    loss_functions.find_loss("optax:l3_los")
  with pytest.raises(ValueError, match="name a function"):
    loss_functions.find_loss("optax:__version__")
