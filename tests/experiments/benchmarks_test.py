import re
import subprocess
import sys

import pytest


def run_benchmark(command):
  return subprocess.run(
    [sys.executable, "-m", *f"experiments.benchmarks.{command}".split()], capture_output=True, text=True
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("command", "rows"),
  [
    ("alpha_scale --rows=100,1000 --devices=1,2 --batch_size=8 --target_batch_size=8 --rounds=1 --steps=1", 4),
    ("step_cost --model=mlp --hidden=8 --batch_size=8 --target_batch_size=8 --rounds=1 --steps=jvp,vmap_grad", 3),
    ("trainer --method=source_only --steps=1 --loops=1", 1),
  ],
)
def test_a_benchmark_prints_a_row_for_all_that_it_times(command, rows):
  result = run_benchmark(command)
  assert result.returncode == 0, result.stderr
  head, rule, *body = [line for line in result.stdout.splitlines() if line.startswith("|")]
  assert re.fullmatch(r"\|(-+:?\|)+", rule)
  assert len(body) == rows
  assert {line.count("|") for line in body} == {head.count("|")}


def test_a_step_that_is_none_is_refused():
  result = run_benchmark("step_cost --steps=jpv")
  assert result.returncode != 0
  assert "jpv" in result.stderr and "vmap_grad" in result.stderr
