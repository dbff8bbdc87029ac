"""Which contraction a network allows, and that all of them are the same numbers in every kind of program."""

import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import (
  Alignment,
  gradient_alignment,
  init_train_state,
  make_mesh,
  make_train_step,
  shard_train_state,
  shard_train_step,
  skip_nonfinite,
)
from soseleto_jax.core import contraction
from tests import problems

WIDTH, LAYERS, SIZE, N = 4, 3, 8, 8


@jax.custom_vjp
def kernel(x):
  """As an attention kernel: with a gradient of its own, which forward mode cannot pass."""
  return jnp.tanh(x)


def _forward(x):
  y = jnp.tanh(x)
  return y, y


def _backward(y, upstream):
  return (upstream * (1 - y**2),)


kernel.defvjp(_forward, _backward)


def _block(activation, x, layer):
  return x + activation(x @ layer["w"] + layer["b"])


def _plain(activation, layers, x):
  for number in range(LAYERS):
    x = _block(activation, x, jax.tree.map(lambda leaf, number=number: leaf[number], layers))
  return x


def _scanned(activation, layers, x):
  return jax.lax.scan(lambda x, layer: (_block(activation, x, layer), None), x, layers)[0]


def _recomputed(activation, layers, x):
  block = jax.checkpoint(functools.partial(_block, activation))
  return jax.lax.scan(lambda x, layer: (block(x, layer), None), x, layers)[0]


def _branching(activation, layers, x):
  return jax.lax.cond(x[0, 0] < 1e9, lambda: jax.jit(functools.partial(_plain, activation))(layers, x), lambda: x)


class Layer(nn.Module):
  activation: object

  @nn.compact
  def __call__(self, x, _):
    w = self.param("w", nn.initializers.zeros, (WIDTH, WIDTH))
    return _block(self.activation, x, {"w": w, "b": self.param("b", nn.initializers.zeros, (WIDTH,))}), None


def _flax_scanned(activation, layers, x):
  scan = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
  (x, _) = scan(activation).apply({"params": layers}, x, None)
  return x


PROGRAMS = {
  "plain": _plain, "scan": _scanned, "remat": _recomputed, "branch": _branching, "nn.scan": _flax_scanned
}  # fmt: skip


def loss_of(program, activation):
  def loss(params, batch, rng):
    x = PROGRAMS[program](activation, params["layers"], batch["x"])
    logits = x @ params["classifier"]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

  return loss


def params_of(seed=0, dtype=float):
  rng = np.random.default_rng(seed)
  shapes = {"layers": {"w": (LAYERS, WIDTH, WIDTH), "b": (LAYERS, WIDTH)}, "classifier": (WIDTH, problems.CLASSES)}
  draw = lambda shape: jnp.asarray(rng.normal(size=shape) / 2, dtype)
  return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


BATCH = problems.batch(0, SIZE, shape=(WIDTH,), dtype=float, index=np.arange(SIZE, dtype=np.int32))


@functools.cache
def _definition():
  """Q by the Jacobian of the plain program, contracted."""
  rows = jax.jacobian(lambda params: loss_of("plain", jnp.tanh)(params, BATCH, None))(params_of())
  products = jax.tree.map(lambda row, d: jnp.tensordot(row, d, d.ndim), rows, params_of(1))
  return np.asarray(sum(jax.tree.leaves(products)))


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_are_the_definition(x64, program):
  """Also with a function that forward mode cannot pass, but for "jvp"."""

  @problems.jit
  def products(params, direction):
    return {
      (activation.__name__, how): gradient_alignment(
        loss_of(program, activation), params, BATCH, direction, contraction=how
      )
      for activation in (jnp.tanh, kernel)
      for how in contraction.CONTRACTIONS
      if (activation, how) != (kernel, "jvp")
    }

  for name, q in products(params_of(), params_of(1)).items():
    np.testing.assert_allclose(q, _definition(), rtol=1e-9, atol=1e-12, err_msg=str(name))


@pytest.mark.parametrize("program", PROGRAMS)
def test_jvp_fails_early_where_it_cannot_pass(program):
  """When traced, and not only when compiled, in words that name the way out."""
  args = params_of(), BATCH, params_of(1)
  align = functools.partial(gradient_alignment, loss_of(program, kernel), contraction="jvp")
  with pytest.raises(
    ValueError, match="contraction='jvp': the loss calls a jax.custom_vjp, kernel at .*take contraction='vjp'"
  ):
    jax.eval_shape(align, *args)


