"""8 devices compute what one does, however the step is mapped over them."""

import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax import (
  Alignment,
  TargetDescent,
  TrainState,
  burn_in,
  center_by_class,
  init_train_state,
  make_mesh,
  make_plain_step,
  make_train_step,
  orthogonal,
  scale_by_std,
  shard_train_state,
  shard_train_step,
)
from soseleto_jax.core import sharding
from tests import problems

D = 8
N, B, T = 13, 11, 5  # 8 divides none of them
PADDED_N = 16


@pytest.fixture(autouse=True)
def split_small_parameters(monkeypatch):
  monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 8)


def _convolution(x, kernel, stride=1):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def _cnn_loss(params, batch, rng):
  x = jax.nn.relu(_convolution(batch["x"], params["first"]))
  x = jnp.tanh(_convolution(x, params["second"], stride=2))
  logits = x.reshape(len(x), -1) @ params["classifier"]
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def _network(name):
  """Loss, parameters and the shape of an input."""
  if name == "mlp":
    return problems.tanh_loss(), problems.tanh_params(dtype=float), (problems.FEATURES,)
  rng = np.random.default_rng(0)
  shapes = {"first": (3, 3, 2, 8), "second": (3, 3, 8, 4), "classifier": (36, problems.CLASSES)}
  return _cnn_loss, {name: rng.normal(size=shape) / 3 for name, shape in shapes.items()}, (6, 6, 2)


def _foreign_index(seed):
  """Rows of `alpha`, two of them the same, none on the device of the example that owns it."""
  device = np.arange(B) // (PADDED_N // D)
  rng = np.random.default_rng(seed)
  while True:
    index = rng.permutation(N)[:B].astype(np.int32)
    index[B - 1] = index[0]
    if np.all(index // (PADDED_N // D) != device):
      return index


def _batches(shape=(problems.FEATURES,), steps=4, dtype=float):
  for seed in range(steps):
    source = problems.batch(seed, B, shape=shape, dtype=dtype, index=_foreign_index(seed))
    yield source, problems.batch(10 + seed, T, shape=shape, dtype=dtype)


def _padded(batch, size):
  """What a caller does who maps the step himself: copies of row 0 under a mask."""
  count = len(batch["label"])
  rows = np.where(np.arange(size) < count, np.arange(size), 0)
  return {name: value[rows] for name, value in batch.items()} | {"mask": np.arange(size) < count}


AXES = TrainState(step=None, params=None, opt_state=None, alpha=0, model_state=None, seed=None)


def _specs(axis):
  return TrainState(step=P(), params=P(), opt_state=P(), alpha=P(axis), model_state=P(), seed=P())


# Each makes `step` for one way to map over devices: axis name of the step, placement of a state, and the mapped step.


def _by_shard_train_step(make_step, **options):
  mesh = make_mesh(jax.devices("cpu")[:D])
  step = problems.jit(shard_train_step(make_step("data"), mesh, **options))
  return step, lambda state: shard_train_state(state, mesh, **options)


def _by_own_shard_map(make_step):
  devices = np.asarray(jax.devices("cpu")[:D]).reshape(D // 2, 2)
  mesh = Mesh(devices, ("rows", "model"), axis_types=(AxisType.Auto,) * 2)
  names = ("rows", "model")
  specs = {"in_specs": (_specs(names), P(names), P(names)), "out_specs": (_specs(names), P())}
  return _padding(problems.jit(jax.shard_map(make_step(names), mesh=mesh, **specs))), _pad_alpha


def _by_pmap(make_step):
  """Which is a `jax.shard_map` with `check_vma=False`."""
  devices = jax.devices("cpu")[:D]
  mapped = jax.pmap(make_step("i"), axis_name="i", in_axes=(AXES, 0, 0), out_axes=(AXES, None), devices=devices)
  mapped = problems.jit(mapped)

  def step(state, *batches):
    state, metrics = mapped(state.replace(alpha=_cut(state.alpha)), *jax.tree.map(_cut, batches))
    return state.replace(alpha=state.alpha.reshape(-1)), metrics

  return _padding(step), _pad_alpha


def _cut(leaf):
  return leaf.reshape(D, -1, *leaf.shape[1:])


def _padding(step):
  return lambda state, source, target: step(state, _padded(source, 2 * D), _padded(target, D))


def _pad_alpha(state):
  return state.replace(alpha=jnp.pad(state.alpha, (0, PADDED_N - N)))


MAPPINGS = {
  "shard_train_step": _by_shard_train_step,
  "shard_params": functools.partial(_by_shard_train_step, shard_params=True),
  "shard_map": _by_own_shard_map,
  "pmap": _by_pmap,
}


def _options(name):
  transforms = (center_by_class(problems.CLASSES), scale_by_std())
  return {
    "jvp": {},
    "vmap_grad": {"alignment": Alignment(contraction="vmap_grad")},
    "ahead": {
      "alignment": Alignment(transforms=transforms),
      "target_descent": TargetDescent(True),
      "source_weights": burn_in(2),
      "alpha_first": True,
      "lookahead": 0.3,
    },
    "every": {
      "alignment": Alignment(
        params={"w": True, "b": False, "classifier": True},
        direction=orthogonal,
        transforms=transforms,
        loss=problems.tanh_loss(),
        contraction="vmap_grad",
        microbatch_size=1,
      ),
      "target_descent": TargetDescent({"w": False, "b": False, "classifier": True}, problems.tanh_loss(), 0.5),
      "source_weights": burn_in(2),
      "alpha_first": True,
      "lookahead": 0.3,
    },
  }[name]


OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.01))


