"""Every method by its steps: without rows that are not finite, on devices, and evaluated as it says."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import sharding
from soseleto_jax.core.nonfinite import skip_nonfinite
from soseleto_jax.methods.base import METHODS, find_method
from tests import problems, runs
from tests.methods import setups

TRANSFER = ("matching_networks", "label_efficient")
OPTIONS = {
  "meta_weight_net": {"hidden": 3, "meta_learning_rate": 10.0},
  "matching_networks": {"finetune": True},
  "label_efficient": {"unlabelled": np.random.default_rng(5).normal(size=(30, 5)).astype(np.float32)},
}
PHASES = {"finetune": 2, "noise_types": 3, "matching_networks": 2, "label_efficient": 2}
ALL = [(name, phase) for name in METHODS for phase in range(PHASES.get(name, 1))]


def make(name, **fields):
  setup = setups.make_setup(name, shared=name not in TRANSFER, **fields)
  method = find_method(name)(setup, **OPTIONS.get(name, {}))
  assert len(method.phases) == PHASES.get(name, 1)
  return setup, method


@pytest.mark.parametrize("name, phase", ALL)
def test_skipping(name, phase):
  """It changes nothing on finite data; and a row that is not finite is as if it were masked."""
  setup, method = make(name)
  step, state = method.phases[phase].step, setups.start(method, setup, phase)
  side, data = step.sets[0], setups.batches(0, setup.task.shared_classes)
  take_step, careful = problems.jit(step), problems.jit(skip_nonfinite(step))

  def after(take_step, **arrays):
    batches = data | {side: data[side] | arrays}
    return take_step(state, *(batches[each] for each in step.sets))

  found, metrics = after(careful)
  assert (metrics.pop("skipped_rows"), metrics.pop("skipped_step")) == (0, 0)
  problems.assert_close((found, metrics), after(take_step), atol=1e-5)

  at_fault = np.arange(len(data[side]["mask"])) == 1
  found, metrics = after(careful, x=np.where(at_fault[:, None], np.float32(np.nan), data[side]["x"]))
  assert (metrics["skipped_rows"], metrics["skipped_step"]) == (1, 0)
  expected, _ = after(take_step, mask=data[side]["mask"] & ~at_fault)
  problems.assert_close(found.params, expected.params, atol=1e-5)
  pairs = zip(*(jax.tree.leaves(state.params) for state in (found, after(take_step)[0])), strict=True)
  assert max(np.max(np.abs(a - b)) for a, b in pairs) > 1e-5


@pytest.mark.parametrize("name", ["noise_layer", "noise_types", "learning_to_reweight", "meta_weight_net"])
def test_devices_change_nothing(name):
  """What is one for the whole batch (sums, means, counts) is of all devices."""
  setup, method = make(name)
  state = setups.start(method, setup, -1)
  data = setups.batches(0)
  expected, metrics = problems.jit(method.phases[-1].step)(state, *data.values())
  mesh = sharding.make_mesh(jax.devices()[:2])
  setup, method = make(name, axis_name=sharding.AXIS)
  step = sharding.map_over_devices(method.phases[-1].step, mesh, (P(sharding.AXIS),) * 2)
  padded = [sharding.pad_batch(batch, mesh) for batch in data.values()]
  found, found_metrics = problems.jit(step)(sharding.shard_train_state(state, mesh), *padded)
  found = found.replace(alpha=found.alpha[: runs.NUM_SOURCE])
  problems.assert_close((found, found_metrics), (expected, metrics), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_predictions_are_of_the_network(name):
  """Of the target's classes, by what the steps train; matching networks have another way, tested with them."""
  setup, method = make(name)
  x = setups.batches(0)["target"]["x"]
  if method.predict is None:
    problems.assert_same_bits(method.init(setup.params), setup.params)
  elif name != "matching_networks":
    logits, _ = setup.network.apply(setup.params, None, x, head=setup.head("target"))
    np.testing.assert_array_equal(method.predict(method.init(setup.params), None, x), logits)
  assert (method.predict is None) == (
    name in ("soseleto", "source_only", "target_only", "finetune", "joint", "learning_to_reweight")
  )


def test_only_soseleto_learns_weights():
  assert [name for name in METHODS if make(name)[1].uses_alpha] == ["soseleto"]
