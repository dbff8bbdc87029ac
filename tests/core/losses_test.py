import types

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
  "reshape, what",
  [
    (jnp.mean, r"shape \(\)"),
    (lambda v: v[:, None], r"shape \(3, 1\)"),
    (lambda v: v[:2], r"shape \(2,\)"),
    (lambda v: None, "a NoneType"),
  ],
)
def test_error_for_losses_that_are_not_one_per_example(model_state, reshape, what):
  def loss(params, batch, rng, *state):
    values = reshape(row_sums(params, batch, rng))
    return (values, *state) if state else values

  with pytest.raises(ValueError, match=rf"my_loss returned {what} for a batch of 3: return one loss per example"):
    examples(model_state=model_state).bind(loss, "my_loss")(2)


@pytest.mark.parametrize("dtype", [np.int32, bool, np.complex64])
def test_error_for_losses_that_are_no_floats(dtype):
  with pytest.raises(ValueError, match=f"my_loss returned dtype {np.dtype(dtype)}: return floats"):
    examples().bind(lambda *args: row_sums(*args).astype(dtype), "my_loss")(2)


def test_losses_of_half_precision_are_taken_in_float32():
  """So that means, and inner products, are not of bfloat16; double precision stays."""
  for dtype in (jnp.bfloat16, np.float16, np.float64):
    values, _ = examples().bind(lambda *args, dtype=dtype: row_sums(*args).astype(dtype), "my_loss")(2)
    assert values.dtype == (np.float64 if dtype is np.float64 else np.float32) and values.tolist() == [6, 14, 22]


@pytest.mark.parametrize(
  "loss, model_state, message",
  [
    (with_state, None, r"my_loss=with_state does not take \(params, batch, rng\): .*only there"),
    (row_sums, 10, r"my_loss=row_sums does not take \(params, batch, rng, model_state\): the train state has a"),
    (None, 10, r"my_loss=None: give a function of \(params, batch, rng, model_state\)"),
  ],
  ids=["four", "three", "None"],
)
def test_error_for_a_loss_of_other_arguments(loss, model_state, message):
  with pytest.raises(ValueError, match=message):
    examples(model_state=model_state).bind(loss, "my_loss")(2)


def test_error_for_losses_with_something_beside_them():
  """Which JAX's users call auxiliary; here only a model state may stand there."""
  loss = lambda *args: (row_sums(*args), {"accuracy": 1.0})
  with pytest.raises(ValueError, match="my_loss returned a tuple of 2: .* returns one array .B.; .*model_state"):
    examples().bind(loss, "my_loss")(2)


@pytest.mark.parametrize(
  "result, message",
  [
    (lambda values, state: values, r"my_loss returned one array: in a train state with a model_state a loss returns"),
    (lambda values, state: (values, state, {}), r"my_loss returned a tuple: in a train state with a model_state"),
    (lambda values, state: (values, {"mean": 1}), "my_loss returned a model_state with the structure .*'mean'"),
    (lambda values, state: (values, None), "my_loss returned a model_state with the structure"),
    (lambda values, state: (values, values), r"my_loss returned a model_state of shape \(3,\): it has that .* \(\)"),
  ],
  ids=["none", "three", "another", "None", "rows"],
)
def test_error_for_another_model_state(result, message):
  loss = lambda params, batch, rng, state: result(row_sums(params, batch, rng), state)
  with pytest.raises(ValueError, match=message):
    examples(model_state=jnp.float32(1)).bind(loss, "my_loss")(jnp.float32(2))


@pytest.mark.parametrize(
  "batch, message",
  [
    ((np.ones((3, 2)), np.ones(3)), "batch is a tuple: give a mapping of arrays by name"),
    ({"x": np.ones((3, 2)), "label": [0, 1, 2]}, r"batch\['label'\] is a list of numbers: give one NumPy or JAX array"),
    ({"a": {"x": [[0.5, 1.0]] * 3}}, r"batch\['a'\]\['x'\] is a list of numbers: give one NumPy or JAX array"),
    ({"x": np.ones((3, 2)), "nested": {"scale": 0.5}}, r"batch\['nested'\]\['scale'\] is a float: give NumPy"),
  ],
  ids=["tuple", "list", "rows", "number"],
)
@pytest.mark.parametrize("read", [losses.batch_size_of, losses.mask_of])
def test_error_for_what_is_no_mapping_of_arrays(read, batch, message):
  with pytest.raises(ValueError, match=message):
    read(batch)
  if "list" in message:  # of which jax.jit makes arrays
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(read, batch)


@pytest.mark.parametrize("read", [losses.batch_size_of, losses.mask_of])
def test_error_for_a_batch_without_rows(read):
  with pytest.raises(ValueError, match=r"shapes \{'x': \(0, 2\)\}: no example; give one row"):
    read({"x": np.ones((0, 2))})


def test_a_mapping_of_any_kind():
  assert losses.batch_size_of(types.MappingProxyType(BATCH)) == 3


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
  with pytest.raises(ValueError, match=r"batch\['mask'\] has dtype .* give bool \(3,\), .*mask.astype\(bool\)"):
    losses.mask_of({"x": np.ones((3, 2)), "mask": mask})
