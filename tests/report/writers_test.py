"""Tests of soseleto_jax.writers."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from soseleto_jax.report import writers


def read_events(workdir):
  """The events of all files in order, each file a list."""
  files = []
  for path in sorted((workdir / writers.TENSORBOARD_FOLDER).iterdir()):
    data, events = path.read_bytes(), []
    while data:
      # A record is its length, 4 bytes of checksum, the event, 4 bytes of checksum.
      (length,) = struct.unpack("<Q", data[:8])
      events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
    files.append(events)
  return files


def scalars(events):
  return [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]


def test_records_come_back(tmp_path):
  with writers.MetricWriter(tmp_path / "new" / "run") as writer:
    writer.write(0, {"loss": np.float32(0.5), "name": "a", "epoch": 0})
    writer.write(np.int64(10), {"loss": 0.25, "counts": np.arange(2), "step": 99})
    # Flushed: readable while the run goes on.
    assert len(writers.read_metrics(tmp_path / "new" / "run")) == 2
  assert writers.read_metrics(tmp_path / "new" / "run") == [
    {"step": 0, "loss": 0.5, "name": "a", "epoch": 0},
    {"step": 10, "loss": 0.25, "counts": [0, 1]},
  ]
  (events,) = read_events(tmp_path / "new" / "run")
  assert scalars(events) == [(0, "loss", 0.5), (0, "epoch", 0.0), (10, "loss", 0.25)]


def test_numbers_json_has_no_word_for_become_null(tmp_path):
  with writers.MetricWriter(tmp_path) as writer:
    writer.write(1, {"a": float("nan"), "b": np.float32("inf"), "c": [-np.inf, 1.0]})

  def refuse(word):
    raise AssertionError(word)

  (line,) = (tmp_path / writers.METRICS_FILE).read_text().splitlines()
  record = json.loads(line, parse_constant=refuse)
  assert record == {"step": 1, "a": None, "b": None, "c": [None, 1]}
  assert scalars(read_events(tmp_path)[0]) == []


def test_nothing_written_yet(tmp_path):
  assert writers.read_metrics(tmp_path) == []
  with writers.MetricWriter(tmp_path, [], 5) as writer:
    writer.write(6, {"loss": 1.0})
  assert writers.read_metrics(tmp_path) == [{"step": 6, "loss": 1.0}]


@pytest.mark.parametrize("resume_step, kept", [(-1, []), (0, [0]), (25, [0, 10, 20]), (30, [0, 10, 20, 30])])
def test_resume_drops_later_records(tmp_path, resume_step, kept):
  with writers.MetricWriter(tmp_path) as writer:
    for step in (0, 10, 20, 30):
      writer.write(step, {"loss": float(step)})
  records = [{"step": step, "loss": float(step)} for step in kept]
  assert writers.holds_records(tmp_path, records, resume_step) and writers.last_step(tmp_path) == 30
  with writers.MetricWriter(tmp_path, records, resume_step) as writer:
    assert writers.read_metrics(tmp_path) == records
    writer.write(31, {"loss": 31.0})
  assert [record["step"] for record in writers.read_metrics(tmp_path)] == [*kept, 31]
  first, second = read_events(tmp_path)
  assert len(scalars(first)) == 4
  starts = [e.step for e in second if e.session_log.status == event_pb2.SessionLog.START]
  assert starts == [resume_step + 1]


def test_a_resumed_file_equals_the_uninterrupted_one(tmp_path):
  def run(workdir, steps, resume_step=-1):
    records = [record for record in writers.read_metrics(workdir) if record["step"] <= resume_step]
    with writers.MetricWriter(workdir, records, resume_step) as writer:
      for step in steps:
        writer.write(step, {"loss": np.float32(1 / (step + 1)), "note": "ä", "bad": np.nan})

  run(tmp_path / "whole", range(6))
  run(tmp_path / "cut", range(5))
  run(tmp_path / "cut", range(3, 6), resume_step=2)
  whole, cut = ((tmp_path / name / writers.METRICS_FILE).read_bytes() for name in ("whole", "cut"))
  assert whole == cut


@pytest.mark.parametrize("tail", ['{"step": 20, "lo', "{", '{"loss": 3}', "\0\0\0", "7"])
def test_a_torn_last_line_is_dropped(tmp_path, tail):
  with writers.MetricWriter(tmp_path) as writer:
    writer.write(10, {"loss": 1.0})
  with (tmp_path / writers.METRICS_FILE).open("a") as file:
    file.write(tail)
  assert writers.read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}]
  assert writers.last_step(tmp_path) == 10


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
  (tmp_path / writers.METRICS_FILE).write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match="line 2"):
    writers.read_metrics(tmp_path)


@pytest.mark.parametrize(
  "text, held",
  [
    ('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "loss": 9}\n', True),
    ('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "lo', True),
    ('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.75}\n', False),
    ('{"step": 1, "loss": 0.5}\n{"step": 2, "lo', False),
    ('{"step": 2, "loss": 0.25}\n', False),
    ('nonsense\n{"step": 1, "loss": 0.5}\n', False),
    ("", False),
  ],
)
def test_whether_a_file_holds_records(tmp_path, text, held):
  (tmp_path / writers.METRICS_FILE).write_text(text)
  assert writers.holds_records(tmp_path, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}], 2) == held


def take_away(workdir):
  shutil.rmtree(workdir)


def cut(workdir):
  os.truncate(workdir / writers.METRICS_FILE, 5)


def replace(workdir):
  (workdir / writers.METRICS_FILE).unlink()
  (workdir / writers.METRICS_FILE).write_text("{}")


@pytest.mark.parametrize("change", [take_away, cut, replace])
@pytest.mark.parametrize("last", [True, False])
def test_what_is_taken_away_meanwhile_comes_back(tmp_path, caplog, change, last):
  """With the next record, or at the end."""
  workdir = tmp_path / "run"
  expected = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
  with writers.MetricWriter(workdir, expected[:1], 1) as writer:
    for record in expected[1:]:
      if (record["step"] == 3) != last:
        change(workdir)
      writer.write(record["step"], record)
    if last:
      change(workdir)
  assert writers.read_metrics(workdir) == expected
  assert caplog.text.count("metrics.jsonl was taken away or changed by another hand") == 1 + last
  if change is take_away:
    assert scalars(read_events(workdir)[0]) == [(step, "loss", pytest.approx(1 / step)) for step in (1, 2, 3)]


def test_write_json(tmp_path):
  path = tmp_path / "summary.json"
  path.write_text("old")
  obj = {
    "a": np.float32(0.5),
    "b": [np.int64(3), float("nan"), (True, np.bool_(False), None)],
    3: {"c": np.array([1.0, np.inf])},
  }
  writers.write_json(path, obj)
  text = path.read_text()
  plain = {"a": 0.5, "b": [3, None, [True, False, None]], "3": {"c": [1.0, None]}}
  assert json.loads(text) == plain
  assert '\n  "a": 0.5' in text
  assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path):
  path = tmp_path / "summary.json"
  writers.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    writers.write_json(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": 1}
