import numpy as np
import pytest

from soseleto_jax.data import noise

LABELS = np.arange(4000) % 10


def corrupted(kind, rate=0.3, seed=0, **kwargs):
  return noise.corrupt(LABELS, 10, kind, rate, seed, **kwargs)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.50012, 1.0])
@pytest.mark.parametrize("kind", ["symmetric", "pair_flip"])
def test_exactly_the_rate_is_wrong(kind, rate):
  noisy = corrupted(kind, rate)
  assert noisy.dtype == np.int32
  assert np.count_nonzero(noisy != LABELS) == round(rate * len(LABELS))
  assert noisy.min() >= 0 and noisy.max() < 10


def test_symmetric_reaches_every_other_class_and_never_its_own():
  noisy = corrupted("symmetric", 1.0)
  shift = np.bincount((noisy - LABELS) % 10, minlength=10)
  assert shift[0] == 0
  assert np.abs(shift[1:] - 4000 / 9).max() < 90  # 4.5 standard deviations


def test_uniform_may_keep_the_class():
  noisy = corrupted("uniform", 1.0)
  kept = np.count_nonzero(noisy == LABELS)
  assert 320 < kept < 480  # a tenth of 4000, 4 standard deviations
  assert np.count_nonzero(corrupted("uniform", 0.3) != LABELS) <= 1200


def test_pair_flip_goes_to_the_next_class():
  noisy = corrupted("pair_flip")
  changed = noisy != LABELS
  np.testing.assert_array_equal(noisy[changed], (LABELS[changed] + 1) % 10)
  assert 0 in noisy[LABELS == 9]


@pytest.mark.parametrize("kind", ["symmetric", "pair_flip"])
def test_low_rate_flips_are_among_those_of_a_higher_rate(kind):
  low, high = corrupted(kind, 0.2), corrupted(kind, 0.5)
  changed = low != LABELS
  np.testing.assert_array_equal(low[changed], high[changed])


def test_matrix_rows_are_the_label_frequencies():
  labels = np.repeat([0, 1, 2], 20_000)
  matrix = [[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]]
  noisy = noise.corrupt(labels, 3, "matrix", 0.0, 0, matrix)
  found = [np.bincount(noisy[labels == c], minlength=3) / 20_000 for c in range(3)]
  np.testing.assert_allclose(found, matrix, atol=0.015)
  assert found[0][2] == 0 and found[2][2] == 1


@pytest.mark.parametrize(("u", "label"), [(0.0, 1), (0.2, 2), (1 - 2.0**-53, 2)])
def test_matrix_never_draws_what_has_no_probability(monkeypatch, u, label):
  monkeypatch.setattr(noise.draws, "uniform", lambda count, *_: np.full(count, u))
  row = [0.0, 0.1, 0.9, 0.0]
  assert noise.corrupt(np.array([3]), 4, "matrix", 0.0, 0, [row] * 4).tolist() == [label]


def test_none_copies_and_input_is_left_alone():
  labels = LABELS.astype(np.int32)
  same = noise.corrupt(labels, 10, "none", 0.0, 0)
  same[0] = 9
  noise.corrupt(labels, 10, "symmetric", 1.0, 0)
  np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
  ("kind", "kwargs"),
  [
    ("symmetric", {}),
    ("uniform", {}),
    ("pair_flip", {}),
    ("matrix", {"matrix": np.full((10, 10), 0.1)}),
  ],
)
def test_depends_on_the_seed_alone(kind, kwargs):
  first = corrupted(kind, **kwargs)
  np.testing.assert_array_equal(first, corrupted(kind, **kwargs))
  assert not np.array_equal(first, corrupted(kind, seed=1, **kwargs))


def test_golden_values():
  labels = np.arange(12) % 4
  assert noise.corrupt(labels, 4, "symmetric", 0.5, 0).tolist() == [
    0,
    0,
    2,
    1,
    2,
    1,
    1,
    3,
    3,
    2,
    2,
    3,
  ]
  assert noise.corrupt(labels, 4, "matrix", 0, 0, np.full((4, 4), 0.25)).tolist() == [
    2,
    0,
    0,
    3,
    0,
    3,
    2,
    0,
    0,
    3,
    1,
    1,
  ]


@pytest.mark.parametrize(
  ("kind", "rate", "matrix", "message"),
  [
    ("symetric", 0.1, None, "did you mean 'symmetric'"),
    ("symmetric", 1.5, None, "noise_rate=1.5"),
    ("uniform", -0.1, None, "noise_rate=-0.1"),
    ("pair_flip", float("nan"), None, "noise_rate=nan"),
    ("matrix", 0, None, r"\[3, 3\]"),
    ("matrix", 0, np.eye(4), r"\(4, 4\)"),
    ("matrix", 0, [[1, 0, 0], [0.5, 0.6, 0], [0, 0, 1]], "row 1 sums to 1.1"),
    ("matrix", 0, [[1, 0, 0], [0, 1, 0], [-0.5, 1.5, 0]], "row 2 has an entry"),
    ("matrix", 0, [[1, 0, 0], [0, np.nan, 0], [0, 0, 1]], "row 1 has an entry"),
  ],
)
def test_wrong_arguments(kind, rate, matrix, message):
  with pytest.raises(ValueError, match=message):
    noise.corrupt(np.array([0, 1, 2]), 3, kind, rate, 0, matrix)


@pytest.mark.parametrize(("labels", "message"), [([0, 3], "is outside the 3 classes"), ([0.0, 1.0], "give integers")])
def test_wrong_labels(labels, message):
  with pytest.raises(ValueError, match=message):
    noise.corrupt(np.array(labels), 3, "symmetric", 0.5, 0)


def test_one_class_has_no_other():
  with pytest.raises(ValueError, match="at least 2 classes"):
    noise.corrupt(np.zeros(3, int), 1, "symmetric", 0.5, 0)
  noise.corrupt(np.zeros(3, int), 1, "none", 0.0, 0)
