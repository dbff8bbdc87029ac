import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from soseleto_jax import gradient_alignment, models
from tests import oracle, problems


class _Cnn(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(3, (3, 3))(x))
    x = nn.avg_pool(nn.tanh(nn.Conv(4, (3, 3), strides=2)(x)), (2, 2), strides=(2, 2))
    return nn.Dense(problems.CLASSES)(x.reshape(x.shape[0], -1))


NETWORKS = {
  "mlp": (models.get_model("mlp", problems.CLASSES, hidden=(5, 4)), (problems.FEATURES,)),
  "cnn": (_Cnn(), (6, 6, 2)),
  "resnet": (models.get_model("resnet", problems.CLASSES, norm="group", width=8, stage_sizes=(1, 1)), (6, 6, 2)),
}


def _network(name, size=7):
  model, shape = NETWORKS[name]
  batch = problems.batch(3, size, shape=shape)
  params = problems.jit(model.init)(jax.random.key(0), batch["x"])["params"]
  direction = jax.tree.map(lambda p: np.random.default_rng(p.size).normal(size=p.shape).astype(np.float32), params)

  def loss(params, batch, rng):
    logits = model.apply({"params": params}, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

  return loss, params, batch, direction


def _align(loss, *args, **options):
  return problems.jit(lambda *args: gradient_alignment(loss, *args, **options))(*args)


@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
def test_is_the_inner_product_of_every_gradient(x64, contraction):
  params = problems.tanh_params(dtype=float)
  direction = problems.tanh_params(1, dtype=float)
  batch = problems.batch(0, 5, dtype=float)
  to_numpy = lambda tree: jax.tree.map(np.asarray, tree)
  _, rows = oracle.batch_losses(to_numpy(params), "classifier", batch)
  q = _align(problems.tanh_loss(), params, batch, direction, contraction=contraction)
  np.testing.assert_allclose(q, rows @ oracle.flatten(to_numpy(direction)), rtol=1e-10)


@pytest.mark.parametrize(
  "name, microbatch_sizes", [("mlp", (None, 1, 3, 7, 20)), ("cnn", (None, 3)), ("resnet", (None,))]
)
def test_contractions_are_equal(name, microbatch_sizes):
  """With 7 rows, also in microbatches that do not divide them."""
  args = _network(name)
  q = _align(*args)
  assert q.shape == (7,) and q.dtype == np.float32 and np.std(q) > 0.1
  for size in microbatch_sizes:
    formed = _align(*args, contraction="vmap_grad", microbatch_size=size)
    assert formed.shape == (7,) and formed.dtype == np.float32
    np.testing.assert_allclose(formed, q, rtol=1e-4, atol=1e-5 * np.max(np.abs(q)))


@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
def test_a_leaf_none_counts_as_zero(contraction):
  loss, params, batch = problems.tanh_loss(), problems.tanh_params(), problems.batch(0, 5)
  direction = problems.tanh_params(1)
  partial = _align(loss, params, batch, {**direction, "w": None, "b": None}, contraction=contraction)
  zeros = {name: jnp.zeros_like(direction[name]) for name in ("w", "b")}
  np.testing.assert_allclose(partial, _align(loss, params, batch, {**direction, **zeros}), rtol=1e-4)
  rest = _align(loss, params, batch, {**direction, "classifier": None}, contraction=contraction)
  np.testing.assert_allclose(partial + rest, _align(loss, params, batch, direction), rtol=1e-4, atol=1e-5)


def test_a_leaf_none_costs_no_tangent_pass():
  """With the classifier alone, the one product beside the forward pass is its own."""
  loss, params, batch = problems.tanh_loss(), problems.tanh_params(), problems.batch(0, 5)

  def products(direction):
    jaxpr = jax.make_jaxpr(lambda *args: gradient_alignment(loss, *args))(params, batch, direction)
    return str(jaxpr).count("dot_general[")

  forward = str(jax.make_jaxpr(loss)(params, batch, jax.random.key(0))).count("dot_general[")
  assert forward == 2
  assert products(params) == forward + 3
  assert products({**params, "w": None, "b": None}) == forward + 1


@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
def test_accumulates_in_float32(contraction):
  """In bfloat16 256 + 1 is 256: a sum in bfloat16 would lose the ones, and could not hold the result, 297."""
  loss = lambda params, batch, rng: batch["x"] @ params.astype(jnp.float32)
  rows = np.ones((2, 42), np.float32)
  rows[0, 0] = 256
  ones = jnp.ones(42, jnp.bfloat16)
  lost = jax.lax.fori_loop(0, 42, lambda i, total: total + jnp.asarray(rows, jnp.bfloat16)[0, i] * ones[i], ones[0] * 0)
  assert lost == 256
  # Not under jit, where XLA may keep more precision than it is told to.
  q = gradient_alignment(loss, ones, {"x": rows}, ones, contraction=contraction)
  assert q.dtype == jnp.float32
  np.testing.assert_array_equal(q, [297, 42])


def test_the_key_reaches_the_loss():
  loss = lambda params, batch, rng: params * jax.random.normal(rng, batch["x"].shape[:1])
  args = loss, jnp.float32(1), problems.batch(0, 3), jnp.float32(1)
  keys = jax.random.key(0), jax.random.key(1)
  for contraction in ("jvp", "vmap_grad"):
    first, second = (gradient_alignment(*args, contraction=contraction, rng=key) for key in keys)
    assert len({*first.tolist(), *second.tolist()}) == 6
    np.testing.assert_array_equal(first, gradient_alignment(*args, contraction=contraction))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"contraction": "reverse"}, "contraction='reverse': choose one of jvp, vmap_grad"),
    ({"microbatch_size": 2}, "microbatch_size=2 with contraction='jvp'"),
    ({"contraction": "vmap_grad", "microbatch_size": 0}, "microbatch_size=0.*at least 1"),
    ({"contraction": "vmap_grad", "microbatch_size": -3}, "microbatch_size=-3"),
  ],
)
def test_errors_for_options(options, message):
  with pytest.raises(ValueError, match=message):
    gradient_alignment(problems.tanh_loss(), problems.tanh_params(), problems.batch(0, 4), None, **options)


@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
def test_error_for_a_mean_loss(contraction):
  params, batch = problems.tanh_params(), problems.batch(0, 4)
  mean = lambda *args: jnp.mean(problems.tanh_loss()(*args))
  with pytest.raises(ValueError, match=r"shape \(\) for a batch of 4: return one loss per example"):
    gradient_alignment(mean, params, batch, params, contraction=contraction)


@pytest.mark.parametrize(
  "bad", [{"extra": np.zeros(3)}, {"extra": np.float32(1)}, {"extra": np.zeros((1, 4))}], ids=["short", "scalar", "1"]
)
def test_error_for_a_ragged_batch(bad):
  params = problems.tanh_params()
  with pytest.raises(ValueError, match="same leading axis, one row per example"):
    gradient_alignment(problems.tanh_loss(), params, problems.batch(0, 4, **bad), params)
