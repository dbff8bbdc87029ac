import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from soseleto_jax import models
from soseleto_jax.models.network import FunctionNetwork, LinenNetwork, NnxNetwork, as_network
from tests import problems

HEADS = {"source": 3, "target": 2}
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


class LinenNet(nn.Module):
  """Two layers in a list; with `norm` a BatchNorm, with `dropout` a Dropout after them."""

  norm: bool = False
  dropout: float = 0.0

  def setup(self):
    self.blocks = [nn.Dense(5), nn.Dense(6)]
    if self.norm:
      self.bn = nn.BatchNorm(momentum=0.9)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x, *, train=False):
    for block in self.blocks:
      x = jnp.tanh(block(x))
    if self.norm:
      x = self.bn(x, use_running_average=not train)
    return self.drop(x, deterministic=not train)


class NnxNet(nnx.Module):
  """The same."""

  def __init__(self, norm=False, dropout=0.0, *, rngs):
    self.blocks = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 6, rngs=rngs)])
    self.bn = nnx.BatchNorm(6, momentum=0.9, rngs=rngs) if norm else None
    self.drop = nnx.Dropout(dropout, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = jnp.tanh(block(x))
    if self.bn is not None:
      x = self.bn(x)
    return self.drop(x)


class Functions:
  """The same in two functions, with a state that counts the examples and noise in place of dropout."""

  def __init__(self, norm=False, dropout=0.0):
    self.norm, self.dropout = norm, dropout

  def init(self, key, x):
    params = {"w": jax.random.normal(key, (x.shape[1], 6)), "out": jnp.ones((6, 3))}
    return params, {"mean": jnp.zeros(6)} if self.norm else {}

  def apply(self, params, state, x, *, rng, train):
    x = jnp.tanh(x @ params["w"])
    if self.norm:
      mean = x.mean(axis=0)
      x, state = x - (mean if train else state["mean"]), {"mean": 0.9 * state["mean"] + 0.1 * mean}
    if train and self.dropout:
      x += jax.random.normal(rng, x.shape)
    return x @ params["out"], state


def _network(kind, num_classes=3, **options):
  if kind == "nnx":
    return as_network(NnxNet(**options, rngs=nnx.Rngs(1)), num_classes)
  return as_network({"linen": LinenNet, "functions": Functions}[kind](**options), num_classes)


@functools.cache
def _start(kind, num_classes=3, **options):
  """A network with its parameters and state at the start, which Linen compiles a program for."""
  network = _network(kind, num_classes, **options)
  return network, *network.init(KEY, X)


ALL = pytest.mark.parametrize("kind", ["linen", "nnx", "functions"])
MODULES = pytest.mark.parametrize("kind", ["linen", "nnx"])


def _nnx_as_linen(params, model_state):
  """The NNX network's arrays under the Linen one's names."""

  def renamed(tree):
    blocks = {f"blocks_{number}": block for number, block in tree.get("blocks", {}).items()}
    return {name: value for name, value in tree.items() if name != "blocks"} | blocks

  params = {**params, "representation": renamed(params["representation"])}
  state = model_state and {"batch_stats": {"representation": renamed(model_state["representation"])}}
  return params, state


@pytest.mark.parametrize(
  ("num_classes", "head", "train"),
  [(3, None, False), (3, None, True), (HEADS, "source", False), (HEADS, "target", True)],
)
def test_equal_weights_give_equal_logits_and_gradients_in_linen_and_nnx(num_classes, head, train):
  ours, linen = _network("nnx", num_classes, norm=True), _network("linen", num_classes, norm=True)
  params, state = ours.init(KEY, X)
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # no bias is 0
  state = jax.tree.map(lambda leaf: leaf + 0.2, state)
  start = _nnx_as_linen(params, state)
  assert jax.tree.structure(start) == jax.tree.structure(linen.init(KEY, X))

  def run(network):
    def loss(params, model_state):
      logits, model_state = network.apply(params, model_state, X, head=head, train=train)
      return jnp.sum(jnp.sin(logits)), (logits, model_state)

    return problems.jit(jax.grad(loss, has_aux=True))

  gradient, (logits, new_state) = run(ours)(params, state)
  expected = run(linen)(*start)
  assert logits.shape == (8, 3 if head is None else HEADS[head]) and logits.dtype == jnp.float32
  problems.assert_close((_nnx_as_linen(gradient, new_state), logits), ((expected[0], expected[1][1]), expected[1][0]))


@ALL
def test_statistics_move_in_training_only(kind):
  network, params, state = _start(kind, norm=True)
  assert state is not None
  logits, kept = network.apply(params, state, X)
  problems.assert_same_bits(kept, state)
  in_training, moved = network.apply(params, state, X, train=True, rng=KEY)
  assert not np.allclose(logits, in_training, atol=1e-3)
  assert jax.tree.structure(moved) == jax.tree.structure(state)
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), state, moved)
  assert all(jax.tree.leaves(changed))
  assert not np.allclose(logits, network.apply(params, moved, X)[0], atol=1e-3)
  if kind != "functions":
    features, moved_by_features = network.features(params, state, X, train=True, rng=KEY)
    assert features.shape == (8, 6)
    problems.assert_close(moved_by_features, moved)


