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
def claim(workdir: pathlib.Path) -> Iterator[Callable[[], None]]:
  """Makes the folder, and holds it for this process while it is open.

  The hold ends with the process, however that ends; in a bucket it runs out a minute later. A folder that was made here
  and stays empty is removed.

  Yields:
    A function that holds the folder still: it makes it anew where it was taken away, and raises RuntimeError where it
    is another run's by now.

  Raises:
    OSError: the folder cannot be made or written.
    RuntimeError: another run holds it; the message says which process of which machine.
  """
  if storage.is_bucket(workdir):
    with lease.lease(workdir / _LOCK):
      yield lambda: None
    return
  made = not workdir.exists()
  lock = _Lock(workdir)
  try:
    yield lock.keep
  finally:
    if made and workdir.is_dir() and os.listdir(workdir) == [_LOCK]:
      (workdir / _LOCK).unlink()
      workdir.rmdir()
    lock.release()


class _Lock:
  """The hold on a folder of this machine: a lock on a file in it."""

  def __init__(self, workdir):
    self._workdir = workdir
    self._file = self._take()

  def keep(self):
    try:
      there = os.lstat(self._workdir / _LOCK)
    except OSError:
      _LOGGER.warning("%s was taken away while its run goes on: what is to come is saved there anew", self._workdir)
      before, self._file = self._file, self._take()
      before.close()
      return
    if not os.path.samestat(there, os.fstat(self._file.fileno())):
      raise RuntimeError(f"{self._workdir} was taken away, and is another run's by now; choose another --workdir")

  def release(self):
    self._file.close()

  def _take(self):
    path = self._workdir / _LOCK
    try:
      self._workdir.mkdir(parents=True, exist_ok=True)
      file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", 0)
    except OSError as error:
      if path.is_symlink():
        raise OSError(f"{path} is a link, which a run does not follow; remove it") from error
      raise _cannot_write(self._workdir, error) from error
    try:
      _lock(file, self._workdir)
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError as error:
      file.close()
      raise _cannot_write(self._workdir, error) from error
    except RuntimeError:
      file.close()
      raise
    return file


def _lock(file, workdir):
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    holder = file.read().decode(errors="replace").strip() or "another run"
    raise RuntimeError(f"{workdir} is in use by {holder}; wait for it, stop it, or choose another --workdir") from error
  except OSError as error:
    _LOGGER.warning("%s: no locks on this file system (%s); start no second run there", workdir, error.strerror)


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
