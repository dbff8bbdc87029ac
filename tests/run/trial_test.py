"""The trial: what it is judged by, what follows from it, and that a run goes on with the answer it started with."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from soseleto_jax.report import page
from soseleto_jax.run import programs, trial
from soseleto_jax.run.given import Given
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate
from tests import runs


def config(**fields):
  return runs.make_config(**{"alpha__trial_epochs": 1, "alpha__burn_in_epochs": 0.5, "alpha__gain": 4.0} | fields)


def shared(config, task=None):
  return Experiment(config, runs.make_task() if task is None else task).shared


@pytest.fixture
def answers(monkeypatch):
  """Sets what accuracies networks reach, and what part of them on the source; returns the methods that were tried."""
  tried = []
  monkeypatch.setattr(trial, "_WORTH", 0)  # the few points of these tasks say it all

  def answer(right=0.5, **accuracy):
    tried.clear()

    def reach(shared, task, given, method):
      tried.append(method)
      on_source = {} if task.validation is None else {"validation_accuracy": right * accuracy[method]}
      return {"test_accuracy": accuracy[method]} | on_source

    monkeypatch.setattr(trial, "_evaluation", reach)
    return tried

  return answer


@pytest.mark.parametrize(
  "target_only, joint, init, weight",
  [
    (0.9, 0.6, 0.26, 0.1),
    (0.9, 0.78, 0.26, 0.1),
    (0.9, 0.85, 0.4, 0.1),
    (0.9, 0.875, 0.45, 0.3),
    (0.9, 0.9, 0.5, 0.5),
    (0.4, 0.425, 0.6, 0.9),
    (0.4, 0.45, 0.7, 1.0),
    (0.3, 0.9, 0.7, 1.0),
  ],
)
def test_the_start_follows_from_the_difference(tmp_path, answers, target_only, joint, init, weight):
  """With a gain of 4, half of the source wrong; in burn-in some weight is left."""
  tried = answers(target_only=target_only, joint=joint)
  before = config()
  found, said = trial.with_start(shared(before), Given(), tmp_path, resumes=False)
  assert sorted(tried) == ["joint", "target_only"]
  expected = {"alpha_init": init, "trial_target": target_only, "trial_joint": joint, "trial_agreement": target_only / 2}
  assert said == pytest.approx(expected | {"burn_in_weight": weight})
  assert (found.alpha.init, found.alpha.burn_in_weight) == pytest.approx((init, weight))
  assert before.alpha.init == 0.5 and before.alpha.burn_in_weight == 1.0


@pytest.mark.parametrize(
  "right, joint, above",
  [
    (0.5, 0.8, 0.0),
    (0.8, 0.8, 0.0),  # a fifth shows, so that half may be wrong
    (0.92, 0.8, 0.8416),  # standard deviations of the normal distribution that leave 20 % below
    (0.96, 0.8, 1.2816),
    (1.0, 0.8, 2.0537),
    (1.04, 0.8, 1.2816),  # more agreement than is right is as doubtful as less
    (1.2, 0.8, 0.0),
    (0.92, 0.785, 0.4208),  # half trusted
    (1.0, 0.77, 0.0),
    (1.0, 0.5, 0.0),
  ],
)
def test_the_start_follows_from_the_part_that_may_be_wrong(tmp_path, answers, right, joint, above):
  """So far above what the difference says as alpha falls behind in a burn-in of 2 epochs with steps of 0.05."""
  answers(right=0.5, target_only=0.8, joint=joint)
  fields = {"alpha__burn_in_epochs": 2.0, "alpha__step_size": 0.05}
  _, half = trial.with_start(shared(config(**fields)), Given(), tmp_path, resumes=False)
  answers(right=right, target_only=0.8, joint=joint)
  _, said = trial.with_start(shared(config(**fields)), Given(), tmp_path, resumes=False)
  assert said["trial_agreement"] == pytest.approx(0.8 * right)
  assert said["burn_in_weight"] == half["burn_in_weight"]
  assert said["alpha_init"] - half["alpha_init"] == pytest.approx(1.2 * 0.05 * 2 * above, abs=1e-4)


@pytest.mark.parametrize("right, stays", [(0.5, True), (1.19, True), (1.21, False), (1.8, False)])
def test_labels_that_err_as_the_target_s_network_does_are_not_centered_by_class(tmp_path, answers, right, stays):
  """Also when the run goes on."""
  answers(right=right, target_only=0.5, joint=0.5)
  before = shared(config(alpha__transforms=("scale_by_std", "center_by_class")))
  first = trial.with_start(before, Given(), tmp_path, resumes=False)
  assert first[0].alpha.transforms == ("scale_by_std",) + ("center_by_class",) * stays
  assert first[1]["center_by_class"] is stays
  assert trial.with_start(before, Given(), tmp_path, resumes=True) == first
  assert "center_by_class" not in trial.with_start(shared(config()), Given(), tmp_path, resumes=False)[1]


@pytest.mark.parametrize(
  "right, target_only, known, stays", [(1.8, 0.5, 1, False), (1.8, 0.5, 2, True), (1e8, 1e-9, 2, True)]
)
def test_few_images_leave_the_centering_as_it_is(monkeypatch, tmp_path, answers, right, target_only, known, stays):
  """Few beside what is known before, which is worth so many times as much."""
  answers(right=right, target_only=target_only, joint=target_only)
  before = shared(config(alpha__transforms=("center_by_class",)))
  monkeypatch.setattr(trial, "_WORTH", known * len(trial._hold_out(before.setup.task, 0).test["label"]))
  assert trial.with_start(before, Given(), tmp_path, resumes=False)[1]["center_by_class"] is stays


@pytest.mark.parametrize("known, above", [(0, 2.0537), (1, 0.4888), (10**6, 0.0)])
def test_few_images_leave_the_part_near_a_quarter(monkeypatch, tmp_path, answers, known, above):
  """Where nothing wrong shows: quantiles of what may be out, 0.02, an eighth over 0.4, and a half."""
  answers(right=1.0, target_only=0.8, joint=0.8)
  before = shared(config(alpha__burn_in_epochs=2.0, alpha__step_size=0.05))
  monkeypatch.setattr(trial, "_WORTH", known * len(trial._hold_out(before.setup.task, 0).test["label"]))
  said = trial.with_start(before, Given(), tmp_path, resumes=False)[1]
  assert said["alpha_init"] - 0.5 == pytest.approx(1.2 * 0.05 * 2 * above, abs=1e-4)


def test_without_a_burn_in_the_part_that_is_wrong_changes_nothing(tmp_path, answers):
  fields = {"alpha__burn_in_epochs": 0.0}
  starts = []
  for right in (0.5, 1.0):
    answers(right=right, target_only=0.8, joint=0.81)
    starts.append(trial.with_start(shared(config(**fields)), Given(), tmp_path, resumes=False)[1]["alpha_init"])
  assert starts[0] == starts[1]


def test_in_transfer_no_label_of_the_source_is_looked_at(tmp_path, answers):
  tried = answers(target_only=0.8, joint=0.8)
  task = runs.make_task(shared=False)
  before = shared(config(data__shared_classes=False), task)
  _, said = trial.with_start(before, Given(), tmp_path, resumes=False)
  expected = {"alpha_init": 0.5, "burn_in_weight": 0.5, "trial_target": 0.8, "trial_joint": 0.8}
  assert said == expected and len(tried) == 2


def test_the_target_s_network_agrees_less_where_labels_are_wrong(tmp_path):
  """Of as many of its labels as there are validation points, where every other one is wrong."""
  task = runs.make_task()
  task = dataclasses.replace(task, validation=task.test)
  wrong = np.arange(task.num_source) % 2 == 0
  label = np.where(wrong, (task.source["true_label"] + 1) % runs.CLASSES, task.source["true_label"])
  task = dataclasses.replace(task, source=task.source | {"label": label})
  found = trial.with_start(shared(config(alpha__trial_epochs=20), task), Given(), tmp_path, resumes=False)[1]
  assert found["trial_target"] > 0.6 and 0.3 < found["trial_agreement"] / found["trial_target"] < 0.75


def test_alpha_starts_within_its_bounds(tmp_path, answers):
  answers(target_only=0.9, joint=0.6)
  assert trial.with_start(shared(config(alpha__gain=1.0)), Given(), tmp_path, False)[1]["alpha_init"] == 0.0


@pytest.mark.parametrize("epochs, averaged", [(1, 1), (2, 2), (3, 4)])
def test_the_mean_of_the_last_third_is_judged(monkeypatch, epochs, averaged):
  """Of the parameters after each step, also where a run takes several at once."""
  task, passed, judged = runs.make_task(), [], []
  advance = Experiment.advance

  def watched(experiment, *args):
    state, count, metrics = advance(experiment, *args)
    passed.append(jax.device_get(state.params))
    return state, count, metrics

  monkeypatch.setattr(Experiment, "advance", watched)
  monkeypatch.setattr(Experiment, "evaluate", lambda _, state: judged.append(jax.device_get(state.params)))
  before = shared(config(num_epochs=4, alpha__trial_epochs=epochs, steps_per_call=4), task)
  trial._evaluation(before, task, Given(), "joint")
  assert len(passed) == runs.STEPS_PER_EPOCH * epochs
  expected = jax.tree.map(lambda *values: np.mean(values, axis=0), *passed[-averaged:])
  chex.assert_trees_all_close(judged[0], expected, rtol=1e-6)


def test_the_trial_descends_no_domain_term(tmp_path):
  """Which training on the target alone could not have."""
  starts = [
    trial.with_start(shared(config(domain_weight=weight)), Given(), tmp_path, resumes=False)[1] for weight in (0.0, 1.0)
  ]
  assert starts[0] == pytest.approx(starts[1])


def test_a_run_goes_on_with_the_answer_it_started_with(tmp_path, answers):
  answers(target_only=0.9, joint=0.6)
  first = trial.with_start(shared(config()), Given(), tmp_path, resumes=False)
  tried = answers(target_only=0.1, joint=0.6)
  assert trial.with_start(shared(config()), Given(), tmp_path, resumes=True) == first and not tried
  again, _ = trial.with_start(shared(config()), Given(), tmp_path, resumes=False)
  assert again.alpha.burn_in_weight == 1.0


@pytest.mark.parametrize("init, weight", [(0.26, 0.1), (0.55, 0.7), (0.7, 1.0)])
def test_a_run_of_an_older_version_goes_on_with_its_weights(tmp_path, answers, init, weight):
  """Which had one answer, from which the weight followed; from a checkpoint or, without one, from the folder."""
  tried = answers(target_only=0.9, joint=0.9)
  (tmp_path / "trial.json").write_text(json.dumps({"alpha_init": init}))
  for before in (None, {"alpha_init": init}):
    found, said = trial.with_start(shared(config()), Given(), tmp_path, resumes=True, before=before)
    assert (found.alpha.init, found.alpha.burn_in_weight) == pytest.approx((init, weight)) and not tried
    assert said == pytest.approx({"alpha_init": init, "burn_in_weight": weight})


@pytest.mark.parametrize(
  "damaged", ['{"first', '{"alpha_init": 0.3, "burn_in_weight": null}', '{"alpha_init": 0.3, "burn_in_weight": 7}']
)
def test_an_answer_that_was_lost_is_found_again(tmp_path, answers, damaged):
  answers(target_only=0.9, joint=0.6)
  expected = trial.with_start(shared(config()), Given(), tmp_path, resumes=False)
  (tmp_path / "trial.json").write_text(damaged)
  assert trial.with_start(shared(config()), Given(), tmp_path, resumes=True) == expected


def test_validation_images_are_what_it_is_judged_by():
  task = runs.make_task()
  held_out = trial._hold_out(task, seed=0)
  assert held_out.test is task.validation and held_out.target is task.target


@pytest.mark.parametrize("few", [False, True])
def test_beside_them_are_as_many_of_the_source_of_each_class(few):
  task = runs.make_task()
  if few:  # of the first class
    kept = np.flatnonzero(np.cumsum(task.source["label"] == 0) * (task.source["label"] == 0) < 3)
    task = dataclasses.replace(task, source={name: column[kept] for name, column in task.source.items()})
  held_out = trial._hold_out(task, seed=0)
  counts = np.bincount(held_out.test["label"])
  if few:
    counts[0] = 2
  assert np.bincount(held_out.validation["label"]).tolist() == counts.tolist()
  rows = held_out.validation["row"]
  np.testing.assert_array_equal(held_out.validation["x"], task.source["x"][np.searchsorted(task.source["row"], rows)])


def test_without_validation_a_third_of_each_class_of_the_target_is():
  task = dataclasses.replace(runs.make_task(), validation=None)
  held_out = trial._hold_out(task, seed=0)
  assert np.bincount(task.target["label"]).tolist() == [4, 4, 4]
  assert np.bincount(held_out.target["label"]).tolist() == [3, 3, 3]
  assert np.bincount(held_out.test["label"]).tolist() == [1, 1, 1]
  rows = np.concatenate([held_out.target["x"], held_out.test["x"]])
  np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(task.target["x"], axis=0))


def test_too_few_clean_examples_leave_the_middle(tmp_path, caplog):
  task = dataclasses.replace(runs.make_task(), validation=None)
  few = {name: column[:6] for name, column in task.target.items()}
  task = dataclasses.replace(task, target=few)
  found, said = trial.with_start(shared(config(), task), Given(), tmp_path, resumes=False)
  assert said == {"alpha_init": 0.5, "burn_in_weight": 0.5} and found.alpha.init == 0.5
  assert "num_validation" in caplog.text


@pytest.mark.parametrize(
  "fields, given",
  [({"method": "joint"}, {}), ({"alpha__trial_epochs": 0}, {}), ({}, {"method": lambda setup: None})],
)
def test_no_trial_where_none_is_wanted(fields, given):
  assert trial.is_wanted(config(), Given())
  assert not trial.is_wanted(config(**fields), Given(**given))


def test_a_run_is_that_of_the_weights_it_was_given(tmp_path, monkeypatch):
  """What the trial chose, written out by hand, trains the same; the folder and the report say what it was."""
  task = runs.make_task()
  result = train_and_evaluate(config(), tmp_path / "trial", task)
  said = json.loads((tmp_path / "trial" / "trial.json").read_text())
  expected = {"alpha_init", "burn_in_weight", "trial_target", "trial_joint", "trial_agreement"}
  assert said.keys() == expected and said.items() <= result.summary.items()
  assert json.loads((tmp_path / "trial" / "config.json").read_text())["alpha"]["init"] == 0.5
  assert page._KNOWN["alpha_init"][0] in (tmp_path / "trial" / "report.html").read_text(encoding="utf-8")

  chosen = {"alpha__init": said["alpha_init"], "alpha__burn_in_weight": said["burn_in_weight"]}
  by_hand = config(alpha__trial_epochs=0, **chosen)
  expected = train_and_evaluate(by_hand, tmp_path / "hand", task)
  np.testing.assert_array_equal(result.alpha, expected.alpha)
  assert "alpha_init" not in expected.summary

  monkeypatch.setattr(trial, "_try", lambda *_: pytest.fail("a finished run tries nothing"))
  again = train_and_evaluate(config(), tmp_path / "trial", task)
  assert {**again.summary, "seconds": 0} == {**result.summary, "seconds": 0}


def test_the_trial_sees_no_test_image(tmp_path, monkeypatch):
  """With other labels of the test set the answer is the same. Its few steps are compiled quickly, a run's are not."""
  quick = []
  monkeypatch.setattr(programs, "jit_quickly", lambda *args, **options: quick.append(args) or jax.jit(*args, **options))
  task = runs.make_task()
  other = dataclasses.replace(task, test=task.test | {"label": (task.test["label"] + 1) % runs.CLASSES})
  answers = [trial.with_start(shared(config(), data), Given(), tmp_path, resumes=False)[1] for data in (task, other)]
  assert answers[0] == answers[1] and len(quick) == 4
  experiment = Experiment(config(), task)
  experiment._dispatch(experiment.method.phases[0], experiment.method.phases[0].step, 1)
  assert len(quick) == 4


def test_what_cannot_be_trained_is_refused_before_the_trial(tmp_path, monkeypatch):
  monkeypatch.setattr(trial, "_try", lambda *_: pytest.fail("nothing is tried"))
  with pytest.raises(ValueError, match="config.alpha.params names 'no_layer'"):
    train_and_evaluate(config(alpha__params=("no_layer",)), tmp_path / "run", runs.make_task())
  assert not (tmp_path / "run").exists()


def test_a_trial_compiles_the_evaluation_that_the_run_compiles(tmp_path):
  """Validation and test sets, of the trial and of the run, are evaluated by one program."""
  common = shared(config())
  tried = Experiment(config(method="joint"), runs.make_task(), like=common)
  assert tried._evaluator is common.evaluator and tried.shared.evaluator is common.evaluator
  state = tried.place(tried.initial_state())
  tried.evaluate(state)
  Experiment(config(), runs.make_task(), like=tried.shared).evaluate(state)
  assert common.evaluator._sums._cache_size() == 1
