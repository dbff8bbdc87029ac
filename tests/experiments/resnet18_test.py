"""ResNet-18 on wrong labels: fair runs, and a table of them."""

import jax
import jax.numpy as jnp
import pytest

from experiments import resnet18, runs
from soseleto_jax.config import validate
from soseleto_jax.models import make_network
from tests.experiments.written import small_tables


@pytest.mark.parametrize("protocol", runs.PROTOCOLS)
def test_every_method_has_the_same_data_network_augmentation_and_epochs(protocol):
  shared, chosen = {}, resnet18.make_runs(protocol, [0, 1])
  assert len(chosen) == 2 * 2 * 5 == len({run.folder() for run in chosen})
  for run in chosen:
    validate(run.config)
    config = run.config.to_dict()
    fields = {name: config[name] for name in ("data", "model", "num_epochs", "batch_size", "augment")}
    assert shared.setdefault((*run.conditions.values(), run.config.seed), fields) == fields, run.method
    assert fields["augment"]["source"] == fields["augment"]["target"] == ("flip", "crop=4")
  assert "add_agreement" in chosen[4].config.alpha.transforms and chosen[4].method == "soseleto"


def test_the_network_is_resnet_18():
  network = make_network(resnet18.make_runs("small", [0])[0].config.model.to_dict(), 10, seed=0)
  params, _ = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_173_962


def test_cells(tmp_path):
  def metrics_of(run):
    value = 0.5 + 0.1 * (run.method == "soseleto") + run.config.seed / 100
    return None if run.conditions["labels"] == "worse_label" else {"test_accuracy": value, "auc": value + 0.2}

  accuracy, paired, detectors = small_tables(resnet18.EXPERIMENT, metrics_of, tmp_path).split(":\n\n")[1:]
  assert "| Learning to Reweight (Ren et al. 2018) | 50.5 ± 0.7 (2) | not run |" in accuracy
  assert "| SOSELETO | 60.5 ± 0.7 (2) | not run |" in accuracy
  assert "| source and target jointly | 10.0 ± 0.0 (2)" in paired
  assert "| SOSELETO | 0.805 ± 0.007 (2) | not run |" in detectors and "source and" not in detectors
