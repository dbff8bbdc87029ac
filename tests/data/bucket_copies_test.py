"""Data that lies in a bucket, on a server of the loopback: copied once, whole or not at all."""

import concurrent.futures
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from soseleto_jax import storage
from soseleto_jax.choices import for_folders
from soseleto_jax.data import bucket_copies, lazy, tfds
from soseleto_jax.data.bucket_copies import local
from soseleto_jax.data.get_task import task_of
from tests.bucket import serving
from tests.data.written import write_arrays, write_images


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  with serving(tmp_path_factory.mktemp("served") / "files"):
    yield


class Bucket:
  """A folder in a bucket, and what was fetched from there."""

  def __init__(self, address):
    self.address, self.fetched = address, []

  def write(self, name, content):
    storage.bucket_client().pipe_file(f"{self.address}/{name}", content)

  def put(self, folder, where=""):
    for file in folder.rglob("*"):
      if file.is_file():
        self.write(f"{where}{file.relative_to(folder)}", file.read_bytes())

  def look_again(self):
    bucket_copies.look_again()
    return local(self.address)


@pytest.fixture
def bucket(served, tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("SOSELETO_CACHE", str(tmp_path / "cache"))
  caplog.set_level(logging.INFO, logger="soseleto_jax")
  bucket, fetch = Bucket(f"gs://bucket/{tmp_path.name}"), bucket_copies._fetch

  def counted(found, *given):
    bucket.fetched.append(found["name"].removeprefix(f"bucket/{tmp_path.name}/"))
    return fetch(found, *given)

  monkeypatch.setattr(bucket_copies, "_fetch", counted)
  bucket_copies.look_again()
  yield bucket
  bucket_copies.look_again()


def test_a_folder_of_this_machine_is_itself(tmp_path):
  assert local(tmp_path) == tmp_path
  with pytest.raises(ValueError, match="give .*gs://BUCKET/FOLDER"):
    local("s3://bucket/data")


def test_what_changed_alone_makes_a_new_copy(bucket, caplog):
  bucket.write("a b#1.bin", b"one")
  bucket.write("deep/er/é.bin", b"")
  bucket.write("marker/", b"")  # what consoles write to have a folder
  Bucket(f"{bucket.address}2").write("other.bin", b"not below it")
  first = local(bucket.address)
  assert {str(path.relative_to(first)): path.read_bytes() for path in first.rglob("*") if path.is_file()} == {
    "a b#1.bin": b"one", "deep/er/é.bin": b"",
  }  # fmt: skip
  assert "copying 2 files" in caplog.text and "copied in" in caplog.text
  assert bucket.look_again() == local(f"{bucket.address}/") == first and len(bucket.fetched) == 2
  bucket.write("a b#1.bin", b"two")
  assert local(bucket.address) == first  # until one looks again
  second = bucket.look_again()
  assert (first / "a b#1.bin").read_bytes() == b"one" and (second / "a b#1.bin").read_bytes() == b"two"
  folders = [f"{path.name}{end}" for path in (first, second) for end in ("", ".lock")]
  assert sorted(os.listdir(first.parent)) == sorted(folders)


def test_a_file_by_its_address(bucket):
  bucket.write("new.npy", b"content")
  file = local(f"{bucket.address}/new.npy")
  assert file.name == "new.npy" and file.read_bytes() == b"content"


@pytest.mark.parametrize("fail", ["cut", "changed", "server"])
def test_a_copy_that_ends_too_soon_is_not_used_and_goes_on(bucket, monkeypatch, fail):
  for number in range(3):
    bucket.write(f"{number}.bin", bytes([number]) * 1000)
  client = storage.bucket_client()

  def failing(source, target, **options):
    while "2.bin" in source:  # which may begin before the error is seen, and then is told to stop
      options["callback"].call()
      time.sleep(0.01)
    client.get_file(source, target, **options)
    if "1.bin" in source:
      if fail == "server":
        raise ConnectionError("gone away")
      with open(target, "r+b") as file:
        file.truncate(400) if fail == "cut" else file.write(b"x")

  monkeypatch.setattr(bucket_copies, "_THREADS", 1)
  with monkeypatch.context() as patched, pytest.raises(OSError, match="1.bin was not copied whole|gone away"):
    patched.setattr(storage, "bucket_client", lambda: types.SimpleNamespace(find=client.find, get_file=failing))
    local(bucket.address)
  del bucket.fetched[:]
  folder = local(bucket.address)
  assert bucket.fetched == ["1.bin", "2.bin"]  # the first was there
  assert [(folder / f"{number}.bin").read_bytes() for number in range(3)] == [bytes([n]) * 1000 for n in range(3)]
  (folder / "2.bin").unlink()  # as those do who tidy up
  assert (bucket.look_again() / "2.bin").exists() and len(bucket.fetched) == 3


_KILLED = """
import os, signal, sys
from soseleto_jax import storage
from soseleto_jax.data import bucket_copies

def get_file(source, target, **options):
  if "1.bin" not in source:
    return client.get_file(source, target, **options)
  with open(target, "wb") as file:
    file.write(b"half")
  os.kill(os.getpid(), signal.SIGKILL)

client, bucket_copies._THREADS = storage.bucket_client(), 1
storage.bucket_client = lambda: type("Client", (), {"find": client.find, "get_file": staticmethod(get_file)})
bucket_copies.local(sys.argv[1])
"""


def test_a_copy_that_is_killed_goes_on_and_leaves_nothing_behind(bucket):
  for number in range(3):
    bucket.write(f"{number}.bin", bytes([number]) * 1000)
  assert subprocess.run([sys.executable, "-c", _KILLED, bucket.address]).returncode == -signal.SIGKILL
  folder = local(bucket.address)
  assert bucket.fetched == ["1.bin", "2.bin"]
  assert [(folder / f"{number}.bin").read_bytes() for number in range(3)] == [bytes([n]) * 1000 for n in range(3)]
  assert sorted(os.listdir(folder.parent)) == [folder.name, f"{folder.name}.lock"]


def objects(*names):
  return lambda address: {name: {"size": 1, "generation": "1"} for name in names}


@pytest.mark.parametrize(
  "found, message",
  [
    (None, "holds no files; give the address of the folder"),
    (objects("a/../b"), "'a/../b', which is no file's path; rename it"),
    (objects("a//b"), "'a//b', which is no file's path"),
    (objects("no cache"), "but SOSELETO_CACHE is empty"),
    (objects("full"), "takes 0.00 GiB, but .* has 0.00 free; make room, or let SOSELETO_CACHE name another folder"),
  ],
)
def test_what_cannot_be_copied(bucket, monkeypatch, found, message):
  if found:
    monkeypatch.setattr(bucket_copies, "_objects", found)
    monkeypatch.setattr(bucket_copies.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
  if "empty" in message:
    monkeypatch.setenv("SOSELETO_CACHE", "")
  with pytest.raises((ValueError, OSError), match=message):
    local(bucket.address)


def test_a_bucket_that_is_not_there(bucket):
  with pytest.raises(ValueError, match="gs://another/data: there is no such bucket"):
    local("gs://another/data")


def test_of_two_at_once_one_copies(bucket, monkeypatch, caplog):
  """The other waits: by a lock on a file, which is each opening's own."""
  for number in range(4):
    bucket.write(f"{number}.bin", bytes(100))
  copy = bucket_copies._copy
  monkeypatch.setattr(bucket_copies, "_copy", lambda *given: (waiting.wait(30), copy(*given)))
  waiting = threading.Event()
  waits = lambda message, *args: waiting.set() if "waiting for it" in message else None
  monkeypatch.setattr(bucket_copies._LOGGER, "info", waits)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first, second = pool.map(local, [bucket.address] * 2)
  assert first == second and len(bucket.fetched) == 4 and waiting.is_set()


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_sets_of_ones_own(bucket, tmp_path, kind):
  """Are the same as on the disk, and files keep their address."""
  for number, part in enumerate(("many", "few/train", "few/test")):
    if kind == "folder":
      write_images(tmp_path / part, 4, number, (8, 8, 3))
    else:
      x = np.random.default_rng(number).normal(size=(12, 4)).astype(np.float32)
      write_arrays(tmp_path / part, x=x, label=np.arange(12) % 3)
    bucket.put(tmp_path / part, f"{part}/")
  here, there = (task_of(for_folders(f"{root}/many", f"{root}/few", kind)) for root in (tmp_path, bucket.address))
  for side in ("source", "target", "test"):
    for name, column in getattr(here, side).items():
      found = getattr(there, side)[name]
      if name == "file":
        assert [file.removeprefix(bucket.address) for file in found] == [
          file.removeprefix(str(tmp_path)) for file in column
        ]
      else:
        np.testing.assert_array_equal(lazy.load(found), lazy.load(column))
  assert len(bucket.fetched) == len(set(bucket.fetched)) == (36 if kind == "folder" else 6)


def test_sets_of_tfds(bucket, tiny_dir, monkeypatch):
  bucket.put(tiny_dir)
  expected, found = (tfds.load("tiny", "train", str(root)) for root in (tiny_dir, bucket.address))
  np.testing.assert_array_equal(found["x"], expected["x"])
  np.testing.assert_array_equal(found["label"], expected["label"])
  assert found["class_names"] == expected["class_names"]
  assert bucket.fetched and all("tiny/1.0.0/" in name for name in bucket.fetched)  # and no other set
  monkeypatch.setenv("TFDS_DATA_DIR", bucket.address)
  assert len(tfds.load("tiny", "test")["label"]) == 15
  with pytest.raises(RuntimeError, match=f"'mnist' is not ready in {bucket.address} .*a bucket is only read from"):
    tfds.load("mnist", "train", bucket.address)
