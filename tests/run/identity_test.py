"""What a run is known by: whatever changes what is computed is told apart, part by part."""

import dataclasses
import functools
import json

import flax.linen as nn
import numpy as np
import optax
import pytest

from soseleto_jax.data import lazy
from soseleto_jax.data.normalization import Normalization
from soseleto_jax.data.task import from_arrays
from soseleto_jax.run import fingerprint, identity
from soseleto_jax.run.given import Given
from tests import runs

MANY = 600  # more than a sample has


def make_many(**options):
  rng = np.random.default_rng(0)
  label = np.arange(MANY) % 3
  x = rng.integers(0, 256, (MANY, 4)).astype(np.uint8)
  return from_arrays(x, label, x[:9], label[:9], x[:9], label[:9], true_label=label, **options)


def of_run(task=None, config=None, given=None):
  known = identity.of_run(config or runs.make_config(), given or Given(), task or runs.make_task(), task_given=True)
  return json.loads(json.dumps(known))  # as a checkpoint keeps it


def change(task, **fields):
  return dataclasses.replace(task, **fields)


def with_column(task, side, column, values):
  return change(task, **{side: getattr(task, side) | {column: values}})


def zeroed(task, rows):
  x = task.source["x"].copy()
  x[rows] = 0
  return with_column(task, "source", "x", x)


def scaled(normalization, factor):
  return dataclasses.replace(normalization, std=normalization.std * np.float32(factor))


@pytest.mark.parametrize(
  "make, changed",
  [
    (lambda task: change(task, source_normalization=scaled(task.source_normalization, 2)), ["source normalization"]),
    (lambda task: change(task, target_normalization=scaled(task.target_normalization, 2)), ["target normalization"]),
    (lambda task: change(task, source_normalization=scaled(task.source_normalization, 1 + 1e-6)), []),
    (
      lambda task: change(task, source_normalization=Normalization(None, None, per_image=True)),
      ["source normalization"],
    ),
    (lambda task: zeroed(task, 1), ["source pixels"]),  # no example of the sample
    (lambda task: zeroed(task, slice(1, None)), ["source examples", "source pixels"]),
    (lambda task: zeroed(task, 0), ["source examples", "source pixels"]),
    (lambda task: change(task, source_class_names=("x", "y", "z"), shared_classes=False), ["source class names"]),
    (lambda task: with_column(task, "source", "true_label", task.source["label"][::-1]), ["source true_label"]),
    (lambda task: change(task, validation=task.test), []),  # the old run had none to compare with
    (
      lambda task: with_column(task, "test", "x", task.test["x"].astype(np.float32)),
      ["test arrays", "test examples", "test pixels"],
    ),
    (lambda task: with_column(task, "source", "row", np.arange(MANY)), []),  # which changes nothing that is computed
    (lambda task: task, []),
  ],
)
def test_data(make, changed):
  task = make_many(normalization="channel")
  old, new = (json.loads(json.dumps(fingerprint.parts_of_task(part))) for part in (task, make(task)))
  assert fingerprint.changed_parts(old, new) == changed


def test_a_normalization_of_each_pixel():
  old, new = (
    fingerprint.parts_of_task(make_many(normalization="fixed", mean=mean, std=[1] * 4))
    for mean in ([1, 2, 3, 4], [4, 3, 2, 1])
  )
  assert fingerprint.changed_parts(old, new) == ["source normalization", "target normalization"]
  rng = np.random.default_rng(0)
  first = rng.normal(size=(8, 8, 3)).astype(np.float32)
  second = first.copy()
  second[3, 4, 1] += 1
  summaries = [fingerprint._summary(values) for values in (first, second)]
  assert len(summaries[0]) <= 16 and not np.allclose(*summaries, rtol=1e-4, atol=1e-4)


def test_a_set_on_disk_is_known_by_its_sample(tmp_path):
  """Whatever feeds it, so that a run may change that."""
  task = make_many()
  np.save(tmp_path / "x.npy", task.source["x"])
  on_disk = with_column(task, "source", "x", np.load(tmp_path / "x.npy", mmap_mode="r"))
  assert lazy.is_lazy(on_disk.source["x"])
  parts = [fingerprint.parts_of_task(part) for part in (task, on_disk)]
  assert fingerprint.changed_parts(*parts) == fingerprint.changed_parts(*parts[::-1]) == []
  assert "source pixels" in parts[0] and "source pixels" not in parts[1]
  changed = fingerprint.changed_parts(parts[1], fingerprint.parts_of_task(zeroed(task, 0)))
  assert changed == ["source examples"]


def make_method(setup, rate=0.5, name="a"):
  del setup, rate, name


def closing_over(rate):
  return lambda setup: rate


@dataclasses.dataclass
class Maker:
  rate: float

  def __call__(self, setup):
    del setup

  def make(self, setup):
    del setup


class Net(nn.Module):
  rate: float = 0.0

  @nn.compact
  def __call__(self, x):
    return x


@pytest.mark.parametrize(
  "door, old, new",
  [
    ("method", functools.partial(make_method, rate=0.5), functools.partial(make_method, rate=0.25)),
    ("method", closing_over(0.5), closing_over(0.25)),
    ("method", Maker(0.5), Maker(0.25)),
    ("method", Maker(0.5).make, Maker(0.25).make),
    ("network", Net(0.5), Net(0.25)),
    ("augment", {"source": closing_over(1)}, {"source": closing_over(2)}),
  ],
)
def test_settings_of_what_was_given(tmp_path, door, old, new):
  known = [{"data": {}, "given": Given(**{door: value}).settings()} for value in (old, new)]
  identity.check(tmp_path, known[0], known[0])
  with pytest.raises(ValueError, match=f"holds a run that was given another {door}.*old settings"):
    identity.check(tmp_path, *known)


def test_settings_are_plain_values_alone():
  """Arrays and what libraries make may differ from one version, or one call, to another."""
  counts: list[int] = []

  def counting(setup):
    counts.append(1)

  before = Given(method=counting).settings()
  counting(None)
  assert Given(method=counting).settings() == before
  assert Given(optimizer=optax.sgd(0.1)).settings() == Given(optimizer=optax.sgd(0.1)).settings()

  def itself(setup):
    return itself

  assert Given(method=itself).settings().keys() == {"method"}


def test_options_are_known_with_their_defaults():
  known = of_run(given=Given(method=make_method))
  assert known["config"]["method_options"] == {"rate": 0.5, "name": "a"}
  assert known["config"]["given"]["task"].startswith("arrays: float32[5], source 41, target 12")
  config = runs.make_config(method="noise_layer", method_options={"weight_decay": 0.5})
  assert of_run(config=config)["config"]["method_options"]["weight_decay"] == 0.5


def test_what_an_older_version_saved_is_taken_as_it_is(tmp_path, caplog):
  caplog.set_level("INFO", "soseleto_jax")
  identity.check(tmp_path, {}, of_run())
  assert "saved by an older version: of its data only labels and a few examples" in caplog.text
