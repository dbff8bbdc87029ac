import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core import losses
from tests import problems

BATCH = {"x": np.float32([[1, 2], [3, 4], [5, 6]]), "nested": {"label": np.int32([0, 1, 2])}}
KEY = jax.random.key(0)


def row_sums(params, batch, rng):
  return params * batch["x"].sum(axis=1)


def with_state(params, batch, rng, model_state):
  return model_state * row_sums(params, batch, rng), model_state + 1


def test_batch_size():
  assert losses.batch_size_of(BATCH) == 3


@pytest.mark.parametrize("bad", [np.zeros(2), np.float32(1), np.zeros((1, 3))], ids=["short", "scalar", "turned"])
@pytest.mark.parametrize("read", [losses.batch_size_of, losses.mask_of])
def test_error_for_a_ragged_batch(bad, read):
  for name in ("extra", "mask"):
    with pytest.raises(ValueError, match=r"\(3, 2\).*same leading axis, one row per example"):
      read(BATCH | {name: bad})


def test_mask():
  mask = np.array([True, False, True])
  assert losses.mask_of(BATCH | {"mask": mask}) is mask
  problems.assert_same_bits(losses.mask_of(BATCH), np.ones(3, bool))


def test_bind_without_a_model_state():
  values, model_state = losses.bind(row_sums, BATCH, KEY, None, "my_loss")(2)
  assert values.tolist() == [6, 14, 22] and model_state is None


def test_bind_with_a_model_state():
  values, model_state = losses.bind(with_state, BATCH, KEY, 10, "my_loss")(2)
  assert values.tolist() == [60, 140, 220] and model_state == 11


def test_bind_hands_on_batch_and_key():
  seen = losses.bind(lambda *args: row_sums(*args) * (args[1:] == (BATCH, KEY)), BATCH, KEY, None, "my_loss")
  assert seen(1)[0].tolist() == [3, 7, 11]


@pytest.mark.parametrize("model_state", [None, 10])
@pytest.mark.parametrize(
  "reshape, shape", [(jnp.mean, r"\(\)"), (lambda v: v[:, None], r"\(3, 1\)"), (lambda v: v[:2], r"\(2,\)")]
)
def test_error_for_losses_that_are_not_one_per_example(model_state, reshape, shape):
  def loss(params, batch, rng, *state):
    values = reshape(row_sums(params, batch, rng))
    return (values, state) if state else values

  bound = losses.bind(loss, BATCH, KEY, model_state, "my_loss")
  with pytest.raises(
    ValueError, match=rf"my_loss returned shape {shape} for a batch of 3: return one loss per example"
  ):
    bound(2)


def test_examples_bind_their_own():
  examples = losses.Examples(BATCH, np.ones(3, bool), KEY, 10, None)
  values, model_state = examples.bind(with_state, "my_loss")(2)
  assert values.tolist() == [60, 140, 220] and model_state == 11


def test_summed():
  assert losses.summed(row_sums) is row_sums
  twice = losses.summed(row_sums, lambda *args: row_sums(*args) ** 2)
  assert twice(1, BATCH, KEY).tolist() == [12, 56, 132]
  values, model_state = losses.summed(with_state, lambda *args: (with_state(*args)[0], "another"))(1, BATCH, KEY, 10)
  assert values.tolist() == [60, 140, 220] and model_state == 11


@pytest.mark.parametrize(
  "mask", [np.full(3, 0.5, np.float32), np.ones(3, np.int32), np.ones((3, 1), bool)], ids=["floats", "ints", "column"]
)
def test_a_mask_is_one_bool_for_each_row(mask):
  """Floats would weigh: 0.5 everywhere doubles a mean."""
  with pytest.raises(ValueError, match=r"batch\['mask'\] has dtype .* it is bool \(3,\)"):
    losses.mask_of({"x": np.ones((3, 2)), "mask": mask})
