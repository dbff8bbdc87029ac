import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import models

# Initializers take far longer to optimise than to run.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _small(norm, **options):
  options = {"width": 8, "stage_sizes": (1, 1)} | options
  model = models.get_model("resnet", 4, norm=norm, **options)
  x = 1 + 2 * jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
  return model, _jit(model.init)(jax.random.key(0), x), x


def _apply(model, variables, x, **how):
  return _jit(lambda variables, x: model.apply(variables, x, **how))(variables, x)


def test_shape_of_resnet_18():
  model = models.get_model("resnet", 10)

  def forward(rng, x):
    variables = model.init(rng, x)
    return model.apply(variables, x, capture_intermediates=True)[1]["intermediates"]

  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  layers = jax.eval_shape(forward, jax.random.key(0), x)["representation"]
  sizes = {1: (32, 64), 2: (16, 128), 3: (8, 256), 4: (4, 512)}
  for stage, (size, channels) in sizes.items():
    for block in (1, 2):
      output = layers[f"stage{stage}_block{block}"]["__call__"][0]
      assert output.shape == (2, size, size, channels)
  assert not any("stage1_block3" in k or "stage5" in k for k in layers)
  assert "shortcut" not in layers["stage1_block1"] and "shortcut" in layers["stage2_block1"]
  assert layers["stem"]["__call__"][0].shape == (2, 32, 32, 64)
  assert layers["__call__"][0].shape == (2, 512)


def test_width_and_stage_sizes():
  model = models.get_model("resnet", 4, width=4, stage_sizes=(2, 1, 1))
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  layers = variables["params"]["representation"]
  blocks = {"stage1_block1", "stage1_block2", "stage2_block1", "stage3_block1"}
  assert set(layers) == blocks | {"stem", "stem_norm"}
  assert layers["stage3_block1"]["conv2"]["kernel"].shape == (3, 3, 16, 16)
  assert variables["params"]["classifier"]["kernel"].shape == (16, 4)


def test_batch_norm_keeps_statistics_in_training_only():
  model, variables, x = _small("batch")
  assert set(variables) == {"params", "batch_stats"}
  _, updates = _apply(model, variables, x, train=True, mutable=["batch_stats"])
  assert set(updates) == {"batch_stats"}
  _, captured = _apply(model, variables, x, capture_intermediates=True)
  stem = captured["intermediates"]["representation"]["stem"]["__call__"][0]
  statistics = updates["batch_stats"]["representation"]["stem_norm"]
  np.testing.assert_allclose(statistics["mean"], 0.1 * stem.mean((0, 1, 2)), atol=1e-4)
  np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-4)

  _, updates = _apply(model, variables, x, train=False, mutable=["batch_stats"])
  jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
  logits, others = (_apply(model, variables, y) for y in (x, x.at[1:].set(7.0)))
  np.testing.assert_allclose(logits[0], others[0], atol=1e-4)


def test_batch_statistics_of_bfloat16_stay_float32():
  model, variables, x = _small("batch", dtype="bfloat16")
  _, updates = _apply(model, variables, x, train=True, mutable=["batch_stats"])
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("norm", ["group", "none"])
def test_other_norms_have_no_state(norm):
  model, variables, x = _small(norm)
  assert set(variables) == {"params"}
  # No mode: training and evaluation are one function.
  np.testing.assert_array_equal(_apply(model, variables, x, train=True), _apply(model, variables, x, train=False))


@pytest.mark.parametrize(("width", "groups"), [(8, 8), (48, 16), (64, 32)])
def test_group_norm_divides_the_channels(width, groups):
  model, variables, x = _small("group", width=width, stage_sizes=(1,))
  _, captured = _apply(model, variables, x[:1], capture_intermediates=True)
  layers = captured["intermediates"]["representation"]
  before, after = (np.asarray(layers[k]["__call__"][0]) for k in ("stem", "stem_norm"))
  grouped = before.reshape(64, groups, width // groups)
  mean, var = (f(grouped, axis=(0, 2), keepdims=True) for f in (np.mean, np.var))
  reference = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(before.shape)
  np.testing.assert_allclose(after, reference, atol=1e-3)


def test_blocks_without_norm_start_as_their_shortcut():
  model, variables, x = _small("none", stage_sizes=(1,))
  _, captured = _apply(model, variables, x, capture_intermediates=True)
  layers = captured["intermediates"]["representation"]
  stem, block = (layers[k]["__call__"][0] for k in ("stem", "stage1_block1"))
  np.testing.assert_allclose(block, np.maximum(stem, 0))


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_trains(norm):
  model, variables, x = _small(norm)
  labels = jnp.arange(16) % 4
  optimizer = optax.sgd(0.05, momentum=0.9)

  def loss_fn(params, state):
    logits, state = model.apply({"params": params} | state, x, train=True, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), state

  @_jit
  def step(params, state, opt_state):
    (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), state, opt_state, loss

  params = variables.pop("params")
  before, state, opt_state, losses = params, variables, optimizer.init(params), []
  for _ in range(40):
    params, state, opt_state, loss = step(params, state, opt_state)
    losses.append(float(loss))
  assert np.mean(losses[-5:]) < 0.3 * losses[0]
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, params)
  assert all(jax.tree.leaves(moved["representation"]["stage2_block1"]["conv1"]))
