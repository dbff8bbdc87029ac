"""`Qᵀ v` by each contraction, and what `Alignment` makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import Alignment, gradient_alignment
from soseleto_jax.core.forward import Forward
from soseleto_jax.core.losses import Examples
from tests import oracle, problems

CONTRACTIONS = pytest.mark.parametrize("contraction", ["auto", "jvp", "vjp", "vmap_grad"])


def _align(loss, *args, **options):
  return problems.jit(lambda *args: gradient_alignment(loss, *args, **options))(*args)


@CONTRACTIONS
def test_is_the_inner_product_of_every_gradient(x64, contraction):
  params = problems.tanh_params(dtype=float)
  direction = problems.tanh_params(1, dtype=float)
  batch = problems.batch(0, 5, dtype=float)
  _, rows = oracle.batch_losses(jax.device_get(params), "classifier", batch)
  q = _align(problems.tanh_loss(), params, batch, direction, contraction=contraction)
  np.testing.assert_allclose(q, rows @ oracle.flatten(jax.device_get(direction)), rtol=1e-10)


def _convolution(x, kernel, stride=1):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def _cnn_loss(params, batch, rng):
  x = jax.nn.relu(_convolution(batch["x"], params["first"]))
  x = jnp.tanh(_convolution(x, params["second"], stride=2))
  x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
  logits = x.reshape(len(x), -1) @ params["classifier"]
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def _network(name):
  """Loss, parameters and the shape of an input."""
  if name == "mlp":
    return problems.tanh_loss(), problems.tanh_params(), (problems.FEATURES,)
  shapes = {"first": (3, 3, 2, 3), "second": (3, 3, 3, 4), "classifier": (4, problems.CLASSES)}
  rng = np.random.default_rng(0)
  return _cnn_loss, {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}, (6, 6, 2)


@pytest.mark.parametrize("name, microbatch_sizes", [("mlp", (3, 20)), ("cnn", (None,))])
def test_contractions_are_equal(name, microbatch_sizes):
  """With 7 rows, also in microbatches that do not divide them."""
  loss, params, shape = _network(name)
  direction = jax.tree.map(lambda p: np.random.default_rng(p.size).normal(size=p.shape).astype(np.float32), params)
  args = loss, params, problems.batch(3, 7, shape=shape), direction
  q = _align(*args)
  assert q.shape == (7,) and q.dtype == np.float32 and np.std(q) > 0.1
  for size in microbatch_sizes:
    formed = _align(*args, contraction="vmap_grad", microbatch_size=size)
    assert formed.shape == (7,) and formed.dtype == np.float32
    np.testing.assert_allclose(formed, q, rtol=1e-4, atol=1e-5 * np.max(np.abs(q)))


@CONTRACTIONS
def test_a_leaf_none_counts_as_zero(contraction):
  loss, params, batch = problems.tanh_loss(), problems.tanh_params(), problems.batch(0, 5)
  direction = problems.tanh_params(1)

  @problems.jit
  def partial_and_rest(direction):
    align = functools.partial(gradient_alignment, loss, params, batch, contraction=contraction)
    return align({**direction, "w": None, "b": None}), align({**direction, "classifier": None})

  whole = problems.jit(functools.partial(gradient_alignment, loss, params, batch))
  partial, rest = partial_and_rest(direction)
  zeros = {name: jnp.zeros_like(direction[name]) for name in ("w", "b")}
  np.testing.assert_allclose(partial, whole({**direction, **zeros}), rtol=1e-4)
  np.testing.assert_allclose(partial + rest, whole(direction), rtol=1e-4, atol=1e-5)


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


@CONTRACTIONS
def test_the_key_reaches_the_loss(contraction):
  def loss(params, batch, rng):
    return params * jax.random.normal(rng, batch["x"].shape[:1])

  args = loss, jnp.float32(1), problems.batch(0, 3), jnp.float32(1)
  align = problems.jit(lambda rng: gradient_alignment(*args, contraction=contraction, rng=rng))
  first, second = (align(jax.random.key(seed)) for seed in (0, 1))
  assert len({*first.tolist(), *second.tolist()}) == 6
  np.testing.assert_allclose(first, _align(*args, contraction=contraction), rtol=1e-5)  # key 0 where none is given


@pytest.mark.parametrize(
  "options, message",
  [
    ({"contraction": "reverse"}, "contraction='reverse': choose one of auto, jvp, vjp, vmap_grad"),
    ({"microbatch_size": 2}, "microbatch_size=2 with contraction='auto'"),
    ({"contraction": "vmap_grad", "microbatch_size": 0}, "microbatch_size=0.*at least 1"),
    ({"contraction": "vmap_grad", "microbatch_size": -3}, "microbatch_size=-3"),
    ({"contraction": "vmap_grad", "microbatch_size": 2.5}, "microbatch_size=2.5.*a whole number"),
    ({"contraction": "vmap_grad", "microbatch_size": True}, "microbatch_size=True.*a whole number"),
  ],
)
def test_errors_for_options(options, message):
  with pytest.raises(ValueError, match=message):
    gradient_alignment(problems.tanh_loss(), problems.tanh_params(), problems.batch(0, 4), None, **options)
  with pytest.raises(ValueError, match=message):
    Alignment(**options)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda v: None, "direction has arrays of shapes None: they have to be as"),
    (lambda v: {**v, "head": v["w"]}, "direction has arrays of shapes .*'head'"),
    (lambda v: {**v, "w": v["w"][:2]}, r"direction has arrays of shapes .*\(2, 5\).*: they have to be as .*\(4, 5\)"),
  ],
)
def test_errors_for_a_direction(change, message):
  args = problems.tanh_loss(), problems.tanh_params(), problems.batch(0, 4)
  with pytest.raises(ValueError, match=message):
    gradient_alignment(*args, change(args[1]))


def test_error_for_a_batch_that_is_no_mapping():
  with pytest.raises(ValueError, match="batch is a tuple: give a mapping of arrays by name"):
    gradient_alignment(problems.tanh_loss(), problems.tanh_params(), (1, 2), problems.tanh_params())


@CONTRACTIONS
def test_error_for_a_mean_loss(contraction):
  def mean(*args):
    return jnp.mean(problems.tanh_loss()(*args))

  params, batch = problems.tanh_params(), problems.batch(0, 4)
  with pytest.raises(ValueError, match=r"shape \(\) for a batch of 4: return one loss per example"):
    gradient_alignment(mean, params, batch, params, contraction=contraction)


# Alignment, of a forward pass that is made up.


Q, LOSSES = jnp.float32([1, -2, 3, 4]), jnp.float32([0.5, 1, 2, jnp.nan])
MASK = np.array([True, True, True, False])


def _of(alignment, g_target=None, q=Q):
  """q, and what was asked to make it of the direction."""
  asked = []

  class Source(Forward):
    def push(self, direction, contraction, microbatch_size):
      assert (contraction, microbatch_size) == ("auto", None)
      asked.append(direction)
      return q

  source = Source(None, LOSSES, None, pull=None, losses_of=None)
  examples = Examples({"tag": jnp.float32([1, 2, 3, 4])}, MASK, jax.random.key(0), None, None)
  return np.asarray(alignment.of(source, None, examples, g_target)[0]), asked[0]


def test_as_published_q_is_the_product_with_the_target_gradient():
  g_target = {"w": jnp.ones(2), "b": jnp.zeros(3)}
  q, direction = _of(Alignment(), g_target)
  problems.assert_same_bits(q, np.float32([1, -2, 3, 0]))
  assert direction is g_target


def test_the_direction_is_made_of_the_leaves_that_take_part():
  g_target = {"w": (jnp.ones(2), jnp.ones(1)), "b": jnp.zeros(3)}
  seen, another = [], {"w": (None, 7 * jnp.ones(1)), "b": jnp.ones(3)}
  alignment = Alignment(params={"w": (False, True), "b": True}, direction=lambda g: seen.append(g) or another)
  assert _of(alignment, g_target)[1] is another
  assert seen[0]["w"][0] is None and seen[0]["w"][1] is g_target["w"][1] and seen[0]["b"] is g_target["b"]


def test_transforms_chain_and_see_the_batch():
  """In turn; what becomes of masked rows does not matter, nor do their losses."""
  seen = []

  def double(q, losses, batch, axis_name):
    seen.append((batch, losses, axis_name))
    return jnp.where(batch["mask"], 2 * q, jnp.nan)

  def add_tagged_loss(q, losses, batch, axis_name):
    return q + losses * batch["tag"]

  q, _ = _of(Alignment(transforms=[double, add_tagged_loss]))
  np.testing.assert_array_equal(q, [2.5, -2, 12, 0])
  q, _ = _of(Alignment(transforms=(add_tagged_loss, double)))
  np.testing.assert_array_equal(q, [3, 0, 18, 0])
  batch, losses, axis_name = seen[0]
  assert batch.keys() == {"tag", "mask"} and axis_name is None
  np.testing.assert_array_equal(batch["mask"], MASK)
  np.testing.assert_array_equal(losses, [0.5, 1, 2, 0])


def test_masked_rows_are_0_whatever_they_hold():
  q, _ = _of(Alignment(), q=jnp.float32([1, -2, jnp.inf, jnp.nan]))
  np.testing.assert_array_equal(q, [1, -2, np.inf, 0])
