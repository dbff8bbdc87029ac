"""Steps that go on without rows that are not finite, and which rows these are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import init_train_state, make_train_step
from soseleto_jax.core import alignment_rules, nonfinite, sharding
from soseleto_jax.core.step import make_plain_step
from tests import problems

N, B, T = 29, 8, 6
BAD = 0  # the row at fault; of 8 devices, the first has no other

# What may be wrong with a row: its inputs, its loss, or its gradient alone.
KINDS = {
  "input": dict(x=np.nan),
  "infinite input": dict(x=np.inf),
  "loss": dict(scale=3e38),
  "gradient": dict(root=0.0),
}


def loss(params, batch, rng):
  """The oracle's network, with rows of which the loss overflows (scale) or the gradient alone is 0 / 0 (root)."""
  size = jnp.sum(params["b"] ** 2)
  extra = batch["scale"] * size + jnp.sqrt(batch["root"] * size)
  return problems.tanh_loss()(params, batch, rng) + 0.1 * extra


def make_batch(seed, size, **arrays):
  return problems.batch(
    seed, size, scale=np.zeros(size, np.float32), root=np.ones(size, np.float32), mask=np.ones(size, bool), **arrays
  )


def spoiled(batch, row=BAD, *, x=None, scale=None, root=None):
  """A copy of the batch with values in a row: in one of its inputs, or beside them."""
  batch = {name: array.copy() for name, array in batch.items()}
  if x is not None:
    batch["x"][row, 1] = x
  for name, value in (("scale", scale), ("root", root)):
    if value is not None:
      batch[name][row] = value
  return batch


def masked(batch, row=BAD):
  return {**batch, "mask": batch["mask"] & (np.arange(len(batch["mask"])) != row)}


SOURCE, TARGET = make_batch(0, B, index=problems.index(0, B, N)), make_batch(1, T)


def make_state(optimizer, **options):
  params = problems.tanh_params()
  alpha = np.random.default_rng(3).uniform(0.2, 0.8, N)
  return init_train_state(params, optimizer, N, alpha_init=alpha, **options)


def make_step(optimizer, skip=True, **options):
  return make_train_step(loss, loss, optimizer, alpha_step_size=0.1, skip_nonfinite=skip, **options)


@pytest.fixture(scope="module", params=["jvp", "vmap_grad", "lookahead", "alpha first", "transforms", "8 devices"])
def steps(request):
  """Optimizer, state, and the step with and without the option."""
  optimizer = optax.adam(0.05)
  options = {
    "jvp": {},
    "vmap_grad": dict(contraction="vmap_grad"),
    "lookahead": dict(lookahead=0.1),
    "alpha first": dict(alpha_first=True),
    "transforms": dict(
      alignment_transform=[alignment_rules.center_by_class(problems.CLASSES), alignment_rules.standardize()]
    ),
    "8 devices": dict(axis_name="data"),
  }[request.param]
  state, steps = make_state(optimizer), [make_step(optimizer, skip, **options) for skip in (True, False)]
  if request.param != "8 devices":
    return state, *map(problems.jit, steps)
  mesh = sharding.make_mesh()

  def copying(step):
    sharded = sharding.shard_train_step(step, mesh)
    return lambda state, *batches: sharded(jax.tree.map(lambda leaf: leaf.copy(), state), *batches)

  return sharding.shard_train_state(state, mesh), *map(copying, steps)


def without_alpha_of_bad(state):
  return np.delete(np.asarray(state.alpha)[:N], SOURCE["index"][BAD])


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_row(steps, kind):
  """The others get the update that they get where it is masked, bit for bit, and its own weight becomes 0."""
  before, step, plain_step = steps
  after, metrics = step(before, spoiled(SOURCE, **KINDS[kind]), TARGET)
  expected, expected_metrics = step(before, masked(SOURCE), TARGET)
  problems.assert_same_bits(after.replace(alpha=0), expected.replace(alpha=0))
  problems.assert_same_bits(without_alpha_of_bad(after), without_alpha_of_bad(expected))
  assert after.alpha[SOURCE["index"][BAD]] == 0 and expected.alpha[SOURCE["index"][BAD]] > 0
  assert (metrics.pop("skipped_rows"), expected_metrics.pop("skipped_rows")) == (1, 0)
  assert metrics["skipped_step"] == 0
  problems.assert_same_bits(metrics, expected_metrics)

  plain, plain_metrics = plain_step(before, masked(SOURCE), TARGET)
  problems.assert_close(after.replace(alpha=0), plain.replace(alpha=0))
  problems.assert_close(without_alpha_of_bad(after), without_alpha_of_bad(plain))
  problems.assert_close({name: metrics[name] for name in plain_metrics}, plain_metrics)
  _, broken = plain_step(before, spoiled(SOURCE, **KINDS[kind]), TARGET)
  assert not np.isfinite(list(broken.values())).all()


@pytest.mark.parametrize("kind", ["input", "loss"])
def test_a_target_row(steps, kind):
  before, step, plain_step = steps
  after, metrics = step(before, SOURCE, spoiled(TARGET, **KINDS[kind]))
  expected, _ = step(before, SOURCE, masked(TARGET))
  problems.assert_same_bits(after, expected)
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (1, 0)
  plain, _ = plain_step(before, SOURCE, masked(TARGET))
  problems.assert_close(after, plain)


