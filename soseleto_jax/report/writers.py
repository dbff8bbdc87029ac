"""Files that a run writes while it goes on: metric records, TensorBoard events, JSON documents."""

from __future__ import annotations

import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from soseleto_jax import storage

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a UTF-8 file whole or not at all: a reader never sees half of it."""
  storage.write_bytes(storage.as_path(path), text.encode())


def to_plain(value: Any) -> Any:
  """Turns a value into what JSON can hold.

  Args:
    value: nested mappings, sequences, numbers, strings, None, and arrays or array scalars.

  Returns:
    The same with plain dicts (string keys), lists and Python numbers; NaN and infinities, for which
    JSON has no word, become None. Objects of other types are returned as they are.
  """
  if isinstance(value, Mapping):
    return {str(key): to_plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_plain(item) for item in value]
  if hasattr(value, "tolist"):
    return to_plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: str | os.PathLike, obj: Any) -> None:
  """Writes `obj` as indented JSON, atomically.

  Args:
    path: the file.
    obj: anything that `to_plain` understands; NaN and infinities are written as null.

  Raises:
    TypeError: `obj` holds something that is neither a number, string, None, array, mapping nor
      sequence.
  """
  write_text(path, json.dumps(to_plain(obj), indent=2, allow_nan=False) + "\n")


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the records of `workdir/metrics.jsonl`, oldest first.

  Args:
    workdir: the folder of a run.

  Returns:
    One dict per record, each with its "step"; an empty list when there is no file. A last line that
    was cut off by a crash is left out.

  Raises:
    ValueError: a line other than the last is no JSON record.
  """
  path = storage.as_path(workdir) / METRICS_FILE
  if not path.exists():
    return []
  lines = path.read_bytes().decode(errors="replace").splitlines()
  records = []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      record["step"] = int(record["step"])
    except (ValueError, TypeError, KeyError) as error:
      if number == len(lines):
        break
      raise ValueError(f"{path}, line {number} is no metric record: {line[:80]!r}; remove that line") from error
    records.append(record)
  return records


class MetricWriter:
  """Appends the metrics of a run to `metrics.jsonl` and to TensorBoard events.

  Usable as a context manager. Each record is one line of valid JSON (NaN and infinities are null)
  that is on disk before `write` returns. Nothing is written in the background: a full disk is an
  OSError of `write`.
  """

  def __init__(self, workdir: str | os.PathLike, resume_step: int | None = None):
    """Opens the files, and forgets what a resumed run is going to write again.

    Args:
      workdir: the folder of the run; made when missing.
      resume_step: the step of the checkpoint that the run goes on from. Records of later steps are
        dropped, and so is a line cut off by a crash. None starts an empty file.
    """
    workdir = storage.as_path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    kept = [] if resume_step is None else read_metrics(workdir)
    kept = [record for record in kept if record["step"] <= resume_step]
    path = workdir / METRICS_FILE
    lines = "".join(_line(record) for record in kept)
    write_text(path, lines)
    self._lines = _InBucket(path, lines) if storage.is_bucket(path) else _OnDisk(path)
    self._events = _Events(workdir / TENSORBOARD_FOLDER, 0 if resume_step is None else resume_step + 1)

  def write(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes one record.

    Args:
      step: the number of steps taken.
      record: names and values. Numbers (NumPy and JAX scalars too) go to both files, anything else
        that JSON can hold to `metrics.jsonl` alone.
    """
    plain = to_plain({**record, "step": step})
    self._lines.add(_line(plain))
    numbers = {
      name: value
      for name, value in plain.items()
      if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    self._events.write(plain["step"], numbers)

  def close(self) -> None:
    """Writes what is pending and closes both files."""
    self._lines.close()
    self._events.close()

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, *_) -> None:
    self.close()


class _OnDisk:
  """A file that grows by lines, each on disk when `add` returns."""

  def __init__(self, path):
    self._file = path.open("a", encoding="utf-8")

  def add(self, line):
    self._file.write(line)
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self):
    self._file.close()


class _InBucket:
  """The same in a bucket, where a file cannot grow: all of it is written anew."""

  def __init__(self, path, lines):
    self._path, self._all = path, lines

  def add(self, line):
    self._all += line
    write_text(self._path, self._all)

  def close(self):
    pass


class _Events:
  """A file of TensorBoard events."""

  def __init__(self, folder: pathlib.Path, start: int):
    """Opens a file in the folder, for steps from `start` on."""
    # It imports PyTorch where that is installed.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2, summary_pb2

    self._folder = self._local = folder
    if storage.is_bucket(folder):
      self._temporary = tempfile.TemporaryDirectory()
      self._local = pathlib.Path(self._temporary.name)
    folder.mkdir(exist_ok=True)
    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    # File names have whole seconds: without this, a quick restart would overwrite its forerunner.
    self._file = EventsWriter(str(self._local / "events"), f".{time.time_ns()}")
    # TensorBoard hides events of this step and later that are older than this file.
    self._add(start, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
    self._add(step, summary=self._summary(value=values))
    self._file.flush()
    if self._local != self._folder:
      for file in self._local.iterdir():
        storage.write_bytes(self._folder / file.name, file.read_bytes())

  def close(self) -> None:
    self._file.close()

  def _add(self, step, **content):
    self._file.write_event(self._event(wall_time=time.time(), step=step, **content))


def _line(record: dict[str, Any]) -> str:
  record = {"step": record["step"], **record}
  return json.dumps(record, allow_nan=False) + "\n"
