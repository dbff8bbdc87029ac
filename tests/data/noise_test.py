import numpy as np
import pytest

from soseleto_jax.data import lazy, noise

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


PAIRS = ((3, 5), (5, 3), (9, 1))


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_asymmetric_takes_the_share_of_the_paired_classes(rate):
  noisy = corrupted("asymmetric", rate, pairs=PAIRS)
  changed = noisy != LABELS
  assert noisy.dtype == np.int32
  assert np.count_nonzero(changed) == round(rate * 1200)
  assert set(zip(LABELS[changed], noisy[changed], strict=True)) == (set(PAIRS) if rate else set())


def test_pairs_of_all_classes_are_pair_flip():
  np.testing.assert_array_equal(
    corrupted("asymmetric", pairs=[(c, (c + 1) % 10) for c in range(10)]), corrupted("pair_flip")
  )


def fields(x):
  """Images of 16 x 16 x 3 of which every field of 2 x 2 has a mean of one row of x `[N, 64 * 3]`."""
  x = x.reshape(-1, 8, 8, 3).repeat(2, axis=1).repeat(2, axis=2)
  checkered = np.indices((16, 16)).sum(axis=0)[:, :, None] % 2 * 2 - 1
  size = np.arange(len(x)).reshape(-1, 1, 1, 1)
  return x + size * checkered  # of mean 0 in every field


def weak(kind=np.asarray, rate=1.0, num_images=40, seed=0):
  """Labels by an annotator of 400 examples in 4 classes that overlap, and their right labels."""
  rng = np.random.default_rng(0)
  right = np.arange(400) % 4
  x = rng.normal(size=(4, 192))[right] + 4 * rng.normal(size=(400, 192))
  return noise.corrupt(right, 4, "instance", rate, seed, x=kind(x), num_images=num_images), right


def test_instance_is_a_classifier_of_few_examples():
  noisy, right = weak()
  wrong = noisy != right
  assert noisy.dtype == np.int32 and 0.1 < wrong.mean() < 0.7
  assert (weak(num_images=380)[0] != right).mean() < wrong.mean() / 2
  own = noise.draws.permutation(400, 0, "noise", "annotator")[:40]
  assert not wrong[own].any()  # it knows what it learned from
  assert not np.array_equal(noisy, weak(seed=1)[0])


def test_instance_labels_are_those_of_the_optimum():
  """Where the gradient of the regularised loss vanishes, by another optimizer."""
  from scipy.optimize import minimize

  noisy, right = weak()
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 192))[right] + 4 * rng.normal(size=(400, 192))
  own = noise.draws.permutation(400, 0, "noise", "annotator")[:40]
  x = (x - x[own].mean(axis=0)) / x[own].std()

  def loss(flat):
    kernel, bias = flat[:-4].reshape(192, 4), flat[-4:]
    logits = x[own] @ kernel + bias
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    error = np.exp(logits - log_sum[:, None]) - np.eye(4)[right[own]]
    gradient = np.concatenate([(x[own].T @ error + kernel).ravel(), error.sum(0)])
    return (log_sum - logits[range(40), right[own]]).sum() + (kernel**2).sum() / 2, gradient

  flat = minimize(loss, np.zeros(193 * 4), jac=True, method="BFGS", options={"gtol": 1e-6}).x
  found = (x @ flat[:-4].reshape(192, 4) + flat[-4:]).argmax(1)
  assert (found == noisy).mean() > 0.99


@pytest.mark.parametrize("kind", [fields, lambda x: lazy.Rows(fields(x))])
def test_the_annotator_sees_means_over_fields(kind):
  np.testing.assert_array_equal(weak(kind)[0], weak()[0])


def test_of_what_the_annotator_gets_wrong_some_is_put_right():
  (every, right), (some, _) = weak(), weak(rate=0.1)
  changed = some != right
  assert np.count_nonzero(changed) == 40
  np.testing.assert_array_equal(some[changed], every[changed])


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


@pytest.mark.parametrize(
  "pairs, message",
  [
    ((), "needs pairs"),
    (((0, 3),), r"noise_pairs has \(0, 3\)"),
    (((0, 1), (0, 2)), r"noise_pairs has \(0, 2\)"),
    (((1, 1),), r"noise_pairs has \(1, 1\)"),
    ((1, 2), "noise_pairs has 1"),
    (((1, 2, 0),), r"noise_pairs has \(1, 2, 0\)"),
  ],
)
def test_pairs_that_are_none(pairs, message):
  with pytest.raises(ValueError, match=message):
    noise.corrupt(np.array([0, 1, 2]), 3, "asymmetric", 0.3, 0, pairs=pairs)


@pytest.mark.parametrize(
  "num_images, right, message",
  [
    (0, [0, 1, 2], "noise_images=0: the annotator learns from 2 to 3"),
    (4, [0, 1, 2], "noise_images=4"),
    (3, [1, 1, 1], "of one class"),
  ],
)
def test_annotators_that_cannot_learn(num_images, right, message):
  with pytest.raises(ValueError, match=message):
    noise.corrupt(np.array(right), 3, "instance", 0.3, 0, x=np.eye(3), num_images=num_images)


@pytest.mark.parametrize(("labels", "message"), [([0, 3], "is outside the 3 classes"), ([0.0, 1.0], "give integers")])
def test_wrong_labels(labels, message):
  with pytest.raises(ValueError, match=message):
    noise.corrupt(np.array(labels), 3, "symmetric", 0.5, 0)


def test_one_class_has_no_other():
  with pytest.raises(ValueError, match="at least 2 classes"):
    noise.corrupt(np.zeros(3, int), 1, "symmetric", 0.5, 0)
  noise.corrupt(np.zeros(3, int), 1, "none", 0.0, 0)
