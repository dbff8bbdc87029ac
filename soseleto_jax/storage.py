"""Where a run's files lie: on a disk, or in a bucket of Google Cloud Storage (`gs://bucket/folder`)."""

import contextlib
import importlib.util
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, cast

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_CLIENTS = ("gcsfs", "aiohttp", "google", "fsspec", "requests", "tensorflow")  # whose errors are no OSErrors


def as_path(where: str | os.PathLike) -> pathlib.Path:
  """Returns a path that reads and writes at a place.

  Args:
    where: a file or folder of this machine, where "~" is the user's home and `file:///x` is `/x`; or
      `gs://bucket/folder`.

  Returns:
    A path of pathlib; for a bucket, one of `etils.epath`, which has the methods that the two share.

  Raises:
    ValueError: another kind of address, or a bucket where gcsfs is not installed.
  """
  text = os.fspath(where)
  address = _SCHEME.fullmatch(text)  # pathlib makes one slash of two
  if address is None:
    return pathlib.Path(text).expanduser()
  scheme, rest = address[1].lower(), address[2]
  if scheme == "file":
    return pathlib.Path("/", rest)
  if scheme != "gs":
    raise ValueError(f"{text} is no place for files; give a folder, or gs://BUCKET/FOLDER")
  if not rest.strip("/"):
    raise ValueError(f"{text} names no bucket; give gs://BUCKET/FOLDER")
  if importlib.util.find_spec("gcsfs") is None:
    raise ValueError(f"{text} needs gcsfs; pip install 'soseleto_jax[cloud]'")
  # Where TensorFlow is installed, epath would take its client, with credentials and errors of its own.
  os.environ.setdefault("EPATH_USE_TF", "false")
  from etils import epath

  return cast(pathlib.Path, epath.Path(f"gs://{rest.rstrip('/')}"))


def is_bucket(path: str | os.PathLike) -> bool:
  """Whether a path of `as_path` lies in a bucket: there, files are written whole or not at all, and cannot grow."""
  return os.fspath(path).startswith("gs://")


def cache_folder() -> pathlib.Path | None:
  """Returns the folder of what is kept between runs: the environment's SOSELETO_CACHE; None where that is empty."""
  folder = os.environ.get("SOSELETO_CACHE", "~/.cache/soseleto_jax")
  return pathlib.Path(folder).expanduser() if folder else None


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all: a reader never sees half of it."""
  if is_bucket(path):
    path.write_bytes(content)
    return
  with replacing(path) as temporary:
    temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path of this machine to write a file at, which takes the place of `path` once it is whole."""
  if is_bucket(path):
    with tempfile.TemporaryDirectory() as folder:
      yield (temporary := pathlib.Path(folder) / path.name)
      bucket_client().put_file(str(temporary), os.fspath(path))
    return
  temporary = path.with_name(f".{path.name}.tmp")
  temporary.unlink(missing_ok=True)  # were it a link, what it points to would be written
  try:
    yield temporary
    with temporary.open("rb+") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def bucket_client() -> Any:
  """Returns the fsspec file system of buckets, which reads what is there now."""
  import fsspec

  return fsspec.filesystem("gs", use_listings_cache=False, version_aware=True)


@contextlib.contextmanager
def os_errors(path: os.PathLike) -> Iterator[None]:
  """Makes OSErrors of the errors of a bucket's client, which has tried for half a minute by then."""
  try:
    yield
  except Exception as error:
    if not is_bucket(path) or isinstance(error, OSError) or type(error).__module__.split(".")[0] not in _CLIENTS:
      raise
    raise OSError(f"{os.fspath(path)}: {type(error).__name__}: {error}") from error
