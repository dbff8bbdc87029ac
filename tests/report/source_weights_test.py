"""Detection and retention by the weights."""

import itertools

import numpy as np
import pytest

from soseleto_jax.report import source_weights


@pytest.mark.parametrize(
  "alpha, wrong, auc, average_precision",
  [
    ([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1], 1.0, 1.0),
    ([0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], 0.0, (1 / 3 + 2 / 4) / 2),
    # Pairs (wrong, right): (.1, .3) and (.1, .9) won, (.5, .3) lost, (.5, .9) won.
    ([0.1, 0.3, 0.5, 0.9], [1, 0, 1, 0], 0.75, (1 / 1 + 2 / 3) / 2),
    # All tied: chance.
    ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 0.5, 0.25),
    # 1 - alpha is 1 for both in float32, alpha itself differs.
    ([1e-10, 1e-9], [1, 0], 1.0, 1.0),
  ],
)
def test_detection_scores(alpha, wrong, auc, average_precision):
  wrong = np.array(wrong, bool)
  result = source_weights.detection(np.float32(alpha), wrong)
  assert result["auc"] == pytest.approx(auc)
  assert result["average_precision"] == pytest.approx(average_precision)
  assert result["alpha_right"] == pytest.approx(np.mean(np.array(alpha)[~wrong]))
  assert result["alpha_wrong"] == pytest.approx(np.mean(np.array(alpha)[wrong]))
  assert result["wrong_fraction"] == pytest.approx(wrong.mean())
  assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize(
  "wrong, keys",
  [
    ([True, True], {"wrong_fraction", "alpha_wrong"}),
    ([False, False], {"wrong_fraction", "alpha_right"}),
  ],
)
def test_detection_leaves_out_what_is_undefined(wrong, keys):
  assert set(source_weights.detection(np.array([0.2, 0.4]), np.array(wrong))) == keys


@pytest.mark.parametrize(
  "alpha, wrong, message",
  [
    ([], [], "alpha has shape"),
    ([[0.5]], [[True]], "alpha has shape"),
    ([0.5, np.nan], [True, False], r"alpha\[1\]=nan"),
    ([0.5, 0.4], [True], "wrong has shape"),
  ],
)
def test_bad_input_is_refused(alpha, wrong, message):
  for function in (source_weights.detection, source_weights.retention_curve):
    with pytest.raises(ValueError, match=message):
      function(np.array(alpha), np.array(wrong))


@pytest.mark.parametrize(
  "alpha, wrong",
  [
    ([0.9, 0.1, 0.5, 0.5, 0.5, 0.1], [1, 0, 1, 0, 0, 1]),
    ([0.5] * 5, [1, 1, 0, 0, 0]),
    ([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 1]),
  ],
)
def test_retention_is_the_expectation_over_orders_of_ties(alpha, wrong):
  count = len(alpha)
  orders = [
    order
    for order in itertools.permutations(range(count))
    if all(alpha[i] >= alpha[j] for i, j in itertools.pairwise(order))
  ]
  expected = [
    np.mean([np.mean([wrong[row] for row in order[:kept]]) for order in orders]) for kept in range(1, count + 1)
  ]
  fraction, actual = source_weights.retention_curve(np.array(alpha), np.array(wrong), points=count + 1)
  np.testing.assert_allclose(fraction, np.arange(count + 1) / count)
  np.testing.assert_allclose(actual[1:], expected)
  # The limit at no examples kept: the first example's expectation.
  assert actual[0] == pytest.approx(expected[0])


def test_retention_ends_at_the_fraction_of_all():
  rng = np.random.default_rng(0)
  alpha, wrong = rng.random(1000), rng.random(1000) < 0.3
  fraction, remaining = source_weights.retention_curve(alpha, wrong)
  assert fraction.shape == remaining.shape == (101,)
  assert remaining[-1] == wrong.mean()
  with pytest.raises(ValueError, match="points=1"):
    source_weights.retention_curve(alpha, wrong, points=1)
