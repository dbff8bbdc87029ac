"""The guarantees of the step that are exact, and what it accepts and refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import (
  Alignment,
  TargetDescent,
  burn_in,
  center_by_class,
  init_train_state,
  make_joint_step,
  make_mesh,
  make_plain_step,
  make_train_step,
  residual_normalize,
  scale_by_std,
  shard_train_state,
  shard_train_step,
  sharpened,
  weights,
)
from soseleto_jax.core import axis
from tests import problems

N = 13
LOSS = problems.tanh_loss()
OPTIMIZER = optax.sgd(0.3, momentum=0.9)
Q_FORMED = Alignment(contraction="vmap_grad")
Q_FORMED_BY_4 = {"contraction": "vmap_grad", "microbatch_size": 4}
CONTRACTIONS = pytest.mark.parametrize("contraction", ["jvp", "vjp", "vmap_grad"])


def _step(optimizer=OPTIMIZER, **options):
  return make_train_step(LOSS, LOSS, optimizer, **{"alpha_step_size": 0.3} | options)


@functools.cache
def _published():
  """The step without options, compiled once for several tests."""
  return problems.jit(_step())


def _float():
  return np.float64 if jax.config.jax_enable_x64 else np.float32


def _state(optimizer=OPTIMIZER, params=None, **options):
  """A state; its weights too are in double precision where that is on."""
  params = problems.tanh_params(dtype=_float()) if params is None else params
  alpha = np.random.default_rng(1).uniform(size=N).astype(np.float32)
  state = init_train_state(params, optimizer, N, **{"alpha_init": alpha} | options)
  return state.replace(alpha=np.asarray(state.alpha, _float()))


def _source(seed=0, size=6, **arrays):
  arrays = {"index": problems.index(seed, size, N), "mask": np.ones(size, bool)} | arrays
  return problems.batch(seed, size, dtype=_float(), **arrays)


def _target(seed=100, size=4):
  return problems.batch(seed, size, dtype=_float(), mask=np.ones(size, bool))


def _garbage(batch, rows, number_of_rows):
  """The batch with other finite values, labels and rows of alpha in the masked rows."""
  changed = {name: value.copy() for name, value in batch.items()}
  changed["x"][rows] = 1e30 * np.sign(changed["x"][rows] - 0.1)
  changed["label"][rows] = -7
  if "index" in batch:
    changed["index"][rows] = np.resize([number_of_rows, -1, batch["index"][0]], len(rows))
  return changed


# Masks, indices, repeated rows, bounds. Bits are those of one program on other data.


@functools.cache
def _everything(contraction):
  """A step with all options, as users compile it, or with Q formed and compiled fast."""
  transforms = (center_by_class(problems.CLASSES), residual_normalize(), scale_by_std())
  step = _step(
    optax.adam(0.1),
    alignment=Alignment(contraction=contraction, transforms=transforms),
    target_descent=TargetDescent({"w": False, "b": False, "classifier": True}),
    source_weights=burn_in(1),
    alpha_first=contraction == "vmap_grad",
    lookahead=0.3,
  )
  return jax.jit(step) if contraction == "jvp" else problems.jit(step)


@CONTRACTIONS
def test_masked_rows_change_no_bit(contraction):
  step, source, target = _everything(contraction), _source(), _target()
  rows = np.array([1, 4, 5])
  source["mask"][rows] = False
  target["mask"][[0, 3]] = False
  before = _state(optax.adam(0.1))
  expected = step(before, source, target)
  result = step(before, _garbage(source, rows, N), _garbage(target, [0, 3], N))
  problems.assert_same_bits(expected, result)

  changed = np.flatnonzero(np.asarray(before.alpha) != np.asarray(result[0].alpha))
  assert 0 < len(changed) and set(changed) <= set(source["index"][source["mask"]])


def test_batches_of_masked_rows_alone_are_no_nan():
  before = _state(optax.adam(0.1))
  source, target = (batch | {"mask": np.zeros_like(batch["mask"])} for batch in (_source(), _target()))
  after, metrics = _everything("jvp")(before, source, target)
  problems.assert_same_bits((before.params, jnp.asarray(before.alpha)), (after.params, after.alpha))
  assert all(np.isfinite(value) for value in metrics.values())


def test_impossible_indices_act_as_masked():
  step, source, target = _published(), _source(), _target()
  masked = source["mask"].copy()
  masked[2] = False
  expected = step(_state(), {**source, "mask": masked}, target)
  for impossible in (-1, -N, -N - 1, N, N + 5, 2**31 - 1, -(2**31)):
    outside = source["index"].copy()
    outside[2] = impossible
    problems.assert_same_bits(step(_state(), {**source, "index": outside}, target), expected)


def test_rows_outside_of_the_batch_keep_their_bits():
  alpha = np.float32([0, 1, 1e-45, 1e-8, 1 - 2**-24, 1 / 3, 0.1, *np.linspace(0.2, 0.8, N - 7)])
  state = _state(alpha_init=alpha)
  for seed in range(4):
    state, _ = _published()(state, _source(seed, index=np.int32([7 + seed, 8, 12, 12, 8, 7])), _target(seed))
  after = np.asarray(state.alpha)
  problems.assert_same_bits(after[:7], alpha[:7])
  assert np.all(after[[7, 8, 9, 10, 12]] != alpha[[7, 8, 9, 10, 12]])
  assert after[11] == alpha[11]


@pytest.mark.parametrize("alpha_first", [False, True])
def test_repeated_rows_get_the_sum_and_one_clip(alpha_first):
  """With losses x * p and a target gradient of 1, q is x: row 1 moves by 0.5 - 0.3, row 0 by 0.25 + 0.5 - 1."""

  def loss(params, batch, rng):
    return batch["x"] * params

  step = problems.jit(make_train_step(loss, loss, optax.sgd(1.0), alpha_step_size=1.0, alpha_first=alpha_first))
  state = init_train_state(jnp.float32(0), optax.sgd(1.0), 3, alpha_init=np.float32([0.125, 0.9, 0.5]))
  source = {"x": np.float32([0.5, 0.25, -0.3, 0.5, -1.0]), "index": np.int32([1, 0, 1, 0, 0])}
  state, metrics = step(state, source, {"x": np.ones(2, np.float32)})
  np.testing.assert_array_equal(state.alpha, np.float32([0, 1, 0.5]))  # one by one row 1 would end at 0.7
  weights = np.array([1, 0, 1, 0, 0]) if alpha_first else np.array([0.9, 0.125, 0.9, 0.125, 0.125])
  np.testing.assert_allclose(state.params, -np.mean(weights * source["x"]), rtol=1e-6)
  np.testing.assert_allclose(metrics["alpha_mean"], 0.4, rtol=1e-6)
  np.testing.assert_allclose(metrics["alignment_mean"], -0.01, rtol=1e-5)


def test_alpha_stays_in_its_bounds():
  sizes = jnp.float32([0.05, 3.0, 1e6])
  step = problems.jit(_step(optax.sgd(0.3), alpha_step_size=lambda step: sizes[step % 3]))
  state = _state(optax.sgd(0.3))
  for seed in range(9):
    state, _ = step(state, _source(seed), _target(seed))
    alpha = np.asarray(state.alpha)
    assert alpha.dtype == np.float32 and alpha.min() >= 0 and alpha.max() <= 1
  assert {0, 1} <= set(alpha.tolist())


def test_a_row_whose_loss_or_alignment_is_not_finite_keeps_its_weight():
  """To the bit; the others move, and metrics and parameters show it."""

  def loss(params, batch, rng):
    return batch["x"] * params + batch["more"]

  step = problems.jit(make_train_step(loss, loss, optax.sgd(1.0), alpha_step_size=0.1))
  alpha = np.float32([0.1, 0.3, 0.6, 0.7, 0.9])
  state = init_train_state(jnp.float32(1), optax.sgd(1.0), 5, alpha_init=alpha)
  source = {"x": np.float32([np.nan, np.inf, 1, 1]), "more": np.float32([0, 0, np.inf, 0]), "index": np.arange(4)}
  state, metrics = step(state, source, {"x": np.ones(2, np.float32), "more": np.zeros(2, np.float32)})
  after = np.asarray(state.alpha)
  problems.assert_same_bits(np.delete(after, 3), np.delete(alpha, 3))
  np.testing.assert_allclose(after[3], 0.8, rtol=1e-6)
  assert np.isnan(metrics["alignment_mean"]) and np.isnan(state.params)


def test_what_is_not_finite_of_the_target_moves_no_weight_and_no_parameter():
  """The parameters then descend the source, as with no alignment; neither does a transform that has no number."""
  expected, _ = problems.jit(make_joint_step(LOSS, LOSS, OPTIMIZER, target_weight=0))(_state(), _source(), _target())
  nowhere = Alignment(transforms=(lambda q, losses, batch, axis_name: jnp.nan * q,))
  for spoil, options in ((np.nan, {}), (1, {"alignment": nowhere}), (1, {"alignment": nowhere, "lookahead": 0.1})):
    state, metrics = problems.jit(_step(**options))(_state(), _source(), {**_target(), "x": spoil * _target()["x"]})
    assert np.isnan(metrics["alignment_mean"])
    problems.assert_same_bits(state.alpha, jnp.asarray(_state().alpha))
    problems.assert_close(state.params, expected.params)


# What the step reduces to, and what drives it.


def test_weights_of_1_that_stay_are_plain_training(x64):
  """With a loss that draws. Another program, which adds in another order: close, and not equal in bits."""
  optimizer, loss = optax.adamw(0.05), problems.drawing_loss
  step = problems.jit(make_train_step(loss, loss, optimizer, alpha_step_size=0.0))
  plain_step = problems.jit(make_plain_step(loss, optimizer))
  state = plain = _state(optimizer, alpha_init=1.0, seed=3)
  for seed in range(5):
    source = _source(seed, 8, mask=np.arange(8) < 5)
    state, metrics = step(state, source, _target(seed))
    plain, plain_metrics = plain_step(plain, source)
    problems.assert_close(state, plain, rtol=1e-9, atol=1e-12)
    problems.assert_close({name: metrics[name] for name in plain_metrics}, plain_metrics)
  problems.assert_same_bits(state.alpha, np.ones(N))


def test_params_may_be_any_pytree(x64):
  """Nested containers and None leaves (Equinox), with prefix masks."""
  flat = problems.tanh_params(dtype=float)
  params = {"body": (flat["w"], flat["b"]), "static": None, "head": [flat["classifier"]]}

  def loss(params, batch, rng):
    (w, b), (head,) = params["body"], params["head"]
    return LOSS({"w": w, "b": b, "classifier": head}, batch, rng)

  optimizer = optax.adam(0.1)
  nested = make_train_step(
    loss,
    loss,
    optimizer,
    alpha_step_size=0.3,
    alignment=Alignment(params={"body": (True, False), "static": True, "head": True}),
    target_descent=TargetDescent({"body": False, "static": False, "head": True}),
    lookahead=0.2,
  )
  plain = _step(
    optimizer,
    alignment=Alignment(params={"w": True, "b": False, "classifier": True}),
    target_descent=TargetDescent({"w": False, "b": False, "classifier": True}),
    lookahead=0.2,
  )
  expected, expected_metrics = problems.jit(plain)(_state(optimizer), _source(), _target())
  state, metrics = problems.jit(nested)(_state(optimizer, params), _source(), _target())
  problems.assert_close(metrics, expected_metrics)
  by_name = tuple(expected.params[name] for name in flat)
  result = (state.alpha, *state.params["body"], *state.params["head"])
  problems.assert_close(result, (expected.alpha, *by_name), rtol=1e-9, atol=1e-12)


def test_what_a_step_says_of_itself():
  """Sets, axis, and losses whose every part is looked at for rows at fault."""

  def ones(params, batch, rng):
    return np.ones(2)

  def tens(params, batch, rng):
    return np.full(2, 10)

  step = make_train_step(ones, tens, OPTIMIZER, alpha_step_size=0.1, axis_name="data")
  assert step.sets == ("source", "target") and step.axis_name == "data" and step.losses == (ones, tens)
  for alignment, descent, of_source, of_target in (
    (Alignment(loss=tens), TargetDescent(True), 11, 1),
    (Alignment(), TargetDescent(True, tens), 1, 11),
  ):
    options = {"alpha_step_size": 0.1, "alignment": alignment, "target_descent": descent}
    values = [loss(None, None, None).tolist() for loss in make_train_step(ones, ones, OPTIMIZER, **options).losses]
    assert values == [[of_source] * 2, [of_target] * 2]


def test_metrics_are_float32_scalars():
  _, metrics = _published()(_state(), _source(), _target())
  names = {"source_loss", "target_loss", "alpha_mean", "alignment_mean", "grad_norm", "target_grad_norm"}
  names |= {"loss", "valid_rows", "alpha_step_size", "alpha_step_bound"}
  assert metrics.keys() == names
  assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


# Lookahead: the gradient of the target loss after an inner step.


def test_lookahead_is_the_gradient_by_alpha(x64):
  """q = -(B / λ) ∂/∂α L_t(θ - λ (1/B) Σ α_j ∂ℓ_j), by reverse mode through the step and by finite differences."""
  rate, size, tiny = 0.7, 6, 1e-4
  source, target = _source(1, size), _target(2, size)
  weights = np.random.default_rng(2).uniform(0.2, 0.8, size)
  state = _state()
  params = state.params
  state.alpha[source["index"]] = weights

  def lookahead(step):  # none in the step with number 1: as published
    return jnp.where(step == 0, rate, 0.0)

  step = problems.jit(_step(alpha_step_size=tiny, lookahead=lookahead))
  after, metrics = step(state, source, target)
  q = (np.asarray(after.alpha) - np.asarray(state.alpha))[source["index"]] / tiny

  @problems.jit
  @jax.value_and_grad
  def target_loss(weights):
    def weighted(params):
      return weights @ LOSS(params, source, None) / size

    inner = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(weighted)(params))
    return jnp.mean(LOSS(inner, target, None))

  value, gradient = target_loss(weights)
  np.testing.assert_allclose(q, -size / rate * gradient, rtol=1e-8)
  h = 1e-5
  slopes = [(target_loss(weights + h * row)[0] - target_loss(weights - h * row)[0]) / (2 * h) for row in np.eye(size)]
  np.testing.assert_allclose(q, -size / rate * np.array(slopes), rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose(metrics["target_loss"], value, rtol=1e-6)
  published, _ = step(state.replace(step=jnp.int32(1)), source, target)
  assert not np.allclose(published.alpha, after.alpha, rtol=0, atol=1e-3 * tiny)


# Randomness, transformations of JAX, compilation.


def test_randomness_is_of_seed_and_step_alone():
  """And the same program on the same data gives the same bits."""
  optimizer = optax.sgd(0.1)
  step = problems.jit(make_train_step(problems.drawing_loss, problems.drawing_loss, optimizer, alpha_step_size=0.1))
  losses = {}
  for seed in (0, 1):
    for number in (0, 1):
      state = _state(optimizer, seed=seed).replace(step=jnp.int32(number))
      losses[seed, number] = float(step(state, _source(), _target())[1]["source_loss"])
      problems.assert_same_bits(step(state, _source(), _target()), step(state, _source(), _target()))
  assert len(set(losses.values())) == 4


def test_source_and_target_draw_differently():
  def draw(params, batch, rng):
    return jax.random.uniform(rng, batch["label"].shape) + 0 * params

  step = make_train_step(draw, draw, optax.sgd(0.1), alpha_step_size=0.1)
  state = init_train_state(jnp.float32(0), optax.sgd(0.1), N, alpha_init=1.0)
  _, metrics = problems.jit(step)(state, _source(size=4), _target(size=4))
  assert metrics["source_loss"] != metrics["target_loss"]


def _ensemble(step, optimizer, seeds):
  params = [problems.tanh_params(seed, dtype=_float()) for seed in seeds]
  states = [init_train_state(p, optimizer, N, seed=seed) for p, seed in zip(params, seeds, strict=True)]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *states), jax.vmap(step, in_axes=(0, None, None))


def test_vmap_over_seeds_equals_separate_runs(x64):
  optimizer, loss, seeds = optax.sgd(0.1), problems.drawing_loss, range(3)
  step = make_train_step(loss, loss, optimizer, alpha_step_size=0.3)
  states, ensemble = _ensemble(step, optimizer, seeds)
  ensemble, single = problems.jit(ensemble), problems.jit(step)
  for number in range(2):
    before = jax.device_get(states)
    states, metrics = jax.device_get(ensemble(before, _source(number), _target(number)))
    for seed in seeds:
      one = functools.partial(jax.tree.map, lambda leaf, seed=seed: leaf[seed])
      expected = single(one(before), _source(number), _target(number))
      problems.assert_close((one(states), one(metrics)), expected, rtol=1e-6, atol=1e-9)
  assert states.alpha.shape == (3, N) and len(np.unique(states.alpha)) > 3


def test_q_formed_under_vmap():
  states, ensemble = _ensemble(
    _step(alignment=Alignment(contraction="vmap_grad", microbatch_size=4)), OPTIMIZER, range(3)
  )
  after, metrics = jax.eval_shape(ensemble, states, _source(), _target())
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, states)
  assert all(value.shape == (3,) for value in metrics.values())


def test_a_run_compiles_once():
  """Also at the short last batch, which comes padded under its mask; plain training's is in step_test."""
  step = _published()
  state, _ = step(_state(), _source(), _target())
  compiled = step._cache_size()
  for number, count in enumerate((6, 1, 6)):
    state, _ = step(state, _source(number, mask=np.arange(6) < count), _target(number))
    assert step._cache_size() <= compiled + (number == 0)  # the first state came from the host
  assert int(state.step) == 4


