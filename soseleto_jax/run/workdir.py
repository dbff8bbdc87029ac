"""A run's folder as a place to write: claimed by one run at a time, and what to do where it is full."""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from soseleto_jax import storage
from soseleto_jax.run import lease

_LOGGER = logging.getLogger(__name__)
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def claim(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the folder, and holds it for this process while it is open.

  The hold ends with the process, however that ends; in a bucket it runs out a minute later. A folder that was made here
  and stays empty is removed.

  Raises:
    OSError: the folder cannot be made or written.
    RuntimeError: another run holds it; the message says which process of which machine.
  """
  if storage.is_bucket(workdir):
    with lease.lease(workdir / _LOCK):
      yield
    return
  made = not workdir.exists()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / _LOCK).open("a+b", buffering=0)
  except OSError as error:
    raise _cannot_write(workdir, error) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise RuntimeError(
        f"{workdir} is in use by {file.read().decode().strip() or 'another run'}; wait for it, stop it, "
        "or choose another --workdir"
      ) from error
    except OSError as error:
      _LOGGER.warning("%s: no locks on this file system (%s); start no second run there", workdir, error.strerror)
    try:
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError as error:
      raise _cannot_write(workdir, error) from error
    try:
      yield
    finally:
      if made and os.listdir(workdir) == [_LOCK]:
        (workdir / _LOCK).unlink()
        workdir.rmdir()


@contextlib.contextmanager
def failed_writes(latest_step: Callable[[], int | None]) -> Iterator[None]:
  """Makes an OSError say what is left of the run and what to do.

  Args:
    latest_step: gives the step of the newest checkpoint, or None.
  """
  try:
    yield
  except OSError as error:
    step = latest_step()
    kept = "no checkpoint was saved yet" if step is None else f"the checkpoint of step {step} is intact"
    # Libraries hand on the system's words, not always its error number.
    full = next((text for text in map(os.strerror, _FULL) if text in str(error)), None)
    cure = "free space and" if full else "mend that, then"
    raise OSError(f"{full or error}; {kept}; {cure} run the same command again") from error


def _cannot_write(workdir, error):
  return OSError(f"{workdir} cannot be written: {error.strerror}; choose another --workdir, or mend that")
