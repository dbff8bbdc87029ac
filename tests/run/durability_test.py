"""Runs that are killed, stopped, crowded out: see `experiments.reliability.faults`."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAMES = {
  "kills": "SIGKILL",
  "terminations": "SIGTERM",
  "taken_away": "the folder",
  "failing_writes": "a write",
  "second_run": "a second run",
  "full_disk": "disk full",
  "read_only": "disk that cannot be written",
  "flipped_bits": "a bit",
  "cut_files": "any file",
  "failing_reads": "a permission",
  "records": "records",
  "bad_input": "configs",
}


@pytest.fixture(scope="module")
def table():
  """What the command printed: the cells of each row by its first one."""
  done = subprocess.run(
    [sys.executable, "-m", "experiments.reliability", "--part=0.05", *(f"--only={name}" for name in NAMES)],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
  return {cells[0]: cells for cells in rows} | {"stderr": done.stderr}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_survives(table, name):
  """Ends like the uninterrupted run, bit for bit, or says why it cannot start."""
  rows = [cells for label, cells in table.items() if label.startswith(NAMES[name])]
  assert rows, table["stderr"]
  _, injected, survived, lost, remark = rows[0]
  if remark.startswith("not run"):
    pytest.skip(remark)
  assert int(injected) > 0 and survived == injected and lost == "0", f"{rows}\n{table['stderr']}"
  if name == "kills":
    assert int(injected) == 5
