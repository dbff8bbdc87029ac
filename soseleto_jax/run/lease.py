"""The hold on a folder in a bucket, where there are no locks: an object that its holder renews."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from soseleto_jax import storage

_LOGGER = logging.getLogger(__name__)
_RENEWED_EVERY = 5.0  # seconds
_DEAD_AFTER = 60.0  # seconds without having been renewed


@contextlib.contextmanager
def lease(path: pathlib.Path) -> Iterator[None]:
  """Holds an object in a bucket while it is open, so that no other process holds it.

  The object is made only if it is not there, which the server decides, and is renewed in the background. One that is
  not renewed for a minute, or whose process was of this machine and is gone, was left by a process that died, and is
  taken over.

  Raises:
    OSError: the bucket cannot be written.
    RuntimeError: another process holds it; the message says which one of which machine.
  """
  mine = {"id": uuid.uuid4().hex, "process": os.getpid(), "machine": socket.gethostname()}
  while not _create(path, mine):
    _end_of_dead(path)
  ended = threading.Event()
  renewing = threading.Thread(target=_renew, args=[path, mine, ended], daemon=True)
  renewing.start()
  try:
    yield
  finally:
    ended.set()
    renewing.join()
    with contextlib.suppress(Exception):  # what stopped the run is the news, and a lease that stays runs out
      if _read(path)[0].get("id") == mine["id"]:
        path.unlink()


def _create(path, content):
  """Returns whether the object was made, which it is not where there is one."""
  try:
    storage.bucket_client().pipe_file(os.fspath(path), _encoded(content), mode="create")
  except FileExistsError:
    return False
  return True


def _end_of_dead(path):
  """Removes the object of a process that died; returns when it is gone, and raises RuntimeError if its holder lives."""
  content, generation = _read(path)
  if content is None:
    return
  holder = f"process {content.get('process')} on {content.get('machine')}"
  if not _is_gone(content):
    _LOGGER.info("%s was left by %s; taking it over unless it is renewed within a minute", path.parent, holder)
    start = time.monotonic()
    while time.monotonic() - start < _DEAD_AFTER:
      time.sleep(_RENEWED_EVERY / 5)
      now, generation = _read(path)
      if now is None:
        return
      if now != content:
        raise RuntimeError(f"{path.parent} is in use by {holder}; wait for it, stop it, or choose another --workdir")
  with contextlib.suppress(FileNotFoundError):  # another one may be as quick: only this generation is removed
    storage.bucket_client().rm_file(f"{os.fspath(path)}#{generation}")


def _is_gone(content):
  """Whether the holder was a process of this machine that has ended."""
  if content.get("machine") != socket.gethostname() or content.get("process") == os.getpid():
    return False
  try:
    os.kill(int(content["process"]), 0)
  except ProcessLookupError:
    return True
  except (OSError, KeyError, TypeError, ValueError):
    return False
  return False


def _read(path):
  """Returns the object's content and generation, or None for both where there is none."""
  client = storage.bucket_client()
  try:
    generation = client.info(os.fspath(path)).get("generation")
    text = client.cat_file(os.fspath(path))
  except FileNotFoundError:
    return None, None
  try:
    content = json.loads(text)
  except ValueError:
    content = None
  return (content if isinstance(content, dict) else {}), generation


def _renew(path, mine, ended):
  number = 0
  while not ended.wait(_RENEWED_EVERY):
    try:
      content, _ = _read(path)
      if (content or {}).get("id") != mine["id"]:
        _LOGGER.error("%s: another run took it over while this one was silent; stop one of the two", path.parent)
        return
      number += 1
      storage.bucket_client().pipe_file(os.fspath(path), _encoded({**mine, "renewed": number}))
    except Exception as error:  # the server may come back before the lease has run out
      _LOGGER.warning("%s could not be renewed: %s", path, error)


def _encoded(content):
  return json.dumps(content).encode()
