"""Injects faults into runs and prints what became of them: `python -m experiments.reliability`.

Prints the rows of the table in docs/reliability.md. A fault is survived where the run ends with the parameters,
optimizer state, weights, metrics and files of the uninterrupted run, bit for bit, and where a run that has to stop or
to be refused says why. Full and read-only disks are tried in a mount namespace of this process's own (Linux).
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl import app, flags

from experiments.reliability import children, faults

_FAULTS = ("kills", "terminations", "damages", "second_run", "full_disk", "read_only")
_ONLY = flags.DEFINE_multi_enum("only", _FAULTS, _FAULTS, "Which faults.")
_COUNT = flags.DEFINE_integer("kills", 20, "How often the run is killed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")

_NAMESPACE = "RELIABILITY_NAMESPACE"  # set in the process that has a mount namespace of its own
_LABELS = {
  "kills": "SIGKILL at random moments of one run",
  "terminations": "SIGTERM at random moments of one run",
  "damages": "newest checkpoint cut, changed, incomplete or missing in part",
  "second_run": "a second run on the same folder",
  "full_disk": "disk full in the middle of a run",
  "read_only": "disk that cannot be written",
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
  if name in ("kills", "terminations"):
    return getattr(faults, name)(straight, workdir, rng, _COUNT.value if name == "kills" else 5)
  return faults.damages(straight, workdir, rng) if name == "damages" else getattr(faults, name)(straight, workdir)


def main(_):
  """Prints the table."""
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
    if _NAMESPACE in os.environ:
      subprocess.run(["umount", "-q", *root.glob("full_disk"), *root.glob("read_only")], check=False)
  raise SystemExit(int(lost > 0))


if __name__ == "__main__":
  app.run(main)
