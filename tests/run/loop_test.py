"""What the loop makes of a step's metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import train_and_evaluate
from soseleto_jax.core.step import Step
from soseleto_jax.methods.base import Method, Phase
from soseleto_jax.run.trainer import Experiment
from tests import problems, runs


@pytest.mark.parametrize("skips", [False, True])
def test_a_step_without_rows_stops_the_run(tmp_path, monkeypatch, skips):
  """Of a method that hands its step no row that counts; where these are rows at fault the run goes on."""
  runs.use_devices(monkeypatch, 1)

  def gradients(state, source, target):
    rows = jnp.where(state.step == 2, 0.0, 1.0)
    metrics = {"valid_rows": rows} | ({"skipped_rows": 1 - rows, "skipped_step": jnp.float32(0)} if skips else {})
    return jax.tree.map(jnp.zeros_like, state.params), state, metrics

  method = Method((Phase(8, Step(gradients, optax.identity())),))
  config = runs.make_config(on_nonfinite="skip" if skips else "stop")
  if skips:
    assert train_and_evaluate(config, tmp_path, runs.make_task(), method=lambda setup: method).state.step == 8
    return
  with pytest.raises(FloatingPointError, match="step 3: no row of its batch counts"):
    train_and_evaluate(config, tmp_path, runs.make_task(), method=lambda setup: method)


def test_a_bound_that_is_infinite_is_no_fault(tmp_path, monkeypatch):
  """No step of alpha is sufficient there. Records hold the mean of the others."""
  runs.use_devices(monkeypatch, 1)

  def gradients(state, source, target):
    bound = jnp.where(state.step == 2, jnp.inf, 4.0)
    return jax.tree.map(jnp.zeros_like, state.params), state, {"alpha_step_bound": bound, "valid_rows": jnp.ones(())}

  method = Method((Phase(8, Step(gradients, optax.identity())),))
  result = train_and_evaluate(runs.make_config(), tmp_path, runs.make_task(), method=lambda setup: method)
  assert result.state.step == 8 and {record["alpha_step_bound"] for record in result.records} == {4.0}


FIELDS = {"alpha__every": 3, "alpha__until_epochs": 1.25, "alpha__target_params": "all", "alpha__target_loss": "margin"}


def test_alpha_learns_at_its_turns(monkeypatch):
  """At steps 0 and 3 of the 5 of `until_epochs`, whether a dispatch is one step or several."""
  runs.use_devices(monkeypatch, 1)
  task, states = runs.make_task(), {}
  for steps_per_call in (1, 4):
    experiment = Experiment(runs.make_config(steps_per_call=steps_per_call, **FIELDS), task)
    state, step, seen = experiment.place(experiment.initial_state()), 0, []
    while step < 8:
      before = experiment.alpha(state)
      state, count, metrics = experiment.advance(state, step, 8)
      step += count
      seen.append((not np.array_equal(before, experiment.alpha(state)), "target_loss" in metrics))
    states[steps_per_call] = state, seen
  problems.assert_close(states[1][0], states[4][0], rtol=1e-4, atol=1e-5)
  seen = states[1][1]
  assert [moved for moved, _ in seen] == [learns for _, learns in seen] == [True, False, False, True] + [False] * 4


def test_records_hold_what_the_steps_had(tmp_path, monkeypatch):
  """The mean of the target's loss over the steps that took it; none where none did, and nothing is NaN."""
  runs.use_devices(monkeypatch, 1)
  records = {}
  for steps_per_call in (1, 4):
    config = runs.make_config(steps_per_call=steps_per_call, **FIELDS)
    records[steps_per_call] = train_and_evaluate(config, tmp_path / str(steps_per_call), runs.make_task()).records
  for one, several in zip(*records.values(), strict=True):
    assert one.keys() == several.keys() and "alpha_learns" not in one
    for name in one.keys() - {"steps_per_second"}:
      np.testing.assert_allclose(one[name], several[name], rtol=1e-3, atol=1e-4, err_msg=name)
  assert "target_loss" in records[1][0] and "target_loss" not in records[1][1]