def _start(network):
  """Weights in double precision too, so that all differences are those of the mathematics."""
  _, params, _ = _network(network)
  alpha = np.random.default_rng(5).uniform(size=N)
  return init_train_state(params, OPTIMIZER, N).replace(alpha=alpha)


def _make_step(network, options, axis_name):
  loss, _, _ = _network(network)
  return make_train_step(loss, loss, OPTIMIZER, alpha_step_size=0.3, axis_name=axis_name, **_options(options))


@functools.cache
def _one_device(network, options):
  """States and metrics of each step."""
  state, step, results = _start(network), problems.jit(_make_step(network, options, None)), []
  for source, target in _batches(_network(network)[2]):
    state, metrics = step(state, source, target)
    results.append((state, metrics))
  assert any(metrics["grad_norm"] > 0.3 for _, metrics in results)  # which is clipped
  moved = np.abs(np.asarray(state.alpha) - _start(network).alpha)
  assert np.sum(moved > 0.01) > N // 2
  return results


@pytest.mark.parametrize(
  "mapping, network, options",
  [
    ("shard_train_step", "mlp", "jvp"),
    ("shard_train_step", "cnn", "vmap_grad"),
    ("shard_params", "cnn", "ahead"),
    ("shard_map", "mlp", "every"),
    ("pmap", "mlp", "jvp"),
  ],
)
def test_8_devices_equal_1(x64, mapping, network, options):
  step, place = MAPPINGS[mapping](lambda axis_name: _make_step(network, options, axis_name))
  state = place(_start(network))
  padding = np.asarray(state.alpha)[N:]
  for batches, expected in zip(_batches(_network(network)[2]), _one_device(network, options), strict=True):
    state, metrics = step(state, *batches)
    problems.assert_same_bits(np.asarray(state.alpha)[N:], padding)
    state_and_expected = state.replace(alpha=np.asarray(state.alpha)[:N]), expected[0]
    problems.assert_close(*state_and_expected, rtol=1e-7, atol=1e-9)
    problems.assert_close(metrics, expected[1])


def test_an_axis_of_vmap():
  """Has no devices, and the same collectives: for a test of one's own."""
  mapped = jax.vmap(_make_step("mlp", "jvp", "i"), axis_name="i", in_axes=(AXES, 0, 0), out_axes=(AXES, None))
  state = _pad_alpha(_start("mlp"))
  state = state.replace(alpha=_cut(state.alpha))
  source, target = next(_batches())
  after, metrics = jax.eval_shape(
    jax.jit(mapped), state, *jax.tree.map(_cut, (_padded(source, 16), _padded(target, 8)))
  )
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert all(value.shape == () for value in metrics.values())