@ALL
def test_a_network_without_state_has_none(kind):
  network, params, state = _start(kind, dropout=0.5)
  assert state is None
  assert network.apply(params, None, X, train=True, rng=KEY)[1] is None
  assert network.apply(params, None, X)[1] is None


@ALL
def test_dropout_differs_by_key_and_not_in_evaluation(kind):
  network, params, state = _start(kind, dropout=0.5)

  @functools.partial(problems.jit, static_argnames="train")
  def logits(seed, train):
    return network.apply(params, state, X, train=train, rng=jax.random.key(seed))[0]

  first, again, other = (logits(seed, train=True) for seed in (0, 0, 1))
  problems.assert_same_bits(first, again)
  assert not np.allclose(first, other, atol=1e-3)
  problems.assert_same_bits(logits(0, train=False), logits(1, train=False))


class Drawing(nnx.Module):
  """Draws from several streams; leaves intermediates and a new variable behind."""

  def __init__(self, *, rngs):
    self.one, self.two = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    self.rngs = rngs
    self.table = nnx.data(jnp.arange(4.0))
    self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
    self.scale = nnx.Param(jnp.ones(()))
    self.made = nnx.data(None)

  def __call__(self, x):
    self.calls[...] += 1
    self.sow(nnx.Intermediate, "seen", x)
    self.made = nnx.Variable(x)
    x = jnp.ones((len(x), 1000)) * self.scale[...]
    noise = [self.rngs.noise.bernoulli(0.5, x.shape), self.rngs.other.bernoulli(0.5, x.shape)]
    return jnp.stack([self.one(x), self.two(x), *noise], axis=-1).reshape(len(x), -1)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_nnx_streams_are_apart_and_state_is_what_was_there_at_the_start():
  network = as_network(Drawing(rngs=nnx.Rngs(0, noise=1, other=2)), 2)
  params, state = network.init(KEY, X)
  assert set(params["representation"]) == {"scale"}
  assert state == {"representation": {"calls": 0}}
  features = problems.jit(lambda key, state: network.features(params, state, X, train=True, rng=key))
  drawn, state = features(KEY, state)
  assert state == {"representation": {"calls": 1}}
  draws = np.asarray(drawn.reshape(8000, 4) > 0, float).T
  correlation = np.corrcoef(
    np.concatenate([draws, np.asarray(features(jax.random.key(1), state)[0] > 0).reshape(8000, 4).T])
  )
  np.testing.assert_allclose(correlation, np.eye(8), atol=0.06)


def test_nnx_layers_stacked_by_vmap_draw_each_for_itself():
  class Stacked(nnx.Module):
    def __init__(self, *, rngs):
      make = nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs), in_axes=0)
      self.layers = nnx.split_rngs(splits=3)(make)(rngs)

    def __call__(self, x):
      outputs = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, jnp.ones((len(x), 100)))
      return jnp.swapaxes(outputs, 0, 1).reshape(len(x), -1)

  network = as_network(Stacked(rngs=nnx.Rngs(0)), 2)
  params, state = network.init(KEY, X)
  assert state is None
  drawn = np.asarray(network.features(params, None, X, train=True, rng=KEY)[0]).reshape(8, 3, 100)
  assert not np.array_equal(drawn[:, 0], drawn[:, 1])
  other = np.asarray(network.features(params, None, X, train=True, rng=jax.random.key(1))[0]).reshape(8, 3, 100)
  assert all(not np.array_equal(drawn[:, n], other[:, n]) for n in range(3))


