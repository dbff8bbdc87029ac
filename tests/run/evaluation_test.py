"""Accuracy and loss of a whole set, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core import sharding
from soseleto_jax.data.normalization import Normalization
from soseleto_jax.models.losses import squared_error
from soseleto_jax.run.evaluation import Evaluator

FEATURES, CLASSES = 5, 3
NORMALIZATION = Normalization(np.linspace(-1, 1, FEATURES, dtype=np.float32), np.float32([1, 2, 3, 4, 5]))


def predict(params, model_state, x):
  logits = x @ params["w"]
  return logits if model_state is None else logits + model_state["bias"]


def make_set(size, seed=0):
  rng = np.random.default_rng(seed)
  x = (5 * rng.normal(size=(size, FEATURES))).astype(np.float32)
  return {"x": x, "label": rng.integers(0, CLASSES, size, np.int32)}


PARAMS = {"w": np.random.default_rng(9).normal(size=(FEATURES, CLASSES)).astype(np.float32)}


def by_hand(examples, bias=0.0):
  x = (examples["x"].astype(np.float64) - NORMALIZATION.mean) / NORMALIZATION.std
  logits = x @ PARAMS["w"] + bias
  log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
  label = examples["label"]
  return np.mean(np.argmax(logits, axis=1) == label), -np.mean(log_p[np.arange(len(label)), label])


def evaluator_of(batch_size, devices=8):
  return Evaluator(predict, NORMALIZATION, batch_size, sharding.make_mesh(jax.devices()[:devices]))


def evaluate(evaluator, examples, model_state=None):
  return evaluator(PARAMS, model_state, jax.tree.map(jnp.asarray, examples))


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("batch_size, size", [(7, 20), (8, 24), (5, 1), (100, 20), (1, 11)])
def test_equals_numpy(devices, batch_size, size):
  """Sets that batches do not divide, batches larger than the set, batches that devices do not divide."""
  examples = make_set(size)
  result = evaluate(evaluator_of(batch_size, devices), examples)
  accuracy, loss = by_hand(examples)
  assert result.keys() == {"accuracy", "loss"}
  assert result["accuracy"] == accuracy
  assert all(type(value) is float for value in result.values())
  np.testing.assert_allclose(result["loss"], loss, rtol=1e-5)


def test_the_last_example_counts_once():
  """Padded rows name it again."""
  evaluator, examples = evaluator_of(8), make_set(17)
  right = np.argmax((examples["x"] - NORMALIZATION.mean) / NORMALIZATION.std @ PARAMS["w"], axis=1).astype(np.int32)
  only_last = np.where(np.arange(17) == 16, right, (right + 1) % CLASSES).astype(np.int32)
  assert evaluate(evaluator, examples | {"label": only_last})["accuracy"] == 1 / 17
  assert evaluate(evaluator, examples | {"label": right})["accuracy"] == 1
  examples["x"][16] = 1e30  # and no other row's loss is infinite
  assert evaluate(evaluator, examples | {"label": only_last})["accuracy"] <= 1 / 17


def test_the_state_of_the_model_is_used():
  examples, bias = make_set(20), np.float32([-9, 9, 0])
  result = evaluate(evaluator_of(6), examples, {"bias": jnp.asarray(bias)})
  accuracy, loss = by_hand(examples, bias)
  assert result["accuracy"] == accuracy != by_hand(examples)[0]
  np.testing.assert_allclose(result["loss"], loss, rtol=1e-5)


def test_many_batches_lose_no_digits():
  """Sums over batches are in float64."""
  examples = jax.tree.map(lambda column: np.repeat(column[:1], 1000, axis=0), make_set(1))
  loss = lambda size: evaluate(evaluator_of(1, 1), {name: column[:size] for name, column in examples.items()})["loss"]
  np.testing.assert_allclose(loss(1000), loss(1), rtol=1e-12)


def test_a_loss_that_is_not_finite_is_shown_as_such():
  examples = make_set(9)
  examples["x"][4] = np.nan
  result = evaluate(evaluator_of(4), examples)
  assert np.isnan(result["loss"]) and 0 <= result["accuracy"] <= 1


def test_labels_that_are_no_classes():
  """There is no accuracy, and the loss is the one that was given."""
  examples = make_set(11)
  examples["label"] = np.random.default_rng(3).normal(size=(11, CLASSES)).astype(np.float32)
  mesh = sharding.make_mesh(jax.devices()[:3])
  evaluator = Evaluator(predict, NORMALIZATION, 4, mesh, loss=squared_error, has_classes=False)
  outputs = (examples["x"] - NORMALIZATION.mean) / NORMALIZATION.std @ PARAMS["w"]
  result = evaluate(evaluator, examples)
  assert result.keys() == {"loss"}
  np.testing.assert_allclose(result["loss"], np.mean((outputs - examples["label"]) ** 2), rtol=1e-5)
