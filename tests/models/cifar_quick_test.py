import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax import models

# Initializers take far longer to optimise than to run.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _pool(x, reduce):
  """3x3 windows from pixels 0, 2, 4, ... of [B, H, W, C], over the pixels inside the image only."""
  rows = []
  for i in range(0, x.shape[1], 2):
    windows = [x[:, i : i + 3, j : j + 3] for j in range(0, x.shape[2], 2)]
    rows.append(np.stack([reduce(w, axis=(1, 2)) for w in windows], axis=1))
  return np.stack(rows, axis=1)


def _conv(x, layer):
  windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), (5, 5), axis=(1, 2))
  return np.einsum("bijchw,hwcd->bijd", windows, layer["kernel"], optimize=True) + layer["bias"]


def _forward(params, x):
  layers = params["representation"]
  x = np.maximum(_pool(_conv(x, layers["conv1"]), np.max), 0)
  x = _pool(np.maximum(_conv(x, layers["conv2"]), 0), np.mean)
  x = _pool(np.maximum(_conv(x, layers["conv3"]), 0), np.mean)
  x = x.reshape(len(x), -1) @ layers["dense"]["kernel"] + layers["dense"]["bias"]
  return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.parametrize("init", ["fan_in", "caffe"])
def test_forward_pass_matches_numpy(init):
  model = models.get_model("cifar_quick", 10, init=init)
  x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3)) * (50 if init == "caffe" else 1)
  params = _jit(model.init)(jax.random.key(0), x)["params"]
  rng = np.random.default_rng(0)  # No bias is 0, and units of both signs reach every ReLU.
  params = jax.tree.map(lambda p: p + rng.normal(0, 0.02, p.shape).astype(np.float32), params)
  reference = _forward(jax.tree.map(lambda p: np.asarray(p, np.float64), params), np.float64(x))
  logits = model.apply({"params": params}, x)
  np.testing.assert_allclose(logits, reference, rtol=1e-4, atol=1e-4 * np.abs(reference).max())


def test_pooling_windows_on_single_pixels():
  # Convolutions that copy channel 0: conv2 shows the maximum pool, conv3 the first average pool.
  model = models.get_model("cifar_quick", 10)
  images = np.zeros((4, 32, 32, 3), np.float32)
  images[[0, 1, 2, 3], [0, 2, 31, 5], [0, 2, 31, 5], 0] = 1
  params = _jit(model.init)(jax.random.key(0), images)["params"]
  for name in ("conv1", "conv2", "conv3"):
    kernel = jnp.zeros_like(params["representation"][name]["kernel"])
    params["representation"][name]["kernel"] = kernel.at[2, 2, 0, 0].set(1)
  _, captured = model.apply({"params": params}, images, capture_intermediates=True)
  layers = captured["intermediates"]["representation"]
  maxima, means = (np.asarray(layers[f"conv{i}"]["__call__"][0])[..., 0] for i in (2, 3))

  seen = [{(int(i), int(j)) for i, j in np.argwhere(image)} for image in maxima]
  shared = {(0, 0), (0, 1), (1, 0), (1, 1)}  # Pixel 2 is in the windows of 0-2 and of 2-4.
  assert seen == [{(0, 0)}, shared, {(15, 15)}, {(2, 2)}]
  assert maxima.shape == (4, 16, 16)

  assert means.shape == (4, 8, 8)
  np.testing.assert_allclose(means[0, 0, 0], 1 / 9, rtol=1e-6)
  np.testing.assert_allclose(means[1, 0, 0], 4 / 9, rtol=1e-6)
  np.testing.assert_allclose(means[2, 7, 7], 1 / 4, rtol=1e-6)  # A corner has 4 pixels, not 9.
  assert np.count_nonzero(means[0]) == np.count_nonzero(means[2]) == 1


def test_layer_shapes():
  model = models.get_model("cifar_quick", 10)
  x = jnp.zeros((2, 32, 32, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  kernels = {k: v["kernel"].shape for k, v in variables["params"]["representation"].items()}
  assert kernels == {
    "conv1": (5, 5, 3, 32),
    "conv2": (5, 5, 32, 32),
    "conv3": (5, 5, 32, 64),
    "dense": (1024, 64),
  }
  assert variables["params"]["classifier"]["kernel"].shape == (64, 10)
  _, captured = jax.eval_shape(lambda variables: model.apply(variables, x, capture_intermediates=True), variables)
  layers = captured["intermediates"]["representation"]
  outputs = {k: v["__call__"][0].shape[1:] for k, v in layers.items() if k != "__call__"}
  assert outputs == {
    "conv1": (32, 32, 32),
    "conv2": (16, 16, 32),
    "conv3": (8, 8, 64),
    "dense": (64,),
  }


@pytest.mark.parametrize(
  ("init", "deviations"),
  [
    ("caffe", {"conv1": 1e-4, "conv2": 1e-2, "conv3": 1e-2, "dense": 0.1}),
    (
      "fan_in",
      {
        "conv1": (2 / 75) ** 0.5,
        "conv2": (2 / 800) ** 0.5,
        "conv3": (2 / 800) ** 0.5,
        "dense": (1 / 1024) ** 0.5,
      },
    ),
  ],
)
def test_initial_deviations(init, deviations):
  classes = {"source": 200, "target": 200}
  model = models.get_model("cifar_quick", classes, init=init)
  params = _jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  for name, std in deviations.items():
    np.testing.assert_allclose(np.std(params["representation"][name]["kernel"]), std, rtol=0.05)
    assert not np.any(params["representation"][name]["bias"])
  for head in ("source_head", "target_head"):
    std = 0.1 if init == "caffe" else (1 / 64) ** 0.5
    np.testing.assert_allclose(np.std(params[head]["kernel"]), std, rtol=0.05)
    assert not np.any(params[head]["bias"])
