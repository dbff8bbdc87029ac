"""Tables made of records."""

import pytest

from experiments import tables


def record(method, value, seed=0, **conditions):
  return {
      "method": method,
      "conditions": conditions,
      "metrics": {} if value is None else {"test_accuracy": value},
      "config": {"seed": seed},
  }


RECORDS = [
    record("ours", 0.5, noise=0.3),
    record("ours", 0.7, 1, noise=0.3),
    record("ours", 0.1, 1, noise=0.4),
    record("ours", 0.2, 1, noise=0.3, draw=1),
    record("theirs", 0.9, noise=0.3),
    record("ours", None, 2, noise=0.3),
]


def test_values_are_of_one_method_under_one_set_of_conditions():
  assert tables.values_of(RECORDS, "ours", {"noise": 0.3}, "test_accuracy") == [0.5, 0.7]
  assert tables.values_of(RECORDS, "ours", {"noise": 0.4}, "test_accuracy") == [0.1]
  assert tables.values_of(RECORDS, "ours", {}, "test_accuracy") == []
  assert tables.values_of(RECORDS, "theirs", {"noise": 0.3}, "auc") == []
  assert tables.percent(RECORDS, "ours", {"noise": 0.3}, "test_accuracy") == pytest.approx([50, 70])


@pytest.mark.parametrize(
    ("values", "published", "cells"),
    [
        ([50.0, 70.0], 61.04, ["60.0 ± 14.1 (2)", "61.0", "-1.0"]),  # of the sample: sqrt(2 * 10² / 1)
        ([50.0, 60.0, 70.0], 57.0, ["60.0 ± 10.0 (3)", "57.0", "+3.0"]),
        ([70.06], 62.4, ["70.1 (1)", "62.4", "+7.7"]),
        ([70.0], None, ["70.0 (1)", "", ""]),
        ([], 62.38, ["not run", "62.4", ""]),
        ([], None, ["not run", "", ""]),
    ],
)
def test_ours_published_difference(values, published, cells):
  assert tables.against(values, published) == cells


def test_digits():
  assert tables.mean_sd([0.9241, 0.9263], 3) == "0.925 ± 0.002 (2)"


def test_a_file_of_tables(tmp_path):
  table = tables.markdown(["", "a", "b"], [["x", "1", "2"]])
  tables.write(tmp_path / "new" / "t.md", ("First", table), ("Second ± sd", table))
  lines = ["|  | a | b |", "|---|--:|--:|", "| x | 1 | 2 |"]
  expected = ["First:", "", *lines, "", "Second ± sd:", "", *lines, ""]
  assert (tmp_path / "new" / "t.md").read_text(encoding="utf-8").split("\n") == expected
