import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.models.network import as_network
from tests import problems
from tests.models.nets import HEADS, KEY, X


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


def test_two_heads_and_features():
  network = as_network(TwoHeads(), HEADS)
  params, _ = network.init(KEY, X)
  assert network.apply(params, None, X, head="source")[0].shape == (8, 3)
  assert network.apply(params, None, X, head="target", train=True, rng=KEY)[0].shape == (8, 2)
  np.testing.assert_allclose(network.features(params, None, X)[0], X + 1)
  with pytest.raises(ValueError, match=r"shape \(8, 2\) for head='target'.*5 classes.*\(8, 5\)"):
    as_network(TwoHeads(), {"source": 3, "target": 5}).init(KEY, X)
  assert as_network(TwoHeads()).init(KEY, X)[1] is None  # nothing to check with
