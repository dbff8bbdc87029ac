"""A headless Chromium, driven by its own protocol over two pipes."""

import json
import os
import shutil
import subprocess
import threading

NAMES = ("chromium", "chromium-browser")
_MOST_SECONDS = 300


def find():
  """Returns the path of the browser, or None where there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """One page of a browser without a window; a context manager.

  Commands and answers are JSON, each ended by a zero byte, on the browser's file descriptors 3 and 4.
  """

  def __init__(self, profile):
    """Starts the browser with an empty profile in a folder."""
    (read, self._out), (self._in, write) = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [find(), *options, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
    shell = ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', *command]
    self._process = subprocess.Popen(shell, pass_fds=(read, write), stderr=subprocess.DEVNULL)
    os.close(read)
    os.close(write)
    self._guard = threading.Timer(_MOST_SECONDS, self._process.kill)  # so that no test waits for it for ever
    self._guard.start()
    self._answers, self._number, self._session = os.fdopen(self._in, "rb"), 0, None
    self._events, self._loaders = [], set()

  def __enter__(self):
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    self.call("Page.enable")
    self.call("Page.setLifecycleEventsEnabled", enabled=True)  # which tells of the empty page too
    self.loaded()
    return self

  def __exit__(self, *_):
    self._guard.cancel()
    self._process.kill()
    self._process.wait()
    os.close(self._out)
    self._answers.close()

  def call(self, method, **parameters):
    """Calls a method of the protocol, and returns its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    if self._session is not None:
      message["sessionId"] = self._session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    while (answer := self._message()).get("id") != self._number:
      self._events.append(answer)
    assert "error" not in answer, (method, answer)
    return answer["result"]

  def open(self, address):
    """Opens a page, and returns when it is loaded."""
    self.call("Page.navigate", url=address)
    self.loaded()

  def loaded(self):
    """Returns when another page than the last one is loaded."""
    while (loader := self._event("Page.lifecycleEvent", name="load")["loaderId"]) in self._loaders:
      pass
    self._loaders.add(loader)

  def run(self, script):
    """Runs JavaScript in the page, and returns the value of its last expression."""
    answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, userGesture=True)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")

  def _event(self, method, **fields):
    """Returns what the next event of a kind says, waiting for it where it has not come yet."""
    while True:
      event = self._events.pop(0) if self._events else self._message()
      if event.get("method") == method and event["params"].items() >= fields.items():
        return event["params"]

  def _message(self):
    message = b""
    while not message.endswith(b"\0"):
      byte = self._answers.read(1)
      assert byte, "the browser has ended"
      message += byte
    return json.loads(message[:-1])