def test_finite_batches(steps):
  """Nothing is skipped, and the step is the step."""
  before, step, plain_step = steps
  after, metrics = step(before, SOURCE, TARGET)
  expected, expected_metrics = plain_step(before, SOURCE, TARGET)
  problems.assert_close(after, expected)
  assert (metrics.pop("skipped_rows"), metrics.pop("skipped_step")) == (0, 0)
  problems.assert_close(metrics, expected_metrics)


def test_a_masked_row_that_is_not_finite(steps):
  """0 times inf would not be 0; nor is it counted, nor its weight touched."""
  before, step, _ = steps
  after, metrics = step(before, masked(spoiled(SOURCE, x=np.inf)), masked(spoiled(TARGET, x=np.nan)))
  expected, _ = step(before, masked(SOURCE), masked(TARGET))
  problems.assert_same_bits(after, expected)
  assert metrics["skipped_rows"] == 0


@pytest.mark.parametrize("cause", ["target gradient", "every source row", "parameters"])
def test_a_gradient_that_is_not_finite_even_so(steps, cause):
  """Parameters, optimizer state and weights stay; the step is counted."""
  before, step, _ = steps
  source, target = SOURCE, TARGET
  if cause == "parameters":
    before = before.replace(params=jax.tree.map(lambda leaf: 1e20 * leaf, before.params))
    source = {**SOURCE, "scale": np.ones(B, np.float32)}
  elif cause == "every source row":
    source = {**SOURCE, "root": np.zeros(B, np.float32)}
  else:
    target = {**TARGET, "root": np.zeros(T, np.float32)}
    source = {**SOURCE, "root": np.zeros(B, np.float32)}
  before = jax.tree.map(jnp.array, before)
  kept = jax.device_get(before)
  after, metrics = step(before, source, target)
  assert metrics["skipped_step"] == 1 and metrics["skipped_rows"] == 0
  problems.assert_same_bits(jax.device_get(after).replace(step=0), kept.replace(step=0))
  assert after.step == kept.step + 1


def test_without_the_option_nothing_is_looked_for():
  """The losses themselves ask what is finite, in logsumexp: once each, and once for the tangents."""
  optimizer = optax.sgd(0.1)

  def count(fn, *args):
    return str(jax.make_jaxpr(fn)(*args)).count("is_finite")

  state = make_state(optimizer)
  in_loss = count(loss, state.params, SOURCE, None)
  assert count(make_step(optimizer, False), state, SOURCE, TARGET) == 3 * in_loss
  assert count(make_step(optimizer, True), state, SOURCE, TARGET) > 3 * in_loss


@pytest.mark.parametrize("kind", ["input", "loss"])
def test_plain_training(kind):
  optimizer = optax.sgd(0.1, momentum=0.9)
  step = problems.jit(make_plain_step(loss, optimizer, skip_nonfinite=True))
  after, metrics = step(make_state(optimizer), spoiled(SOURCE, **KINDS[kind]))
  expected, _ = step(make_state(optimizer), masked(SOURCE))
  problems.assert_same_bits(after, expected)
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (1, 0)
  after, metrics = step(make_state(optimizer), {**SOURCE, "root": np.zeros(B, np.float32)})
  problems.assert_same_bits(after.replace(step=0), make_state(optimizer).replace(step=0))
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (0, 1)


class _BatchNormNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4)(x)
    return nn.Dense(problems.CLASSES)(nn.BatchNorm(use_running_average=False)(x))


def test_rows_that_are_coupled():
  """One that is not finite makes all losses so; its inputs tell it. The statistics stay finite."""
  model, optimizer = _BatchNormNet(), optax.sgd(0.1)
  variables = model.init(jax.random.key(0), SOURCE["x"])

  def coupled(params, batch, rng, model_state):
    logits, new_state = model.apply({"params": params, **model_state}, batch["x"], mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new_state

  state = init_train_state(variables["params"], optimizer, N, model_state={"batch_stats": variables["batch_stats"]})
  step = problems.jit(make_train_step(coupled, coupled, optimizer, alpha_step_size=0.1, skip_nonfinite=True))
  after, metrics = step(state, spoiled(SOURCE, x=np.nan), spoiled(TARGET, x=np.inf))
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (2, 0)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
  assert not np.array_equal(after.params["Dense_0"]["kernel"], state.params["Dense_0"]["kernel"])
  index = SOURCE["index"]
  assert after.alpha[index[BAD]] == 0 and (np.delete(after.alpha, index[BAD]) > 0).all()
  broken, metrics = step(state, {**SOURCE, "x": np.full_like(SOURCE["x"], np.nan)}, TARGET)
  assert metrics["skipped_rows"] == B
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(broken))


@pytest.mark.parametrize("kind", KINDS)
def test_which_rows(kind):
  found = nonfinite.faulty_rows(
    [loss, loss], make_state(optax.sgd(0.1)), spoiled(SOURCE, **KINDS[kind]), spoiled(TARGET, 1, x=np.nan)
  )
  assert [np.flatnonzero(rows).tolist() for rows in found] == [[BAD], [1]]


def test_without_keeps_the_other_rows():
  faulty = np.arange(B) % 3 == 0
  batch = nonfinite.without(spoiled(SOURCE, 3, x=np.nan), jnp.asarray(faulty))
  for name in ("x", "label", "index", "scale"):
    np.testing.assert_array_equal(batch[name][~faulty], SOURCE[name][~faulty])
  np.testing.assert_array_equal(batch["mask"], ~faulty)
  assert np.isfinite(batch["x"]).all()
