"""What is taken of the Jacobian of a batch's losses, against the Jacobian itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from soseleto_jax.core import losses, trees
from soseleto_jax.core.forward import forward, mean_and_gradient
from tests import oracle, problems

SIZE = 6
BATCH = problems.batch(0, SIZE, dtype=float)
EXACT = ("auto", "jvp", "vjp", "vmap_grad")


def counted_loss(params, batch, rng, model_state):
  return problems.tanh_loss()(params, batch, rng), model_state + 1


def bound(batch=BATCH):
  return losses.Examples(batch, np.ones(len(batch["x"]), bool), None, 4, None).bind(counted_loss, "loss")


def losses_of(params):
  return bound()(params)[0]


def by_jacobian(params, weights, direction):
  rows = jax.jacobian(losses_of)(params)
  pulled = jax.tree.map(lambda row: jnp.tensordot(weights, row, 1), rows)
  pushed = sum(jax.tree.leaves(jax.tree.map(lambda row, d: jnp.tensordot(row, d, d.ndim), rows, direction)))
  return pulled, pushed


def test_forward_pulls_and_pushes(x64):
  params, direction = (problems.tanh_params(seed, dtype=float) for seed in (0, 1))
  weights = np.float32([1, 0, -2, 3, 0.5, 4])  # in a dtype that is not the losses'

  @problems.jit
  def both(params):
    source = forward(bound(), params)
    assert source.params is params
    pushed = [source.push(direction, how) for how in EXACT]
    pushed.append(source.push(direction, "vmap_grad", microbatch_size=4))
    return source.losses, source.model_state, source.pull(jnp.asarray(weights)), pushed

  values, model_state, pulled, pushed = both(params)
  assert model_state == 5
  expected, _ = oracle.batch_losses(jax.device_get(params), "classifier", BATCH)
  np.testing.assert_allclose(values, expected, rtol=1e-12)
  expected = problems.jit(by_jacobian)(params, weights, direction)
  for products in pushed:
    problems.assert_close((pulled, products), expected, rtol=1e-10, atol=1e-12)


def test_a_direction_may_leave_leaves_out(x64):
  params, direction = (problems.tanh_params(seed, dtype=float) for seed in (0, 1))
  selected = trees.select({"w": True, "b": False, "classifier": False}, direction)
  zeros = direction | {name: jnp.zeros_like(direction[name]) for name in ("b", "classifier")}

  @problems.jit
  def products(params):
    source = forward(bound(), params)
    return [[source.push(d, how) for how in EXACT] for d in (selected, zeros)]

  problems.assert_close(*products(params), rtol=1e-10, atol=1e-12)


def test_a_direction_of_another_dtype():
  """That of float32 gradients, by parameters in bfloat16."""
  params = problems.tanh_params(dtype=jnp.bfloat16)
  for how in EXACT:
    products = jax.eval_shape(lambda p, how=how: forward(bound(), p).push(problems.tanh_params(), how), params)
    assert products.shape == (SIZE,)


MASK = np.array([True, False, True, True, True, False])


def test_mean_and_gradient_are_of_unmasked_rows(x64):
  params = problems.tanh_params(dtype=float)
  short = {name: leaf[MASK] for name, leaf in BATCH.items()}
  expected = jax.value_and_grad(lambda params: jnp.mean(problems.tanh_loss()(params, short, None)))
  masked = problems.jit(lambda params, mask: mean_and_gradient(bound(), params, mask, None))
  value, gradient, model_state = masked(params, MASK)
  problems.assert_close((value, gradient), problems.jit(expected)(params), rtol=1e-12, atol=1e-14)
  assert model_state == 5
  value, gradient, _ = masked(params, np.zeros(SIZE, bool))
  assert value == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_mean_and_gradient_under_an_axis(x64):
  """Of the whole batch, on which the first of two shares has one row and the other three; leaves None stay None."""
  params = problems.tanh_params(dtype=float)
  mask = np.array([False, True, False, True, True, True])

  def gradient(batch, mask, axis_name):
    def loss(leaves):
      return bound(batch)(trees.fill(leaves, params))

    return mean_and_gradient(loss, {**params, "b": None}, mask, axis_name)[:2]

  cut = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), (BATCH, mask))
  mapped = problems.jit(jax.vmap(functools.partial(gradient, axis_name="data"), axis_name="data"))(*cut)
  expected = problems.jit(functools.partial(gradient, axis_name=None))(BATCH, mask)
  assert expected[1]["b"] is None
  for device in range(2):
    problems.assert_close(jax.tree.map(lambda leaf, i=device: leaf[i], mapped), expected, rtol=1e-12, atol=1e-14)
