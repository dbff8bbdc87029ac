"""Injects faults into runs and prints what became of them: `python -m experiments.reliability`.

Prints the rows of the table in docs/reliability.md. A fault is survived where the run ends with the parameters,
optimizer state, weights, metrics and files of the uninterrupted run, bit for bit, and where a run that has to stop or
to be refused says why. Full and read-only disks are tried in a mount namespace of this process's own (Linux).
"""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl import app, flags

from experiments.reliability import children, faults, in_process

_IN_PROCESS = {"flipped_bits": 500, "cut_files": 200, "failing_reads": 50, "records": 40, "bad_input": 150}
_IN_RUNS = {"kills": 100, "terminations": 10, "taken_away": 10, "failing_writes": 20}
_FAULTS = (*_IN_RUNS, "damages", "second_run", "full_disk", "read_only", *_IN_PROCESS)
_ONLY = flags.DEFINE_multi_enum("only", _FAULTS, _FAULTS, "Which faults.")
_PART = flags.DEFINE_float("part", 1.0, "Of the faults of each kind, to inject.", 0.0, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")

_NAMESPACE = "RELIABILITY_NAMESPACE"  # set in the process that has a mount namespace of its own
_LABELS = {
  "kills": "SIGKILL at random moments of one run",
  "terminations": "SIGTERM and SIGHUP at random moments of one run",
  "taken_away": "the folder of a run, or a part of it, taken away while it trains",
  "failing_writes": "a write that fails, anywhere",
  "damages": "newest checkpoint cut, changed, incomplete or missing in part",
  "second_run": "a second run on the same folder",
  "full_disk": "disk full in the middle of a run",
  "read_only": "disk that cannot be written",
  "flipped_bits": "a bit of any file of the newest checkpoint inverted",
  "cut_files": "any file of the newest checkpoint cut anywhere, or missing",
  "failing_reads": "a permission, a disk or memory that fails while a sound checkpoint is read",
  "records": "records, config or results of a finished run cut, forged, replaced or missing",
  "bad_input": "configs and arrays that no run can use",
}
_REMARKS = {
  "flipped_bits": "right, or the one before used",
  "cut_files": "right, or the one before used",
  "failing_reads": "stops, says so; the checkpoint stays",
  "records": "written anew from the checkpoint",
  "bad_input": "refused in one line, before a folder is made",
}


def inject(name: str, root: pathlib.Path) -> tuple[int, int, str]:
  """Injects the faults of one name; `root` holds the folder of the uninterrupted run.

  Returns:
    How many were injected, how many survived, and a remark.
  """
  rng, straight, workdir = np.random.default_rng(_SEED.value), root / "straight", root / name
  if name in ("full_disk", "read_only") and _NAMESPACE not in os.environ:
    return 0, 0, "not run: no user namespaces on this machine"
  if name == "read_only":
    return faults.read_only(workdir)
  if name in _IN_RUNS:
    return getattr(faults, name)(straight, workdir, rng, _count(_IN_RUNS[name]))
  if name in _IN_PROCESS:
    place = workdir if name == "bad_input" else straight
    inject_all = functools.partial(getattr(in_process, name), place, rng, _count(_IN_PROCESS[name]))
    survived = children.count_in_child(inject_all, children.log_of(workdir))
    return _count(_IN_PROCESS[name]), max(survived, 0), _REMARKS[name]
  return faults.damages(straight, workdir, rng) if name == "damages" else getattr(faults, name)(straight, workdir)


def _count(most):
  return max(1, round(_PART.value * most))


def main(_):
  """Prints the table."""
  signal.signal(signal.SIGHUP, signal.SIG_DFL)  # its children's, too, where nohup started it
  if _NAMESPACE not in os.environ and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0:
    command = ["unshare", "-rm", sys.executable, "-m", "experiments.reliability", *sys.argv[1:]]
    os.execvpe(command[0], command, os.environ | {_NAMESPACE: "1"})
  lost = 0
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    jax.config.update("jax_compilation_cache_dir", str(root / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if children.wait(children.start(root / "straight")):
      raise SystemExit(children.log_of(root / "straight").read_text())
    print("| fault | injected | survived | lost | |\n|---|---|---|---|---|", flush=True)
    for name in _ONLY.value:
      injected, survived, remark = inject(name, root)
      lost += injected - survived
      print(f"| {_LABELS[name]} | {injected} | {survived} | {injected - survived} | {remark} |", flush=True)
      if injected > survived:
        for log in sorted(root.glob("**/*.log")):
          print(f"{log}:\n{log.read_text()[-2000:]}", file=sys.stderr)
    if mounted := [root / name for name in ("full_disk", "read_only") if (root / name).is_mount()]:
      subprocess.run(["umount", "-q", *mounted], check=False)
  raise SystemExit(int(lost > 0))


if __name__ == "__main__":
  app.run(main)
