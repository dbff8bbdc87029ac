"""The guarantees of the step that are exact, and what it accepts and refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from soseleto_jax import (
  center_by_class,
  init_train_state,
  make_joint_step,
  make_plain_step,
  make_train_step,
  residual_normalize,
  standardize,
)
from tests import problems

N = 13
CONTRACTIONS = pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])


def _step(optimizer, **options):
  options = {"alpha_step_size": 0.3} | options
  return make_train_step(problems.tanh_loss(), problems.tanh_loss(), optimizer, **options)


def _state(optimizer, alpha_seed=1, **options):
  alpha = np.random.default_rng(alpha_seed).uniform(size=N).astype(np.float32)
  return init_train_state(problems.tanh_params(), optimizer, N, **{"alpha_init": alpha} | options)


def _source(seed=0, size=6, **arrays):
  return problems.batch(seed, size, **{"index": problems.index(seed, size, N), "mask": np.ones(size, bool)} | arrays)


def _target(seed=100, size=4):
  return problems.batch(seed, size, mask=np.ones(size, bool))


def _garbage(batch, rows, number_of_rows):
  """The batch with other finite values, labels and rows of alpha in the masked rows."""
  changed = {name: value.copy() for name, value in batch.items()}
  changed["x"][rows] = 1e30 * np.sign(changed["x"][rows] - 0.1)
  changed["label"][rows] = -7
  if "index" in batch:
    changed["index"][rows] = [number_of_rows, -1, batch["index"][0]][: len(rows)]
  return changed


# Masks, indices, repeated rows, bounds.


@pytest.mark.parametrize("contraction, alpha_first, jit", [("jvp", False, jax.jit), ("vmap_grad", True, problems.jit)])
def test_masked_rows_change_no_bit(contraction, alpha_first, jit):
  optimizer = optax.adam(0.1)
  step = jit(
    _step(
      optimizer,
      contraction=contraction,
      alpha_first=alpha_first,
      lookahead=0.3,
      target_params={"w": False, "b": False, "classifier": True},
      alignment_transform=[center_by_class(problems.CLASSES), residual_normalize(), standardize()],
    )
  )
  source, target = _source(), _target()
  rows = np.array([1, 4, 5])
  source["mask"][rows] = False
  target["mask"][[0, 3]] = False
  before = _state(optimizer)
  expected = step(before, source, target)
  result = step(before, _garbage(source, rows, N), _garbage(target, [0, 3], N))
  problems.assert_same_bits(expected, result)

  changed = np.flatnonzero(np.asarray(before.alpha) != np.asarray(result[0].alpha))
  assert 0 < len(changed) and set(changed) <= set(source["index"][source["mask"]])


@CONTRACTIONS
def test_masked_rows_are_as_absent(contraction):
  optimizer = optax.sgd(0.3)
  step = problems.jit(_step(optimizer, contraction=contraction))
  source, target = _source(), _target()
  source["mask"][2:] = False
  target["mask"][3:] = False
  short = [{name: value[batch["mask"]] for name, value in batch.items()} for batch in (source, target)]
  problems.assert_close(step(_state(optimizer), source, target), step(_state(optimizer), *short))


def test_a_batch_of_masked_rows_alone_is_no_nan():
  step = problems.jit(_step(optax.sgd(0.1), alignment_transform=[center_by_class(problems.CLASSES), standardize()]))
  source, target = _source(mask=np.zeros(6, bool)), _target()
  before = _state(optax.sgd(0.1))
  after, metrics = step(before, source, target)
  problems.assert_same_bits((before.params, before.alpha), (after.params, after.alpha))
  assert all(np.isfinite(value) for value in metrics.values())


@CONTRACTIONS
def test_impossible_indices_act_as_masked(contraction):
  optimizer = optax.sgd(0.3, momentum=0.9)
  step = problems.jit(_step(optimizer, contraction=contraction))
  source, target = _source(), _target()
  masked = source["mask"].copy()
  masked[2] = False
  expected = step(_state(optimizer), {**source, "mask": masked}, target)
  for impossible in (-1, -N, -N - 1, N, N + 5, 2**31 - 1, -(2**31)):
    outside = source["index"].copy()
    outside[2] = impossible
    problems.assert_same_bits(step(_state(optimizer), {**source, "index": outside}, target), expected)


@CONTRACTIONS
def test_rows_outside_of_the_batch_keep_their_bits(contraction):
  alpha = np.float32([0, 1, 1e-45, 1e-8, 1 - 2**-24, 1 / 3, 0.1, *np.linspace(0.2, 0.8, N - 7)])
  step = problems.jit(_step(optax.sgd(0.3), contraction=contraction, alpha_step_size=100.0))
  state = _state(optax.sgd(0.3), alpha_init=alpha)
  for seed in range(4):
    state, _ = step(state, _source(seed, 3, index=np.int32([7 + seed, 8, 12])), _target(seed))
  after = np.asarray(state.alpha)
  problems.assert_same_bits(after[:7], alpha[:7])
  assert np.all(after[[7, 8, 9, 10, 12]] != alpha[[7, 8, 9, 10, 12]])
  assert after[11] == alpha[11]


@CONTRACTIONS
@pytest.mark.parametrize("alpha_first", [False, True])
def test_repeated_rows_get_the_sum_and_one_clip(contraction, alpha_first):
  """With losses x * p and a target gradient of 1, q is x: row 1 moves by 0.5 - 0.3, row 0 by 0.25 + 0.5 - 1."""
  loss = lambda params, batch, rng: batch["x"] * params
  step = problems.jit(
    make_train_step(loss, loss, optax.sgd(1.0), alpha_step_size=1.0, contraction=contraction, alpha_first=alpha_first)
  )
  state = init_train_state(jnp.float32(0), optax.sgd(1.0), 3, alpha_init=np.float32([0.125, 0.9, 0.5]))
  source = {"x": np.float32([0.5, 0.25, -0.3, 0.5, -1.0]), "index": np.int32([1, 0, 1, 0, 0])}
  state, metrics = step(state, source, {"x": np.ones(2, np.float32)})
  np.testing.assert_array_equal(state.alpha, np.float32([0, 1, 0.5]))  # one by one row 1 would end at 0.7
  weights = np.array([1, 0, 1, 0, 0]) if alpha_first else np.array([0.9, 0.125, 0.9, 0.125, 0.125])
  np.testing.assert_allclose(state.params, -np.mean(weights * source["x"]), rtol=1e-6)
  np.testing.assert_allclose(metrics["alpha_mean"], 0.4, rtol=1e-6)
  np.testing.assert_allclose(metrics["alignment_mean"], -0.01, rtol=1e-5)


@pytest.mark.parametrize("alpha_step_size", [0.05, 3.0, 1e6])
def test_alpha_stays_in_its_bounds(alpha_step_size):
  optimizer = optax.sgd(0.3)
  step = problems.jit(_step(optimizer, alpha_step_size=alpha_step_size))
  state = _state(optimizer)
  for seed in range(8):
    state, _ = step(state, _source(seed), _target(seed))
    alpha = np.asarray(state.alpha)
    assert alpha.dtype == np.float32 and alpha.min() >= 0 and alpha.max() <= 1
  assert alpha_step_size < 1 or {0, 1} <= set(alpha.tolist())


# What the step reduces to, and what drives it.


@pytest.mark.parametrize(
  "contraction, optimizer, loss, masked, jit",
  [
    ("jvp", optax.sgd(0.1, 0.9), problems.tanh_loss(), False, jax.jit),
    ("jvp", optax.adamw(0.05), problems.tanh_loss(), True, jax.jit),
    ("vmap_grad", optax.adamw(0.05), problems.tanh_loss(), False, problems.jit),
    ("jvp", optax.sgd(0.1), problems.drawing_loss, False, problems.jit),
  ],
)
def test_weights_of_1_that_stay_are_plain_training(contraction, optimizer, loss, masked, jit):
  """Bit for bit, with 8 or 4 rows: XLA may move a factor 1/B, which no power of two shows."""
  step = jit(make_train_step(loss, loss, optimizer, alpha_step_size=0.0, contraction=contraction))
  plain_step = jit(make_plain_step(loss, optimizer))

  @jit
  def by_hand(params, opt_state, batch, step):
    key = jax.random.split(jax.random.fold_in(jax.random.key(3), step))[0]

    def mean(params):
      losses = loss(params, batch, key)
      return jnp.sum(losses, where=batch["mask"]) / jnp.sum(batch["mask"]) if masked else jnp.mean(losses)

    updates, opt_state = optimizer.update(jax.grad(mean)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  state = plain = _state(optimizer, alpha_init=1.0, seed=3)
  params, opt_state = state.params, state.opt_state
  for seed in range(5):
    source = _source(seed, 8, mask=np.arange(8) < (4 if masked else 8))
    if not masked:
      del source["mask"]
    params, opt_state = by_hand(params, opt_state, source, state.step)
    state, metrics = step(state, source, _target(seed))
    plain, plain_metrics = plain_step(plain, source)
    problems.assert_same_bits(state, plain)
    problems.assert_same_bits((state.params, state.opt_state), (params, opt_state))
    assert metrics["source_loss"] == plain_metrics["loss"]
    assert metrics["grad_norm"] == plain_metrics["grad_norm"]
  problems.assert_same_bits(state.alpha, np.ones(N, np.float32))


def test_alpha_step_size_as_a_schedule():
  """A schedule that switches at step 2 is one constant, then the other."""
  schedule = optax.piecewise_constant_schedule(0.25, {2: 0.5})
  optimizer = optax.sgd(0.3)
  step = problems.jit(_step(optimizer, alpha_step_size=schedule))
  first, second = (problems.jit(_step(optimizer, alpha_step_size=size)) for size in (0.25, 0.125))
  state = expected = _state(optimizer)
  for number in range(4):
    state, _ = step(state, _source(number), _target(number))
    expected, _ = (first if number < 2 else second)(expected, _source(number), _target(number))
    problems.assert_close(state, expected)
  assert int(state.step) == 4


@pytest.mark.parametrize(
  "optimizer",
  [
    optax.lion(0.01),
    optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(optax.cosine_decay_schedule(0.1, 10))),
    optax.multi_transform(
      {"slow": optax.sgd(0.01), "fast": optax.rmsprop(0.1), "frozen": optax.set_to_zero()},
      {"w": "slow", "b": "frozen", "classifier": "fast"},
    ),
    optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2),
    optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
  ],
  ids=["lion", "chain", "multi_transform", "multi_steps", "inject_hyperparams"],
)
def test_any_optimizer_gets_the_weighted_gradient(optimizer):
  step = problems.jit(_step(optimizer))

  @problems.jit
  def by_hand(params, opt_state, alpha, batch):
    weighted = lambda params: jnp.mean(alpha[batch["index"]] * problems.tanh_loss()(params, batch, None))
    updates, opt_state = optimizer.update(jax.grad(weighted)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  state = _state(optimizer)
  for seed in range(3):
    expected = by_hand(state.params, state.opt_state, state.alpha, _source(seed))
    state, _ = step(state, _source(seed), _target(seed))
    problems.assert_close((state.params, state.opt_state), expected, atol=1e-5)


def test_params_may_be_any_pytree():
  """Nested containers and None leaves (Equinox), with prefix masks."""
  flat = problems.tanh_params()
  params = {"body": (flat["w"], flat["b"]), "static": None, "head": [flat["classifier"]]}

  def loss(params, batch, rng):
    (w, b), (head,) = params["body"], params["head"]
    return problems.tanh_loss()({"w": w, "b": b, "classifier": head}, batch, rng)

  optimizer = optax.adam(0.1)
  options = {"alpha_step_size": 0.3, "lookahead": 0.2}
  nested = make_train_step(
    loss,
    loss,
    optimizer,
    target_params={"body": False, "static": False, "head": True},
    alignment_params={"body": (True, False), "static": True, "head": True},
    **options,
  )
  plain = _step(
    optimizer,
    target_params={"w": False, "b": False, "classifier": True},
    alignment_params={"w": True, "b": False, "classifier": True},
    **options,
  )
  expected, expected_metrics = problems.jit(plain)(_state(optimizer), _source(), _target())
  state = init_train_state(params, optimizer, N, alpha_init=_state(optimizer).alpha)
  state, metrics = problems.jit(nested)(state, _source(), _target())
  problems.assert_close((state.alpha, metrics), (expected.alpha, expected_metrics))
  problems.assert_close((*state.params["body"], *state.params["head"]), tuple(expected.params[k] for k in flat))


def test_joint_training_weighs_the_target():
  """Beside no source, it is plain training on the target at another rate."""
  source = _source(mask=np.zeros(6, bool))
  step = make_joint_step(problems.tanh_loss(), problems.tanh_loss(), optax.sgd(0.4), target_weight=0.25)
  plain = make_plain_step(problems.tanh_loss(), optax.sgd(0.1))
  state, metrics = problems.jit(step)(_state(optax.sgd(0.4)), source, _target())
  expected, expected_metrics = problems.jit(plain)(_state(optax.sgd(0.1)), _target())
  problems.assert_close(state.params, expected.params)
  np.testing.assert_allclose(metrics["target_loss"], expected_metrics["loss"], rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}])
def test_joint_training_is_the_step_whose_alpha_stays(options):
  optimizer = optax.sgd(0.3, momentum=0.9)
  joint = problems.jit(make_joint_step(problems.tanh_loss(), problems.tanh_loss(), optimizer, **options))
  step = problems.jit(_step(optimizer, alpha_step_size=0.0, target_params=True, **options))
  before = _state(optimizer)
  (state, metrics), (expected, expected_metrics) = (f(before, _source(), _target()) for f in (joint, step))
  problems.assert_close(state, expected)
  np.testing.assert_array_equal(state.alpha, before.alpha)
  assert metrics.pop("alignment_mean") == 0 != expected_metrics.pop("alignment_mean")
  problems.assert_close(metrics, expected_metrics)


@pytest.mark.parametrize("alignment_params", [None, {"w": True, "b": True, "classifier": False}])
def test_target_params_descend_a_loss_of_their_own(alignment_params):
  """Twice the target loss steers alpha twice as far, and the parameters not at all."""
  optimizer = optax.sgd(0.3, momentum=0.9)
  options = dict(target_params=True, alignment_params=alignment_params, lookahead=0.2)
  loss = problems.tanh_loss()
  double = lambda *args: 2 * loss(*args)
  step = make_train_step(loss, double, optimizer, alpha_step_size=0.1, target_params_loss=loss, **options)
  expected, metrics = problems.jit(_step(optimizer, alpha_step_size=0.2, **options))(
    _state(optimizer), _source(), _target()
  )
  state, own_metrics = problems.jit(step)(_state(optimizer), _source(), _target())
  problems.assert_close((state.params, state.alpha), (expected.params, expected.alpha))
  np.testing.assert_allclose(own_metrics["target_loss"], 2 * metrics["target_loss"], rtol=1e-6)


def test_transforms_chain_and_see_the_batch():
  seen = []

  def double(q, losses, batch, axis_name):
    seen.append((batch, axis_name))
    return jnp.where(batch["mask"], 2 * q, jnp.nan)  # what becomes of masked rows must not matter

  def add_loss(q, losses, batch, axis_name):
    return q + losses * batch["tag"]

  tag = np.float32([1, 2, 3, 4, 5, 6])
  source = _source(tag=tag, mask=np.arange(6) < 4)
  optimizer = optax.sgd(0.3)
  plain = problems.jit(_step(optimizer, alpha_step_size=0.01))
  before = _state(optimizer, alpha_init=0.5)
  q = (np.asarray(plain(before, source, _target())[0].alpha) - 0.5)[source["index"]] / 0.01
  losses = np.asarray(problems.tanh_loss()(before.params, source, None))
  for transforms, expected in (
    ([double, add_loss], 2 * q + losses * tag),
    ((add_loss, double), 2 * (q + losses * tag)),
  ):
    step = problems.jit(_step(optimizer, alpha_step_size=0.01, alignment_transform=transforms))
    state, metrics = step(before, source, _target())
    moved = (np.asarray(state.alpha) - 0.5)[source["index"]]
    np.testing.assert_allclose(moved, 0.01 * np.where(source["mask"], expected, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["alignment_mean"], np.mean(expected[:4]), rtol=1e-3)
  assert seen[0][0].keys() == source.keys() and seen[0][1] is None


def test_metrics_are_float32_scalars():
  _, metrics = problems.jit(_step(optax.sgd(0.1)))(_state(optax.sgd(0.1)), _source(), _target())
  names = {"source_loss", "target_loss", "alpha_mean", "alignment_mean", "grad_norm", "target_grad_norm"}
  assert metrics.keys() == names
  assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


# Lookahead: the gradient of the target loss after an inner step.


@CONTRACTIONS
def test_lookahead_is_the_gradient_by_alpha(x64, contraction):
  """q = -(B / λ) ∂/∂α L_t(θ - λ (1/B) Σ α_j ∂ℓ_j), by reverse mode through the step and by finite differences."""
  rate, size, tiny = 0.7, 6, 1e-4
  optimizer = optax.sgd(rate)
  loss = problems.tanh_loss()
  params = problems.tanh_params(dtype=float)
  source, target = (problems.batch(seed, size, dtype=float) for seed in (1, 2))
  source["index"] = problems.index(1, size, N)
  weights = np.random.default_rng(2).uniform(0.2, 0.8, size)

  def target_loss(weights):
    weighted = lambda params: weights @ loss(params, source, None) / size
    inner = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(weighted)(params))
    return jnp.mean(loss(inner, target, None))

  state = init_train_state(params, optimizer, N)
  state = state.replace(alpha=jnp.full(N, 0.5, float).at[source["index"]].set(weights))
  step = make_train_step(loss, loss, optimizer, alpha_step_size=tiny, lookahead=rate, contraction=contraction)
  after, metrics = problems.jit(step)(state, source, target)
  q = (np.asarray(after.alpha) - np.asarray(state.alpha))[source["index"]] / tiny

  gradient, target_loss = problems.jit(jax.grad(target_loss)), problems.jit(target_loss)
  np.testing.assert_allclose(q, -size / rate * gradient(weights), rtol=1e-8)
  h = 1e-5
  slopes = [(target_loss(weights + h * row) - target_loss(weights - h * row)) / (2 * h) for row in np.eye(size)]
  np.testing.assert_allclose(q, -size / rate * np.array(slopes), rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose(metrics["target_loss"], target_loss(weights), rtol=1e-6)
  published, _ = problems.jit(_step(optimizer, alpha_step_size=tiny))(state, source, target)
  assert not np.allclose(published.alpha, after.alpha, rtol=0, atol=1e-3 * tiny)


# Randomness, transformations of JAX, compilation.


def test_randomness_is_of_seed_and_step_alone():
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
  draw = lambda params, batch, rng: jax.random.normal(rng, batch["label"].shape) + 0 * params
  step = make_train_step(draw, draw, optax.sgd(0.1), alpha_step_size=0.1)
  state = init_train_state(jnp.float32(0), optax.sgd(0.1), N, alpha_init=1.0)
  _, metrics = problems.jit(step)(state, _source(size=4), _target(size=4))
  assert metrics["source_loss"] != metrics["target_loss"]


@pytest.mark.parametrize("contraction, loss", [("jvp", problems.drawing_loss), ("vmap_grad", problems.tanh_loss())])
def test_vmap_over_seeds_equals_separate_runs(contraction, loss):
  optimizer = optax.adam(0.05)
  step = make_train_step(loss, loss, optimizer, alpha_step_size=0.3, contraction=contraction)
  seeds = jnp.arange(3)
  params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(problems.tanh_params(int(seed)) for seed in seeds))
  batches = [(_source(seed), _target(seed)) for seed in range(3)]

  states = jax.vmap(lambda params, seed: init_train_state(params, optimizer, N, seed=seed))(params, seeds)
  ensemble = problems.jit(jax.vmap(step, in_axes=(0, None, None)))
  for source, target in batches:
    states, metrics = ensemble(states, source, target)
  assert states.alpha.shape == (3, N)

  single = problems.jit(step)
  for seed in range(3):
    state = init_train_state(problems.tanh_params(seed), optimizer, N, seed=seed)
    for source, target in batches:
      state, state_metrics = single(state, source, target)
    one = lambda tree, seed=seed: jax.tree.map(lambda leaf: leaf[seed], tree)
    problems.assert_close((one(states), one(metrics)), (state, state_metrics), rtol=1e-4, atol=1e-5)


@CONTRACTIONS
def test_a_run_compiles_once(contraction):
  """Also at the short last batch, which comes padded under its mask."""
  optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(optax.cosine_decay_schedule(0.1, 5)))
  chex.clear_trace_counter()
  soseleto_step = _step(optimizer, alpha_step_size=optax.constant_schedule(0.1))
  plain_step = make_plain_step(problems.tanh_loss(), optimizer)
  step = problems.jit(chex.assert_max_traces(lambda *args: soseleto_step(*args), n=1))
  plain = problems.jit(chex.assert_max_traces(lambda *args: plain_step(*args), n=1))
  state = init_train_state(problems.tanh_params(), optimizer, N)
  for epoch in range(2):
    for number, count in enumerate((6, 6, 1)):
      source = _source(3 * epoch + number, mask=np.arange(6) < count)
      state, metrics = step(state, source, _target(number))
      state, _ = plain(state, _target(number))
  assert int(state.step) == 12
  assert np.isfinite(metrics["source_loss"])


# Losses that carry state.


def _counting_loss(params, batch, rng, model_state):
  """Losses scaled by the state, which every call moves on."""
  losses = model_state["scale"] * problems.tanh_loss()(params, batch, rng)
  return losses, {"scale": model_state["scale"] + batch["x"].shape[0], "calls": model_state["calls"] + 1}


def test_model_state_is_what_the_source_loss_returned():
  optimizer = optax.sgd(0.1)
  model_state = {"scale": jnp.float32(2), "calls": jnp.int32(0)}
  step = problems.jit(make_train_step(_counting_loss, _counting_loss, optimizer, alpha_step_size=0.1, lookahead=0.5))
  before = _state(optimizer, alpha_init=1.0, model_state=model_state)
  state, metrics = step(before, _source(), _target())
  problems.assert_same_bits(state.model_state, {"scale": jnp.float32(8), "calls": jnp.int32(1)})

  fixed = make_train_step(
    lambda *args: 2 * problems.tanh_loss()(*args),
    lambda *args: 2 * problems.tanh_loss()(*args),
    optimizer,
    alpha_step_size=0.1,
    lookahead=0.5,
  )
  expected, expected_metrics = problems.jit(fixed)(before.replace(model_state=None), _source(), _target())
  problems.assert_close((state.params, state.alpha, metrics), (expected.params, expected.alpha, expected_metrics))

  plain, _ = problems.jit(make_plain_step(_counting_loss, optimizer))(state, _target())
  assert int(plain.model_state["calls"]) == 2 and float(plain.model_state["scale"]) == 12


class _BatchNormNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4, name="dense")(x)
    x = nn.tanh(nn.BatchNorm(use_running_average=False, momentum=0.9, name="norm")(x))
    return nn.Dense(problems.CLASSES, name="classifier")(x)


def test_batch_norm():
  """The statistics are the source batch's; alignment and gradient are those of the coupled losses."""
  model = _BatchNormNet()
  source, target = _source(), _target()
  variables = problems.jit(model.init)(jax.random.key(0), source["x"])
  params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}

  def loss(params, batch, rng, model_state):
    logits, new_state = model.apply({"params": params, **model_state}, batch["x"], mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new_state

  optimizer = optax.sgd(1.0)
  before = init_train_state(params, optimizer, N, alpha_init=_state(optimizer).alpha, model_state=statistics)
  step = problems.jit(make_train_step(loss, loss, optimizer, alpha_step_size=0.01))
  after, _ = step(before, source, target)

  dense = source["x"] @ params["dense"]["kernel"] + params["dense"]["bias"]
  running = {"mean": 0.1 * np.mean(dense, axis=0), "var": 0.9 + 0.1 * np.var(dense, axis=0)}
  problems.assert_close(after.model_state["batch_stats"]["norm"], running)

  @problems.jit
  def by_hand(params):
    rows = jax.jacobian(lambda params: loss(params, source, None, statistics)[0])(params)
    direction = jax.grad(lambda params: jnp.mean(loss(params, target, None, statistics)[0]))(params)
    q = sum(jax.tree.leaves(jax.tree.map(lambda r, d: jnp.tensordot(r, d, d.ndim), rows, direction)))
    weights = before.alpha[source["index"]]
    return q, jax.tree.map(lambda p, r: p - jnp.tensordot(weights, r, 1) / 6, params, rows)

  q, expected = by_hand(params)
  problems.assert_close(after.params, expected)
  moved = (np.asarray(after.alpha) - np.asarray(before.alpha))[source["index"]]
  np.testing.assert_allclose(moved, 0.01 * q, rtol=1e-3, atol=1e-6)


# Dtypes.


@CONTRACTIONS
def test_bfloat16_parameters(contraction):
  """Losses, weights and metrics stay float32, and parameters bfloat16."""
  optimizer = optax.sgd(0.1)
  params = problems.tanh_params(dtype=jnp.bfloat16)
  loss = lambda params, *args: problems.tanh_loss()(jax.tree.map(lambda p: p.astype(jnp.float32), params), *args)
  step = problems.jit(make_train_step(loss, loss, optimizer, alpha_step_size=0.3, contraction=contraction))
  before = init_train_state(params, optimizer, N)
  state, metrics = step(before, _source(), _target())
  assert jax.tree.structure(state) == jax.tree.structure(before)
  assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True))
  assert all(value.dtype == jnp.float32 for value in metrics.values())
  wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  wide_step = problems.jit(make_train_step(loss, loss, optimizer, alpha_step_size=0.3))
  expected, _ = wide_step(init_train_state(wide, optimizer, N), _source(), _target())
  np.testing.assert_allclose(state.alpha, expected.alpha, atol=0.01)


