"""Tests of soseleto_jax.writers."""

import json
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
  with writers.MetricWriter(tmp_path, resume_step=5) as writer:
    writer.write(6, {"loss": 1.0})
  assert writers.read_metrics(tmp_path) == [{"step": 6, "loss": 1.0}]


@pytest.mark.parametrize("resume_step, kept", [(None, []), (0, [0]), (25, [0, 10, 20]), (30, [0, 10, 20, 30])])
def test_resume_drops_later_records(tmp_path, resume_step, kept):
  with writers.MetricWriter(tmp_path) as writer:
    for step in (0, 10, 20, 30):
      writer.write(step, {"loss": float(step)})
  with writers.MetricWriter(tmp_path, resume_step=resume_step) as writer:
    assert [record["step"] for record in writers.read_metrics(tmp_path)] == kept
    writer.write(31, {"loss": 31.0})
  assert [record["step"] for record in writers.read_metrics(tmp_path)] == [*kept, 31]
  first, second = read_events(tmp_path)
  assert len(scalars(first)) == 4
  starts = [e.step for e in second if e.session_log.status == event_pb2.SessionLog.START]
  assert starts == [0 if resume_step is None else resume_step + 1]


def test_a_resumed_file_equals_the_uninterrupted_one(tmp_path):
  def run(workdir, steps, resume_step=None):
    with writers.MetricWriter(workdir, resume_step) as writer:
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
  with writers.MetricWriter(tmp_path, resume_step=20) as writer:
    writer.write(21, {"loss": 2.0})
  assert [record["step"] for record in writers.read_metrics(tmp_path)] == [10, 21]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
  (tmp_path / writers.METRICS_FILE).write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match="line 2"):
    writers.read_metrics(tmp_path)


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
