"""The list of the source's examples: its order and its columns."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from soseleto_jax.report import source_list
from soseleto_jax.report.source_list import SourceList, Suggestions

HEADER = [
  "rank", "index", "row", "file", "label", "label_name", "alpha", "given_probability", "suggested", "suggested_name",
  "suggested_probability",
]  # fmt: skip
NAMES = ("NA", 'a "cat", black', "null")  # what readers of CSV like to take for nothing


def make_list(count=50, *, known=True, files=True, suggestions=True, seed=0):
  rng = np.random.default_rng(seed)
  alpha = np.where(rng.random(count) < 0.4, 0, 10 ** rng.uniform(-40, 0, count)).astype(np.float32)
  numbers = [f"web/{i}, \u00e9.jpg" for i in range(count)]
  said = Suggestions(rng.random(count, np.float32), rng.integers(0, 3, count, np.int32), rng.random(count, np.float32))
  return SourceList(
    alpha,
    rng.integers(0, 3, count, np.int32),
    rng.permutation(2 * count)[:count].astype(np.int32),
    np.array(numbers, np.dtypes.StringDType()) if files else None,
    said if suggestions else None,
    rng.integers(0, 3, count, np.int32) if known else None,
    NAMES,
  )


def test_the_order_is_by_the_places_by_alpha_and_by_the_probability_of_the_given_label():
  alpha = np.float32([0.5, 0, 1, 0, 0, 0])
  said = Suggestions(np.float32([0.1, 0.9, 0.1, 0.2, 0.9, 0.3]), np.zeros(6, np.int32), np.ones(6, np.float32))
  label, wrong = np.arange(6), np.array([1, 0, 0, 1, 0, 1], bool)
  listed = SourceList(alpha, label, suggestions=said, known_wrong=wrong)
  summed = stats.rankdata(alpha) + stats.rankdata(said.given_probability)
  np.testing.assert_allclose(listed.trust - listed.trust[0], summed - summed[0])
  assert listed.order.tolist() == [3, 0, 5, 2, 1, 4] and listed.auc == 1
  by_alpha = SourceList(alpha, label, known_wrong=wrong)
  assert by_alpha.order.tolist() == [1, 3, 4, 5, 0, 2] and by_alpha.auc == pytest.approx(5 / 9)
  assert SourceList(alpha, label).auc is None and SourceList(alpha, label, known_wrong=wrong | True).auc is None


def test_every_column_belongs_to_its_example():
  listed = make_list()
  frame = listed.head()
  assert list(frame.columns) == [*HEADER, "true_label"] and len(frame) == 50
  pd.testing.assert_frame_equal(frame.head(7), listed.head(7))
  index = frame["index"]
  assert frame["rank"].tolist() == list(range(50)) and sorted(index) == list(range(50))
  columns = {"row": listed.row, "file": listed.file, "label": listed.label, "alpha": listed.alpha,
             "true_label": listed.true_label, **vars(listed.suggestions)}  # fmt: skip
  for name, column in columns.items():
    assert frame[name].tolist() == column[index].tolist(), name
  assert frame["label_name"].tolist() == [NAMES[label] for label in listed.label[index]]
  assert frame["suggested_name"].tolist() == [NAMES[label] for label in listed.suggestions.suggested[index]]


def test_a_label_without_a_name_shows_its_number():
  assert SourceList(np.zeros(3), np.array([0, 2, 1]), class_names=["a", "b"]).head()["label_name"].tolist() == [
    "a", "2", "b",
  ]  # fmt: skip


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "pandas", None)
  with pytest.raises(ImportError, match="pip install pandas"):
    make_list().head()


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"alpha": np.zeros(0)}, "alpha has shape"),
    ({"alpha": np.array([0, np.nan])}, r"alpha\[1\]=nan"),
    ({"label": np.zeros(3)}, "label has shape"),
    ({"file": np.array(["a"])}, "file has shape"),
    ({"suggestions": Suggestions(np.zeros(1), np.zeros(2), np.zeros(2))}, "given_probability has shape"),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    SourceList(**{"alpha": np.zeros(2), "label": np.zeros(2, int)} | fields)


@pytest.mark.parametrize("n", [-1, 1.5, True])
def test_a_number_of_rows_that_is_none(n):
  with pytest.raises(ValueError, match="n="):
    make_list().head(n)


def test_what_was_left_out():
  assert (
    source_list.left_out_line({"of other classes": 1234, "unreadable": 1}) == "1,234 of other classes; 1 unreadable"
  )