# Losses that carry state.


def _counting_loss(params, batch, rng, model_state):
  """Losses scaled by the state, which every call moves on."""
  losses = model_state["scale"] * LOSS(params, batch, rng)
  return losses, {"scale": model_state["scale"] + batch["x"].shape[0], "calls": model_state["calls"] + 1}


def test_model_state_is_what_the_source_loss_returned():
  """And all losses read the one before."""
  model_state = {"scale": jnp.float32(1), "calls": jnp.int32(0)}
  counting = problems.jit(make_train_step(_counting_loss, _counting_loss, OPTIMIZER, alpha_step_size=0.3))
  before = _state(model_state=model_state)
  state, metrics = counting(before, _source(), _target())
  problems.assert_same_bits(state.model_state, {"scale": jnp.float32(7), "calls": jnp.int32(1)})
  expected = _published()(before.replace(model_state=None), _source(), _target())
  problems.assert_close((state.replace(model_state=None), metrics), expected)


def _batch_norm_loss(params, batch, rng, model_state):
  dense = batch["x"] @ params["dense"]
  mean, variance = dense.mean(axis=0), dense.var(axis=0)
  logits = jnp.tanh((dense - mean) * jax.lax.rsqrt(variance + 1e-5)) @ params["classifier"]
  new_state = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, model_state, {"mean": mean, "var": variance})
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new_state


