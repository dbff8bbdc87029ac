"""Faults to inject into runs: what `experiments.reliability` counts and the tests check.

Runs are children forked from this process, which has imported everything but started no JAX backend, so that a life
takes a second. They train a small network on two CPU devices and save every third step.
"""

import importlib
import json
import mmap
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback

import jax
import numpy as np

from soseleto_jax.config import default_config
from soseleto_jax.data.task import from_arrays
from soseleto_jax.report import page, source_weights
from soseleto_jax.run.signals import EXIT_PREEMPTED, Preempted
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate

NUM_STEPS = 96
_STEPS_PER_EPOCH = 12
_STATE_FILE = "final.npz"

# What runs import when they need it. Once here, or each life would take seconds more.
_LATE_IMPORTS = ("orbax.checkpoint", "sklearn.metrics", "tensorboardX.event_file_writer")

# Damage to a checkpoint.


def largest_file(folder: pathlib.Path) -> pathlib.Path:
  """The largest file of a folder: of a checkpoint's state, one with arrays."""
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bit(path: pathlib.Path, bit: int | None = None) -> None:
  """Inverts a bit of a file, by default in its middle."""
  data = bytearray(path.read_bytes())
  bit = 4 * len(data) if bit is None else bit
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
  """Cuts a file to half its length."""
  os.truncate(path, path.stat().st_size // 2)


def _arrays(step):
  return sorted((step / "state").glob("**/d/*"), key=lambda path: path.stat().st_size)


def _each_array(change):
  return lambda step: [change(path) for path in _arrays(step)]


DAMAGES = {
    "arrays cut to half": _each_array(truncate),
    "a bit of each array's file inverted": _each_array(flip_bit),
    "arrays missing": _each_array(os.unlink),
    "index of the arrays emptied": lambda step: os.truncate(step / "state" / "manifest.ocdbt", 0),
    "description of the arrays cut to half": lambda step: truncate(step / "state" / "_METADATA"),
    "state missing": lambda step: shutil.rmtree(step / "state"),
    "loop cut to half": lambda step: truncate(step / "loop" / "metadata"),
    "a bit of the loop inverted": lambda step: flip_bit(step / "loop" / "metadata"),
    "loop missing": lambda step: shutil.rmtree(step / "loop"),
    "folder empty": lambda step: [shutil.rmtree(step), step.mkdir()],
}  # fmt: skip

# Runs as children.


class Counter:
  """A number that a child writes and its parent reads."""

  def __init__(self):
    self._memory = mmap.mmap(-1, 8)

  @property
  def value(self) -> int:
    return struct.unpack("q", self._memory[:8])[0]

  @value.setter
  def value(self, number):
    self._memory[:8] = struct.pack("q", number)


def start(workdir: pathlib.Path, counter: Counter | None = None, log: pathlib.Path | None = None) -> int:
  """Forks a run, and returns its process id.

  Args:
    workdir: the folder of the run.
    counter: follows the steps that it begins.
    log: where its messages go; by default beside the folder.
  """
  for name in _LATE_IMPORTS:
    importlib.import_module(name)
  counter = counter or Counter()
  counter.value = -1
  pid = os.fork()
  if pid:
    return pid
  code = 1
  try:
    output = os.open(log or log_of(workdir), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = _train(workdir, counter)
  except Preempted:
    code = EXIT_PREEMPTED
  except BaseException as error:
    traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
  finally:
    sys.stderr.flush()
    os._exit(code)


def log_of(workdir: pathlib.Path) -> pathlib.Path:
  """Where the messages of a run's last life are."""
  return workdir.with_name(f"{workdir.name}.log")


def wait(pid: int) -> int:
  """Waits for a run and returns its exit code, or the negative number of the signal that ended it."""
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_step(pid: int, counter: Counter, step: int) -> None:
  """Returns when a run has begun the step after `step`, or has ended."""
  while counter.value < step and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
    time.sleep(0.001)


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """Names what two finished runs do not have in common, bit for bit; times aside."""
  found = []
  with np.load(a / _STATE_FILE) as x, np.load(b / _STATE_FILE) as y:
    if x.files != y.files:
      found.append("names of arrays")
    found += [name for name in x.files if x[name].dtype != y[name].dtype or x[name].tobytes() != y[name].tobytes()]
  for name, times in (("metrics.jsonl", "steps_per_second"), ("summary.json", "seconds")):
    x, y = ([_without(times, part) for part in _json_parts(folder / name)] for folder in (a, b))
    if x != y:
      found.append(name)
  if (a / "source_weights.csv").read_bytes() != (b / "source_weights.csv").read_bytes():
    found.append("source_weights.csv")
  return found


def _json_parts(path):
  text = path.read_text()
  return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def _without(key, mapping):
  return {name: value for name, value in mapping.items() if name != key}


def _train(workdir, counter):
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  advance = Experiment.advance

  def counted(self, state, step, limit):
    counter.value = step
    return advance(self, state, step, limit)

  def weights_alone(workdir, *, source, alpha, **_):  # figures take longer than the whole training
    source_weights.write_source_weights(workdir / "source_weights.csv", alpha, source["label"], source["true_label"])
    return workdir / "report.html"

  Experiment.advance, page.write_report = counted, weights_alone
  result = train_and_evaluate(_config(), workdir, _task())
  leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(result.state)}
  np.savez(workdir / _STATE_FILE, **leaves)
  return 0


def _config():
  config = default_config()
  config.model.hidden = (8,)
  config.update_from_flattened_dict(
    {
      "batch_size": 17,
      "target_batch_size": 6,
      "num_epochs": NUM_STEPS // _STEPS_PER_EPOCH,
      "optimizer.name": "adam",
      "alpha.step_size": 0.1,
      "checkpoint_every_epochs": 3 / _STEPS_PER_EPOCH,
    }
  )
  return config


def _task():
  rng = np.random.default_rng(0)

  def examples(count):
    label = np.arange(count) % 3
    return rng.normal(size=(count, 6)) + 2 * np.eye(3, 6)[label], label

  (x, right), target, validation, test = (examples(count) for count in (201, 18, 30, 30))
  label = np.where(np.arange(201) < 60, (right + 1) % 3, right)
  return from_arrays(x, label, *target, *test, validation=validation, true_label=right)


# Faults of whole runs. Each returns how many were injected, and how many the run survived.


def kills(straight: pathlib.Path, workdir: pathlib.Path, rng: np.random.Generator, count: int) -> tuple[int, int, str]:
  """Kills one run at random moments: in the loop, in saves, while it starts."""
  counter = Counter()
  killed = in_saves = 0
  for number in range(count):
    pid = start(workdir, counter)
    if number % 7 == 3:
      time.sleep(rng.uniform(0, 1.5))  # maybe before it trains
    else:
      wait_for_step(pid, counter, _moment(rng, number, count))
      time.sleep(rng.uniform(0, 0.1))
    os.kill(pid, signal.SIGKILL)
    killed += wait(pid) == -signal.SIGKILL
    in_saves += any((workdir / "checkpoints").glob("*tmp*"))
  return killed, killed * _ends_like(straight, workdir), f"{in_saves} of them in a save"


def terminations(
  straight: pathlib.Path, workdir: pathlib.Path, rng: np.random.Generator, count: int
) -> tuple[int, int, str]:
  """Sends one run SIGTERM, time and again."""
  counter, saved = Counter(), 0
  for number in range(count):
    pid = start(workdir, counter)
    wait_for_step(pid, counter, _moment(rng, number, count))
    os.kill(pid, signal.SIGTERM)
    saved += wait(pid) == EXIT_PREEMPTED
  return count, saved * _ends_like(straight, workdir), f"exit code {EXIT_PREEMPTED}"


def damages(straight: pathlib.Path, workdir: pathlib.Path, rng: np.random.Generator) -> tuple[int, int, str]:
  """Damages the newest checkpoint of a stopped run, in each way of `DAMAGES`."""
  counter, survived = Counter(), 0
  for number, damage in enumerate(DAMAGES.values()):
    folder = workdir / str(number)
    folder.parent.mkdir(exist_ok=True)
    pid = start(folder, counter)
    wait_for_step(pid, counter, int(rng.integers(NUM_STEPS // 4, NUM_STEPS)))
    os.kill(pid, signal.SIGTERM)
    wait(pid)
    newest = max(steps(folder))
    damage(folder / "checkpoints" / str(newest))
    survived += _ends_like(straight, folder) and f"step {newest} is damaged" in log_of(folder).read_text()
  return len(DAMAGES), survived, "named in the log, the one before used"


def second_run(straight: pathlib.Path, workdir: pathlib.Path) -> tuple[int, int, str]:
  """Starts a second run on the folder of one that goes on."""
  counter, log = Counter(), workdir.with_name("second.log")
  first = start(workdir, counter)
  wait_for_step(first, counter, 5)
  code = wait(start(workdir, log=log))
  refused = code == 1 and f"{workdir} is in use by process {first} on " in log.read_text()
  return 1, int(refused and wait(first) == 0 and not differences(straight, workdir)), "the second is refused"


def full_disk(straight: pathlib.Path, mount: pathlib.Path) -> tuple[int, int, str]:
  """Stops a run, fills its disk, goes on, makes space, and goes on again."""
  mount_tmpfs(mount, "size=16m")
  workdir, log, counter = mount / "run", mount.with_name("full.log"), Counter()
  pid = start(workdir, counter, log)
  wait_for_step(pid, counter, NUM_STEPS // 2)
  os.kill(pid, signal.SIGTERM)
  wait(pid)
  newest = max(steps(workdir))
  space = os.statvfs(mount)
  ballast = mount / "ballast"
  ballast.write_bytes(bytes(space.f_bavail * space.f_bsize - 2**16))
  stopped = wait(start(workdir, log=log)) == 1
  message = f"No space left on device; the checkpoint of step {max(steps(workdir))} is intact; free space and run"
  clear = message in log.read_text() and max(steps(workdir)) >= newest
  ballast.unlink()
  done = wait(start(workdir, log=log)) == 0 and not differences(straight, workdir)
  return 1, int(stopped and clear and done), "stops, says so, and goes on once there is space"


def read_only(mount: pathlib.Path) -> tuple[int, int, str]:
  """Starts a run on a disk that cannot be written."""
  mount_tmpfs(mount, "ro")
  log = mount.with_name("read_only.log")
  code = wait(start(mount / "run", log=log))
  return 1, int(code == 1 and "cannot be written: Read-only file system" in log.read_text()), "refused at the start"


def mount_tmpfs(folder: pathlib.Path, options: str) -> None:
  """Mounts a disk of memory, for which this process has to be alone in its mount namespace."""
  folder.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def steps(workdir: pathlib.Path) -> list[int]:
  """The steps of a run's checkpoints."""
  return [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


def _moment(rng, number, count):
  """A random step in the part of the training that belongs to the fault of this number."""
  return int((number + rng.random()) / (count + 1) * NUM_STEPS)


def _ends_like(straight, workdir):
  return wait(start(workdir)) == 0 and not differences(straight, workdir)
