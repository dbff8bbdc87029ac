"""Processes on this machine: two train what one trains, stop together, and do not wait for the dead."""

import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from soseleto_jax.data.get_task import get_task
from soseleto_jax.report import list_files
from soseleto_jax.run import processes
from soseleto_jax.run.checkpoint import Checkpoints
from soseleto_jax.run.trainer import Experiment
from tests import problems

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STEPS, STEPS_PER_EPOCH, PEER_TIMEOUT = 28, 4, 10

# 61 source examples on 4 devices need padding, and so do batches of 18. TROUBLE makes some, before a step in a process.
CONFIG = """
import os
import signal

import jax

from soseleto_jax.config import default_config
from soseleto_jax.run.trainer import Experiment


def get_config():
  if "TROUBLE" in os.environ:
    make_trouble(*os.environ["TROUBLE"].split())
  config = default_config()
  config.data.source.update(dataset="synthetic", num_examples=61, normalization="none")
  config.data.target.dataset = "synthetic"
  config.model.hidden = (4,)
  config.update(batch_size=18, num_epochs=7, eval_every_epochs=3.0, checkpoint_every_epochs=2.0)
  config.alpha.step_size = 0.1
  if "LARGE" in os.environ:  # enough for each process to keep its part of alpha in a file of its own
    config.data.source.num_examples = 2000
    config.update(batch_size=1000, num_epochs=2, eval_every_epochs=1.0, checkpoint_every_epochs=1.0)
  return config


def make_trouble(process, number, kind):
  advance = Experiment.advance

  def troubled(self, state, step, limit):
    if (jax.process_index(), step) == (int(process), int(number)):
      if kind == "full":
        raise OSError("No space left on device")
      os.kill(os.getpid(), signal.Signals[kind])
    return advance(self, state, step, limit)

  Experiment.advance = troubled
"""