def test_batch_norm(x64):
  """The statistics are the source batch's; alignment and gradient are those of the coupled losses."""
  flat = problems.tanh_params(dtype=float)
  params, statistics = {"dense": flat["w"], "classifier": flat["classifier"]}, {"mean": np.zeros(5), "var": np.ones(5)}
  source, target = _source(), _target()
  before = _state(optax.sgd(1.0), params, model_state=statistics)
  step = problems.jit(make_train_step(_batch_norm_loss, _batch_norm_loss, optax.sgd(1.0), alpha_step_size=0.01))
  after, _ = step(before, source, target)

  dense = source["x"] @ np.asarray(params["dense"])
  running = {"mean": 0.1 * np.mean(dense, axis=0), "var": 0.9 + 0.1 * np.var(dense, axis=0)}
  problems.assert_close(after.model_state, running, rtol=1e-9, atol=1e-12)

  @problems.jit
  def by_hand(params):
    rows = jax.jacobian(lambda params: _batch_norm_loss(params, source, None, statistics)[0])(params)
    direction = jax.grad(lambda params: jnp.mean(_batch_norm_loss(params, target, None, statistics)[0]))(params)
    q = sum(jax.tree.leaves(jax.tree.map(lambda r, d: jnp.tensordot(r, d, d.ndim), rows, direction)))
    weights = before.alpha[source["index"]]
    return q, jax.tree.map(lambda p, r: p - jnp.tensordot(weights, r, 1) / 6, params, rows)

  q, expected = by_hand(params)
  problems.assert_close(after.params, expected, rtol=1e-9, atol=1e-12)
  moved = (np.asarray(after.alpha) - np.asarray(before.alpha))[source["index"]]
  np.testing.assert_allclose(moved, 0.01 * q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("contraction", ["jvp", "vjp"])
def test_batch_norm_over_the_axis_is_that_of_one_device(contraction):
  """Rows then couple over the devices, in gradient and alignment, too. As Flax's `BatchNorm(axis_name="data")`."""

  def loss(params, batch, rng, model_state, axis_name="data"):
    mean_of = lambda values: axis.total(values.mean(axis=0), axis_name) / (4 if axis_name else 1)
    dense = batch["x"] @ params["dense"]
    mean = mean_of(dense)
    logits = jnp.tanh((dense - mean) * jax.lax.rsqrt(mean_of((dense - mean) ** 2) + 1e-5)) @ params["classifier"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), 0.9 * model_state + 0.1 * mean

  flat = problems.tanh_params()
  params = {"dense": flat["w"], "classifier": flat["classifier"]}
  state = init_train_state(params, OPTIMIZER, N, model_state=np.zeros(5, np.float32))
  make = functools.partial(make_train_step, optimizer=OPTIMIZER, alpha_step_size=0.3)
  alignment, source = Alignment(contraction=contraction), _source(size=8)
  alone = functools.partial(loss, axis_name=None)
  expected, _ = problems.jit(make(alone, alone, alignment=alignment))(state, source, _target())
  mesh = make_mesh(jax.devices("cpu")[:4])
  step = problems.jit(shard_train_step(make(loss, loss, alignment=alignment, axis_name="data"), mesh))
  found, _ = step(shard_train_state(state, mesh), source, _target())
  problems.assert_close((found.params, found.model_state), (expected.params, expected.model_state))
  problems.assert_close(weights(found, N), np.asarray(expected.alpha))


def _masked_batch_norm_loss(params, batch, rng, model_state):
  """As Flax's BatchNorm with `mask`, whose statistics of no row at all are NaN."""
  dense, rows = batch["x"] @ params["dense"], batch["mask"][:, None]
  mean = dense.mean(axis=0, where=rows)
  variance = ((dense - mean) ** 2).mean(axis=0, where=rows)
  logits = jnp.tanh((dense - mean) * jax.lax.rsqrt(variance + 1e-5)) @ params["classifier"]
  new_state = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, model_state, {"mean": mean, "var": variance})
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new_state


