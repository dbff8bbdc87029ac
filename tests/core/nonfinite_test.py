"""Steps that go on without rows that are not finite, and which rows these are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import (
  Alignment,
  Step,
  TargetDescent,
  center_by_class,
  init_train_state,
  make_joint_step,
  make_plain_step,
  make_train_step,
  scale_by_std,
  skip_nonfinite,
)
from soseleto_jax.core import nonfinite, sharding
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
  extra = {"scale": np.zeros(size, np.float32), "root": np.ones(size, np.float32), "mask": np.ones(size, bool)}
  return problems.batch(seed, size, **extra, **arrays)


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


def make_state(optimizer, params=None, **options):
  alpha = np.random.default_rng(3).uniform(0.2, 0.8, N)
  params = problems.tanh_params() if params is None else params
  return init_train_state(params, optimizer, N, alpha_init=alpha, **options)


OPTIONS = {
  "ahead": dict(
    alignment=Alignment(transforms=(center_by_class(problems.CLASSES), scale_by_std())),
    alpha_first=True,
    lookahead=0.1,
  ),
  "8 devices": dict(axis_name="data", alignment=Alignment(contraction="vmap_grad")),
}


@functools.cache
def compiled(name):
  """State, and the step that goes on and the one that does not."""
  optimizer = optax.adam(0.05, eps=1e-3)  # smooth, where rounding may turn a sign
  state, step = make_state(optimizer), make_train_step(loss, loss, optimizer, alpha_step_size=0.1, **OPTIONS[name])
  steps = [skip_nonfinite(step), step]
  if name == "8 devices":
    mesh = sharding.make_mesh()
    state, steps = sharding.shard_train_state(state, mesh), [sharding.shard_train_step(step, mesh) for step in steps]
  return state, *map(problems.jit, steps)


@pytest.fixture(params=OPTIONS)
def steps(request):
  return compiled(request.param)


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
  after, metrics = step(before, source, target)
  assert metrics["skipped_step"] == 1 and metrics["skipped_rows"] == 0
  problems.assert_same_bits(jax.device_get(after).replace(step=0), jax.device_get(before).replace(step=0))
  assert after.step == before.step + 1


def test_losses_beside_the_first():
  """A row whose alignment's loss, or the loss that the target's parameters descend, is not finite."""
  optimizer, sound = optax.sgd(0.1), problems.tanh_loss()
  step = make_train_step(
    sound,
    sound,
    optimizer,
    alpha_step_size=0.1,
    alignment=Alignment(loss=loss),
    target_descent=TargetDescent(True, loss),
  )
  step, before = problems.jit(skip_nonfinite(step)), make_state(optimizer)
  after, metrics = step(before, spoiled(SOURCE, scale=3e38), spoiled(TARGET, scale=3e38))
  expected, _ = step(before, masked(SOURCE), masked(TARGET))
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (2, 0)
  problems.assert_same_bits(after.params, expected.params)
  problems.assert_same_bits(without_alpha_of_bad(after), without_alpha_of_bad(expected))
  assert after.alpha[SOURCE["index"][BAD]] == 0


def test_plain_training():
  optimizer = optax.sgd(0.1, momentum=0.9)
  plain_step = make_plain_step(loss, optimizer, side="target")
  step, state = problems.jit(skip_nonfinite(plain_step)), make_state(optimizer)
  for kind in ("input", "loss"):
    after, metrics = step(state, spoiled(SOURCE, **KINDS[kind]))
    expected, _ = step(state, masked(SOURCE))
    problems.assert_same_bits(after, expected)
    assert (metrics["skipped_rows"], metrics["skipped_step"]) == (1, 0)
    assert metrics.keys() == {"loss", "grad_norm", "valid_rows", "skipped_rows", "skipped_step"}
  after, metrics = step(state, {**SOURCE, "root": np.zeros(B, np.float32)})
  problems.assert_same_bits(after.replace(step=state.step), state)
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (0, 1)
  assert skip_nonfinite(plain_step).sets == ("target",)


def test_joint_training():
  """All its parameters descend the target, whose rows at fault are left out as well."""
  optimizer = optax.sgd(0.1)
  step = problems.jit(skip_nonfinite(make_joint_step(loss, loss, optimizer)))
  after, metrics = step(make_state(optimizer), spoiled(SOURCE, x=np.nan), spoiled(TARGET, 1, scale=3e38))
  expected, _ = step(make_state(optimizer), masked(SOURCE), masked(TARGET, 1))
  problems.assert_same_bits(after.replace(alpha=0), expected.replace(alpha=0))
  problems.assert_same_bits(without_alpha_of_bad(after), without_alpha_of_bad(expected))
  assert after.alpha[SOURCE["index"][BAD]] == 0
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (2, 0)


def test_error_for_what_is_no_step():
  step = make_plain_step(problems.tanh_loss(), optax.sgd(1.0))
  for other in (jax.jit(step), lambda state, batch: (state, {})):
    with pytest.raises(ValueError, match="give a Step, as make_train_step returns it, before jax.jit"):
      skip_nonfinite(other)


def test_a_step_of_ones_own():
  """That names no losses and has no metrics: rows are told by their inputs, and what is not finite even so rests."""

  def gradients(state, batch):
    gradient = jax.grad(lambda params: jnp.sum(params * batch["x"][:, 0], where=batch["mask"]))(state.params)
    return gradient, state.replace(model_state=state.model_state + 1), {}

  step = skip_nonfinite(Step(gradients, optax.sgd(1.0), ("target",)))
  assert step.sets == ("target",)
  step, state = problems.jit(step), init_train_state(jnp.float32(1), optax.sgd(1.0), N, model_state=jnp.float32(0))
  after, metrics = step(state, {"x": np.float32([[1], [np.nan], [3]])})
  assert (after.params, after.model_state) == (-3, 1) and metrics == {"skipped_rows": 1, "skipped_step": 0}
  after, metrics = step(state.replace(params=jnp.float32(-0.0)), {"x": np.float32([[3e38], [3e38], [0]])})
  assert (after.params, after.model_state) == (0, 0) and np.signbit(after.params)
  assert metrics == {"skipped_rows": 0, "skipped_step": 1}


def test_rows_that_are_coupled():
  """One that is not finite makes all losses so; its inputs tell it. The statistics stay finite."""

  def coupled(params, batch, rng, model_state):
    hidden = batch["x"] @ params["w"] + params["b"]
    mean, variance = hidden.mean(axis=0), hidden.var(axis=0)
    logits = jnp.tanh((hidden - mean) * jax.lax.rsqrt(variance + 1e-5)) @ params["classifier"]
    new_state = {"mean": 0.9 * model_state["mean"] + 0.1 * mean}
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new_state

  optimizer = optax.sgd(0.1)
  state = make_state(optimizer, model_state={"mean": jnp.zeros(problems.HIDDEN)})
  step = problems.jit(skip_nonfinite(make_train_step(coupled, coupled, optimizer, alpha_step_size=0.1)))
  after, metrics = step(state, spoiled(SOURCE, x=np.nan), spoiled(TARGET, x=np.inf))
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (2, 0)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
  assert not np.array_equal(after.params["w"], state.params["w"])
  assert after.alpha[SOURCE["index"][BAD]] == 0 and (without_alpha_of_bad(after) > 0).all()
  broken, metrics = step(state, {**SOURCE, "x": np.full_like(SOURCE["x"], np.nan)}, TARGET)
  assert metrics["skipped_rows"] == B
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(broken))


@functools.cache
def find():
  step = make_train_step(loss, loss, optax.sgd(0.1), alpha_step_size=0.1)
  return problems.jit(functools.partial(nonfinite.faulty_rows, step))


@pytest.mark.parametrize("kind", KINDS)
def test_which_rows(kind):
  found = find()(make_state(optax.sgd(0.1)), spoiled(SOURCE, **KINDS[kind]), spoiled(TARGET, 1, x=np.nan))
  assert [np.flatnonzero(rows).tolist() for rows in found] == [[BAD], [1]]


def test_which_rows_where_the_gradient_of_the_target_is_not_finite():
  """Which makes every product not finite, and hides no row whose own gradient is not."""
  target = {**TARGET, "root": np.zeros(T, np.float32)}
  found = find()(make_state(optax.sgd(0.1)), spoiled(SOURCE, root=0.0), target)
  assert [np.flatnonzero(rows).tolist() for rows in found] == [[BAD], []]


@pytest.mark.parametrize("devices", [1, 8])
def test_faults_that_are_drawn(devices):
  """Losses draw here what they draw in the step, on each device: a row that is at fault by the draw is found."""

  def drawing(params, batch, rng):
    drawn = jax.random.uniform(rng, batch["label"].shape) < 0.3
    return loss(params, {**batch, "scale": jnp.where(drawn, 3e38, 0.0)}, rng)

  axis_name = "data" if devices > 1 else None
  step = make_train_step(drawing, loss, optax.sgd(0.1), alpha_step_size=0.1, axis_name=axis_name)
  state, source = make_state(optax.sgd(0.1)), make_batch(5, 16, index=problems.index(0, 16, N))
  careful = skip_nonfinite(step)
  if devices > 1:
    mesh = sharding.make_mesh(jax.devices("cpu")[:devices])
    state, careful = sharding.shard_train_state(state, mesh), sharding.shard_train_step(careful, mesh)
  after, metrics = problems.jit(careful)(state, source, TARGET)
  assert 0 < metrics["skipped_rows"] < 16 and metrics["skipped_step"] == 0
  assert np.isfinite(after.params["w"]).all()


def test_no_more_tangent_passes_than_the_step():
  """None of joint training's, and over the classifier alone its one product: counted by the forward pass's products."""

  def products(step):
    state = make_state(optax.sgd(0.1))
    jaxpr = jax.make_jaxpr(functools.partial(nonfinite.faulty_rows, step))(state, SOURCE, TARGET)
    return str(jaxpr).count("dot_general[")

  plain = problems.tanh_loss()
  joint = make_joint_step(plain, plain, optax.sgd(0.1))
  classifier = Alignment(params={"w": False, "b": False, "classifier": True})
  few, all_ = (
    make_train_step(plain, plain, optax.sgd(0.1), alpha_step_size=0.1, alignment=alignment)
    for alignment in (classifier, Alignment())
  )
  assert products(joint) == 4
  assert products(few) < products(all_)


def test_without_keeps_the_other_rows():
  faulty = np.arange(B) % 3 == 0
  batch = problems.jit(nonfinite.without)(spoiled(SOURCE, 3, x=np.nan), faulty)
  for name in ("x", "label", "index", "scale"):
    np.testing.assert_array_equal(batch[name][~faulty], SOURCE[name][~faulty])
  np.testing.assert_array_equal(batch["mask"], ~faulty)
  assert np.isfinite(batch["x"]).all()
