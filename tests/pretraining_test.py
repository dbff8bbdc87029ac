"""Plain training on the source alone, before a method."""

import shutil

import jax
import numpy as np
import pytest

from soseleto_jax import pretraining
from soseleto_jax.train import train_and_evaluate
from tests import problems, runs

pytestmark = pytest.mark.usefixtures("no_report")

TASK = runs.make_task(shared=False)


def make_config(**fields):
  return runs.make_config(data__shared_classes=False, pretrain_epochs=1.5, pretrain_learning_rate=0.2, **fields)


def leaves(result):
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(result.state.params)}


@pytest.fixture(name="still", scope="module")
def still_fixture(tmp_path_factory):
  """A run whose own steps move almost nothing, and its folder."""
  folder = tmp_path_factory.mktemp("still") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("soseleto_jax.report.page.write_report", lambda workdir, **_: workdir / "report.html")
    config = make_config(method="target_only", num_steps=1, optimizer__learning_rate=1e-30)
    return train_and_evaluate(config, folder, TASK), folder


def test_is_plain_training_on_the_source(still, tmp_path):
  """What `finetune` comes to after its steps on the source, whose second phase moves almost nothing."""
  config = runs.make_config(
    data__shared_classes=False,
    method="finetune",
    num_steps=6,  # of 4 an epoch
    optimizer__learning_rate=0.2,
    finetune_learning_rate=1e-30,
    finetune_epochs=0.25,
  )
  expected = leaves(train_and_evaluate(config, tmp_path, TASK))
  found = leaves(still[0])
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6)
  assert still[0].summary["steps"] == 1


def test_methods_share_it(still, tmp_path):
  """For what a method reads, and the target, change nothing of it."""
  config = make_config(method="soseleto", num_steps=2, target_weight=0.5, alpha__step_size=3.0, augment__target=())
  first = pretraining.config_of(config)
  assert first.to_dict() == pretraining.config_of(make_config(method="target_only")).to_dict()
  again = train_and_evaluate(
    first, still[1] / "pretraining", pretraining.without_held_out(TASK), method=pretraining.make_method
  )
  started = train_and_evaluate(config, tmp_path / "whole", TASK)
  config.pretrain_epochs = 0.0
  given = train_and_evaluate(config, tmp_path / "given", TASK, params=again.state.params)
  problems.assert_same_bits(given.state, started.state)


@pytest.mark.parametrize("stopped", [3, 7])
def test_resumes_in_either_part(stopped, tmp_path):
  """To the last bit what it would have been; of 6 steps and 4. The second part has no need of the first."""
  config = make_config(num_steps=4, checkpoint_every_epochs=0.25)
  part, step = ("pretraining", stopped) if stopped < 6 else ("main", stopped - 6)
  count = iter(range(100))
  advance = runs.Experiment.advance

  def crash_at(self, state, at, limit):
    if at == step and (next(count) >= 0) and ((self.config.pretrain_epochs == 0) == (part == "pretraining")):
      runs.crash()
    return advance(self, state, at, limit)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runs.Experiment, "advance", crash_at)
    with pytest.raises(runs.Crash):
      train_and_evaluate(config, tmp_path / "run", TASK)
  if part == "main":
    shutil.rmtree(tmp_path / "run" / "pretraining")
  resumed = train_and_evaluate(config, tmp_path / "run", TASK)
  problems.assert_same_bits(resumed.state, train_and_evaluate(config, tmp_path / "whole", TASK).state)
  assert (tmp_path / "run" / "pretraining").exists() == (part == "pretraining")


def test_is_no_other_start_beside_init_from(tmp_path):
  with pytest.raises(ValueError, match="config.init_from='x' and config.pretrain_epochs=1.5 both say"):
    train_and_evaluate(make_config(init_from="x"), tmp_path, TASK)
