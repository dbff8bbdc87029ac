import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from soseleto_jax import models
from soseleto_jax.models.function_network import FunctionNetwork
from soseleto_jax.models.network import LinenNetwork, as_network
from soseleto_jax.models.nnx_network import NnxNetwork, WholeNnxNetwork
from tests import problems
from tests.models import nets
from tests.models.nets import HEADS, KEY, X

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
  ours, linen = nets.make("nnx", num_classes, norm=True), nets.make("linen", num_classes, norm=True)
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
  network, params, state = nets.start(kind, norm=True)
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
  network, params, state = nets.start(kind, dropout=0.5)
  assert state is None
  assert network.apply(params, None, X, train=True, rng=KEY)[1] is None
  assert network.apply(params, None, X)[1] is None


@ALL
def test_dropout_differs_by_key_and_not_in_evaluation(kind):
  network, params, state = nets.start(kind, dropout=0.5)

  @functools.partial(problems.jit, static_argnames="train")
  def logits(seed, train):
    return network.apply(params, state, X, train=train, rng=jax.random.key(seed))[0]

  first, again, other = (logits(seed, train=True) for seed in (0, 0, 1))
  problems.assert_same_bits(first, again)
  assert not np.allclose(first, other, atol=1e-3)
  problems.assert_same_bits(logits(0, train=False), logits(1, train=False))


@ALL
def test_transformations(kind):
  """Under jit, grad, vmap and jvp, without a tracer that leaks or a program that is traced twice."""
  network, params, _ = nets.start(kind, dropout=0.5)
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
  network, params, state = nets.start(kind, norm=True)
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
  network, params, _ = nets.start(kind)
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
  network, params, state = nets.start(kind, norm=True)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

  def moved(params, state, x):
    state = network.apply(params, state, x, train=True, rng=KEY)[1]
    return jax.lax.pmean(state, "data")

  sharded = problems.jit(jax.shard_map(moved, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P()))
  each = [network.apply(params, state, x, train=True, rng=KEY)[1] for x in np.split(np.repeat(X, 2, axis=0), 8)]
  expected = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0), *each)
  problems.assert_close(sharded(params, state, np.repeat(X, 2, axis=0)), expected)


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
    network = nets.make(kind, num_classes)
    params, state = network.init(KEY, X)
    with pytest.raises(ValueError, match=message):
      network.apply(params, state, X, head=head)


def test_features_that_a_network_does_not_tell():
  network = nets.make("functions")
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
  assert isinstance(as_network(nets.NnxNet(rngs=nnx.Rngs(0)), 3), NnxNetwork)
  assert isinstance(as_network(nets.NnxNet(rngs=nnx.Rngs(0))), WholeNnxNetwork)
  assert isinstance(as_network(nets.Functions(), 3), FunctionNetwork)

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
    (lambda: nets.LinenNet, 3, r"network=LinenNet is a class.*LinenNet\("),
    (lambda: nets.NnxNet, 3, r"network=NnxNet is a class.*NnxNet\("),
    (lambda: nets.NnxNet(rngs=nnx.Rngs(0)), 0, "num_classes=0"),
    (lambda: nets.NnxNet(rngs=nnx.Rngs(0)), {"source": 3}, "num_classes=.*'target'"),
    (lambda: models.get_model("mlp", 3), 4, r"classifiers \{'classifier': 3\}.*\{'classifier': 4\}"),
    (lambda: as_network(models.MLP(), HEADS), 3, r"\{'source_head': 3, 'target_head': 2\}.*\{'classifier': 3\}"),
    (lambda: nets.Functions(), "three", "num_classes='three'"),
  ],
)
def test_what_as_network_refuses(make, num_classes, message):
  with pytest.raises(ValueError, match=message):
    as_network(make(), num_classes)