def start(folder, workdir, *arguments, devices, trouble=None):
  environment = {
      "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)
  } | ({"TROUBLE": trouble} if trouble else {})  # fmt: skip
  return subprocess.Popen(
      [sys.executable, "-m", "soseleto_jax.main", "--config=small.py", f"--workdir={workdir}", *arguments],
      env=os.environ | environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def run_two(folder, workdir, trouble=None, workdirs=None):
  """Runs two processes of two devices; returns their exit codes and what they wrote."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
  started = [
      start(
          folder, (workdirs or (workdir, workdir))[number], coordinator, "--num_processes=2", f"--process_id={number}",
          f"--peer_timeout={PEER_TIMEOUT}", devices=2, trouble=trouble,
      )
      for number in range(2)
  ]  # fmt: skip
  try:
    outputs = [process.communicate(timeout=300) for process in started]
  finally:
    for process in started:
      process.kill()
  return [process.returncode for process in started], *zip(*outputs, strict=True)


def newest_step(workdir):
  return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processes")
  (folder / "small.py").write_text(CONFIG)
  return folder


@pytest.fixture(scope="module")
def straight(folder):
  """Two processes that nothing interrupts: the folder, and what the processes wrote."""
  codes, outputs, errors = run_two(folder, folder / "straight")
  assert codes == [0, 0], errors
  return folder / "straight", outputs, errors


@pytest.fixture(scope="module")
def read(folder):
  """Reads a finished run's last state, on the eight devices of this process, and records."""
  config = runpy.run_path(str(folder / "small.py"))["get_config"]()
  experiment = Experiment(config, get_task(config.data, config.seed))

  def read(workdir):
    with Checkpoints(workdir, max_to_keep=2, num_source=61) as checkpoints:
      state, _ = checkpoints.restore(experiment.place(experiment.initial_state()))
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
      del record["steps_per_second"]
    return jax.tree.map(np.asarray, state), records

  return read


def test_two_processes_are_one_with_as_many_devices(folder, straight, read):
  """To rounding: sums between processes have another order."""
  alone = start(folder, folder / "alone", devices=4)
  _, errors = alone.communicate(timeout=300)
  assert alone.returncode == 0, errors
  state, records = read(straight[0])
  assert state.step == STEPS and len(records) == 3
  expected_state, expected_records = read(folder / "alone")
  problems.assert_close(state, expected_state)
  problems.assert_close(records, expected_records)
  assert len(np.unique(state.alpha)) > 50
  lists = [
    list_files.read(list_files.find(path)).set_index("index").sort_index() for path in (straight[0], folder / "alone")
  ]
  for column in ("row", "label", "given_probability", "suggested_probability"):
    np.testing.assert_allclose(lists[0][column], lists[1][column], rtol=1e-3, atol=1e-5)


def test_one_process_writes_for_all(straight):
  workdir, (first, second), errors = straight
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["device"].startswith("4 x ")
  assert {path.name for path in workdir.iterdir()} >= {"config.json", "report.html", "source_weights.csv", "figures"}
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  assert "report: " in first and "test accuracy" in first
  assert "report" not in second and "accuracy" not in second
  assert f"step {STEPS} of {STEPS}" in errors[0] and "step" not in errors[1]


@pytest.mark.slow
def test_what_stops_one_stops_both(folder, straight, read):
  """A run that is stopped, loses a process, and fails in one process, goes on each time; its end is bit for bit that
  of the run that nothing interrupted."""
  workdir = folder / "interrupted"

  codes, _, errors = run_two(folder, workdir, "1 5 SIGTERM")  # process 1, before the step after 5
  assert codes[0] == codes[1] != 0, errors
  assert newest_step(workdir) == 7  # which process 0 learns with the step after
  assert "stopped at step 7" in errors[0]

  codes, _, errors = run_two(folder, workdir, "1 14 SIGKILL")
  assert codes[1] == -9 and codes[0] not in (0, None), errors
  assert "another task died" in errors[0] or "another process" in errors[0]

  codes, _, errors = run_two(folder, workdir, "0 19 full")
  assert codes[0] == 1 and codes[1] not in (0, None), errors
  assert "error: process 0 of 2: No space left on device" in errors[0]
  assert newest_step(workdir) == 16

  codes, _, errors = run_two(folder, workdir)
  assert codes == [0, 0], errors
  assert "going on, at step 16" in errors[0]
  problems.assert_same_bits(read(workdir), read(straight[0]))
  weights = [path / "source_weights.csv" for path in (workdir, straight[0])]
  assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_damage_that_one_process_meets_sends_both_a_checkpoint_back(folder, monkeypatch):
  """Where it were not told, the other would wait for it in the next collective operation, at every restart."""
  monkeypatch.setenv("LARGE", "1")
  workdir = folder / "damaged"
  codes, _, errors = run_two(folder, workdir)
  assert codes == [0, 0], errors
  weights = (workdir / "source_weights.csv").read_bytes()
  shards = list(workdir.glob("checkpoints/4/state/ocdbt.process_1/d/*"))
  assert shards
  for path in shards:
    os.truncate(path, 0)
  codes, _, errors = run_two(folder, workdir)
  assert codes == [0, 0], errors
  assert "the checkpoint of step 4 is damaged: process 1: state cannot be read: OUT_OF_RANGE" in errors[0]
  assert "going on, at step 2" in errors[0]
  assert (workdir / "source_weights.csv").read_bytes() == weights

  codes, _, errors = run_two(folder, workdir, workdirs=(workdir, folder / "elsewhere"))
  assert codes == [1, 1], errors
  assert "the list of checkpoints in --workdir of process 1 differs from that of process 0" in errors[0]


# One process.


@pytest.fixture
def joined(monkeypatch):
  """Stands in for JAX's own way to join: what it was asked for."""
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: joined.append(options))
  monkeypatch.setattr(jax.config, "update", lambda name, value: joined.append({name: value}))
  monkeypatch.setattr(os, "environ", {"TPU_SKIP_MDS_QUERY": "1"})
  return joined


def test_processes_are_named_by_flags(joined):
  processes.initialize("localhost:20123", 3, 0, 7)
  assert joined == [
      {"jax_enable_preemption_service": False},
      {
          "coordinator_address": "localhost:20123", "num_processes": 3, "process_id": 0,
          "cluster_detection_method": "deactivate", "heartbeat_timeout_seconds": 7,
      },
  ]  # fmt: skip


@pytest.mark.parametrize(
  "given, message",
  [
    (("host:1", 2, None), "--coordinator=host:1 --num_processes=2 without --process_id: give all three"),
    ((None, None, 0), "--process_id=0 without --coordinator, --num_processes"),
    (("host:1", 2, 2), "--process_id=2: give processes numbers from 0"),
    (("host:1", 2, -1), "numbers from 0"),
    (("host", 2, 1), "--coordinator=host .*host:port"),
    (("1234", 2, 1), "--coordinator=1234 .*host:port"),
    ((":1234", 2, 1), "host:port"),
    (("localhost:0", 2, 1), "with a port from 1 to 65535"),
    (("localhost:65536", 2, 1), "with a port from 1 to 65535"),
    (("localhost:\u0663", 2, 1), "with a port from 1 to 65535"),
    (("no-such-host.invalid:1234", 2, 1), "the host 'no-such-host.invalid' cannot be found"),
    (("x" * 300 + ":1234", 2, 1), "cannot be found"),
    (("localhost:1", 0, 0), "numbers from 0|at least one process"),
  ],
)
def test_flags_that_name_no_processes(joined, given, message):
  with pytest.raises(ValueError, match=message):
    processes.initialize(*given)
  assert joined == []


