import functools

import jax
import jax.numpy as jnp
import numpy as np

from soseleto_jax import models

# Initializers take far longer to optimise than to run.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_the_net_of_figure_1():
  model = models.get_model("mlp", 2)
  x = jax.random.uniform(jax.random.key(1), (7, 2), minval=-1.0)
  params = _jit(model.init)(jax.random.key(0), x)["params"]
  assert jax.tree.map(jnp.shape, params) == {
    "representation": {"dense1": {"kernel": (2, 2), "bias": (2,)}},
    "classifier": {"kernel": (2, 2), "bias": (2,)},
  }
  params = jax.tree.map(lambda p: p + 0.1, params)
  dense, last = params["representation"]["dense1"], params["classifier"]
  hidden = np.maximum(x @ dense["kernel"] + dense["bias"], 0)
  reference = hidden @ last["kernel"] + last["bias"]
  np.testing.assert_allclose(model.apply({"params": params}, x), reference, atol=1e-6)


def test_hidden_layers_and_flattening():
  model = models.get_model("mlp", 3, hidden=(64, 32))
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
  variables = _jit(model.init)(jax.random.key(0), x)
  layers = variables["params"]["representation"]
  assert {k: v["kernel"].shape for k, v in layers.items()} == {
    "dense1": (64, 64),
    "dense2": (64, 32),
  }
  logits = model.apply(variables, x)
  np.testing.assert_array_equal(logits, model.apply(variables, x.reshape(2, 64)))


def test_initial_weights_are_uniform_to_the_fan_in():
  model = models.get_model("mlp", 50, hidden=(400,))
  params = _jit(model.init)(jax.random.key(0), jnp.zeros((1, 100)))["params"]
  layers = params["representation"] | {"classifier": params["classifier"]}
  for name, fan_in in {"dense1": 100, "classifier": 400}.items():
    for part, least in {"kernel": 0.97, "bias": 0.8}.items():
      assert least * fan_in**-0.5 < np.abs(layers[name][part]).max() <= fan_in**-0.5
