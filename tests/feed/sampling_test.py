import numpy as np
import pytest

from soseleto_jax.feed import sampling

LABELS = np.repeat([0, 1, 2], [5, 9, 6])


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (12, 4), (5, 5), (7, 1)])
def test_epoch_serves_each_example_once(n, batch):
  sampler = sampling.EpochSampler(n, batch, seed=0)
  assert sampler.steps_per_epoch == -(-n // batch)
  orders = []
  for epoch in range(3):
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    batches = [sampler.batch(step) for step in steps]
    for index, mask in batches:
      assert index.shape == mask.shape == (batch,)
      assert index.dtype == np.int32 and mask.dtype == bool
      assert len(set(index)) == batch
    assert all(mask.all() for _, mask in batches[:-1])
    orders.append(np.concatenate([index[mask] for index, mask in batches]))
    np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(n))
  assert not np.array_equal(orders[0], orders[1])


def test_a_short_last_batch_is_filled_with_what_the_epoch_began_with():
  """Masked: for layers that look at a whole batch."""
  sampler = sampling.EpochSampler(10, 4, seed=0)
  index, mask = sampler.batch(2)
  assert mask.tolist() == [True, True, False, False]
  np.testing.assert_array_equal(index[2:], sampler.batch(0)[0][:2])


@pytest.mark.parametrize(
  "make", [lambda: sampling.EpochSampler(50, 6, 0), lambda: sampling.TargetSampler(LABELS, 6, 0)]
)
@pytest.mark.parametrize("multiple", [1, 3, 4, 8])
def test_batches_are_filled_up_to_a_multiple_of_the_devices(make, multiple):
  """By the examples that come next, under the mask; in an epoch they are others than those of the batch."""
  sampler = make()
  for step in range(3):
    index, mask = sampler.batch(step, multiple)
    assert len(index) == len(mask) == -(-6 // multiple) * multiple and index.dtype == np.int32
    following = np.concatenate([sampler.batch(step + offset)[0] for offset in range(2)])
    np.testing.assert_array_equal(index, following[: len(index)])
    assert mask.tolist() == [True] * 6 + [False] * (len(index) - 6)


def test_fewer_examples_than_a_filled_batch_has_rows():
  index, mask = sampling.EpochSampler(3, 3, 0).batch(0, 8)
  assert sorted(index[:3]) == [0, 1, 2] and mask.tolist() == [True] * 3 + [False] * 5
  np.testing.assert_array_equal(index[3:6], index[:3])


SAMPLERS = {
  "epoch": lambda seed: sampling.EpochSampler(20, 6, seed),
  "target": lambda seed: sampling.TargetSampler(LABELS, 6, seed),
  "balanced": lambda seed: sampling.TargetSampler(LABELS, 7, seed, balanced=True),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_pure_function_of_seed_and_step(make):
  used = make(0)
  in_order = [used.batch(step) for step in range(12)]
  for step in [7, 0, 11, 3]:
    for sampler in (used, make(0)):
      np.testing.assert_array_equal(sampler.batch(step), in_order[step])
  other = [make(1).batch(step)[0] for step in range(3)]
  assert not np.array_equal(other, [index for index, _ in in_order[:3]])


def test_names_give_samplers_their_own_orders():
  one, two = (sampling.EpochSampler(50, 50, 0, name).batch(0)[0] for name in ("source", "target"))
  assert not np.array_equal(one, two)


@pytest.mark.parametrize("batch", [1, 7, 20])
def test_target_batches_are_full_and_passes_serve_each_example_once(batch):
  sampler = sampling.TargetSampler(LABELS, batch, seed=0)
  index, mask = zip(*(sampler.batch(step) for step in range(20)), strict=True)
  assert np.all(mask) and index[0].dtype == np.int32
  stream = np.concatenate(index)[: batch * 20 // 20 * 20].reshape(-1, 20)
  for one_pass in stream:
    np.testing.assert_array_equal(np.sort(one_pass), np.arange(20))


def test_balanced_batches_serve_the_classes_in_turn():
  sampler = sampling.TargetSampler(LABELS, 7, seed=0, balanced=True)
  stream = np.concatenate([sampler.batch(step)[0] for step in range(30)])
  np.testing.assert_array_equal(LABELS[stream], np.arange(210) % 3)
  for c, size in enumerate([5, 9, 6]):
    of_class = stream[LABELS[stream] == c]
    for one_pass in of_class[: len(of_class) // size * size].reshape(-1, size):
      np.testing.assert_array_equal(np.sort(one_pass), np.flatnonzero(LABELS == c))


def test_balanced_skips_classes_that_do_not_occur():
  sampler = sampling.TargetSampler(np.array([3, 1, 3, 1]), 4, seed=0, balanced=True)
  index, _ = sampler.batch(0)
  assert sorted(index) == [0, 1, 2, 3]


def test_golden_batches():
  assert sampling.EpochSampler(10, 4, 0).batch(3)[0].tolist() == [9, 3, 7, 5]
  assert sampling.TargetSampler(LABELS, 4, 0).batch(5)[0].tolist() == [19, 17, 13, 14]
  assert sampling.TargetSampler(LABELS, 4, 0, True).batch(5)[0].tolist() == [16, 0, 9, 15]


@pytest.mark.parametrize("batch", [0, 21])
def test_impossible_batch_sizes(batch):
  with pytest.raises(ValueError, match=f"config.batch_size={batch} .*1..20"):
    sampling.EpochSampler(20, batch, 0)
  with pytest.raises(ValueError, match=f"config.target_batch_size={batch} .*1..20"):
    sampling.TargetSampler(LABELS, batch, 0)
