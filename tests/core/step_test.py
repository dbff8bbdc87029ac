"""The two parts of a step, and the one of ordinary training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import Step, TargetDescent, init_train_state, make_plain_step, make_train_step, skip_nonfinite
from tests import problems

N = 13

OPTIMIZERS = {
  "lion": optax.lion(0.01),
  "chain": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(optax.cosine_decay_schedule(0.1, 10))),
  "multi_transform": optax.multi_transform(
    {"slow": optax.sgd(0.01), "fast": optax.rmsprop(0.1), "frozen": optax.set_to_zero()},
    {"w": "slow", "b": "frozen", "classifier": "fast"},
  ),
  "multi_steps": optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2),
  "inject_hyperparams": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
}


def test_any_optimizer_descends(x64):
  """Three steps of each, of gradients that are made up."""
  params = problems.tanh_params(dtype=float)
  gradients = [problems.tanh_params(seed, dtype=float) for seed in (1, 2, 3)]

  @problems.jit
  def run(params):
    results, expected = {}, {}
    for name, optimizer in OPTIMIZERS.items():
      state, own, opt_state = init_train_state(params, optimizer, N), params, optimizer.init(params)
      step = Step(None, optimizer)
      for gradient in gradients:
        state = step.descend(state, gradient)
        updates, opt_state = optimizer.update(gradient, opt_state, own)
        own = optax.apply_updates(own, updates)
      results[name], expected[name] = state, state.replace(params=own, opt_state=opt_state)
    return results, expected

  results, expected = run(params)
  problems.assert_close(results, expected, rtol=1e-10, atol=1e-12)
  for state in results.values():
    assert state.step == 3 and state.alpha.tolist() == [0.5] * N
    assert not np.array_equal(state.params["w"], params["w"])


@pytest.mark.parametrize(
  "optimizer",
  [
    optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1)),
    optax.polyak_sgd(0.5),
    optax.lbfgs(0.1, linesearch=None),
  ],
  ids=["reduce_on_plateau", "polyak_sgd", "lbfgs"],
)
@pytest.mark.parametrize("make", ["plain", "soseleto", "skipping"])
def test_optimizers_that_want_to_know_the_loss(x64, optimizer, make):
  """Get what the parameters descend, source and target together."""
  loss = problems.tanh_loss()
  batch, target = problems.batch(0, 6, dtype=float, index=np.arange(6)), problems.batch(1, 4, dtype=float)
  if make == "plain":
    step, batches = make_plain_step(loss, optimizer), (batch,)
    objective = lambda params, alpha: jnp.mean(loss(params, batch, None))
  else:
    descent = TargetDescent(True, weight=0.5)
    step = make_train_step(loss, loss, optimizer, alpha_step_size=0.1, target_descent=descent)
    step, batches = skip_nonfinite(step) if make == "skipping" else step, (batch, target)
    objective = lambda params, alpha: (
      jnp.mean(alpha[:6] * loss(params, batch, None)) + 0.5 * jnp.mean(loss(params, target, None))
    )
  state = init_train_state(problems.tanh_params(dtype=float), optimizer, N)
  with_value = optax.with_extra_args_support(optimizer)

  @problems.jit
  def expected(state):
    value, gradient = jax.value_and_grad(objective)(state.params, state.alpha)
    updates, _ = with_value.update(gradient, state.opt_state, state.params, value=value.astype(np.float32))
    return optax.apply_updates(state.params, updates)

  take = problems.jit(step)
  for _ in range(3):
    params = expected(state)
    state, _ = take(state, *batches)
    problems.assert_close(state.params, params, rtol=1e-4)  # the weights are float32


def test_an_optimizer_that_takes_other_arguments_alone():
  """As optax.contrib.sam, which wants a function for the gradient and no loss."""
  sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)
  loss, state = problems.tanh_loss(), init_train_state(problems.tanh_params(), sam, N)
  step = make_train_step(loss, loss, sam, alpha_step_size=0.1)
  batches = problems.batch(0, 6, index=np.arange(6)), problems.batch(1, 4)
  for one in (step, skip_nonfinite(step)):
    assert jax.eval_shape(one, state, *batches)[0].params.keys() == state.params.keys()

  def update(gradient, state, params=None, *, value=0.0):
    return jax.tree.map(lambda leaf: value * leaf, gradient), state

  wants = optax.GradientTransformationExtraArgs(lambda params: (), update)
  ones = {"w": jnp.ones(2)}
  after = Step(None, wants).descend(init_train_state(ones, wants, N), ones, {"loss": 3.0})
  assert after.params["w"].tolist() == [4, 4]


def test_error_for_a_search_along_a_line():
  step = make_plain_step(problems.tanh_loss(), optax.lbfgs())
  state = init_train_state(problems.tanh_params(), optax.lbfgs(), N)
  with pytest.raises(ValueError, match="searches along a line .*optax.lbfgs\\(0.1, linesearch=None\\)"):
    jax.eval_shape(step, state, problems.batch(0, 4))


def test_error_for_an_optimizer_that_is_a_number():
  with pytest.raises(ValueError, match="optimizer=0.1: give an optax transformation"):
    make_plain_step(problems.tanh_loss(), 0.1)


def test_a_step_is_its_gradients_then_its_descent():
  """Either may be replaced; what `gradients` changed of the state stays."""

  def gradients(state, batch):
    return {"w": batch}, state.replace(alpha=state.alpha + 0.25, model_state="moved"), {"name": 7}

  step = Step(gradients, optax.sgd(0.5), ("target",))
  before = init_train_state({"w": jnp.float32([1, 2])}, optax.sgd(0.5), 2)
  after, metrics = step(before, jnp.float32([2, -2]))
  assert after.params["w"].tolist() == [0, 3] and after.step == 1
  assert after.alpha.tolist() == [0.75] * 2 and after.model_state == "moved" and metrics == {"name": 7}
  faster = dataclasses.replace(step, optimizer=optax.sgd(1.0))
  assert faster(before, jnp.float32([2, -2]))[0].params["w"].tolist() == [-1, 4]
  assert faster.sets == ("target",) and Step(gradients, optax.sgd(1.0)).sets == ("source", "target")
  assert jax.jit(step).__name__ == "train_step"


def _plain(**options):
  return make_plain_step(problems.tanh_loss(), optax.sgd(0.1), **options)


def test_what_a_plain_step_says_of_itself():
  loss = problems.tanh_loss()
  step = make_plain_step(loss, optax.sgd(0.1), axis_name="data")
  assert step.sets == ("source",) and step.losses == (loss,) and step.axis_name == "data"
  assert make_plain_step(loss, optax.sgd(0.1), side="target").sets == ("target",)


def test_plain_training(x64):
  """Is that by hand, over steps, with a loss that draws."""
  loss, optimizer = problems.drawing_loss, optax.adamw(0.05)
  step = problems.jit(make_plain_step(loss, optimizer))

  @problems.jit
  def by_hand(params, opt_state, batch, step):
    key = jax.random.split(jax.random.fold_in(jax.random.key(3), step))[0]

    def mean(params):
      losses = loss(params, batch, key)
      return jnp.sum(losses, where=batch["mask"]) / jnp.sum(batch["mask"])

    value, gradient = jax.value_and_grad(mean)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient), "valid_rows": jnp.sum(batch["mask"])}
    return optax.apply_updates(params, updates), opt_state, metrics

  alpha = np.random.default_rng(1).uniform(size=N).astype(np.float32)
  state = init_train_state(problems.tanh_params(dtype=float), optimizer, N, alpha_init=alpha, seed=3)
  params, opt_state = state.params, state.opt_state
  for number in range(4):
    mask = np.arange(7) < (5 if number else 7)
    batch = problems.batch(number, 7, dtype=float, index=problems.index(number, 7, N), mask=mask)
    params, opt_state, expected = by_hand(params, opt_state, batch, state.step)
    state, metrics = step(state, batch)
    problems.assert_close((state.params, state.opt_state), (params, opt_state), rtol=1e-9, atol=1e-12)
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    problems.assert_close(metrics, expected)
  problems.assert_same_bits(state.alpha, alpha)
  assert state.step == 4 and step._cache_size() == 1


def test_masked_rows_change_no_bit_of_plain_training():
  step = problems.jit(_plain())
  batch = problems.batch(0, 6, mask=np.arange(6) % 3 != 1)
  garbage = jax.tree.map(np.copy, batch)
  garbage["x"][~batch["mask"]], garbage["label"][~batch["mask"]] = 1e30, -7
  state = init_train_state(problems.tanh_params(), optax.sgd(0.1), N)
  problems.assert_same_bits(step(state, garbage), step(state, batch))
  after, metrics = step(state, batch | {"mask": np.zeros(6, bool)})
  problems.assert_same_bits(after.params, state.params)
  assert metrics == {"loss": 0, "grad_norm": 0, "valid_rows": 0}


def test_plain_training_moves_the_model_state():
  def loss(params, batch, rng, model_state):
    return model_state["scale"] * params * batch["x"], {"scale": model_state["scale"] + 1}

  state = init_train_state(jnp.float32(1), optax.sgd(1.0), N, model_state={"scale": jnp.int32(2)})
  step = problems.jit(make_plain_step(loss, optax.sgd(1.0)))
  state, metrics = step(state, {"x": np.float32([1, 3])})
  assert state.model_state == {"scale": 3} and state.model_state["scale"].dtype == jnp.int32
  assert state.params == -3 and metrics == {"loss": 4, "grad_norm": 4, "valid_rows": 2}


def test_plain_training_refuses_a_mean_loss():
  step = make_plain_step(lambda *args: jnp.mean(problems.tanh_loss()(*args)), optax.sgd(0.1))
  with pytest.raises(ValueError, match="loss_fn returned.*return one loss per example"):
    jax.eval_shape(step, init_train_state(problems.tanh_params(), optax.sgd(0.1), N), problems.batch(0, 4))
