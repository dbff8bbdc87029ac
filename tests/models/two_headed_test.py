import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from soseleto_jax import models
from soseleto_jax.models import two_headed
from soseleto_jax.models.two_headed import HeadedNetwork

# Initializers take far longer to optimise than to run.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

CLASSES = {"source": 5, "target": 3}


def _network(name="mlp"):
  model = models.get_model(name, CLASSES)
  x = jax.random.normal(jax.random.key(1), (4, 16, 16, 1))
  return model, _jit(model.init)(jax.random.key(0), x)["params"], x


@pytest.mark.parametrize("name", ["mlp", "cifar_quick", "lenet"])
def test_both_heads_on_one_representation(name):
  model, params, x = _network(name)
  assert set(params) == {"representation", "source_head", "target_head"}
  for head, count in CLASSES.items():
    features = model.representation.apply({"params": params["representation"]}, x)
    dense = params[f"{head}_head"]
    assert dense["kernel"].shape == (features.shape[-1], count)
    logits = model.apply({"params": params}, x, head=head)
    np.testing.assert_allclose(logits, features @ dense["kernel"] + dense["bias"], atol=1e-4)


@pytest.mark.parametrize("head", [None, "source", "target"])
def test_init_makes_the_same_parameters_whichever_head_it_names(head):
  model, params, x = _network()
  logits, variables = _jit(model.init_with_output, static_argnames="head")(jax.random.key(0), x, head=head)
  jax.tree.map(np.testing.assert_array_equal, variables["params"], params)
  assert logits.shape == (4, CLASSES[head or "source"])


@pytest.mark.parametrize(("head", "other"), [("source", "target"), ("target", "source")])
def test_a_head_has_no_gradient_to_the_other(head, other):
  model, params, x = _network("lenet")

  def loss(params):
    return jnp.sum(model.apply({"params": params}, x, head=head) ** 2)

  grads = jax.grad(loss)(params)
  for leaf in jax.tree.leaves(grads[f"{other}_head"]):
    np.testing.assert_array_equal(leaf, 0.0)
  assert np.any(grads[f"{head}_head"]["kernel"])
  assert np.any(grads["representation"]["conv1"]["kernel"])


def test_a_head_that_is_not_there():
  model, params, x = _network()
  for head in (None, "middle"):
    with pytest.raises(ValueError, match=f"head={head!r}.*'source' or 'target'"):
      model.apply({"params": params}, x, head=head)
  shared = models.get_model("mlp", 5)
  variables = _jit(shared.init)(jax.random.key(0), x)
  with pytest.raises(ValueError, match="head='source'.*shared"):
    shared.apply(variables, x, head="source")


def test_heads_on_a_representation_of_ones_own():
  class Halves(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
      return nn.Dense(6)(x / (2 if train else 1))

  x = jnp.ones((2, 4))
  model = HeadedNetwork(Halves(), CLASSES, kernel_init=nn.initializers.ones_init())
  params = _jit(model.init)(jax.random.key(0), x)["params"]
  assert set(params) == {"representation", "source_head", "target_head"}
  assert np.all(params["target_head"]["kernel"] == 1)
  logits = [model.apply({"params": params}, x, train=train, head="target") for train in (0, 1)]
  np.testing.assert_allclose(logits[0], 2 * logits[1], rtol=1e-6)


def test_features_are_what_the_heads_see():
  model, params, x = _network("cifar_quick")
  features = model.apply({"params": params}, x, method="features")
  expected = model.representation.apply({"params": params["representation"]}, x)
  np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [None, "source", "target"])
@pytest.mark.parametrize("name", ["mlp", "cifar_quick"])
def test_features_of_one_length(name, head):
  plain = models.get_model(name, 5 if head is None else CLASSES)
  model = models.get_model(name, 5 if head is None else CLASSES, feature_norm=3.0)
  x = 5 * jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  variables = _jit(model.init)(jax.random.key(0), x)
  features = np.asarray(plain.apply(variables, x, method="features"), np.float64)
  expected = 3 * features / np.linalg.norm(features, axis=-1, keepdims=True)
  np.testing.assert_allclose(model.apply(variables, x, method="features"), expected, rtol=1e-5)
  dense = variables["params"]["classifier" if head is None else f"{head}_head"]
  logits = expected @ dense["kernel"] + dense["bias"]
  np.testing.assert_allclose(model.apply(variables, x, head=head), logits, rtol=1e-4, atol=1e-5)


def test_names_of_the_classifiers():
  assert two_headed.heads_of(5) == {"classifier": 5}
  assert two_headed.heads_of(CLASSES) == {"source_head": 5, "target_head": 3}
  assert two_headed.classifier_of(5, None) == "classifier"
  assert two_headed.classifier_of(CLASSES, "target") == "target_head"
