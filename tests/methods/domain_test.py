"""`config.domain_weight`: which methods take it, and that it is off by default."""

import pytest

from soseleto_jax.methods.base import make_method
from soseleto_jax.methods.domain import with_domain_term
from soseleto_jax.run.trainer import Experiment
from tests import problems, runs
from tests.methods import setups


def test_off_the_method_is_the_same_object():
  setup = setups.make_setup("joint")
  method = make_method(setup)
  assert setup.config.domain_weight == 0 and with_domain_term(setup, method) is method


@pytest.mark.parametrize("method", ["target_only", "finetune", "noise_layer"])
def test_error_for_a_method_that_trains_the_network_on_no_two_sets(method):
  setup = setups.make_setup(method, shared=method != "finetune", domain_weight=0.5)
  with pytest.raises(ValueError, match=f"config.domain_weight=0.5: method '{method}' .* take 'soseleto' or 'joint'"):
    with_domain_term(setup, make_method(setup))


def test_a_network_with_state_carries_on_that_of_the_losses():
  setup = setups.make_setup("joint", shared=False, representation=setups.Normed(), domain_weight=1e-6)
  without = make_method(setup)
  results = [
    setups.take_steps(method.phases[0].step, setups.start(method, setup), 1, shared=False)[0]
    for method in (without, with_domain_term(setup, without))
  ]
  problems.assert_close(results[0].model_state, results[1].model_state, rtol=1e-6)
  problems.assert_close(results[0].params, results[1].params, rtol=1e-3, atol=1e-5)


def test_a_run_takes_it_from_its_config(monkeypatch):
  """In transfer."""
  runs.use_devices(monkeypatch, 1)
  experiment = Experiment(runs.make_config(data__shared_classes=False, domain_weight=0.5), runs.make_task(shared=False))
  _, _, metrics = experiment.advance(experiment.place(experiment.initial_state()), 0, 1)
  assert metrics["domain_loss"] > 0 and metrics["loss"] > metrics["source_loss"]
