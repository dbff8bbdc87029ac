import numpy as np
import pytest

from soseleto_jax.data import synthetic


def test_figure_1_set():
  sets = synthetic.make(0)
  assert {name: len(part["x"]) for name, part in sets.items()} == {
    "source": 500,
    "target": 50,
    "validation": 0,
    "test": 50,
  }
  for part in sets.values():
    assert part["x"].dtype == np.float32 and part["label"].dtype == np.int32
    assert part["x"].shape[1:] == (2,) and (np.abs(part["x"]) <= 1).all()
  for part, key in [("source", "true_label"), ("target", "label"), ("test", "label")]:
    np.testing.assert_array_equal(sets[part][key], sets[part]["x"][:, 0] > 0)


def test_points_fill_the_square():
  x = synthetic.make(0, num_source=10_000)["source"]["x"]
  counts, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=4, range=[[-1, 1]] * 2)
  assert counts.sum() == 10_000 and np.abs(counts - 625).max() < 110  # 4.5 standard deviations


def test_flips_are_drawn_with_replacement_and_stay():
  wrong = [
    np.count_nonzero(part["label"] != part["true_label"])
    for part in (synthetic.make(seed)["source"] for seed in range(200))
  ]
  # 500 (1 - (1 - 1/500)^100) = 90.7; drawing a point twice does not flip it back (that gives 82.4).
  assert abs(np.mean(wrong) - 90.7) < 1
  assert max(wrong) <= 100


@pytest.mark.parametrize(("num_flips", "expected"), [(0, 0), (1, 1)])
def test_number_of_flips(num_flips, expected):
  source = synthetic.make(0, num_flips=num_flips)["source"]
  assert np.count_nonzero(source["label"] != source["true_label"]) == expected


def test_parts_have_draws_of_their_own():
  small, large = synthetic.make(3), synthetic.make(3, num_target=7, num_validation=9)
  np.testing.assert_array_equal(small["source"]["x"], large["source"]["x"])
  np.testing.assert_array_equal(small["test"]["x"], large["test"]["x"])
  np.testing.assert_array_equal(small["target"]["x"][:7], large["target"]["x"])
  assert len(large["validation"]["x"]) == 9
  assert not np.array_equal(synthetic.make(4)["source"]["x"], small["source"]["x"])
