"""Faults to inject into runs: what `experiments.reliability` counts and the tests check."""

import contextlib
import errno
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import orbax.checkpoint as ocp

from experiments.reliability.children import NUM_STEPS, Counter, differences, log_of, start, wait, wait_for_step
from soseleto_jax.run.signals import EXIT_PREEMPTED

# Damage to a checkpoint.


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
  """Sends one run SIGTERM and SIGHUP in turn, time and again."""
  counter, saved = Counter(), 0
  for number in range(count):
    pid = start(workdir, counter)
    wait_for_step(pid, counter, _moment(rng, number, count))
    os.kill(pid, (signal.SIGTERM, signal.SIGHUP)[number % 2])
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


def taken_away(
  straight: pathlib.Path, workdir: pathlib.Path, rng: np.random.Generator, count: int
) -> tuple[int, int, str]:
  """Takes a run's folder, or a part of it, away while it trains."""
  survived = 0
  for number in range(count):
    folder, counter = workdir / str(number), Counter()
    folder.parent.mkdir(exist_ok=True)
    pid = start(folder, counter)
    wait_for_step(pid, counter, int(rng.integers(5, NUM_STEPS - 10)))
    name = (".", "checkpoints", "metrics.jsonl", "config.json", ".lock")[number % 5]
    with contextlib.suppress(FileNotFoundError):
      pathlib.Path(os.path.normpath(folder / name)).rename(workdir / f"{number}.away")
    survived += wait(pid) == 0 and not differences(straight, folder)
  return count, survived, "made anew, with all records; the run ends as ever"


def failing_writes(
  straight: pathlib.Path, workdir: pathlib.Path, rng: np.random.Generator, count: int
) -> tuple[int, int, str]:
  """Lets the disk fail once, in a random write after a random step; the run stops, says so, and is started again."""
  survived = 0
  for number in range(count):
    folder, step = workdir / str(number), int(rng.integers(1, NUM_STEPS))
    folder.parent.mkdir(exist_ok=True)
    first = wait(start(folder, prepare=functools.partial(_fail_after, step, number % 2 == 0)))
    told = "Input/output error" in log_of(folder).read_text()
    survived += first == 1 and told and _ends_like(straight, folder)
  return count, survived, "stops, says so, and goes on"


def _fail_after(step, of_checkpoints, counter):
  """Lets writes fail from a step on: of checkpoints, or of other files."""
  owner, name = (ocp.StandardCheckpointHandler, "async_save") if of_checkpoints else (os, "fsync")
  write = getattr(owner, name)

  def failing(*args, **kwargs):
    if counter.value >= step:
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    return write(*args, **kwargs)

  setattr(owner, name, failing)


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
