"""What becomes of a batch's pixels: augmentation of each side, by name or by a function, then normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from soseleto_jax.core import sharding
from soseleto_jax.data.normalization import Normalization
from soseleto_jax.data.task import from_arrays
from soseleto_jax.feed.preparation import Preparation, make_preparations
from tests import problems

N, SHAPE = 64, (4, 3, 2)
NORMALIZATION = Normalization(np.float32([100, 120]), np.float32([50, 60]))


@functools.cache
def make_task(shape=SHAPE):
  """Bright images in the source and dark ones in the target, in transfer, so that each side has its normalisation."""
  rng = np.random.default_rng(0)
  images = lambda low: rng.integers(low, low + 100, (N, *shape), np.uint8 if len(shape) == 3 else np.int16)
  target = images(0), np.arange(N) % 2
  return from_arrays(images(150), np.arange(N) % 3, *target, *target, shared_classes=False)


def preparations(source=(), target=(), given=None, **task):
  return make_preparations(make_task(**task), ConfigDict(dict(source=source, target=target)), given)


@functools.cache
def compiled(preparation):
  return problems.jit(preparation)


def prepare(preparation, index=range(N), key=0, side="source", task=None):
  """Returns the rows of a batch, prepared."""
  index, examples = jnp.asarray(index, jnp.int32), getattr(task or make_task(), side)
  batch = {"x": jnp.asarray(examples["x"])[index], "label": jnp.asarray(examples["label"])[index], "index": index}
  return compiled(preparation)(batch, jax.random.key(key))


def normalised(side, index=slice(None)):
  task = make_task()
  x, normalization = getattr(task, side)["x"][index], getattr(task, f"{side}_normalization")
  return (x.astype(np.float32) - normalization.mean) / normalization.std


def mirrored(x, side="source", index=slice(None)):
  """Which rows are mirrored; each is either that or as it was."""
  plain = normalised(side, index)
  close = lambda images: np.isclose(np.asarray(x), images, rtol=1e-5, atol=1e-5).all(axis=(1, 2, 3))
  same, turned = close(plain), close(plain[:, :, ::-1])
  assert (same ^ turned).all()
  return turned


FLIP = preparations(source=("flip",))["source"]


@pytest.mark.parametrize("side", ["source", "target"])
def test_what_a_batch_holds(side):
  index = [3, 59, 0, 3]
  batch = prepare(preparations()[side], index, side=side)
  assert batch.keys() == {"x", "label", "index"}
  assert batch["x"].dtype == jnp.float32
  np.testing.assert_allclose(batch["x"], normalised(side, index), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(batch["label"], getattr(make_task(), side)["label"][index])
  np.testing.assert_array_equal(batch["index"], index)


def test_points():
  task = make_task(shape=(2,))
  preparation = Preparation(NORMALIZATION)
  x = prepare(preparation, [5, 1], task=task)["x"]
  np.testing.assert_allclose(x, (task.source["x"][[5, 1]] - NORMALIZATION.mean) / NORMALIZATION.std, rtol=1e-6)


# Names.


@pytest.mark.parametrize("side", ["source", "target"])
def test_each_side_has_the_augmentation_of_its_name(side):
  other = {"source": "target", "target": "source"}[side]
  both = preparations(**{side: ("flip",)})
  share = np.mean([mirrored(prepare(both[side], key=key, side=side)["x"], side) for key in range(5)])
  assert 0.4 < share < 0.6  # 320 draws, 3.5 standard deviations
  assert not mirrored(prepare(both[other], side=other)["x"], other).any()


def test_key_and_row_decide():
  """Not the place in the batch, nor the other rows."""
  drawn = mirrored(prepare(FLIP)["x"])
  order = np.random.default_rng(1).permutation(N)
  np.testing.assert_array_equal(mirrored(prepare(FLIP, order)["x"], index=order), drawn[order])
  for part in order.reshape(4, N // 4):
    np.testing.assert_array_equal(mirrored(prepare(FLIP, part)["x"], index=part), drawn[part])
  assert (mirrored(prepare(FLIP, key=1)["x"]) != drawn).any()


@pytest.mark.parametrize("devices", [2, 8])
def test_the_split_over_devices_changes_no_draw(devices):
  """By `jax.shard_map`, as the trainer does it, where each device sees its own rows alone."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  split = P(sharding.AXIS)
  mapped = jax.shard_map(FLIP, mesh=mesh, in_specs=(split, P()), out_specs=split)
  batch = {"x": make_task().source["x"], "index": np.arange(N, dtype=np.int32)}
  x = problems.jit(mapped)(jax.device_put(batch, NamedSharding(mesh, split)), jax.random.key(0))["x"]
  np.testing.assert_array_equal(mirrored(x), mirrored(prepare(FLIP)["x"]))


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
  ("names", "task", "message"),
  [
    (("flop",), {}, "'flop': unknown augmentation 'flop'; .*did you mean 'flip'"),
    (("flip", "crop=3"), {}, "'crop=3': give less than the images' 3 pixels"),
    (("crop",), {}, "'crop': the strength is missing"),
    (("flip",), {"shape": (2,)}, r"is for images \[B, H, W, C\], but x has shape \(1, 2\)"),
  ],
)
def test_names_that_do_not_fit(side, names, task, message):
  with pytest.raises(ValueError, match=f"^config.augment.{side}: .*{message}"):
    preparations(**{side: names}, **task)


# Functions.


def add_noise_of_key(key, x):
  return x + jax.random.uniform(key, x.shape)


def test_a_function_takes_the_place_of_names():
  """On its side; the other keeps its names."""
  both = preparations(source=("flip",), target=("flip",), given={"target": lambda key, x: x + 1})
  np.testing.assert_allclose(
    prepare(both["target"], side="target")["x"],
    normalised("target") + 1 / make_task().target_normalization.std,
    rtol=1e-5,
    atol=1e-5,
  )
  assert mirrored(prepare(both["source"])["x"]).any()


def test_a_function_sees_images_as_they_are_stored():
  seen = []

  def augment(key, x):
    seen.append((x.shape, x.dtype, jnp.issubdtype(key.dtype, jax.dtypes.prng_key)))
    return x

  x = prepare(preparations(given={"source": augment})["source"])["x"]
  np.testing.assert_allclose(x, normalised("source"), rtol=1e-5, atol=1e-5)
  assert seen == [((1, *SHAPE), np.uint8, True)]


def test_a_function_draws_for_each_example():
  preparation = preparations(given={"source": add_noise_of_key})["source"]
  noise = prepare(preparation)["x"] - normalised("source")
  assert len(np.unique(np.round(noise.reshape(N, -1)[:, 0], 5))) > 0.9 * N
  order = np.arange(N)[::-1]
  np.testing.assert_allclose(prepare(preparation, order)["x"][::-1] - normalised("source"), noise, atol=1e-5)


def test_a_function_for_points():
  task = make_task(shape=(2,))
  x = prepare(Preparation(NORMALIZATION, lambda key, x: -x), [5], task=task)["x"]
  np.testing.assert_allclose(x, (-task.source["x"][[5]] - NORMALIZATION.mean) / NORMALIZATION.std, rtol=1e-6)


def test_a_function_that_returns_something_else():
  preparation = preparations(given={"source": lambda key, x: x[:, :2]})["source"]
  with pytest.raises(ValueError, match="returned .* for uint8"):
    prepare(preparation)


def test_a_side_that_does_not_exist():
  with pytest.raises(ValueError, match=r"augment\['sorce'\]: the sides are source, target; did you mean 'source'"):
    preparations(given={"sorce": add_noise_of_key})