@CONTRACTIONS
def test_alignment_of_bfloat16_accumulates_in_float32(contraction):
  """q is 256 + 41 ones; in bfloat16, whose neighbour of 256 is 258, the ones would be lost one by one."""
  size = 42
  loss = lambda params, batch, rng: batch["x"] @ params.astype(jnp.float32)
  step = make_train_step(loss, loss, optax.sgd(0.0), alpha_step_size=2**-10, contraction=contraction)
  state = init_train_state(jnp.zeros(size, jnp.bfloat16), optax.sgd(0.0), 2, alpha_init=0.0)
  rows = np.ones((2, size), np.float32)
  rows[0, 0] = 256
  state, _ = problems.jit(step)(state, {"x": rows, "index": np.int32([0, 1])}, {"x": np.ones((3, size), np.float32)})
  np.testing.assert_array_equal(np.asarray(state.alpha) * 2**10, [297, 42])


# Errors.


def _call(state=None, source=None, target=None, source_loss=None, target_loss=None, **options):
  optimizer = optax.sgd(0.1)
  losses = [problems.tanh_loss() if loss is None else loss for loss in (source_loss, target_loss)]
  step = make_train_step(*losses, optimizer, alpha_step_size=0.1, **options)
  given = zip((state, source, target), (_state(optimizer), _source(), _target()), strict=True)
  jax.eval_shape(step, *(default if value is None else value for value, default in given))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"contraction": "vjp"}, "contraction='vjp'.*jvp, vmap_grad"),
    ({"contraction": "jvp", "microbatch_size": 4}, "microbatch_size=4 with contraction='jvp'"),
    ({"contraction": "vmap_grad", "microbatch_size": 0}, "microbatch_size=0"),
  ],
)
def test_errors_when_built(options, message):
  loss = problems.tanh_loss()
  with pytest.raises(ValueError, match=message):
    make_train_step(loss, loss, optax.sgd(0.1), alpha_step_size=0.1, **options)