def test_nnx_module_stays_as_it_is():
  module, twin = (NnxNet(norm=True, dropout=0.5, rngs=nnx.Rngs(1)) for _ in range(2))
  module.eval()
  network = NnxNetwork(module, HEADS)
  params, state = network.init(KEY, X)

  @functools.partial(jax.jit, donate_argnums=(0, 1))  # the module has arrays of its own, or it would lose them
  def step(params, state):
    def loss(params):
      logits, new_state = network.apply(params, state, X, head="source", train=True, rng=KEY)
      return jnp.sum(logits), new_state

    gradient, state = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(jnp.add, params, gradient), state

  params, state = step(*step(params, state))
  assert np.all(np.isfinite(network.apply(params, state, X, head="target")[0]))
  start, _ = network.init(KEY, X)
  problems.assert_same_bits(start["representation"], nnx.to_pure_dict(nnx.state(twin, nnx.Param)))
  now, then = (nnx.to_pure_dict(nnx.state(each, nnx.Not(nnx.RngKey))) for each in (module, twin))
  problems.assert_same_bits(now, then)
  assert module.drop.deterministic and module.bn.use_running_average
  assert np.all(np.isfinite(module(X)))


class Sowing(nnx.Module):
  def __init__(self, *, rngs):
    self.dense = nnx.Linear(4, 4, rngs=rngs)

  def __call__(self, x):
    self.sow(nnx.Intermediate, "seen", x)
    return self.dense(x)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_nnx_intermediates_are_dropped():
  module = Sowing(rngs=nnx.Rngs(0))
  module(X)  # leaves them
  network = as_network(module, 3)
  params, state = network.init(KEY, X)
  assert state is None and set(params["representation"]) == {"dense"}
  assert network.apply(params, None, X[:3], train=True)[1] is None


@ALL
def test_transformations(kind):
  """Under jit, grad, vmap and jvp, without a tracer that leaks or a program that is traced twice."""
  network, params, _ = _start(kind, dropout=0.5)
  traces = []

  def losses(params, x):
    traces.append(1)
    return jnp.sum(jnp.sin(network.apply(params, None, x, train=True, rng=KEY)[0]), axis=1)

  def one(params, row):
    return losses(params, row[None])[0]

  with jax.checking_leaks():
    each = jax.jit(jax.vmap(jax.grad(one), (None, 0)))(params, X)
    direction = jax.tree.map(jnp.cos, params)
    products = jax.jit(jax.vmap(lambda row: jax.jvp(lambda p: one(p, row), (params,), (direction,))[1]))(X)
  expected = sum(
    jnp.sum(row * d, axis=range(1, row.ndim)) for row, d in zip(*map(jax.tree.leaves, (each, direction)), strict=True)
  )
  np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-5)
  ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
  both = jax.vmap(losses, (0, None))(ensemble, X)
  np.testing.assert_allclose(both[1], losses(jax.tree.map(lambda leaf: 2 * leaf, params), X), rtol=1e-5, atol=1e-5)

  del traces[:]
  step = jax.jit(losses)
  for _ in range(3):
    params = jax.tree.map(lambda leaf: leaf + step(params, X)[0], params)
  assert len(traces) == 1


@ALL
def test_a_step_is_traced_once(kind):
  """What init returns has the types that apply returns."""
  network, params, state = _start(kind, norm=True)
  traces = []

  @jax.jit
  def step(params, state):
    traces.append(1)
    return network.apply(params, state, X, train=True, rng=KEY)[1]

  for _ in range(3):
    state = step(params, state)
  assert len(traces) == 1


@ALL
def test_eight_devices_compute_what_one_does(kind):
  network, params, _ = _start(kind)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

  def logits_and_gradient(params, x):
    def total(params):
      logits = network.apply(params, None, x, train=True, rng=KEY)[0]
      return jnp.sum(jnp.sin(logits)), logits

    return jax.grad(total, has_aux=True)(params)

  # By parameters that every device has, shard_map sums the gradient itself.
  sharded = jax.shard_map(logits_and_gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P("data")))
  problems.assert_close(problems.jit(sharded)(params, X), problems.jit(logits_and_gradient)(params, X))


