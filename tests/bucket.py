"""A bucket on the loopback: `python -m tests.bucket PORT FOLDER` serves gs://bucket, whose files lie in the folder."""

import contextlib
import http
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

BUCKET = "bucket"


class Server:
  """The server as a process of its own, which can go away and come back with what it held."""

  def __init__(self, folder):
    self._port = _free_port()
    self._folder = folder
    self._log = folder.with_suffix(".log")
    self._next = None
    address = f"http://127.0.0.1:{self._port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": address,
      "TENSORSTORE_GCS_HTTP_URL": address,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anything",
      "EPATH_USE_TF": "false",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # the server knows plain buckets alone
    }

  def make_ready(self):
    """Makes a process that the next start needs not wait for, however busy the machine is."""
    command = [sys.executable, "-m", "tests.bucket", str(self._port), str(self._folder)]
    with self._log.open("ab") as log:
      self._next = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    self._next.stdout.readline()

  def start(self):
    """Starts to serve, and returns once the process answers."""
    if self._next is None:
      self.make_ready()
    self._process, self._next = self._next, None
    self._process.stdin.close()
    while True:
      with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
        return
      assert self._process.poll() is None, f"the server did not start: {self._log.read_text()}"
      time.sleep(0.05)

  def stop(self):
    """Ends the process after the request that it is at: with half a file of its own the next would not start."""
    self._process.terminate()
    self._process.wait(60)


@contextlib.contextmanager
def serving(folder):
  """Gives a running `Server`, which the clients of this process and of those that it starts ask."""
  server = Server(folder)
  with pytest.MonkeyPatch.context() as patched:
    for name, value in server.environment.items():
      patched.setenv(name, value)
    for client in ("gcsfs", "gcp_storage_emulator"):  # which read them when they are imported
      pytest.importorskip(client)
    _forget_clients()
    server.start()
    yield server
    server.stop()
    _forget_clients()


def _free_port():
  """A port that no client is given as its own while the server is away, as those from 32768 on are."""
  for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
    with contextlib.suppress(OSError), socket.socket() as free:
      free.bind(("127.0.0.1", port))
      return port
  raise OSError("no port of 100 is free")


@pytest.fixture
def server(tmp_path):
  """A server of one test's own."""
  with serving(tmp_path / "served") as server:
    yield server


def _forget_clients():
  import gcsfs
  from etils.epath import backend, gpath

  gpath._is_tf_installed.cache_clear()
  gcsfs.GCSFileSystem.clear_instance_cache()
  backend.fsspec_backend._get_filesystem.cache_clear()


def _serve(port, folder):
  from gcp_storage_emulator import exceptions, server
  from gcp_storage_emulator.handlers import objects

  def generation(request, storage, name):
    with contextlib.suppress(exceptions.NotFound):
      return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    return "0"

  def conditional(upload):
    """An upload with the condition that the emulator leaves out: the name's generation, 0 where it is free."""

    def answer(request, response, storage):
      wanted = request.query.get("ifGenerationMatch")
      name = (request.query.get("name") or [None])[0] or request.data["meta"]["name"]
      if wanted and wanted[0] != generation(request, storage, name):
        response.status = http.HTTPStatus.PRECONDITION_FAILED
      else:
        upload(request, response, storage)

    return answer

  def download(request, response, storage, given=objects.download):
    given(request, response, storage)
    response["x-goog-generation"] = generation(request, storage, request.params["object_id"])

  objects._media_upload = conditional(objects._media_upload)
  objects._multipart_upload = conditional(objects._multipart_upload)
  objects.download = download
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  there = os.path.exists(folder)
  print("ready", flush=True)
  sys.stdin.readline()
  server.create_server("127.0.0.1", port, data_dir=folder, default_bucket=None if there else BUCKET).run()


if __name__ == "__main__":
  _serve(int(sys.argv[1]), sys.argv[2])
