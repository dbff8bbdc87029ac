"""The plain methods' steps against momentum SGD written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.methods import plain
from tests import problems, runs
from tests.methods import setups

MAKERS = {
  "source_only": plain.source_only,
  "target_only": plain.target_only,
  "finetune": plain.finetune,
  "joint": plain.joint,
}


def mean_loss(params, batch, head):
  dense, classifier = params["representation"]["dense1"], params[head]
  logits = jnp.maximum(batch["x"] @ dense["kernel"] + dense["bias"], 0) @ classifier["kernel"] + classifier["bias"]
  losses = jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(logits)), batch["label"]]
  return jnp.sum(losses, where=batch["mask"]) / jnp.sum(batch["mask"])


@pytest.mark.parametrize(
  "name, shared, sides, lengths",
  [
    ("source_only", True, ["source"], [8]),
    ("target_only", True, ["target"], [8]),
    ("target_only", False, ["target"], [8]),
    ("joint", True, ["source target"], [8]),
    ("joint", False, ["source target"], [8]),
    ("finetune", True, ["source", "target"], [8, 6]),
    ("finetune", False, ["source", "target"], [8, 6]),
  ],
)
def test_plain_methods(name, shared, sides, lengths):
  """Momentum SGD on the mean losses of the sides; the schedule starts anew, and is constant in the second phase."""
  weight = 0.5 if name == "joint" else 1.0
  setup = setups.make_setup(
    name, shared=shared, finetune_epochs=1.5, optimizer__schedule="inverse", target_weight=weight
  )
  method = MAKERS[name](setup)
  assert [phase.num_steps for phase in method.phases] == lengths
  assert [" ".join(phase.step.sets) for phase in method.phases] == sides
  assert (method.uses_alpha, method.alpha_init, method.predict) == (False, 1.0, None)
  heads = {side: "classifier" if shared else f"{side}_head" for side in ("source", "target")}
  weights = {"source": 1.0, "target": weight}
  alpha = np.random.default_rng(1).uniform(size=runs.NUM_SOURCE).astype(np.float32)
  for number, phase in enumerate(method.phases):
    state = setups.start(method, setup, number, alpha_init=1.0 if name == "joint" else alpha)
    before, expected = np.asarray(state.alpha), jax.tree.map(np.asarray, state.params)
    velocity = jax.tree.map(np.zeros_like, expected)

    def loss(params, data, sets=phase.step.sets):
      return sum(weights[side] * mean_loss(params, data[side], heads[side]) for side in sets)

    gradient_of, take_step = problems.jit(jax.grad(loss)), problems.jit(phase.step)
    for step in range(3):
      data = setups.batches(step, shared)
      gradient = jax.device_get(gradient_of(expected, data))
      velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 1e-2 * p, velocity, gradient, expected)
      rate = 0.05 if number else 0.1 * (1 + 1e-4 * step) ** -0.75
      expected = jax.tree.map(lambda p, v: p - rate * v, expected, velocity)
      state, metrics = take_step(state, *(data[side] for side in phase.step.sets))
    problems.assert_close(state.params, expected)
    np.testing.assert_array_equal(state.alpha, before)
    assert np.isfinite(list(metrics.values())).all()


def test_source_only_is_not_for_transfer():
  with pytest.raises(ValueError, match="config.data.shared_classes=False: .*'source_only' trains no target classifier"):
    plain.source_only(setups.make_setup("source_only", shared=False))
