"""Data in a bucket, copied once to this machine and read from there.

Copies lie in `~/.cache/soseleto_jax/buckets`, or below the folder that the environment's SOSELETO_CACHE names.
"""

import base64
import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from soseleto_jax import storage

_LOGGER = logging.getLogger(__name__)
_THREADS = 16
_SAID_EVERY = 30  # seconds
_GIB = 2**30


def local(where: str | os.PathLike) -> pathlib.Path:
  """Returns the path on this machine of a file or folder, after copying it where it is in a bucket.

  A copy is of what the bucket holds at the first call in a process, or the first after `look_again`: what was copied
  before is copied anew only where sizes or generations of the objects are others by now. It is read once it is whole,
  and a copy that was interrupted goes on where it ended.

  Args:
    where: a path, or `gs://bucket/folder`.

  Raises:
    ValueError: another kind of address, one where nothing is, or names that no folder can hold.
    OSError: the bucket does not answer or may not be read, or there is no space for the copy.
  """
  path = storage.as_path(where)
  return _copied(os.fspath(path)) if storage.is_bucket(path) else path


def look_again() -> None:
  """Lets the next call of `local` look at what a bucket holds now."""
  _copied.cache_clear()


@functools.cache
def _copied(address: str) -> pathlib.Path:
  with storage.os_errors(pathlib.PurePath(address)):
    objects = _objects(address)
  folder = _folder(address, objects)
  single = list(objects) == [""]  # the address is a file's
  files = {_place(address, name or address.rpartition("/")[2], folder): found for name, found in objects.items()}
  folder.mkdir(parents=True, exist_ok=True)
  with _held(folder, address):
    missing = {path: found for path, found in files.items() if not _is_whole(path, found)}
    if missing:
      _copy(missing, folder, address)
  return next(iter(files)) if single else folder


def _objects(address) -> dict[str, dict[str, Any]]:
  """Returns what lies at an address or below, by name; of a file at the address itself the name is ""."""
  try:
    found = storage.bucket_client().find(address, detail=True)
  except FileNotFoundError as error:
    raise ValueError(f"{address}: there is no such bucket, or none that you may see") from error
  prefix = address.removeprefix("gs://")
  objects = {name.removeprefix(prefix).removeprefix("/"): about for name, about in found.items()}
  objects = {name: about for name, about in objects.items() if not name.endswith("/")}  # those stand for folders
  if not objects:
    raise ValueError(f"{address} holds no files; give the address of the folder that holds your data")
  return objects


def _folder(address, objects):
  cache = storage.cache_folder()
  if cache is None:
    raise ValueError(f"{address} is copied to a folder, but SOSELETO_CACHE is empty; let it name one with room")
  key = hashlib.sha256(address.encode())
  for name, found in sorted(objects.items()):
    key.update(f"\0{name}\0{found['size']}\0{found.get('generation') or found.get('etag')}".encode())
  return cache / "buckets" / key.hexdigest()[:32]


def _place(address, name, folder):
  if any(part in ("", ".", "..") for part in name.split("/")):
    raise ValueError(f"{address} holds an object called {name!r}, which is no file's path; rename it")
  return folder / name


def _is_whole(path, found):
  try:
    return path.stat().st_size == int(found["size"])
  except OSError:
    return False


@contextlib.contextmanager
def _held(folder, address) -> Iterator[None]:
  """Lets one process at a time look at a copy and complete it."""
  with folder.with_suffix(".lock").open("wb") as file:
    try:
      _lock(file, address)
      for parts in folder.parent.glob(f"{folder.name}.*/"):  # of a process that was killed
        shutil.rmtree(parts, ignore_errors=True)
    except OSError:
      pass  # a file system without locks: files still appear whole, and the same from each process
    yield


def _lock(file, address):
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    _LOGGER.info("%s is being copied by another process; waiting for it", address)
    fcntl.flock(file, fcntl.LOCK_EX)


def _copy(files, folder, address):
  """Copies objects to their places; raises OSError at the first that cannot be, and keeps what was copied."""
  sizes = sum(int(found["size"]) for found in files.values())
  free = shutil.disk_usage(folder).free
  if sizes > free:
    raise OSError(
      f"{address} takes {sizes / _GIB:,.2f} GiB, but {folder.parent} has {free / _GIB:,.2f} free; make room, or let "
      "SOSELETO_CACHE name another folder"
    )
  _LOGGER.info("%s: copying %d files of %.2f GiB to %s", address, len(files), sizes / _GIB, folder)
  start, parts, stop = time.monotonic(), folder.with_suffix(f".{os.getpid()}"), threading.Event()
  bar = tqdm(total=sizes, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
  try:
    parts.mkdir(exist_ok=True)
    copying = {
      pool.submit(_fetch, found, path, parts / str(number), stop) for number, (path, found) in enumerate(files.items())
    }
    with storage.os_errors(pathlib.PurePath(address)):
      done, said = 0, start
      while copying:
        ended, copying = concurrent.futures.wait(copying, _SAID_EVERY, concurrent.futures.FIRST_COMPLETED)
        bytes_copied = sum(future.result() for future in ended)
        done += bytes_copied
        bar.update(bytes_copied)
        if bar.disable and time.monotonic() - said > _SAID_EVERY:
          said = time.monotonic()
          _LOGGER.info("%s: %.2f of %.2f GiB copied", address, done / _GIB, sizes / _GIB)
  finally:
    stop.set()
    pool.shutdown(cancel_futures=True)
    shutil.rmtree(parts, ignore_errors=True)
    bar.close()
  _LOGGER.info("%s: copied in %.0f s", address, time.monotonic() - start)


def _fetch(found, path, part, stop):
  """Copies an object, by way of a file that takes its place when it is whole; returns its size in bytes."""
  from fsspec.callbacks import Callback

  def go_on(size, value):
    if stop.is_set():
      raise InterruptedError("another file could not be copied")

  name, size = f"gs://{found['name']}", int(found["size"])
  pinned = f"{name}#{found['generation']}" if found.get("generation") and "#" not in name else name
  try:
    storage.bucket_client().get_file(pinned, str(part), callback=Callback(hooks={"go_on": go_on}))
  except FileNotFoundError as error:
    raise OSError(f"{name} was changed or removed while it was copied; run the same command again") from error
  digest = found.get("md5Hash")  # an object that was put together from several has none
  if part.stat().st_size != size or (digest and base64.b64encode(_md5(part)).decode() != digest):
    raise OSError(f"{name} was not copied whole; run the same command again")
  path.parent.mkdir(parents=True, exist_ok=True)
  os.replace(part, path)
  return size


def _md5(path):
  with path.open("rb") as file:
    return hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).digest()