def _explicit(devices):
  return jax.make_mesh((2, 4), ("model", "data"), devices=devices)


def _auto(devices):
  return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def _three(devices):
  return make_mesh(devices[:3])


@functools.cache
def _clipped():
  """Optimizer, and a step on one device, for the meshes."""
  optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9))
  make = functools.partial(make_train_step, problems.tanh_loss(), problems.tanh_loss(), optimizer, alpha_step_size=0.3)
  return optimizer, make, problems.jit(make())


@pytest.mark.parametrize(
  "mesh, in_use, placed, shard_params",
  [
    (_explicit, False, True, False),
    (_explicit, True, True, True),
    (_auto, True, False, True),
    (_three, False, True, True),
  ],
  ids=["explicit", "explicit_in_use", "auto_in_use", "3_devices"],
)
def test_any_mesh_with_an_axis_data(x64, mesh, in_use, placed, shard_params):
  """Whatever `jax.make_mesh` makes of its axes, also after `jax.set_mesh`, and however batches are placed."""
  mesh = mesh(jax.devices("cpu")[:D])
  optimizer, make, single_step = _clipped()
  single = init_train_state(problems.tanh_params(dtype=float), optimizer, N)
  step = problems.jit(shard_train_step(make(axis_name="data"), mesh, shard_params))
  state = shard_train_state(single, mesh, shard_params)
  shardings = _shardings(state)
  assert shardings.alpha == NamedSharding(mesh, P("data"))
  assert shardings.params["w"].is_fully_replicated != (shard_params and mesh.shape["data"] == 4)
  assert shardings.params["classifier"].is_fully_replicated != (shard_params and mesh.shape["data"] == 3)
  source, target = next(_batches())
  expected, _ = single_step(single, source, target)
  with jax.set_mesh(mesh) if in_use else contextlib.nullcontext():
    state, _ = step(state, jax.device_put(source, NamedSharding(mesh, P())) if placed else source, target)

  def is_same(place, leaf):
    return place.is_equivalent_to(leaf.sharding, leaf.ndim)

  assert all(jax.tree.leaves(jax.tree.map(is_same, shardings, state)))
  np.testing.assert_allclose(np.asarray(state.alpha)[:N], expected.alpha, rtol=1e-6, atol=1e-7)  # in float32
  problems.assert_close(state.params, expected.params, rtol=1e-6, atol=1e-7)


def _shardings(state):
  return jax.tree.map(lambda leaf: leaf.sharding, state)


def _sharded(loss=None, devices=D, shard_params=False, **options):
  loss, optimizer = loss or problems.tanh_loss(), optax.adam(0.1)
  mesh = make_mesh(jax.devices("cpu")[:devices])
  step = make_train_step(loss, loss, optimizer, alpha_step_size=0.3, axis_name="data")
  step = shard_train_step(step, mesh, shard_params)
  return init_train_state(problems.tanh_params(), optimizer, N, **options), mesh, step


