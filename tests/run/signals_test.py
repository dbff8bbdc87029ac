"""Signals meet a run where it can save; the rest is in train_test.py."""

import contextlib
import signal
import subprocess
import sys


def test_a_second_interrupt_ends_it_at_once():
  """In the middle of a call into XLA, here one without end, where Python calls no handler."""
  program = """if True:
    import jax
    from soseleto_jax import signals
    with signals.stop_requests() as stops:
      print("ready", flush=True)
      jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, jax.numpy.sin, x))(1.0).block_until_ready()
  """
  with subprocess.Popen(
    [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout.readline() == "ready\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.send_signal(signal.SIGINT)
      process.wait(1)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(30)
    process.kill()
    assert process.returncode == 130 and "ended without saving" in process.stderr.read()
