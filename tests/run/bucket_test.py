"""Runs whose folder is in a bucket, on a server of the loopback that can go away."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from soseleto_jax import storage
from soseleto_jax.report import list_files, writers
from soseleto_jax.run import lease
from soseleto_jax.run.workdir import claim
from soseleto_jax.train import train_and_evaluate
from tests import runs
from tests.bucket import server  # noqa: F401
from tests.report.source_list_test import make_list

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = "gs://bucket/runs/a"
FILES = {"config.json", "metrics.jsonl", "summary.json", "report.html", "source_weights.csv"}


@pytest.fixture
def quick(monkeypatch):
  """A hold that is renewed, and runs out, in short."""
  monkeypatch.setattr(lease, "_RENEWED_EVERY", 0.2)
  monkeypatch.setattr(lease, "_DEAD_AFTER", 2.0)


@pytest.fixture(scope="module")
def config():
  return runs.make_config(checkpoint_every_epochs=0.5)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
  return train_and_evaluate(config, tmp_path_factory.mktemp("disk"), runs.make_task())


def assert_same(result, expected):
  np.testing.assert_array_equal(result.alpha, expected.alpha)
  for key in ("step", "source_loss", "validation_accuracy", "test_loss"):
    assert [record[key] for record in result.records] == [record[key] for record in expected.records]
  assert {file.name for file in storage.as_path(FOLDER).iterdir()} >= FILES
  assert not storage.as_path(f"{FOLDER}/.lock").exists()


def test_what_is_written_comes_back(server):  # noqa: F811
  path = storage.as_path(FOLDER) / "file.json"
  assert not path.exists()
  for value in (1, 2):
    writers.write_json(path, value)
    assert json.loads(path.read_text()) == value
  with writers.MetricWriter(FOLDER) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"loss": step})
      assert [record["step"] for record in writers.read_metrics(FOLDER)] == list(range(1, step + 1))
  with writers.MetricWriter(FOLDER, writers.read_metrics(FOLDER)[:2], resume_step=2) as writer:
    writer.write(3, {"loss": 4.0})
  assert [record["loss"] for record in writers.read_metrics(FOLDER)] == [1, 2, 4.0]
  assert len(list((storage.as_path(FOLDER) / writers.TENSORBOARD_FOLDER).iterdir())) == 2


def test_the_list_of_suspects_comes_back(server, monkeypatch):  # noqa: F811
  """As CSV and as Parquet."""
  listed = make_list()
  listed.write(FOLDER)
  pd.testing.assert_frame_equal(list_files.read(list_files.find(FOLDER)), listed.head())
  monkeypatch.setattr(list_files, "MOST_ROWS_OF_CSV", 20)
  listed.write(FOLDER)
  assert list_files.find(FOLDER).name == "source_weights.parquet"
  pd.testing.assert_frame_equal(list_files.read(list_files.find(FOLDER), 5), listed.head(5))


def test_one_holder_at_a_time(server, quick):  # noqa: F811
  path = storage.as_path(FOLDER)
  with claim(path):
    for _ in range(2):
      message = f"{FOLDER} is in use by process {os.getpid()} on {socket.gethostname()}; .*another --workdir"
      with pytest.raises(RuntimeError, match=message), claim(path):
        pass
  assert not (path / ".lock").exists()
  with claim(path):
    pass


@pytest.mark.parametrize(
  "left, waits",
  [
    ({"process": "none", "machine": "another"}, True),
    ({"process": 2**22 + 1, "machine": socket.gethostname()}, False),  # past the largest number of a process
    ("garbage", True),
  ],
)
def test_what_a_dead_process_left_is_taken_over(server, quick, left, waits, monkeypatch):  # noqa: F811
  slept = []
  monkeypatch.setattr(lease.time, "sleep", lambda seconds, sleep=time.sleep: slept.append(sleep(seconds)))
  path = storage.as_path(FOLDER)
  storage.write_bytes(path / ".lock", json.dumps({"id": "x"} | left).encode() if isinstance(left, dict) else b"{")
  with claim(path):
    assert json.loads((path / ".lock").read_text())["process"] == os.getpid()
  assert bool(slept) == waits


def test_of_two_that_wait_one_takes_over(server, quick):  # noqa: F811
  path = storage.as_path(FOLDER)
  storage.write_bytes(path / ".lock", b'{"process": 1, "machine": "another"}')
  ends, refused = threading.Event(), threading.Event()
  outcomes = []

  def hold():
    try:
      with claim(path):
        outcomes.append("held")
        refused.wait(20)
    except RuntimeError:
      outcomes.append("refused")
      refused.set()
    ends.set()

  threads = [threading.Thread(target=hold) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert sorted(outcomes) == ["held", "refused"]


def test_one_that_was_taken_over_says_so(server, quick, caplog):  # noqa: F811
  path = storage.as_path(FOLDER) / ".lock"
  with lease.lease(path):
    storage.write_bytes(path, b'{"id": "of another"}')
    end = time.monotonic() + 20
    while "another run took it over" not in caplog.text and time.monotonic() < end:
      time.sleep(0.05)
  assert "another run took it over" in caplog.text
  assert json.loads(path.read_text()) == {"id": "of another"}


def test_an_interrupted_run_goes_on(server, config, uninterrupted):  # noqa: F811
  with pytest.raises(runs.Crash), runs.before_step(5, runs.crash):
    train_and_evaluate(config, FOLDER, runs.make_task())
  assert not (storage.as_path(FOLDER) / "summary.json").exists()
  assert_same(train_and_evaluate(config, FOLDER, runs.make_task()), uninterrupted)


def test_a_server_that_comes_back_is_waited_for(server, config, uninterrupted):  # noqa: F811
  def outage():
    server.make_ready()
    server.stop()
    threading.Timer(2.0, server.start).start()

  with runs.before_step(5, outage):
    assert_same(train_and_evaluate(config, FOLDER, runs.make_task()), uninterrupted)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(server, tmp_path):  # noqa: F811
  """By SIGKILL, in a process of its own."""

  def command(folder):
    return [
      sys.executable, "-m", "soseleto_jax.main", f"--workdir={folder}",
      "--config.alpha.trial_epochs=0", "--config.num_epochs=8", "--config.checkpoint_every_epochs=1",
    ]  # fmt: skip

  options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  assert subprocess.run(command(tmp_path / "disk"), **options).returncode == 0
  process = subprocess.Popen(command(FOLDER), **options)
  checkpoints = storage.as_path(FOLDER) / "checkpoints"
  while not any(checkpoints.glob("*/commit_success.txt")):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.1)
  process.kill()
  process.wait()
  done = subprocess.run(command(FOLDER), **options)
  assert done.returncode == 0 and "going on" in done.stderr, done.stderr
  weights = (storage.as_path(FOLDER) / "source_weights.csv").read_text()
  assert weights == (tmp_path / "disk" / "source_weights.csv").read_text()