@pytest.mark.parametrize("side", ["source_loss", "target_loss"])
@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
def test_error_for_a_mean_loss(side, contraction):
  mean = lambda *args: jnp.mean(problems.tanh_loss()(*args))
  with pytest.raises(ValueError, match=rf"{side} returned shape \(\).*return one loss per example"):
    _call(**{side: mean}, contraction=contraction)


@pytest.mark.parametrize("reshape", [lambda losses: losses[:, None], lambda losses: losses[:3]])
def test_error_for_losses_of_another_shape(reshape):
  with pytest.raises(ValueError, match="return one loss per example"):
    _call(source_loss=lambda *args: reshape(problems.tanh_loss()(*args)))


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


def test_error_for_q_formed_with_a_model_state():
  state = _state(optax.sgd(0.1), model_state={"scale": jnp.float32(1), "calls": jnp.int32(0)})
  with pytest.raises(ValueError, match="vmap_grad.*model_state.*jvp"):
    _call(state, source_loss=_counting_loss, target_loss=_counting_loss, contraction="vmap_grad")


def test_plain_step_refuses_a_mean_loss():
  step = make_plain_step(lambda *args: jnp.mean(problems.tanh_loss()(*args)), optax.sgd(0.1))
  with pytest.raises(ValueError, match="loss_fn returned.*return one loss per example"):
    jax.eval_shape(step, _state(optax.sgd(0.1)), _target())
