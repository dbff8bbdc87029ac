"""The files of the list: what comes back from disk, whole or not at all, in little memory."""

import csv
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from soseleto_jax.report import list_files
from tests.report.source_list_test import HEADER, make_list


@pytest.mark.parametrize("known, files, suggestions", [(True, True, True), (False, False, False), (False, True, True)])
@pytest.mark.parametrize("most_rows", [10_000_000, 20])
def test_what_is_written_is_read_back(tmp_path, monkeypatch, known, files, suggestions, most_rows):
  """To the last bit, in pieces, as CSV and above a length as Parquet, of which one only is there."""
  monkeypatch.setattr(list_files, "MOST_ROWS_OF_CSV", most_rows)
  monkeypatch.setattr(list_files, "_PIECE", 7)
  listed = make_list(known=known, files=files, suggestions=suggestions)
  (tmp_path / "source_weights.csv").write_text("old")
  (tmp_path / "source_weights.parquet").write_text("old")
  path = listed.write(tmp_path)
  assert path.suffix == (".csv" if most_rows > 50 else ".parquet") and list_files.find(tmp_path) == path
  assert {file.name for file in tmp_path.iterdir()} == {path.name, "alpha.npy"}
  np.testing.assert_array_equal(np.load(tmp_path / "alpha.npy"), listed.alpha)
  for n in (None, 0, 9, 500):
    pd.testing.assert_frame_equal(list_files.read(path, n), listed.head(n))


def test_the_csv_by_another_reader(tmp_path):
  listed = make_list()
  with listed.write(tmp_path).open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == [*HEADER, "true_label"]
  index = np.array([int(row["index"]) for row in rows])
  np.testing.assert_array_equal(np.float32([float(row["alpha"]) for row in rows]), listed.alpha[index])
  assert [row["file"] for row in rows] == listed.file[index].tolist()


@pytest.mark.parametrize("most_rows", [10_000_000, 20])
def test_the_memory_for_writing_does_not_grow_with_the_list(tmp_path, monkeypatch, most_rows):
  monkeypatch.setattr(list_files, "MOST_ROWS_OF_CSV", most_rows)
  monkeypatch.setattr(list_files, "_PIECE", 1000)
  monkeypatch.setattr(list_files, "_PIECE_OF_PARQUET", 1000)
  peaks = []
  for count in (2000, 2000, 20_000):  # the first of which imports
    listed = make_list(count)
    assert len(listed.order) == count
    tracemalloc.start()
    listed.write(tmp_path)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[2] < 1.5 * peaks[1]


def test_without_pyarrow_a_long_list_is_csv(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(list_files, "MOST_ROWS_OF_CSV", 20)
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  assert make_list().write(tmp_path).name == "source_weights.csv"
  assert "pip install pyarrow" in caplog.text


def test_a_list_of_an_older_version(tmp_path):
  path = tmp_path / "source_weights.csv"
  path.write_text("index,label,alpha,rank,true_label\n4,1,0.25,0,2\n")
  frame = list_files.read(path)
  assert frame.loc[0].to_dict() == {"index": 4, "label": 1, "alpha": 0.25, "rank": 0, "true_label": 2}


def test_half_a_list_is_never_seen(tmp_path, monkeypatch):
  listed, path = make_list(), tmp_path / "source_weights.csv"
  path.write_text("old")
  monkeypatch.setattr(list_files, "_write_csv", lambda path, listed: path.write_text("half") and 1 / 0)
  with pytest.raises(ZeroDivisionError):
    listed.write(tmp_path)
  assert path.read_text() == "old" and {file.name for file in tmp_path.iterdir()} == {path.name, "alpha.npy"}
