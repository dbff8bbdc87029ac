"""Signals that ask a run to stop: SIGINT, and SIGTERM, by which a machine is taken away."""

import contextlib
import os
import signal
import sys
import threading

EXIT_PREEMPTED = 75  # EX_TEMPFAIL


@contextlib.contextmanager
def on_signals(handler, *numbers):
  """Has these signals call `handler(number, frame)` while it is open, if this thread may say so."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.signal(number, handler) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def exit_preempted(*_):
  """Ends the process with the code that says: the same command goes on."""
  raise SystemExit(EXIT_PREEMPTED)


@contextlib.contextmanager
def stop_requests():
  """Collects SIGINT and SIGTERM in a list while it is open, so that they meet a loop that can save.

  A second SIGINT ends the process at once, in the middle of a compilation too.
  """
  stops = []
  if threading.current_thread() is not threading.main_thread():
    yield stops
    return
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  wakeup = signal.set_wakeup_fd(writing)
  threading.Thread(target=_end_at_second_interrupt, args=[reading], daemon=True).start()
  try:
    with on_signals(lambda number, _: stops.append(number), signal.SIGINT, signal.SIGTERM):
      yield stops
  finally:
    signal.set_wakeup_fd(wakeup)
    os.close(writing)


def _end_at_second_interrupt(reading):
  """Reads the numbers of signals as they come: Python calls its handlers only between two calls into XLA."""
  interrupts = 0
  while number := os.read(reading, 1):
    interrupts += number[0] == signal.SIGINT
    if interrupts == 2:
      print("interrupted twice: ended without saving", file=sys.stderr, flush=True)
      os._exit(128 + signal.SIGINT)
  os.close(reading)
