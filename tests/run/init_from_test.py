"""Runs that go on for longer than they were meant to, and runs that start from another's network and weights."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from soseleto_jax.train import train_and_evaluate
from tests.runs import NUM_SOURCE, make_config, make_task

TASK = make_task()


def config_of(num_epochs, **fields):
  return make_config(num_epochs=num_epochs, optimizer__schedule="steps", optimizer__drop_epochs=(1,), **fields)


@pytest.fixture(name="short", scope="module")
def short_fixture(tmp_path_factory):
  """A run of two epochs, in a folder that nobody changes."""
  folder = tmp_path_factory.mktemp("short") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("soseleto_jax.report.page.write_report", lambda workdir, **_: workdir / "report.html")
    return train_and_evaluate(config_of(2), folder, TASK), folder


def test_a_run_grows(short, tmp_path, no_report):
  """To the last bit what it would have been."""
  shutil.copytree(short[1], tmp_path / "grown")
  grown = train_and_evaluate(config_of(3), tmp_path / "grown", TASK)
  straight = train_and_evaluate(config_of(3), tmp_path / "straight", TASK)
  assert grown.summary["steps"] == straight.summary["steps"] == 12
  assert grown.alpha.tobytes() == straight.alpha.tobytes()
  assert [record["epoch"] for record in grown.records] == [1, 2, 3]


def test_a_run_whose_learning_rate_follows_its_length_does_not_grow(tmp_path, no_report):
  folder = tmp_path / "cosine"
  train_and_evaluate(make_config(num_epochs=1), folder, TASK)
  with pytest.raises(ValueError, match="num_epochs .was 1, now 2; it may not grow where optimizer.schedule='cosine'"):
    train_and_evaluate(make_config(num_epochs=2), folder, TASK)


def test_methods_of_several_phases_do_not_grow(tmp_path, no_report):
  folder = tmp_path / "phases"
  train_and_evaluate(config_of(1, method="finetune"), folder, TASK)
  with pytest.raises(ValueError, match="num_epochs .was 1, now 2"):
    train_and_evaluate(config_of(2, method="finetune"), folder, TASK)


def test_a_run_starts_from_another(short, tmp_path, no_report):
  """With a step of 0 for weights and almost 0 for parameters it has what the other ended with."""
  still = config_of(1, init_from=str(short[1]), alpha__step_size=0.0, optimizer__learning_rate=1e-30, seed=5)
  found = train_and_evaluate(still, tmp_path / "new", TASK)
  assert found.alpha.tobytes() == short[0].alpha.tobytes()
  for ours, theirs in zip(*(np.concatenate([p.ravel() for p in _leaves(r)]) for r in (found, short[0])), strict=True):
    assert ours == theirs
  again = train_and_evaluate(still, tmp_path / "new", TASK)  # which finds itself finished
  assert again.alpha.tobytes() == found.alpha.tobytes() and again.records == found.records


def _leaves(result):
  return jax.tree.leaves(result.state.params)


def test_other_source_examples_start_with_fresh_weights(short, tmp_path, no_report, caplog):
  fewer = {name: column[:-1] for name, column in TASK.source.items()}
  still = config_of(1, init_from=str(short[1]), alpha__step_size=0.0)
  found = train_and_evaluate(still, tmp_path / "new", dataclasses.replace(TASK, source=fewer))
  assert set(found.alpha) == {np.float32(0.5)}
  assert f"has weights of {NUM_SOURCE} source examples, and here there are {NUM_SOURCE - 1}" in caplog.text


def test_what_a_run_cannot_start_from(tmp_path, short, no_report):
  with pytest.raises(ValueError, match="holds no checkpoint"):
    train_and_evaluate(config_of(1, init_from=str(tmp_path / "nowhere")), tmp_path / "a", TASK)
  config = config_of(1, init_from=str(short[1]), model__hidden=(5,))
  with pytest.raises(ValueError, match="state.params"):
    train_and_evaluate(config, tmp_path / "b", TASK)
  with pytest.raises(ValueError, match="init_from=.* and params are both"):
    train_and_evaluate(config, tmp_path / "c", TASK, params={"classifier": {}})