def test_a_port_that_is_in_use(joined):
  """JAX would die of it."""
  with socket.socket() as other:
    other.bind(("localhost", 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(ValueError, match=f"port {port} cannot be used: Address already in use; is there another run"):
      processes.initialize(f"localhost:{port}", 2, 0)
    processes.initialize(f"localhost:{port}", 2, 1)  # which it listens for
  assert len(joined) == 2


def test_two_processes_with_one_number(joined):
  """JAX would abort all."""
  processes.initialize("localhost:20124", 3, 2)
  with pytest.raises(ValueError, match="another process has --process_id=2; give each its own"):
    processes.initialize("localhost:20124", 3, 2)
  processes.initialize("localhost:20124", 3, 1)


SLURM = {"SLURM_STEP_NODELIST": "a,b"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "x"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "x"}


@pytest.mark.parametrize(
  "environment, several",
  [
    ({}, False),
    ({"SLURM_NTASKS": "2"}, False),  # in the batch script, not by srun
    (SLURM | {"SLURM_NTASKS": "1"}, False),
    (SLURM | {"SLURM_NTASKS": "2"}, True),
    (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False),
    (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "2"} | SLURM, True),
    (KUBERNETES, False),
    (KUBERNETES | {"JOB_COMPLETION_INDEX": "0"}, True),
  ],
)
def test_where_a_cluster_tells_the_processes(joined, environment, several):
  os.environ.update(environment)
  processes.initialize()
  assert len(joined) == (2 if several else 0)
  if several:
    assert joined[1]["coordinator_address"] is None and joined[1]["cluster_detection_method"] is None


@pytest.mark.parametrize(
  "environment, several",
  [({}, True), ({"TPU_SKIP_MDS_QUERY": "1"}, False), ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": ""}, True)],
)
def test_where_a_tpu_may_have_several_workers(joined, monkeypatch, environment, several):
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == "libtpu")
  monkeypatch.setattr(os, "environ", environment)
  processes.initialize()
  assert len(joined) == (2 if several else 0)


def test_a_cluster_that_does_not_tell(joined, monkeypatch):
  def initialize(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  os.environ.update(SLURM | {"SLURM_NTASKS": "2"})
  with pytest.raises(ValueError, match="should be defined. Give --coordinator"):
    processes.initialize()


def test_one_process_by_flags_is_alone(joined):
  processes.initialize("host:1", 1, 0)
  assert joined == []


def test_alone_nothing_waits_or_votes():
  vote = processes.Vote()
  assert [vote(asked) for asked in (False, True, False)] == [False, True, False]
  processes.wait_for_all()
  assert processes.is_main() and processes.describe(OSError("full")) == "full"


@pytest.mark.parametrize(
  "here, there, raised",
  [
    (None, None, None),
    (None, (1, "two"), (KeyError, "process 1: two")),
    (KeyError("one"), (2, ""), (KeyError, "one")),
    (KeyError("one"), (0, "two"), (OSError, "process 1: two")),
    (OSError("one"), (1, "two"), (OSError, "^one")),
    (TypeError("one"), (0, "two"), (TypeError, "one")),
    (OSError("one"), (-1, "two"), (RuntimeError, "process 1: two")),
  ],
)
def test_what_fails_in_one_process_fails_in_all(monkeypatch, here, there, raised):
  """The worst of what they met: here of OSError, KeyError and anything else, which is worse than both."""

  def gather(mine):
    kind, text = there or (2, "")
    theirs = np.zeros_like(mine[1])
    theirs[: len(text)] = np.frombuffer(text.encode(), np.uint8)
    return np.array([mine[0], 3 if kind == 2 else kind]), np.stack([mine[1], theirs])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)

  def do():
    if here:
      raise here
    return "done"

  if raised is None:
    assert processes.agree(do, (OSError, KeyError)) == "done"
  else:
    with pytest.raises(raised[0], match=raised[1]):
      processes.agree(do, (OSError, KeyError))
