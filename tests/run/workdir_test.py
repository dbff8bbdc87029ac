"""Claiming a folder, and what is said where it cannot be written."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from soseleto_jax.run.workdir import claim, failed_writes


def test_a_second_claim_is_refused(tmp_path):
  with claim(tmp_path / "run"):
    message = f"run is in use by process {os.getpid()} on {socket.gethostname()}; .* another --workdir"
    with pytest.raises(RuntimeError, match=message), claim(tmp_path / "run"):
      pass
  with claim(tmp_path / "run"):  # given back
    pass


def test_the_hold_ends_with_its_process(tmp_path):
  """However that ends; the file stays."""
  program = f"""
import os, pathlib, signal
from soseleto_jax.run.workdir import claim
with claim(pathlib.Path({str(tmp_path)!r})):
  os.kill(os.getpid(), signal.SIGKILL)
"""
  assert subprocess.run([sys.executable, "-c", program]).returncode == -9
  assert (tmp_path / ".lock").read_text().startswith("process ")
  with claim(tmp_path):
    assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_folder_that_stays_empty_is_removed(tmp_path, made, used):
  """If it was not there before."""
  workdir = tmp_path / "new" / "run"
  if not made:
    workdir.mkdir(parents=True)
  with pytest.raises(ValueError), claim(workdir):
    if used:
      (workdir / "config.json").touch()
    raise ValueError
  assert workdir.exists() == (used or not made)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
  precious = tmp_path / "precious"
  precious.write_text("words")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / ".lock").symlink_to(precious)
  with pytest.raises(OSError, match="run/.lock is a link, which a run does not follow; remove it"):
    with claim(tmp_path / "run"):
      pass
  assert precious.read_text() == "words"


def test_a_folder_that_cannot_be(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match="run cannot be written: Not a directory; choose another --workdir"):
    with claim(tmp_path / "file" / "run"):
      pass


@pytest.mark.parametrize(
  "error, what, cure",
  [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", "free space and"),
    (OSError("x: No space left on device [28]"), "No space left on device", "free space and"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded", "free space and"),
    (OSError(errno.EIO, "Input/output error"), r"\[Errno 5\] Input/output error", "mend that, then"),
  ],
)
@pytest.mark.parametrize("step, kept", [(None, "no checkpoint was saved"), (8, "the checkpoint of step 8 is intact")])
def test_failed_writes(error, what, cure, step, kept):
  with pytest.raises(OSError, match=f"^{what}; {kept}.*; {cure} run the same command again$"):
    with failed_writes(lambda: step):
      raise error


def test_other_errors_pass():
  with pytest.raises(ValueError, match="^No space left on device$"), failed_writes(lambda: 1):
    raise ValueError("No space left on device")