@MODULES
def test_statistics_on_eight_devices(kind):
  network, params, state = _start(kind, norm=True)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

  def moved(params, state, x):
    state = network.apply(params, state, x, train=True, rng=KEY)[1]
    return jax.lax.pmean(state, "data")

  sharded = problems.jit(jax.shard_map(moved, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P()))
  each = [network.apply(params, state, x, train=True, rng=KEY)[1] for x in np.split(np.repeat(X, 2, axis=0), 8)]
  expected = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0), *each)
  problems.assert_close(sharded(params, state, np.repeat(X, 2, axis=0)), expected)


class Frozen(nnx.Variable):
  pass


class Adapted(nnx.Module):
  """A frozen layer with a low-rank adapter that is trained, and a convolution."""

  def __init__(self, *, rngs):
    self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
    self.kernel = Frozen(jax.random.normal(rngs(), (4, 6)))
    self.adapter = nnx.LoRA(4, 2, 6, rngs=rngs, b_initializer=nnx.initializers.normal())

  def __call__(self, x):
    x = self.conv(x.reshape(-1, 2, 2, 1)).mean(axis=-1).reshape(-1, 4)
    return x @ self.kernel[...] + self.adapter(x)


def test_nnx_parts_that_are_frozen_or_adapted():
  network = as_network(Adapted(rngs=nnx.Rngs(0)), 3)
  params, state = network.init(KEY, X)
  assert {name: set(part) for name, part in params["representation"].items()} == {
    "conv": {"kernel", "bias"},
    "adapter": {"lora_a", "lora_b"},
  }
  assert set(state["representation"]) == {"kernel"}

  def loss(params):
    logits, new_state = network.apply(params, state, X, train=True, rng=KEY)
    return jnp.sum(jnp.sin(logits)), new_state

  gradient, new_state = problems.jit(jax.grad(loss, has_aux=True))(params)
  assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))
  problems.assert_same_bits(new_state, state)


def test_nnx_heads_start_apart_from_the_module_of_the_same_seed():
  class Square(nnx.Module):
    def __init__(self, *, rngs):
      other = rngs.fork()
      self.layers = nnx.List([nnx.Linear(4, 4, rngs=which) for which in (rngs, other, rngs, other)])

    def __call__(self, x):
      return sum(layer(x) for layer in self.layers)

  params, _ = as_network(Square(rngs=nnx.Rngs(0)), {"source": 4, "target": 4}).init(jax.random.key(0), X)
  kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
  assert len(kernels) == 6
  assert not any(np.any(kernels[a] == kernels[b]) for a in range(6) for b in range(a))
  assert all(0.2 < np.std(kernel) < 0.8 for kernel in kernels)  # LeCun's: 1/2
  assert not np.any(params["source_head"]["bias"])


def test_nnx_says_how_its_heads_start():
  module = NnxNet(rngs=nnx.Rngs(0))
  type(module).head_kernel_init = staticmethod(nn.initializers.constant(2.0))
  try:
    params, _ = as_network(module, 3).init(KEY, X)
  finally:
    del type(module).head_kernel_init
  assert np.all(params["classifier"]["kernel"] == 2)


def _module_with(argument, library):
  """A module that returns ones where its argument says training, else zeros."""
  call = {
    "train": lambda self, x, train: jnp.ones_like(x) * train,
    "training": lambda self, x, *, training=None: jnp.ones_like(x) * training,
    "is_training": lambda self, x, is_training: jnp.ones_like(x) * is_training,
    "deterministic": lambda self, x, deterministic: jnp.ones_like(x) * (not deterministic),
  }[argument]
  if library == "linen":
    return type("Linen", (nn.Module,), {"__call__": call})()
  return type("Nnx", (nnx.Module,), {"__call__": call})()


