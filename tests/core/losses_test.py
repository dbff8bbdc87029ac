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


def examples(batch=BATCH, model_state=None, mask=(True, True, True)):
  return losses.Examples(batch, np.array(mask), KEY, model_state, None)


def test_bind_without_a_model_state():
  values, model_state = examples().bind(row_sums, "my_loss")(2)
  assert values.tolist() == [6, 14, 22] and model_state is None


def test_bind_with_a_model_state():
  values, model_state = examples(model_state=10).bind(with_state, "my_loss")(2)
  assert values.tolist() == [60, 140, 220] and model_state == 11


@pytest.mark.parametrize(
  "mask, seen", [((True, False, True), [True, False, True]), ((False,) * 3, [True] * 3), ((True,) * 3, [True] * 3)]
)
def test_bind_hands_on_batch_mask_and_key(mask, seen):
  """The mask that counts, whatever the batch has; where no row counts, a mean over all is better than over none."""

  def loss(params, batch, rng):
    assert rng is KEY and batch["mask"].tolist() == seen
    problems.assert_same_bits({**batch, "mask": 0}, {**BATCH, "mask": 0})
    return params * np.ones(3)

  assert examples({**BATCH, "mask": np.ones(3, bool)}, mask=mask).bind(loss, "my_loss")(1)[0].tolist() == [1] * 3


@pytest.mark.parametrize("model_state", [None, 10])
@pytest.mark.parametrize(
  "reshape, shape",
  [
    (jnp.mean, r"\(\)"),
    (lambda v: v[:, None], r"\(3, 1\)"),
    (lambda v: v[:2], r"\(2,\)"),
    (lambda v: None, "NoneType"),
  ],
)
def test_error_for_losses_that_are_not_one_per_example(model_state, reshape, shape):
  def loss(params, batch, rng, *state):
    values = reshape(row_sums(params, batch, rng))
    return (values, *state) if state else values

  with pytest.raises(
    ValueError, match=rf"my_loss returned shape {shape} for a batch of 3: return one loss per example"
  ):
    examples(model_state=model_state).bind(loss, "my_loss")(2)


def test_error_for_losses_with_something_beside_them():
  """Which JAX's users call auxiliary; here only a model state may stand there."""
  loss = lambda *args: (row_sums(*args), {"accuracy": 1.0})
  with pytest.raises(ValueError, match="my_loss returned a tuple of 2: .* returns one array .B.; .*model_state"):
    examples().bind(loss, "my_loss")(2)


@pytest.mark.parametrize(
  "result, message",
  [
    (lambda values, state: values, r"my_loss returned a ArrayImpl: in a train state with a model_state a loss returns"),
    (lambda values, state: (values, state, {}), r"my_loss returned a tuple: in a train state with a model_state"),
    (lambda values, state: (values, {"mean": 1}), "my_loss returned a model_state with the structure .*'mean'"),
    (lambda values, state: (values, None), "my_loss returned a model_state with the structure"),
  ],
  ids=["none", "three", "another", "None"],
)
def test_error_for_another_model_state(result, message):
  loss = lambda params, batch, rng, state: result(row_sums(params, batch, rng), state)
  with pytest.raises(ValueError, match=message):
    examples(model_state=jnp.float32(1)).bind(loss, "my_loss")(jnp.float32(2))


@pytest.mark.parametrize(
  "batch, message",
  [
    ((np.ones((3, 2)), np.ones(3)), "batch is a tuple: give a mapping of arrays by name"),
    ({"x": np.ones((3, 2)), "label": [0, 1, 2]}, r"batch\['label'\]\[0\] is a int: give NumPy or JAX arrays"),
    ({"x": np.ones((3, 2)), "nested": {"scale": 0.5}}, r"batch\['nested'\]\['scale'\] is a float: give NumPy"),
  ],
  ids=["tuple", "list", "number"],
)
@pytest.mark.parametrize("read", [losses.batch_size_of, losses.mask_of])
def test_error_for_what_is_no_mapping_of_arrays(read, batch, message):
  with pytest.raises(ValueError, match=message):
    read(batch)


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