def _chosen(loss, params, batch=BATCH):
  return contraction.resolve("auto", lambda params: loss(params, batch, None), params)


@pytest.mark.parametrize("program", PROGRAMS)
def test_auto_takes_forward_mode_where_it_can(program):
  assert _chosen(loss_of(program, jnp.tanh), params_of()) == "jvp"
  assert _chosen(loss_of(program, kernel), params_of()) == "vjp"


def test_auto_where_no_tangent_meets_the_function():
  """Of inputs, of other leaves, and of what no gradient flows through."""

  def loss(params, batch, rng):
    x = kernel(batch["x"]) + kernel(jax.lax.stop_gradient(params["classifier"])).sum()
    return loss_of("plain", jnp.tanh)(params, {**batch, "x": x}, rng)

  assert _chosen(loss, params_of()) == "jvp"
  whole = params_of()

  def of_classifier(leaf):
    return loss_of("plain", kernel)({**whole, "classifier": leaf}, BATCH, None)

  assert contraction.resolve("auto", of_classifier, whole["classifier"]) == "jvp"
  assert contraction.resolve("jvp", of_classifier, whole["classifier"]) == "jvp"


def test_the_choice_is_said_once(caplog):
  contraction._say.cache_clear()
  with caplog.at_level(logging.INFO, contraction.__name__):
    for _ in range(2):
      _chosen(loss_of("scan", kernel), params_of())
      _chosen(loss_of("scan", jnp.tanh), params_of())
  (line,) = [record.getMessage() for record in caplog.records if record.name == contraction.__name__]
  assert "contraction='vjp'" in line and "kernel" in line


def _step(how, activation=kernel, axis_name=None, dtype=float, program="remat", **options):
  loss = loss_of(program, activation)
  alignment = Alignment(contraction=how, **options)
  optimizer = optax.sgd(0.1)
  step = make_train_step(loss, loss, optimizer, alpha_step_size=0.1, alignment=alignment, axis_name=axis_name)
  return step, init_train_state(params_of(dtype=dtype), optimizer, N)


@pytest.mark.parametrize("how", ["auto", "vjp", "vmap_grad"])
def test_the_step_on_8_devices(x64, how):
  """With the function under `jax.checkpoint` inside `jax.lax.scan`, against forward mode through what it stands for."""
  target = problems.batch(1, SIZE, shape=(WIDTH,), dtype=float)
  plain, state = _step("jvp", jnp.tanh)
  expected, metrics = problems.jit(plain)(state, BATCH, target)
  mesh = make_mesh(jax.devices("cpu"))
  mapped = problems.jit(shard_train_step(_step(how, axis_name="data")[0], mesh))
  found, found_metrics = mapped(shard_train_state(state, mesh), BATCH, target)
  problems.assert_close((found.params, found.alpha), (expected.params, expected.alpha), rtol=1e-6, atol=1e-8)
  problems.assert_close(found_metrics, metrics, rtol=1e-5)
  assert np.ptp(expected.alpha) > 1e-3


@pytest.mark.parametrize("how", ["auto", "vjp", "vmap_grad"])
def test_parameters_in_bfloat16(how):
  """To their precision, and of the same dtypes."""
  target, batch = (
    {**data, "x": data["x"].astype(jnp.bfloat16)} for data in (problems.batch(1, SIZE, shape=(WIDTH,)), BATCH)
  )
  expected, state = _step("jvp", jnp.tanh, dtype=jnp.bfloat16)
  step, _ = _step(how, dtype=jnp.bfloat16)
  found, expected = (problems.jit(step)(state, batch, target)[0] for step in (step, expected))
  assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, state)
  np.testing.assert_allclose(found.alpha, expected.alpha, atol=0.05 * np.ptp(expected.alpha))


def test_skipping_takes_the_steps_own_contraction_and_leaves():
  """So that it goes through the function, and costs no tangent pass where the step has none."""
  target = problems.batch(1, SIZE, shape=(WIDTH,))
  step, state = _step("auto", dtype=np.float32)
  with jax.enable_x64(False):
    batch = {**BATCH, "x": BATCH["x"].astype(np.float32)}
    after, metrics = problems.jit(skip_nonfinite(step))(
      state, {**batch, "x": np.where(np.eye(SIZE, WIDTH) == 1, np.nan, batch["x"])}, target
    )
  assert metrics["skipped_rows"] == WIDTH and metrics["skipped_step"] == 0
  assert np.isfinite(after.params["classifier"]).all()