@pytest.mark.parametrize("argument", ["train", "training", "is_training", "deterministic"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_modules_are_told_of_training_by_their_own_argument(argument, library):
  network = as_network(_module_with(argument, library), 2)
  params, state = network.init(KEY, X)
  assert np.all(network.features(params, state, X, train=True)[0] == 1)
  assert np.all(network.features(params, state, X)[0] == 0)


def test_nnx_call_with_rngs():
  class Given(nnx.Module):
    def __init__(self):
      self.drop = nnx.Dropout(0.5)

    def __call__(self, x, *, rngs):
      return self.drop(x, rngs=rngs)

  network = as_network(Given(), 2)
  params, _ = network.init(KEY, X)
  first, again, other = (network.features(params, None, X, train=True, rng=jax.random.key(k))[0] for k in (0, 0, 1))
  problems.assert_same_bits(first, again)
  assert np.any(np.asarray(first) != np.asarray(other))
  problems.assert_same_bits(network.features(params, None, X)[0], jnp.asarray(X))


def test_linen_modules_draw_from_streams_of_any_name():
  class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      if not train:
        return x
      draws = [jax.random.normal(self.make_rng(name), x.shape) for name in ("dropout", "noise", "other")]
      return jnp.concatenate(draws, axis=-1)

  network = as_network(Noisy(), 2)
  params, _ = network.init(KEY, X)
  draws = [network.features(params, None, X, train=True, rng=jax.random.key(seed))[0] for seed in (0, 1)]
  parts = [part for drawn in draws for part in np.split(np.asarray(drawn), 3, axis=1)]
  assert all(not np.any(parts[a] == parts[b]) for a in range(6) for b in range(a))


@MODULES
@pytest.mark.parametrize("returns", ["[B, H, F]", "[F]", "tuple", "fewer"])
def test_features_that_no_classifier_takes(kind, returns):
  outputs = {
    "[B, H, F]": (lambda x: x[:, None], r"shape \(8, 1, 4\) for inputs of shape \(8, 4\).*\[B, F\]"),
    "[F]": (lambda x: x[0], r"shape \(4,\)"),
    "tuple": (lambda x: (x, x), "a tuple"),
    "fewer": (lambda x: x[1:], r"shape \(7, 4\)"),
  }
  output, message = outputs[returns]
  base = nn.Module if kind == "linen" else nnx.Module
  module = type("Wrong", (base,), {"__call__": lambda self, x: output(x)})()
  with pytest.raises(ValueError, match=f"(?s)returned {message}"):
    as_network(module, 3).init(KEY, X)


@MODULES
def test_heads_that_are_not_there(kind):
  for num_classes, head, message in [(3, "source", "head='source'.*shared"), (HEADS, None, "head=None.*'source' or")]:
    network = _network(kind, num_classes)
    params, state = network.init(KEY, X)
    with pytest.raises(ValueError, match=message):
      network.apply(params, state, X, head=head)


def test_nnx_with_arrays_of_another_network():
  network = _network("nnx", norm=True)
  params, state = network.init(KEY, X)
  with pytest.raises(ValueError, match="model_state.*init"):
    network.apply(params, None, X)
  # As many arrays, under other names.
  block = params["representation"]["blocks"][0]
  wrong = {**params, "representation": {**params["representation"], "blocks": {0: block, 2: block}}}
  with pytest.raises(ValueError, match=r"params\['representation'\] has not the arrays"):
    network.apply(wrong, state, X)


def test_bfloat16_features_give_float32_logits():
  class Half(nnx.Module):
    def __init__(self, *, rngs):
      self.dense = nnx.Linear(4, 5, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x):
      return self.dense(x)

  network = as_network(Half(rngs=nnx.Rngs(0)), 3)
  params, state = network.init(KEY, X)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert network.features(params, state, X)[0].dtype == jnp.bfloat16
  assert network.apply(params, state, X)[0].dtype == jnp.float32


@pytest.mark.parametrize("with_rng", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_haiku(with_rng, with_state):
  def net(x, is_training):
    x = hk.Linear(6)(x)
    if with_state:
      x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
    if with_rng and is_training:
      x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(3)(x)

  pair = (hk.transform_with_state if with_state else hk.transform)(net)
  network = as_network(pair if with_rng else hk.without_apply_rng(pair), 3)
  params, state = network.init(KEY, X)
  assert (state is not None) == with_state
  logits, kept = network.apply(params, state, X)
  assert logits.shape == (8, 3)
  problems.assert_same_bits(kept, state)
  apply = jax.jit(lambda key: network.apply(params, state, X, train=True, rng=key))
  (first, moved), (other, _) = apply(KEY), apply(jax.random.key(1))
  assert np.allclose(first, other) == (not with_rng)
  assert with_state == any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state, moved)), strict=True))