@pytest.mark.parametrize("shard_params, split", [(False, {"alpha"}), (True, {"alpha", "w", "mu w", "nu w"})])
def test_shardings_stay_and_copies_survive_donation(shard_params, split):
  before, mesh, step = _sharded(devices=4, shard_params=shard_params)
  as_numpy = jax.tree.map(np.array, before)
  first, second = (shard_train_state(state, mesh, shard_params) for state in (before, as_numpy))
  shardings = _shardings(first)
  assert shardings.alpha == NamedSharding(mesh, P("data"))
  assert [shard.data.shape for shard in first.alpha.addressable_shards] == [(PADDED_N // 4,)] * 4
  leaves = {"alpha": first.alpha} | first.params
  leaves |= {f"mu {k}": v for k, v in first.opt_state[0].mu.items()}
  leaves |= {f"nu {k}": v for k, v in first.opt_state[0].nu.items()}
  assert {name for name, leaf in leaves.items() if not leaf.sharding.is_fully_replicated} == split
  assert {leaves[name].addressable_shards[0].data.shape for name in split - {"alpha"}} <= {(1, problems.HIDDEN)}
  problems.assert_same_bits(first, second)

  batches = next(_batches(dtype=np.float32))
  step = step.lower(first, *batches).compile(problems.compiler_options())  # which donates, as the step itself
  state = first
  for _ in range(2):
    state, _ = step(state, *batches)
    assert _shardings(state) == shardings
  assert all(leaf.is_deleted() for leaf in leaves.values())
  problems.assert_same_bits(before, as_numpy)
  problems.assert_same_bits(second, shard_train_state(before, mesh, shard_params))


def test_split_parameters_are_placed_whole_again():
  before, mesh, _ = _sharded(devices=4)
  whole = shard_train_state(shard_train_state(before, mesh, shard_params=True), mesh)
  assert _shardings(whole) == _shardings(shard_train_state(before, mesh))


def _split_over_model(devices, axis_type=AxisType.Auto):
  """A mesh of data by model, and a state whose `w` and classifier, with their moments, are split over "model"."""
  mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2, devices=devices)
  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(4, 8)), "b": rng.normal(size=8), "classifier": rng.normal(size=(8, 3))}
  specs = {"w": P(None, "model"), "b": P(), "classifier": P("model")}
  params = {name: jax.device_put(value, NamedSharding(mesh, specs[name])) for name, value in params.items()}
  return mesh, init_train_state(params, optax.adam(0.1), N), specs


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_parameters_that_are_split_over_another_axis_stay_so(x64, axis_type):
  """Through the placement and through steps, with the numbers of one device."""
  mesh, state, specs = _split_over_model(jax.devices("cpu")[:D], axis_type)
  placed = shard_train_state(state, mesh)
  loss, optimizer = problems.tanh_loss(), optax.adam(0.1)
  make = functools.partial(make_train_step, loss, loss, optimizer, alpha_step_size=0.3)
  step, one = shard_train_step(make(axis_name="data"), mesh), problems.jit(make())
  expected = jax.device_get(state)
  for batches in _batches(steps=2):
    placed, metrics = step(placed, *batches)
    expected, expected_metrics = one(expected, *batches)
    for name, spec in specs.items():
      for leaf in (placed.params[name], placed.opt_state[0].mu[name]):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim), name
  assert placed.alpha.sharding.spec == P("data")
  problems.assert_close(placed.params, expected.params, rtol=1e-5, atol=1e-6)
  problems.assert_close(metrics, expected_metrics)
  np.testing.assert_allclose(np.asarray(placed.alpha)[:N], expected.alpha, rtol=1e-6)


def test_of_what_is_split_over_data_too_the_other_axis_stays():
  mesh, state, _ = _split_over_model(jax.devices("cpu")[:D])
  both = {"w": P("data", "model"), "b": P(("data", "model")), "classifier": P(None, None)}
  params = {
    name: jax.device_put(leaf, NamedSharding(mesh, both[name]))
    for name, leaf in state.params.items()
    if name != "classifier"
  }
  placed = shard_train_state(state.replace(params=params), mesh).params
  assert {name: leaf.sharding.spec for name, leaf in placed.items()} == {"w": P(None, "model"), "b": P("model")}


def test_error_for_parameters_that_are_split_over_another_mesh():
  devices = jax.devices("cpu")[:D]
  _, state, _ = _split_over_model(devices)
  with pytest.raises(ValueError, match=r"array \(8, 3\) of the state is split over \('model',\) of another mesh"):
    shard_train_state(state, make_mesh(devices))


def test_state_specs_are_what_a_shard_map_of_ones_own_needs():
  assert sharding.state_specs() == sharding.STATE_SPECS
  names = ("rows", "model")
  assert sharding.state_specs(names) == _specs(names)


