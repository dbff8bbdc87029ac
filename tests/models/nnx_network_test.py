import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from soseleto_jax.models.network import as_network
from soseleto_jax.models.nnx_network import NnxNetwork
from tests import problems
from tests.models import nets
from tests.models.nets import HEADS, KEY, X


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
def test_streams_are_apart_and_state_is_what_was_there_at_the_start():
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


def test_layers_stacked_by_vmap_draw_each_for_itself():
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


def test_module_stays_as_it_is():
  module, twin = (nets.NnxNet(norm=True, dropout=0.5, rngs=nnx.Rngs(1)) for _ in range(2))
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
def test_intermediates_are_dropped():
  module = Sowing(rngs=nnx.Rngs(0))
  module(X)  # leaves them
  network = as_network(module, 3)
  params, state = network.init(KEY, X)
  assert state is None and set(params["representation"]) == {"dense"}
  assert network.apply(params, None, X[:3], train=True)[1] is None


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


def test_parts_that_are_frozen_or_adapted():
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


def test_heads_start_apart_from_the_module_of_the_same_seed():
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


def test_says_how_its_heads_start():
  module = nets.NnxNet(rngs=nnx.Rngs(0))
  type(module).head_kernel_init = staticmethod(nn.initializers.constant(2.0))
  try:
    params, _ = as_network(module, 3).init(KEY, X)
  finally:
    del type(module).head_kernel_init
  assert np.all(params["classifier"]["kernel"] == 2)


def test_call_with_rngs():
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


def test_with_arrays_of_another_network():
  network = nets.make("nnx", norm=True)
  params, state = network.init(KEY, X)
  with pytest.raises(ValueError, match="model_state.*init"):
    network.apply(params, None, X)
  # As many arrays, under other names.
  block = params["representation"]["blocks"][0]
  wrong = {**params, "representation": {**params["representation"], "blocks": {0: block, 2: block}}}
  with pytest.raises(ValueError, match=r"params has not the arrays"):
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


def test_a_whole_module_gives_the_loss_what_it_returns():
  """Parameters and state have its own paths, and the state changes in training alone."""

  class Sequences(nnx.Module):
    def __init__(self, *, rngs):
      self.linear, self.norm = nnx.Linear(2, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x, *, head):
      return (self.norm(self.linear(x)) * (2 if head == "source" else 1)).astype(jnp.bfloat16)

  network = as_network(Sequences(rngs=nnx.Rngs(0)))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 2)), jnp.float32)
  params, state = network.init(KEY, x)
  assert set(params) == {"linear", "norm"} and set(state) == {"norm"}
  outputs, new_state = network.apply(params, state, x, head="target", train=True, rng=KEY)
  assert outputs.shape == (3, 5, 4) and outputs.dtype == jnp.float32
  assert np.abs(new_state["norm"]["mean"]).max() > 0 and not np.any(state["norm"]["mean"])
  twice, same = network.apply(params, state, x, head="source")
  assert same is state
  problems.assert_close(twice, 2 * network.apply(params, state, x, head="target")[0])
  with pytest.raises(ValueError, match="needs the features of a network"):
    network.features(params, state, x)
