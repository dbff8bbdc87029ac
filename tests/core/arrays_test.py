import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import arrays, sharding


@pytest.mark.parametrize("rows, at_once", [(64, 1000), (64, 16), (64, 24), (8, 1), (72, 40)])
def test_an_array_is_gathered_in_pieces(monkeypatch, rows, at_once):
  """Pieces that divide the shards and that do not."""
  monkeypatch.setattr(arrays, "_GATHERED_AT_ONCE", at_once)
  array = np.random.default_rng(0).normal(size=rows).astype(np.float32)
  split = arrays.put(array, NamedSharding(sharding.make_mesh(), P("data")))
  np.testing.assert_array_equal(arrays.gather_in_pieces(split), array)
  np.testing.assert_array_equal(arrays.gather(split), array)


def test_no_device_holds_more_of_a_split_array_than_a_piece(monkeypatch):
  monkeypatch.setattr(arrays, "_GATHERED_AT_ONCE", 16)
  counts = []
  piece = arrays._piece
  monkeypatch.setattr(arrays, "_piece", lambda mesh, axis, count: counts.append(count) or piece(mesh, axis, count))
  split = arrays.put(np.arange(64.0, dtype=np.float32), NamedSharding(sharding.make_mesh(), P("data")))
  np.testing.assert_array_equal(arrays.gather_in_pieces(split), np.arange(64))
  assert counts == [2] * 4  # of each of 8 devices


def test_put_places_and_copies():
  mesh = sharding.make_mesh(jax.devices("cpu")[:4])
  split, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
  tree = {"a": np.arange(8), "b": (jnp.ones((4, 2)),)}
  placed = arrays.put(tree, split)
  assert all(leaf.sharding == split for leaf in jax.tree.leaves(placed))
  assert [shard.data.tolist() for shard in placed["a"].addressable_shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert arrays.put(tree, whole)["b"][0].is_fully_replicated
  assert isinstance(arrays.gather(placed["a"]), np.ndarray)


@pytest.mark.parametrize("spec", [P("data"), P()])
def test_a_copy_lies_where_its_original_does_and_outlives_it(spec):
  original = arrays.put(np.arange(16.0, dtype=np.float32), NamedSharding(sharding.make_mesh(), spec))
  copy = arrays.copied(original)
  assert copy.sharding == original.sharding
  jax.jit(jnp.negative, donate_argnums=0)(original)
  original.delete()
  np.testing.assert_array_equal(copy, np.arange(16))
  assert jax.jit(arrays.copied)(copy).shape == (16,)
  assert copy.committed and not arrays.copied(jnp.zeros(3)).committed