def test_errors_of_mapping():
  mesh, step = (
    make_mesh(jax.devices("cpu")[:2]),
    make_plain_step(problems.tanh_loss(), optax.sgd(0.1), axis_name="data"),
  )
  state = init_train_state(problems.tanh_params(), optax.sgd(0.1), 4)
  other = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:2])
  for call in (lambda: shard_train_state(state, other), lambda: shard_train_step(step, other)):
    with pytest.raises(ValueError, match=r"mesh has the axes \('batch',\): one has to be called 'data'"):
      call()
  with pytest.raises(ValueError, match="step has axis_name=None: make it with axis_name='data'"):
    shard_train_step(make_plain_step(problems.tanh_loss(), optax.sgd(0.1)), mesh)
  with pytest.raises(ValueError, match="step has axis_name=None: make it with axis_name='data'"):
    shard_train_step(jax.jit(make_plain_step(problems.tanh_loss(), optax.sgd(0.1))), mesh)
  with pytest.raises(ValueError, match="step has axis_name='rows'"):
    shard_train_step(make_plain_step(problems.tanh_loss(), optax.sgd(0.1), axis_name="rows"), mesh)
  with pytest.raises(ValueError, match="shard_params=True with a plain function: give a Step"):
    shard_train_step(lambda state: (state, {}), mesh, shard_params=True)
  for unplaced in (state, init_train_state(problems.tanh_params(), optax.sgd(0.1), 5)):
    with pytest.raises(ValueError, match=r"alpha, . weights, is not split over the 2 devices: call shard_train_state"):
      shard_train_step(step, mesh)(unplaced, problems.batch(0, 4))


def test_plain_jit_with_sharded_inputs(x64):
  """Of a step without an axis: `alpha` stays split, and nothing of size N travels."""
  mesh = make_mesh(jax.devices("cpu")[:D])
  split = NamedSharding(mesh, P("data"))
  loss, optimizer = problems.drawing_loss, optax.adam(0.1)
  step = make_train_step(loss, loss, optimizer, alpha_step_size=0.3)
  state = init_train_state(problems.tanh_params(dtype=float), optimizer, 8000)
  source = problems.batch(0, 16, dtype=float, index=problems.index(0, 16, 8000))
  target = problems.batch(1, 8, dtype=float)
  expected, metrics = problems.jit(step)(state, source, target)
  args = shard_train_state(state, mesh), *jax.device_put((source, target), split)
  program = jax.jit(step, donate_argnums=0).lower(*args).compile(problems.compiler_options())
  sizes = [size for _, arrays in _collectives(program) for size in arrays]
  assert sizes and max(sizes) < 1000
  found, found_metrics = program(*args)
  assert found.alpha.sharding.is_equivalent_to(split, 1)
  problems.assert_close(found, expected, rtol=1e-7, atol=1e-9)  # draws too are those of one device
  problems.assert_close(found_metrics, metrics)


def test_one_device_owns_its_copy():
  """Where nothing needs padding or moving."""
  before, mesh, _ = _sharded(devices=1)
  as_numpy = jax.tree.map(np.array, before)
  donated = shard_train_state(before, mesh)
  jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(donated)
  assert donated.alpha.is_deleted() and donated.params["w"].is_deleted()
  problems.assert_same_bits(before, as_numpy)


@pytest.mark.parametrize(
  "shape, spec",
  [
    ((128, 128), P("data")),
    ((8, 4096), P(None, "data")),
    ((5, 5, 64, 128), P(None, None, None, "data")),
    ((4099, 16), P(None, "data")),  # 8 divides the shorter axis alone
    ((16384,), P("data")),
    ((127, 129), P()),  # too small
    ((16376,), P()),
    ((129, 129), P()),  # 8 divides neither
    ((), P()),
  ],
)
def test_where_a_parameter_is_split(monkeypatch, shape, spec):
  """Along its longest axis that the devices divide, from 2**14 elements on; its optimizer state likewise."""
  monkeypatch.undo()
  optimizer = optax.adafactor(0.1)
  state = jax.eval_shape(lambda: init_train_state({"w": jnp.zeros(shape)}, optimizer, N, model_state=jnp.zeros(2**14)))
  mesh = make_mesh(jax.devices("cpu")[:D])
  shardings = sharding.state_shardings(state, mesh, shard_params=True)
  assert shardings.params["w"] == NamedSharding(mesh, spec)
  assert jax.tree.structure(shardings) == jax.tree.structure(state)
  for leaf, place in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(shardings.opt_state), strict=True):
    assert place.spec == (spec if leaf.shape == shape else P())
  assert shardings.alpha.spec == P("data")
  assert shardings.model_state.spec == P()  # as the step returns it
  assert all(place.spec == P() for place in jax.tree.leaves(sharding.state_shardings(state, mesh).params))


