"""Signals that ask a run to stop: SIGINT, SIGTERM (a machine is taken away), SIGHUP (a terminal is)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

PREEMPTION = (signal.SIGTERM, signal.SIGHUP)
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: what a command that is preempted ends with


class Preempted(BaseException):
  """The run was asked to stop by SIGTERM or SIGHUP; what it saved goes on with the same call.

  Like KeyboardInterrupt it is no `Exception`, so that no handler of errors takes it for one.
  """


def raise_preempted(*_: Any) -> None:
  """Raises `Preempted`; takes what a signal handler is called with."""
  raise Preempted


@contextlib.contextmanager
def on_signals(handler: Callable[..., Any], *numbers: int) -> Iterator[None]:
  """Has these signals call `handler(number, frame)` while it is open, if this thread may say so.

  SIGHUP stays ignored where it was, as `nohup` wants it.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
  before = {number: signal.signal(number, handler) for number in numbers if number not in ignored}
  try:
    yield
  finally:
    for number, former in before.items():
      signal.signal(number, former)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
  """Collects SIGINT, SIGTERM and SIGHUP in a list while it is open, so that they meet a loop that can save.

  A second SIGINT raises KeyboardInterrupt where it comes.
  """
  stops: list[int] = []

  def collect(number, _):
    if number == signal.SIGINT and number in stops:
      raise KeyboardInterrupt
    stops.append(number)

  with on_signals(collect, signal.SIGINT, *PREEMPTION):
    yield stops
