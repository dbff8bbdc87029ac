"""Checkpoints give back what they were given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import init_train_state, sharding
from soseleto_jax.checkpoint import Checkpoints
from tests import problems

N = 13
LOOP = {"sums": {"loss": 0.1 + 0.2, "grad_norm": 1e-300}, "count": 3, "seconds": 1 / 3}


def make_state(step=0, model_state=None):
  """With several dtypes, and a value of its own for each step."""
  params = {"w": jnp.arange(6.0).reshape(2, 3) / 7 + step, "b": jnp.full(3, step / 3, jnp.bfloat16)}
  optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.adam(optax.cosine_decay_schedule(0.1, 9)))
  alpha = np.random.default_rng(step).uniform(size=N).astype(np.float32)
  model_state = jax.tree.map(jnp.asarray, model_state)
  state = init_train_state(params, optimizer, N, alpha_init=alpha, model_state=model_state, seed=2**32 - 1)
  opt_state = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), state.opt_state)
  return state.replace(step=jnp.int32(step), opt_state=opt_state)


def open_checkpoints(workdir, max_to_keep=2, num_source=N):
  return Checkpoints(workdir, max_to_keep=max_to_keep, num_source=num_source)


def place(state, devices):
  return sharding.shard_train_state(state, sharding.make_mesh(jax.devices()[:devices]))


def steps_on_disk(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize("model_state", [None, {"batch_stats": {"mean": np.float32([1, 2])}, "calls": np.int32(7)}])
@pytest.mark.parametrize("loop", [LOOP, {"sums": {}, "count": 0, "seconds": 0.0}])
def test_restore_equals_save(tmp_path, model_state, loop):
  """Bit for bit, by another manager, with `like` giving only shapes and places."""
  state = make_state(5, model_state)
  with open_checkpoints(tmp_path / "new" / "run") as checkpoints:
    assert checkpoints.latest_step is None
    checkpoints.save(state, loop)
    assert checkpoints.latest_step == 5
  with open_checkpoints(tmp_path / "new" / "run") as checkpoints:
    assert checkpoints.latest_step == 5
    restored, restored_loop = checkpoints.restore(make_state(0, model_state))
  problems.assert_same_bits(restored, state)
  assert restored_loop == loop


@pytest.mark.parametrize("before, after", [(8, 3), (3, 8), (8, 1), (1, 8), (8, 8)])
def test_another_number_of_devices_goes_on(tmp_path, before, after):
  """It needs another padding of alpha: that of `like`, whatever was saved."""
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(place(make_state(1), before), LOOP)
    like = place(make_state(), after)
    restored, _ = checkpoints.restore(like.replace(alpha=like.alpha.at[N:].set(-1)))
  expected = place(make_state(1), after)
  expected = expected.replace(alpha=expected.alpha.at[N:].set(-1))
  problems.assert_same_bits(restored, expected)
  for leaf, same in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    assert leaf.sharding == same.sharding


def test_the_newest_stay(tmp_path):
  with open_checkpoints(tmp_path, max_to_keep=3) as checkpoints:
    for step in (1, 2, 5, 7, 11):
      checkpoints.save(make_state(step), {"number": step})
  assert steps_on_disk(tmp_path) == [5, 7, 11]
  with open_checkpoints(tmp_path, max_to_keep=1) as checkpoints:
    restored, loop = checkpoints.restore(make_state())
    problems.assert_same_bits(restored, make_state(11))
    assert loop == {"number": 11}
    checkpoints.save(make_state(12), LOOP)
  assert steps_on_disk(tmp_path) == [12]


def test_a_step_is_saved_once(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(3), {"number": 1})
    checkpoints.save(make_state(3), {"number": 2})
    assert checkpoints.restore(make_state())[1] == {"number": 1}


def test_saved_arrays_may_be_deleted(tmp_path):
  """The next step donates them while the save may still go on."""
  state = make_state(4)
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, LOOP)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    problems.assert_same_bits(checkpoints.restore(make_state())[0], make_state(4))


def test_waiting_puts_it_on_disk(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(6), LOOP)
    checkpoints.wait()
    assert steps_on_disk(tmp_path) == [6]


def test_a_save_that_was_cut_off_counts_for_nothing(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(2), LOOP)
  (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step == 2
    problems.assert_same_bits(checkpoints.restore(make_state())[0], make_state(2))


@pytest.mark.parametrize(
    "num_source, params, message",
    [
        (N + 1, None, r"step 2: state.alpha has shape \(13,\), but \(14,\) here; choose another"),
        (N, {"w": jnp.zeros((2, 4)), "b": jnp.zeros(3)}, r"state.params.w has shape \(2, 3\), but \(2, 4\)"),
        (N, {"w": jnp.zeros((2, 3))}, "params.b"),
    ],
)
def test_a_state_of_another_shape_is_refused(tmp_path, num_source, params, message):
  """On 8 devices 13 and 14 rows of alpha are padded to as many."""
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(place(make_state(2), 8), LOOP)
  like = place(make_state(), 8)
  with open_checkpoints(tmp_path, num_source=num_source) as checkpoints, pytest.raises(ValueError, match=message):
    checkpoints.restore(like.replace(params=params) if params else like)
