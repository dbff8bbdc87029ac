"""What is shown on a terminal, and what is logged where there is none."""

import io
import itertools
import logging
import sys
import types

import pytest

from soseleto_jax.run import progress as progress_lib
from soseleto_jax.run.progress import Progress

RECORD = {"epoch": 1.0, "source_loss": 1.23456, "target_loss": 2.0, "alpha_mean": 0.5, "auc": 0.87654,
          "validation_accuracy": 0.5, "test_accuracy": 0.98765, "test_loss": 3.0}  # fmt: skip


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Time in seconds that passes 2 at each look."""
  monkeypatch.setattr(progress_lib, "time", types.SimpleNamespace(monotonic=itertools.count(0, 2).__next__))


def steps(progress):
  for step in range(11, 15):
    progress.advance(step, {"source_loss": 1.5, "grad_norm": 9.0})
  return progress.record(14, RECORD)


def test_quiet_where_there_is_no_terminal(monkeypatch, capsys, clock, caplog):
  """One line for each record, by logging alone."""
  caplog.set_level(logging.INFO, "soseleto_jax")
  with Progress(20, 10) as progress:
    assert steps(progress) == 2.0  # 4 steps in 2 seconds
    assert progress.record(20, {"target_loss": 1.0, "test_accuracy": 1.0}) == 3.0
  captured = capsys.readouterr()
  assert captured.err == captured.out == ""
  assert [record.getMessage() for record in caplog.records] == [
    "step 14 of 20: source_loss 1.235, target_loss 2.000, alpha_mean 0.500, auc 0.877, "
    "validation_accuracy 50.0%, test_accuracy 98.8%; 2.0 steps/s, 3 s left",
    "step 20 of 20: target_loss 1.000, test_accuracy 100.0%; 3.0 steps/s, 0 s left",
  ]


def test_the_log_is_the_packages(clock, caplog):
  caplog.set_level(logging.INFO)
  with Progress(20, 10) as progress:
    steps(progress)
  assert [record.name for record in caplog.records] == ["soseleto_jax.run.progress"]


def test_a_bar_on_a_terminal(monkeypatch, clock, caplog):
  """It goes on from the step of a resumed run, and keeps the last accuracies and losses."""
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  caplog.set_level(logging.INFO, "soseleto_jax")
  with Progress(20, 10) as progress:
    assert steps(progress) == 2.0
    for step in range(15, 21):
      progress.advance(step, {"source_loss": 0.25})
  last = terminal.getvalue().split("\r")[-1]
  assert "20/20" in last and "step" in last
  assert "source_loss=0.250" in last and "test_accuracy=98.8%" in last and "validation_accuracy=50.0%" in last
  assert "grad_norm" not in last and "test_loss" not in last
  assert "10/20" in terminal.getvalue()
  assert caplog.records == []


def test_the_bar_is_closed_when_a_run_fails(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  with pytest.raises(ZeroDivisionError), Progress(20, 0) as progress:
    progress.advance(3, {"target_loss": 1.0})
    raise ZeroDivisionError
  assert terminal.getvalue().endswith("\n") and "3/20" in terminal.getvalue()