def test_haiku_gives_the_functions_logits():
  network = as_network(hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(x))), 3)
  params, state = network.init(KEY, X)
  assert state is None
  expected = X @ params["linear"]["w"] + params["linear"]["b"]
  np.testing.assert_allclose(network.apply(params, None, X, train=True, rng=KEY)[0], expected, rtol=1e-5, atol=1e-6)


class TwoHeads:
  def init(self, key, x):
    del key
    return [jnp.ones((x.shape[1], 3)), jnp.ones((x.shape[1], 2))]

  def apply(self, params, x, head):
    return x @ params[0 if head == "source" else 1]

  def features(self, params, x):
    return x + params[0][0, 0]


def test_functions_with_two_heads_and_features():
  network = as_network(TwoHeads(), HEADS)
  params, _ = network.init(KEY, X)
  assert network.apply(params, None, X, head="source")[0].shape == (8, 3)
  assert network.apply(params, None, X, head="target", train=True, rng=KEY)[0].shape == (8, 2)
  np.testing.assert_allclose(network.features(params, None, X)[0], X + 1)
  with pytest.raises(ValueError, match=r"shape \(8, 2\) for head='target'.*5 classes.*\(8, 5\)"):
    as_network(TwoHeads(), {"source": 3, "target": 5}).init(KEY, X)
  assert as_network(TwoHeads()).init(KEY, X)[1] is None  # nothing to check with


def test_features_that_a_network_does_not_tell():
  network = _network("functions")
  params, state = network.init(KEY, X)
  with pytest.raises(ValueError, match="needs the features"):
    network.features(params, state, X)

  class Whole(nn.Module):
    features: int = 3  # what many call a width

    @nn.compact
    def __call__(self, x, train):
      del train
      return nn.Dense(self.features)(x)

  network = as_network(Whole())
  params, state = network.init(KEY, X)
  assert network.apply(params, state, X, train=True)[0].shape == (8, 3)
  with pytest.raises(ValueError, match="needs the features.*Whole"):
    network.features(params, state, X)


def test_what_as_network_takes():
  linen = models.get_model("mlp", 3)
  assert as_network(linen) == as_network(linen, 3) == LinenNetwork(linen)
  two = as_network(models.get_model("mlp", HEADS), HEADS)
  assert as_network(two, HEADS) is two
  assert as_network(models.MLP(), 3) == as_network(linen)
  assert isinstance(as_network(NnxNet(rngs=nnx.Rngs(0)), 3), NnxNetwork)
  assert isinstance(as_network(Functions(), 3), FunctionNetwork)

  class OwnNetwork:
    def init(self, key, x):
      return {}, None

    def apply(self, params, model_state, x, *, head=None, train=False, rng=None):
      return x, None

  own = OwnNetwork()
  assert as_network(own, 3) is own


@pytest.mark.parametrize(
  ("make", "num_classes", "message"),
  [
    (lambda: "resnet", 3, "network='resnet'.*Flax module.*init"),
    (lambda: lambda x: x, 3, "network=<function.*Flax module"),
    (lambda: LinenNet, 3, r"network=LinenNet is a class.*LinenNet\("),
    (lambda: NnxNet, 3, r"network=NnxNet is a class.*NnxNet\("),
    (lambda: NnxNet(rngs=nnx.Rngs(0)), None, "network=NnxNet.*num_classes"),
    (lambda: NnxNet(rngs=nnx.Rngs(0)), 0, "num_classes=0"),
    (lambda: NnxNet(rngs=nnx.Rngs(0)), {"source": 3}, "num_classes=.*'target'"),
    (lambda: models.get_model("mlp", 3), 4, r"classifiers \{'classifier': 3\}.*\{'classifier': 4\}"),
    (lambda: as_network(models.MLP(), HEADS), 3, r"\{'source_head': 3, 'target_head': 2\}.*\{'classifier': 3\}"),
    (lambda: Functions(), "three", "num_classes='three'"),
  ],
)
def test_what_as_network_refuses(make, num_classes, message):
  with pytest.raises(ValueError, match=message):
    as_network(make(), num_classes)