@pytest.mark.parametrize("contraction", ["jvp", "vjp", "vmap_grad"])
@pytest.mark.parametrize("devices", [1, 8])
def test_masked_rows_change_nothing_of_batch_norm_that_is_given_the_mask(devices, contraction):
  """Nor on devices that have such rows alone; and a batch of them moves no statistics."""
  flat = problems.tanh_params()
  params, statistics = {"dense": flat["w"], "classifier": flat["classifier"]}, {"mean": np.zeros(5), "var": np.ones(5)}
  statistics = jax.tree.map(np.float32, statistics)
  loss, optimizer = _masked_batch_norm_loss, optax.sgd(1.0)
  step = make_train_step(
    loss,
    loss,
    optimizer,
    alpha_step_size=0.1,
    alignment=Alignment(contraction=contraction),
    axis_name="data" if devices > 1 else None,
  )
  source, target = _source(size=16, mask=np.arange(16) < 5), _target(size=8)
  source["index"] = np.arange(16, dtype=np.int32) % N
  before = init_train_state(params, optimizer, N, model_state=statistics)
  if devices > 1:
    mesh = make_mesh(jax.devices("cpu")[:devices])
    before, step = shard_train_state(before, mesh), shard_train_step(step, mesh)
  step = problems.jit(step)
  expected = step(before, source, target)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
  problems.assert_same_bits(step(before, _garbage(source, np.arange(5, 16), N), target), expected)
  for name, leaf in expected[0].model_state.items():
    assert not np.allclose(leaf, statistics[name], atol=1e-3)
  assert expected[1]["valid_rows"] == 5
  resting, metrics = step(before, {**source, "mask": np.zeros(16, bool)}, target)
  problems.assert_same_bits(jax.device_get(resting.model_state), statistics)
  assert metrics["valid_rows"] == 0


