import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax import models

# Initializers take far longer to optimise than to run.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _conv(x, layer):
  windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
  return np.einsum("bijchw,hwcd->bijd", windows, layer["kernel"], optimize=True) + layer["bias"]


def _max_pool(x):
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


@pytest.mark.parametrize("relu", [False, True])
def test_forward_pass_matches_numpy(relu):
  model = models.get_model("lenet", 10, relu=relu)
  x = jax.random.normal(jax.random.key(1), (2, 28, 28, 1))
  params = _jit(model.init)(jax.random.key(0), x)["params"]
  rng = np.random.default_rng(0)  # No bias is 0, and units of both signs reach every ReLU.
  params = jax.tree.map(lambda p: p + rng.normal(0, 0.02, p.shape).astype(np.float32), params)
  logits = model.apply({"params": params}, x)

  exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  layers = exact["representation"]
  y = np.float64(x)
  for name in ("conv1", "conv2"):
    y = _max_pool(_conv(y, layers[name]))
    y = np.maximum(y, 0) if relu else y
  y = y.reshape(2, -1)
  y = np.maximum(y @ layers["dense"]["kernel"] + layers["dense"]["bias"], 0)
  y = y @ exact["classifier"]["kernel"] + exact["classifier"]["bias"]
  np.testing.assert_allclose(logits, y, rtol=1e-4, atol=1e-5)


def test_layer_shapes():
  model = models.get_model("lenet", 10)
  x = jnp.zeros((2, 28, 28, 1))
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  kernels = {k: v["kernel"].shape for k, v in variables["params"]["representation"].items()}
  assert kernels == {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "dense": (800, 500)}
  _, captured = jax.eval_shape(lambda variables: model.apply(variables, x, capture_intermediates=True), variables)
  layers = captured["intermediates"]["representation"]
  assert layers["conv1"]["__call__"][0].shape == (2, 24, 24, 20)
  assert layers["conv2"]["__call__"][0].shape == (2, 8, 8, 50)


def test_initial_weights_are_uniform_to_the_fan_in():
  x = jnp.zeros((1, 28, 28, 1))
  params = _jit(models.get_model("lenet", 10).init)(jax.random.key(0), x)["params"]
  layers = params["representation"] | {"classifier": params["classifier"]}
  for name, fan_in in {"conv1": 25, "conv2": 500, "dense": 800, "classifier": 500}.items():
    bound = (3 / fan_in) ** 0.5
    assert 0.97 * bound < np.abs(layers[name]["kernel"]).max() <= bound
    assert not np.any(layers[name]["bias"])


def test_too_small_images_are_refused():
  model = models.get_model("lenet", 10)
  with pytest.raises(ValueError, match=r"13x13.*\(2, 28, 12, 1\).*resize"):
    model.init(jax.random.key(0), jnp.zeros((2, 28, 12, 1)))
  jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 13, 13, 1)))
