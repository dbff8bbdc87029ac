"""Settings that follow from the data can be used, whatever the data, and do as docs/settings.md says."""

import numpy as np
import pytest

from soseleto_jax import choices
from soseleto_jax.choices import Facts
from soseleto_jax.config import default_config, validate


def chosen(num_source=1000, target_counts=(10,) * 10, shape=(32,), num_epochs=0, **facts):
  config = default_config()
  config.data.shared_classes = facts.get("shared_classes", True)
  lines = choices.choose(config, Facts(num_source, target_counts, shape, **facts), num_epochs)
  validate(config)
  return config, "\n".join(lines)


@pytest.mark.parametrize("num_source", [2, 7, 50, 800, 10_000, 45_000, 3 * 10**6])
@pytest.mark.parametrize("target_counts", [(1, 1), (8, 3), (10,) * 10, (500,) * 10, (4,) * 200])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (8, 8, 1), (32, 32, 3), (64, 64, 3)])
def test_any_data(num_source, target_counts, shape):
  for shared in (True, False):
    config, _ = chosen(num_source, target_counts, shape, shared_classes=shared)
    assert 1 <= config.batch_size <= num_source and 1 <= config.target_batch_size <= sum(target_counts)
    assert config.alpha.burn_in_epochs < config.num_epochs


@pytest.mark.parametrize("own_network", ["features", "whole"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_networks_of_the_users_own(own_network, pretrained):
  config, lines = chosen(shape=(32, 32, 3), own_network=own_network, pretrained=pretrained)
  assert "network: yours" in lines
  assert config.alpha.params == (("classifier",) if own_network == "features" else ())
  assert config.optimizer.learning_rate < 0.01 or not pretrained


@pytest.mark.parametrize(
  "facts, name",
  [
    ({"shape": (32,)}, "mlp"),
    ({"shape": (7, 5)}, "mlp"),
    ({"shape": (8, 8, 1)}, "mlp"),
    ({"shape": (28, 28, 1)}, "cifar_quick"),
    ({"shape": (64, 64, 3)}, "resnet"),
  ],
)
def test_the_network(facts, name):
  config, lines = chosen(**facts)
  assert config.model.name == name and f"network: {name}" in lines


def test_by_size():
  assert [chosen(n)[0].batch_size for n in (100, 800, 10_000, 45_000)] == [8, 64, 128, 256]
  assert [chosen(n)[0].num_epochs for n in (100, 800, 10_000, 10**6)] == [30, 30, 20, 10]
  assert chosen(target_counts=(3,) * 10)[0].target_batch_size == 30
  assert chosen(target_counts=(400,) * 10)[0].target_batch_size == 100
  assert not chosen(target_counts=(3,) * 10)[0].target_balanced
  assert chosen(target_counts=(8, 3))[0].target_balanced and chosen(target_counts=(400,) * 10)[0].target_balanced


def test_a_trial_where_there_is_something_to_try_on():
  assert chosen(target_counts=(3, 3))[0].alpha.trial_epochs
  assert not chosen(target_counts=(3, 2))[0].alpha.trial_epochs
  assert chosen(target_counts=(3, 2), held_out=True)[0].alpha.trial_epochs
  assert "where a trial" in chosen()[1] and "at 0.5" in chosen(target_counts=(1, 1))[1]


def test_a_trial_that_sees_a_large_target_often_enough():
  def epochs(num_source, count, **given):
    return chosen(num_source, (count,) * 10, (32, 32, 3), **given)[0].alpha.trial_epochs

  assert [epochs(45_000, count) for count in (10, 100, 200, 400)] == [3, 3, 3, 6]  # of 20 epochs
  assert [epochs(10_000, count) for count in (100, 200, 400)] == [3, 6, 6]  # not more than a third of these
  assert epochs(10_000, 400, num_epochs=60) == 12 and epochs(10_000, 400, num_epochs=5) == 3


def test_fewer_epochs_are_followed():
  config, _ = chosen(shape=(32, 32, 3), num_epochs=2)
  assert config.num_epochs == 2 and config.alpha.burn_in_epochs == 1 and config.alpha.step_size == 0.05


def test_hard_classes_are_centered_where_a_batch_has_enough_of_each():
  """By a network that takes some classes for harder than others, as of images; not by a perceptron."""
  images = dict(num_source=800, shape=(32, 32, 3))  # in batches of 64
  assert "center_by_class" in chosen(**images, target_counts=(10,) * 8)[0].alpha.transforms
  assert "center_by_class" not in chosen(**images, target_counts=(10,) * 9)[0].alpha.transforms
  assert "center_by_class" not in chosen(num_source=800, target_counts=(10,) * 8)[0].alpha.transforms
  assert "center_by_class" in chosen(**images, target_counts=(10,) * 8, own_network="whole")[0].alpha.transforms


def test_validation_and_size():
  assert choices.num_validation((49, 400)) == 0
  assert choices.num_validation((50, 50)) == 20
  assert choices.num_validation((5000,) * 10) == 1000
  assert [choices.image_size(*pair) for pair in ((400, 800), (28, 800), (4, 800), (400, 10**5))] == [32, 28, 8, 64]


def files(folder, **columns):
  folder.mkdir(parents=True)
  for name, column in columns.items():
    np.save(folder / f"{name}.npy", column)


def test_of_folders(tmp_path, caplog):
  rng = np.random.default_rng(0)
  for name, count in (("many", 200), ("few/train", 100), ("few/test", 20)):
    files(tmp_path / name, x=rng.normal(size=(count, 6)), label=np.arange(count) % 2)
  caplog.set_level("INFO", logger="soseleto_jax")
  config = choices.for_folders(str(tmp_path / "many"), str(tmp_path / "few"), "arrays")
  validate(config)
  assert config.data.target.test_split == "test" and config.data.target.num_validation == 20
  assert config.target_batch_size == 80 and "200 source and 80 clean examples of 2 classes, vectors of 6" in caplog.text
  with pytest.raises(ValueError, match=r"holds x.npy and label.npy, not folders of images: take configs/own_arrays.py"):
    choices.for_folders(str(tmp_path / "many"), str(tmp_path / "few"), "folder")
  with pytest.raises(ValueError, match="name your folders: .*:source=web,target=clean"):
    choices.for_folders("", str(tmp_path / "few"), "arrays")


def test_without_a_test_set(tmp_path):
  for name in ("many", "few"):
    files(tmp_path / name, x=np.ones((8, 2)), label=np.arange(8) % 2)
  config = choices.for_folders(str(tmp_path / "many"), str(tmp_path / "few"), "arrays", num_epochs=3)
  assert config.data.target.test_split == config.data.target.validation_split == "" and config.num_epochs == 3