def test_q_formed_of_rows_that_are_coupled(x64):
  """By the rows of the Jacobian, in microbatches or not: what forward mode gives."""
  flat = problems.tanh_params(dtype=float)
  params, statistics = {"dense": flat["w"], "classifier": flat["classifier"]}, {"mean": np.zeros(5), "var": np.ones(5)}
  before = _state(optax.sgd(1.0), params, model_state=statistics)
  results = []
  for options in ({"contraction": "jvp"}, Q_FORMED_BY_4, {"contraction": "vmap_grad"}):
    alignment = Alignment(**options)
    step = make_train_step(
      _batch_norm_loss, _batch_norm_loss, optax.sgd(1.0), alpha_step_size=0.01, alignment=alignment
    )
    results.append(problems.jit(step)(before, _source(), _target()))
  for result in results[1:]:
    problems.assert_close(result, results[0], rtol=1e-9, atol=1e-12)


# Dtypes.


def _wide_loss(params, *args):
  return LOSS(jax.tree.map(lambda p: p.astype(jnp.float32), params), *args)


@CONTRACTIONS
def test_dtypes_of_bfloat16_parameters(contraction):
  """Losses, weights and metrics stay float32, and parameters bfloat16."""
  alignment = Alignment(contraction=contraction)
  step = make_train_step(_wide_loss, _wide_loss, OPTIMIZER, alpha_step_size=0.3, alignment=alignment)
  before = init_train_state(problems.tanh_params(dtype=jnp.bfloat16), OPTIMIZER, N)
  state, metrics = jax.eval_shape(step, before, _source(), _target())
  assert jax.tree.structure(state) == jax.tree.structure(before)
  assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True))
  assert all(value.dtype == jnp.float32 for value in metrics.values())


