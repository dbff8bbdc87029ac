"""Files that a run writes while it goes on: metric records, TensorBoard events, JSON documents."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from soseleto_jax import storage

_LOGGER = logging.getLogger(__name__)
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
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
      if number == len(lines):
        break
      raise ValueError(f"{path}, line {number} is no metric record: {line[:80]!r}; remove that line") from error
    records.append(record)
  return records


def plain_record(step: int, record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record as `read_metrics` would read it: its step first, then plain values."""
  return to_plain({"step": step} | dict(record) | {"step": step})


def holds_records(workdir: str | os.PathLike, records: Sequence[Mapping[str, Any]], step: int) -> bool:
  """Whether the records of metrics.jsonl up to a step are these."""
  try:
    found = read_metrics(workdir)
  except ValueError:
    return False
  return [record for record in found if record["step"] <= step] == list(records)


def last_step(workdir: str | os.PathLike) -> int:
  """Returns the step of the last record that metrics.jsonl has; 0 where it has none."""
  try:
    return max((record["step"] for record in read_metrics(workdir)), default=0)
  except ValueError:
    return 0


class MetricWriter:
  """Writes the metrics of a run to `metrics.jsonl` and to TensorBoard events.

  Usable as a context manager. Each record is one line of valid JSON (NaN and infinities are null)
  that is on disk before `write` returns. Nothing is written in the background: a full disk is an
  OSError of `write`. Files that are taken away meanwhile are written anew with the next record.
  """

  def __init__(self, workdir: str | os.PathLike, records: Sequence[Mapping[str, Any]] = (), resume_step: int = -1):
    """Opens the files.

    Args:
      workdir: the folder of the run; made when missing.
      records: what `metrics.jsonl` starts with, whatever it held.
      resume_step: the step of the checkpoint that the run goes on from, which hides later events; -1 for none.
    """
    self._workdir = storage.as_path(workdir)
    self._records, self._start = list(records), resume_step + 1
    path = self._workdir / METRICS_FILE
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._lines = _InBucket(path) if storage.is_bucket(path) else _OnDisk(path)
    self._lines.write_all(self._records)
    self._events = _Events(self._workdir / TENSORBOARD_FOLDER, self._start)

  def write(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes one record.

    Args:
      step: the number of steps taken.
      record: names and values. Numbers (NumPy and JAX scalars too) go to both files, anything else
        that JSON can hold to `metrics.jsonl` alone.
    """
    plain = plain_record(step, record)
    self._records.append(plain)
    self._events.write(step, plain)
    if self._lines.is_as_written():
      self._lines.add(plain)
    else:
      self._write_anew()

  def _write_anew(self):
    """Writes again, with all records, what was taken away."""
    _LOGGER.warning("%s was taken away or changed by another hand; it is written anew", self._workdir / METRICS_FILE)
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._lines.write_all(self._records)
    if not (self._workdir / TENSORBOARD_FOLDER).is_dir():
      self._events.close()
      self._events = _Events(self._workdir / TENSORBOARD_FOLDER, self._start)
      for plain in self._records:
        self._events.write(plain["step"], plain)

  def close(self) -> None:
    """Closes both files."""
    self._lines.close()
    self._events.close()

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None and not self._lines.is_as_written():
      self._write_anew()
    self.close()


class _OnDisk:
  """A file that grows by lines, each on disk when `add` returns."""

  def __init__(self, path):
    self._path = path
    self._file: Any = None

  def write_all(self, records):
    self.close()
    write_text(self._path, "".join(map(_line, records)))
    self._file = self._path.open("ab")

  def add(self, record):
    self._file.write(_line(record).encode())
    self._file.flush()
    os.fsync(self._file.fileno())

  def is_as_written(self):
    """Whether the file is still there, and ends where it was left."""
    try:
      there = self._path.stat()
    except OSError:
      return False
    here = os.fstat(self._file.fileno())
    return (there.st_dev, there.st_ino, there.st_size) == (here.st_dev, here.st_ino, self._file.tell())

  def close(self):
    if self._file is not None:
      self._file.close()


class _InBucket:
  """The same in a bucket, where a file cannot grow: all of it is written with each line."""

  def __init__(self, path):
    self._path = path
    self._records: list[Any] = []

  def write_all(self, records):
    self._records = list(records)
    write_text(self._path, "".join(map(_line, self._records)))

  def add(self, record):
    self.write_all([*self._records, record])

  def is_as_written(self):
    return True

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

  def write(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes the numbers of a record."""
    numbers = {
      name: value
      for name, value in record.items()
      if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
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
  return json.dumps(record, allow_nan=False) + "\n"
