"""Tests of soseleto_jax.metrics."""

import csv
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


def test_source_weights_lists_lowest_first_and_ties_by_index():
  columns = source_weights.source_weights(
    np.array([0.5, 0.0, 1.0, 0.0]), np.array([3, 4, 5, 6]), np.array([3, 4, 0, 1])
  )
  assert list(columns) == ["index", "label", "alpha", "rank", "true_label"]
  assert columns["index"].tolist() == [1, 3, 0, 2]
  assert columns["label"].tolist() == [4, 6, 3, 5]
  assert columns["alpha"].tolist() == [0.0, 0.0, 0.5, 1.0]
  assert columns["rank"].tolist() == [0, 1, 2, 3]
  assert columns["true_label"].tolist() == [4, 1, 3, 0]
  tied = source_weights.source_weights(np.tile([1.0, 0.0], 100), np.zeros(200))
  assert tied["index"].tolist() == [*range(1, 200, 2), *range(0, 200, 2)]


@pytest.mark.parametrize("with_true_label", [False, True])
def test_csv_gives_back_every_weight_exactly(tmp_path, with_true_label):
  rng = np.random.default_rng(1)
  alpha = np.concatenate([rng.random(500), 10 ** rng.uniform(-40, 0, 500), [0, 1, 0.1]])
  alpha = alpha.astype(np.float32)
  label = rng.integers(0, 10, len(alpha))
  true_label = rng.integers(0, 10, len(alpha)) if with_true_label else None
  path = tmp_path / "source_weights.csv"
  path.write_text("old")
  source_weights.write_source_weights(path, alpha, label, true_label)
  with path.open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(alpha)
  index = np.array([int(row["index"]) for row in rows])
  assert sorted(index) == list(range(len(alpha)))
  np.testing.assert_array_equal(np.float32([float(row["alpha"]) for row in rows]), alpha[index])
  np.testing.assert_array_equal([int(row["label"]) for row in rows], label[index])
  assert [int(row["rank"]) for row in rows] == list(range(len(alpha)))
  assert ("true_label" in rows[0]) == with_true_label
  if with_true_label:
    np.testing.assert_array_equal([int(row["true_label"]) for row in rows], true_label[index])
  assert list(tmp_path.iterdir()) == [path]


def test_labels_of_another_length_are_refused(tmp_path):
  with pytest.raises(ValueError, match="label has shape"):
    source_weights.write_source_weights(tmp_path / "x.csv", np.zeros(3), np.zeros(2))