def test_bfloat16_parameters_give_about_the_same_weights():
  step = make_train_step(_wide_loss, _wide_loss, OPTIMIZER, alpha_step_size=0.3)
  narrow = init_train_state(problems.tanh_params(dtype=jnp.bfloat16), OPTIMIZER, N)
  state, _ = problems.jit(step)(narrow, _source(), _target())
  wide = init_train_state(jax.tree.map(lambda p: p.astype(jnp.float32), narrow.params), OPTIMIZER, N)
  expected, _ = _published()(wide, _source(), _target())
  np.testing.assert_allclose(state.alpha, expected.alpha, atol=0.01)
  assert np.max(np.abs(np.asarray(expected.alpha) - 0.5)) > 0.1


@CONTRACTIONS
def test_alignment_of_bfloat16_accumulates_in_float32(contraction):
  """q is 256 + 41 ones; in bfloat16, whose neighbour of 256 is 258, the ones would be lost one by one."""
  size = 42

  def loss(params, batch, rng):
    return batch["x"] @ params.astype(jnp.float32)

  alignment = Alignment(contraction=contraction)
  step = make_train_step(loss, loss, optax.sgd(0.0), alpha_step_size=2**-10, alignment=alignment)
  state = init_train_state(jnp.zeros(size, jnp.bfloat16), optax.sgd(0.0), 2, alpha_init=0.0)
  rows = np.ones((2, size), np.float32)
  rows[0, 0] = 256
  state, _ = problems.jit(step)(state, {"x": rows, "index": np.int32([0, 1])}, {"x": np.ones((3, size), np.float32)})
  np.testing.assert_array_equal(np.asarray(state.alpha) * 2**10, [297, 42])