# What the compiled step holds.

_COLLECTIVE = re.compile(
  r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)


@functools.cache
def _program(num_source, shard_params=False, contraction="jvp"):
  """The compiled step of a network of 4 + 3 thousand parameters."""
  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(4, 1000)), "b": rng.normal(size=1000), "classifier": rng.normal(size=(1000, 3))}
  params = jax.tree.map(np.float32, params)
  optimizer = optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.1))
  state = jax.eval_shape(lambda: init_train_state(params, optimizer, num_source))
  loss, alignment = problems.tanh_loss(), Alignment(contraction=contraction)
  step = make_train_step(loss, loss, optimizer, alpha_step_size=0.3, alignment=alignment, axis_name="data")
  mesh = make_mesh(jax.devices("cpu")[:D])
  shardings = sharding.state_shardings(state, mesh, shard_params)
  placed = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings
  )
  batches = problems.batch(0, 64, index=np.arange(64, dtype=np.int32)), problems.batch(1, 16)
  return shard_train_step(step, mesh, shard_params).lower(placed, *batches).compile(problems.compiler_options())


def _collectives(program):
  """The kind of each collective, and the number of elements of each array that comes out of it."""
  found = []
  for shapes, kind in _COLLECTIVE.findall(program.as_text()):
    shapes = re.findall(r"\w+\[([\d,]*)\]", shapes)
    found.append((kind, tuple(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)))
  return sorted(found)


NUM_PARAMS = 8000
BOTH = pytest.mark.parametrize("shard_params", [False, True])


@pytest.mark.parametrize("shard_params, contraction", [(False, "jvp"), (False, "vmap_grad"), (True, "jvp")])
def test_what_travels(shard_params, contraction):
  """Two gradients and a few arrays of the size of the batch; split parameters are gathered once. Nothing else."""
  found = _collectives(_program(10_000, shard_params, contraction))

  def total(kind):
    return sum(size for name, sizes in found if name == kind for size in sizes)

  assert {kind for kind, _ in found} == {"all-reduce", "all-gather", "reduce-scatter"}
  assert 2 * NUM_PARAMS <= total("all-reduce") <= 2 * NUM_PARAMS + 20
  gathered = NUM_PARAMS if shard_params else 0
  assert gathered <= total("all-gather") <= gathered + 2 * 64
  assert 0 < total("reduce-scatter") <= 2 * 64


@BOTH
def test_the_number_of_examples_costs_its_own_memory_alone(shard_params):
  """Nothing that travels depends on it, and `alpha` is changed in place: 4 bytes for each example, over 8 devices."""
  few, many = (_program(num, shard_params) for num in (10_000, 1_000_000))
  assert _collectives(few) == _collectives(many)
  few, many = few.memory_analysis(), many.memory_analysis()
  share = 4 * 990_000 // D
  assert many.argument_size_in_bytes - few.argument_size_in_bytes == share
  assert many.alias_size_in_bytes - few.alias_size_in_bytes == share
  assert many.temp_size_in_bytes == few.temp_size_in_bytes


