"""A transformer that sees no byte before it has predicted it."""

import jax
import numpy as np
import pytest
from flax import nnx

from soseleto_jax.models.byte_transformer import ByteTransformer
from soseleto_jax.models.network import as_network
from tests import problems

X = np.random.default_rng(0).integers(0, 256, (3, 6), np.uint8)


def make(**options):
  return as_network(ByteTransformer(8, 12, 2, 3, **options, rngs=nnx.Rngs(0)))


def test_no_byte_changes_what_is_predicted_before_it():
  network = make()
  params, state = network.init(jax.random.key(0), X)
  apply = problems.jit(lambda x: network.apply(params, state, x)[0])
  logits, other = apply(X), X.copy()
  other[:, 3] += 1
  changed = apply(other)
  assert logits.shape == (3, 6, 256) and state is None
  np.testing.assert_array_equal(logits[:, :3], changed[:, :3])
  assert np.abs(logits[:, 3:] - changed[:, 3:]).min(axis=(0, 2)).max() > 0


def test_it_tells_places_apart():
  network = make()
  params, state = network.init(jax.random.key(0), X)
  logits = np.asarray(problems.jit(lambda x: network.apply(params, state, x)[0])(np.zeros_like(X)))
  assert np.abs(np.diff(logits, axis=1)).max(axis=(0, 2)).min() > 1e-3


def test_dropout_draws_in_training_alone():
  network = make(dropout=0.5)
  params, state = network.init(jax.random.key(0), X)
  apply = problems.jit(lambda key: network.apply(params, state, X, train=True, rng=key)[0])
  one, two = (apply(jax.random.key(seed)) for seed in (1, 2))
  assert np.abs(one - two).max() > 0
  np.testing.assert_array_equal(*(network.apply(params, state, X)[0] for _ in range(2)))


def test_width_that_heads_do_not_divide():
  with pytest.raises(ValueError, match="width=12 is no multiple of heads=5"):
    ByteTransformer(width=12, heads=5, rngs=nnx.Rngs(0))