# Errors.


def _call(state=None, source=None, target=None, source_loss=LOSS, target_loss=LOSS, **options):
  step = make_train_step(source_loss, target_loss, OPTIMIZER, alpha_step_size=0.1, **options)
  given = zip((state, source, target), (_state(), _source(), _target()), strict=True)
  jax.eval_shape(step, *(default if value is None else value for value, default in given))


def _mean(*args):
  return jnp.mean(LOSS(*args))


@pytest.mark.parametrize(
  "name, options",
  [
    ("source_loss", {"source_loss": _mean}),
    ("source_loss", {"source_loss": _mean, "alignment": Q_FORMED}),
    ("target_loss", {"target_loss": _mean}),
    ("alignment.loss", {"alignment": Alignment(loss=_mean)}),
    ("alignment.loss", {"alignment": Alignment(loss=_mean, contraction="vmap_grad")}),
    ("target_descent.loss", {"target_descent": TargetDescent(True, _mean)}),
  ],
)
def test_error_for_a_mean_loss(name, options):
  with pytest.raises(ValueError, match=rf"{name} returned shape \(\).*return one loss per example"):
    _call(**options)


@pytest.mark.parametrize("reshape", [lambda losses: losses[:, None], lambda losses: losses[:3]])
def test_error_for_losses_of_another_shape(reshape):
  with pytest.raises(ValueError, match="return one loss per example"):
    _call(source_loss=lambda *args: reshape(LOSS(*args)))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"alpha_step_size": -0.1}, "alpha_step_size=-0.1: give a number, 0 or more, or a schedule"),
    ({"alpha_step_size": None}, "alpha_step_size=None: give a number"),
    ({"alpha_step_size": float("nan")}, "alpha_step_size=nan: give a number"),
    ({"alpha_step_size": "0.1"}, "alpha_step_size='0.1': give a number"),
    ({"lookahead": -1}, "lookahead=-1: give a number"),
    ({"optimizer": 0.1}, "optimizer=0.1: give an optax transformation"),
    ({"alpha_step_size": np.inf}, "alpha_step_size=inf: give a number"),
    ({"alpha_step_size": jnp.float32(-1)}, "alpha_step_size=Array.-1.*: give a number"),
    ({"alpha_step_size": jnp.zeros(2)}, "alpha_step_size=Array.*: give a number"),
    ({"lookahead": lambda: 0.1}, r"lookahead=<lambda> does not take \(step\): a schedule is a function of the step"),
    ({"alpha_every": True}, "alpha_every=True: give a whole number"),
    ({"alpha_until": True}, "alpha_until=True: give a whole number"),
    ({"source_loss": None}, "source_loss=None: give a function"),
    ({"target_loss": 3}, "target_loss=3: give a function"),
    ({"alignment": None}, "alignment=None: give an Alignment"),
    ({"alignment": {"w": True}}, "alignment={'w': True}: give an Alignment"),
    ({"target_descent": {"w": True}}, "target_descent={'w': True}: give a TargetDescent"),
    ({"source_weights": 0.5}, r"source_weights=0.5: give a function of \(alpha, step\), such as burn_in"),
    ({"source_weights": sharpened}, r"source_weights=sharpened does not take .* sharpened\(...\)"),
  ],
)
def test_errors_when_built(options, message):
  arguments = {"source_loss": LOSS, "target_loss": LOSS, "optimizer": OPTIMIZER, "alpha_step_size": 0.1}
  with pytest.raises(ValueError, match=message):
    make_train_step(**(arguments | options))


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: burn_in(None), r"burn_in\(num_steps=None\): give a number of steps"),
    (lambda: burn_in(-1), r"burn_in\(num_steps=-1\)"),
    (lambda: burn_in(1, -0.5), r"burn_in\(weight=-0.5\): give a number"),
    (lambda: burn_in(1, then=0.5), r"burn_in\(then\)=0.5: give a function of \(alpha, step\)"),
    (lambda: sharpened(-1), r"sharpened\(gain=-1\): give a number"),
    (lambda: TargetDescent(True, weight="1"), "TargetDescent.weight='1': give a number"),
    (lambda: make_joint_step(LOSS, LOSS, OPTIMIZER, target_weight=None), "TargetDescent.weight=None: give a number"),
  ],
)
def test_errors_for_weights(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize(
  "options, message",
  [
    ({"source_weights": burn_in}, r"source_weights returned <function .*: return one weight for each row, \(6,\)"),
    ({"source_weights": lambda alpha, step: alpha[:2]}, r"source_weights returned .*, \(6,\)"),
    (
      {"alignment": Alignment(params={"head": True})},
      r"Alignment.params does not fit params, params has no \['head'\]",
    ),
    ({"target_descent": TargetDescent({"w": True})}, r"TargetDescent.params .* it says nothing of params\['b'\]"),
    (
      {"alignment": Alignment(direction=lambda g: None)},
      "Alignment.direction returned arrays of shapes None: they have",
    ),
    ({"alignment": Alignment(direction=lambda g: g["w"])}, r"Alignment.direction returned arrays of shapes \(4, 5\)"),
  ],
)
def test_errors_when_traced(options, message):
  with pytest.raises(ValueError, match=message):
    _call(**options)


def test_step_sizes_may_be_arrays():
  """Of NumPy or of JAX, which may be traced."""
  sizes = [np.float64(0.3), jnp.float32(0.3), 0.3]
  states = [problems.jit(_step(alpha_step_size=size))(_state(), _source(), _target())[0] for size in sizes[:1]]
  take = problems.jit(lambda size, *args: _step(alpha_step_size=size)(*args)[0])
  states += [take(size, _state(), _source(), _target()) for size in sizes[1:]]
  for state in states[1:]:
    problems.assert_close(state, states[0])


@pytest.mark.parametrize(
  "make, name", [(lambda marks: Alignment(params=marks), "Alignment.params"), (TargetDescent, "TargetDescent.params")]
)
@pytest.mark.parametrize(
  "marks, message",
  [
    (False, "=False marks no leaf of params"),
    ({"w": False, "b": False}, ".* marks no leaf of params"),
    (lambda path, leaf: True, "=<function .*>: give bools"),
    ({"w": 1.0, "b": True}, r"\['w'\]=1.0: give bools"),
    ("classifier", "='classifier': give bools"),
  ],
)
def test_errors_for_marks(make, name, marks, message):
  with pytest.raises(ValueError, match=name + message):
    make(marks)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"transforms": (scale_by_std,)}, r"transforms\[0\]=scale_by_std does not take .*scale_by_std\(...\)"),
    ({"transforms": (scale_by_std(), center_by_class)}, r"transforms\[1\]=center_by_class does not take"),
    ({"transforms": ("scale_by_std",)}, r"transforms\[0\]='scale_by_std': give a function"),
    ({"transforms": "scale_by_std"}, "transforms='scale_by_std': give a tuple of functions"),
    ({"transforms": scale_by_std()}, "transforms=<function .*: give a tuple of functions"),
    ({"direction": "orthogonal"}, "direction='orthogonal': give a function"),
    ({"direction": scale_by_std()}, r"direction=transform does not take \(gradient\)"),
  ],
)
def test_errors_for_an_alignment(options, message):
  with pytest.raises(ValueError, match=message):
    Alignment(**options)


def test_error_for_batches_that_are_no_mappings():
  source, target = _source(), _target()
  for batches in ((tuple(source.values()), target), (source, tuple(target.values())), (source["x"], target)):
    with pytest.raises(ValueError, match="batch is a .*: give a mapping of arrays by name"):
      jax.eval_shape(_step(), _state(), *batches)


def test_error_for_a_missing_index():
  source = _source()
  del source["index"]
  with pytest.raises(ValueError, match=r"\['label', 'mask', 'x'\].*'index'"):
    _call(source=source)


@pytest.mark.parametrize("side", ["source", "target"])
def test_error_for_a_ragged_batch(side):
  ragged = _source(mask=np.ones(5, bool))
  with pytest.raises(ValueError, match="same leading axis"):
    _call(**{side: ragged})