@BOTH
def test_who_holds_the_parameters(shard_params):
  """At rest a device has an eighth of `w` and of the classifier, and as much of both moments of Adam."""
  argument = _program(10_000, shard_params).memory_analysis().argument_size_in_bytes
  held = 4 * (3 * NUM_PARAMS // (D if shard_params else 1) + 10_000 // D)
  assert held <= argument <= held + 1000  # the batches


@functools.cache
def _counting():
  """A state on 8 devices, a step, and what grows where that is traced."""
  traces = []

  def loss(*args):
    traces.append(None)
    return problems.tanh_loss()(*args)

  before, mesh, step = _sharded(loss)
  return before, shard_train_state(before, mesh), problems.jit(step), traces


def test_rows_that_own_no_weight_are_masked():
  """Negative indices, those of the padding, and those past it; `alpha` elsewhere keeps its bits."""
  before, placed, step, _ = _counting()
  source, target = next(_batches(dtype=np.float32))
  outside, mask = source["index"].copy(), np.ones(B, bool)
  outside[:6], mask[:6] = [-1, PADDED_N, -PADDED_N, 2**31 - 1, N, PADDED_N - 1], False
  masked = step(placed, {**source, "mask": mask}, target)
  result = step(placed, {**source, "index": outside, "mask": np.ones(B, bool)}, target)
  problems.assert_same_bits(result, masked)
  kept = np.setdiff1d(np.arange(PADDED_N), outside)
  problems.assert_same_bits(np.asarray(result[0].alpha)[kept], np.pad(before.alpha, (0, 3), constant_values=-1)[kept])


def test_one_compilation_for_short_batches_under_a_mask():
  _, state, step, traces = _counting()
  counts = []
  for size, (source, target) in zip((B, B, 2), _batches(steps=3, dtype=np.float32), strict=True):
    state, _ = step(state, {**source, "mask": np.arange(B) < size}, target)
    counts.append(len(traces))
  assert counts[0] > 0 and len(set(counts)) == 1
  assert step._cache_size() == 1  # nor was it for other places of the same arrays


def test_every_device_draws_for_itself():
  def draw(params, batch, rng):
    return jax.random.uniform(rng, batch["label"].shape) + 0 * params

  def losses_drawn(q, losses, batch, axis_name):  # by which alpha then moves
    return losses

  mesh = make_mesh(jax.devices("cpu")[:2])
  alignment = Alignment(transforms=(losses_drawn,))
  step = make_train_step(draw, draw, optax.sgd(0.1), alpha_step_size=1.0, alignment=alignment, axis_name="data")
  state = init_train_state(jnp.float32(0), optax.sgd(0.1), 4, alpha_init=0.0, seed=1)
  batch = {"label": np.zeros(4, np.int32), "index": np.arange(4, dtype=np.int32)}
  state, _ = problems.jit(shard_train_step(step, mesh))(shard_train_state(state, mesh), batch, batch)
  assert len(set(np.asarray(state.alpha).tolist())) == 4


def _stateful_loss(params, batch, rng, model_state):
  mean = jnp.mean(batch["x"], where=batch["mask"][:, None])
  new_state = {"mean": mean, "calls": model_state["calls"] + 1}
  return problems.tanh_loss()(params, batch, rng), new_state


def _check_model_state(state, batch):
  """A counter stays an integer, and statistics become the mean over the rows that count, wherever they are."""
  mean = np.mean(batch["x"][batch.get("mask", slice(None))])
  np.testing.assert_allclose(state.model_state["mean"], mean, rtol=1e-5, atol=1e-6)
  problems.assert_same_bits(state.model_state["calls"], np.int32(5))
  assert state.model_state["mean"].sharding.is_fully_replicated


MODEL_STATE = {"mean": jnp.float32(0), "calls": jnp.int32(4)}


def test_model_state_is_averaged_in_its_own_dtype():
  before, mesh, step = _sharded(_stateful_loss, model_state=MODEL_STATE)
  source, target = (problems.batch(seed, 2 * D) for seed in (0, 1))
  source["index"] = np.arange(2 * D, dtype=np.int32) % N
  state, _ = problems.jit(step)(shard_train_state(before, mesh), source, target)
  _check_model_state(state, source)


def test_plain_step_on_8_devices(x64):
  optimizer, batch = optax.adam(0.1), problems.batch(0, 2 * D, dtype=float, mask=np.arange(2 * D) < B)
  mesh = make_mesh(jax.devices("cpu")[:D])
  make = functools.partial(make_plain_step, _stateful_loss, optimizer)
  before = init_train_state(problems.tanh_params(dtype=float), optimizer, N, model_state=MODEL_STATE)
  state, metrics = problems.jit(shard_train_step(make(axis_name="data"), mesh))(shard_train_state(before, mesh), batch)
  expected, expected_metrics = problems.jit(make())(before, batch)
  problems.assert_close((state.params, state.opt_state), (expected.params, expected.opt_state), rtol=1e-7, atol=1e-9)
  problems.assert_close(metrics, expected_metrics)
  problems.assert_same_bits(np.asarray(state.alpha)[:N], np.asarray(before.alpha))
  _check_model_state(state, batch)
