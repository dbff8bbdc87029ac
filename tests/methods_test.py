"""Every method's step, against one that is written out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import (
    center_by_class,
    init_train_state,
    make_train_step,
    orthogonal,
    residual_normalize,
    standardize,
)
from soseleto_jax.losses import classification_loss, margin
from soseleto_jax.methods import alpha_init, make_phases
from soseleto_jax.models import get_model
from tests import problems, runs

N = runs.NUM_SOURCE


@functools.cache
def task_and_model(shared):
  task = runs.make_task(shared=shared)
  classes = runs.CLASSES if shared else {"source": runs.CLASSES, "target": runs.TARGET_CLASSES}
  return task, get_model("mlp", classes, hidden=(4,))


def phases_of(shared=True, **fields):
  task, model = task_and_model(shared)
  config = runs.make_config(data__shared_classes=shared, **fields)
  return make_phases(config, model, params_of(shared), task, runs.STEPS_PER_EPOCH, mutable=False, axis_name=None)


@functools.cache
def params_of(shared):
  return problems.jit(task_and_model(shared)[1].init)(jax.random.key(0), jnp.zeros((1, 5)))["params"]


def state_of(optimizer, shared=True):
  alpha = np.random.default_rng(1).uniform(size=N).astype(np.float32)
  return init_train_state(params_of(shared), optimizer, N, alpha_init=alpha)


def batches(step, shared=True):
  """Source and target, the last rows of both masked."""
  source = problems.batch(2 * step, 7, classes=runs.CLASSES, shape=(5,), mask=np.arange(7) < 6)
  target_classes = runs.CLASSES if shared else runs.TARGET_CLASSES
  target = problems.batch(2 * step + 1, 4, classes=target_classes, shape=(5,), mask=np.arange(4) < 3)
  return {"source": source | {"index": problems.index(step, 7, N)}, "target": target}


def mean_loss(params, batch, head):
  dense, classifier = params["representation"]["dense1"], params[head]
  logits = jnp.maximum(batch["x"] @ dense["kernel"] + dense["bias"], 0) @ classifier["kernel"] + classifier["bias"]
  losses = jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(logits)), batch["label"]]
  return jnp.sum(losses, where=batch["mask"]) / jnp.sum(batch["mask"])


@pytest.mark.parametrize(
    "method, shared, sides, lengths",
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
def test_plain_methods(method, shared, sides, lengths):
  """Momentum SGD on the mean losses of the sides; the schedule starts anew, and is constant in the second phase."""
  phases = phases_of(shared, method=method, finetune_epochs=1.5, optimizer__schedule="inverse")
  assert [phase.num_steps for phase in phases] == lengths
  assert [" ".join(phase.sets) for phase in phases] == sides
  heads = {"source": "classifier", "target": "classifier"} if shared else {s: f"{s}_head" for s in ("source", "target")}
  for number, phase in enumerate(phases):
    state = state_of(phase.optimizer, shared)
    expected = jax.tree.map(np.asarray, state.params)
    velocity = jax.tree.map(np.zeros_like, expected)
    loss = lambda params, data: sum(mean_loss(params, data[side], heads[side]) for side in phase.sets)
    gradient_of, take_step = problems.jit(jax.grad(loss)), problems.jit(phase.step)
    for step in range(3):
      data = batches(step, shared)
      gradient = jax.device_get(gradient_of(expected, data))
      velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 1e-2 * p, velocity, gradient, expected)
      rate = 0.05 if number else 0.1 * (1 + 1e-4 * step) ** -0.75
      expected = jax.tree.map(lambda p, v: p - rate * v, expected, velocity)
      ones = state.replace(alpha=jnp.ones(N))
      state, metrics = take_step(ones if method == "joint" else state, *(data[side] for side in phase.sets))
    problems.assert_close(state.params, expected)
    np.testing.assert_array_equal(state.alpha, 1 if method == "joint" else state_of(phase.optimizer, shared).alpha)
    assert np.isfinite(list(metrics.values())).all()


def two_steps(step, optimizer, shared):
  step, state = problems.jit(step), state_of(optimizer, shared)
  for number in range(2):
    state, metrics = step(state, *batches(number, shared).values())
  return state, metrics


@functools.cache
def without_options(shared):
  """The parameters and weights of the step without `target_params` or any other option."""
  (phase,) = phases_of(shared)
  model = task_and_model(shared)[1]
  losses = [classification_loss(model, head=head) for head in ((None, None) if shared else ("source", "target"))]
  return two_steps(make_train_step(*losses, phase.optimizer, **STEP_SIZE), phase.optimizer, shared)[0]


STEP_SIZE = {"alpha_step_size": optax.cosine_decay_schedule(0.1, 8)}  # as the learning rate's
TRANSFORMS = ("center_by_class", "residual_normalize", "standardize")
IN_ORDER = [center_by_class(runs.CLASSES), residual_normalize(), standardize()]


@pytest.mark.parametrize(
    "fields, shared, options",
    [
        ({}, True, {}),
        ({"step_size": 0.3}, True, {"alpha_step_size": optax.cosine_decay_schedule(0.3, 8)}),
        ({"first": True}, True, {"alpha_first": True}),
        ({"lookahead": 0.5}, True, {"lookahead": 0.5}),
        ({"burn_in_epochs": 0.25}, True, {"burn_in": 1}),
        ({"params": ("classifier",)}, True, {"alignment_params": {"representation": False, "classifier": True}}),
        ({"params": ("dense1",)}, True, {"alignment_params": {"representation": True, "classifier": False}}),
        ({"target_params": "classifier"}, True, {"target_params": {"representation": False, "classifier": True}}),
        ({"target_params": "all"}, True, {"target_params": True}),
        ({"direction": "orthogonal"}, True, {"alignment_direction": orthogonal}),
        ({"transforms": TRANSFORMS}, True, {"alignment_transform": IN_ORDER}),
        ({"transforms": TRANSFORMS[::-1]}, True, {"alignment_transform": IN_ORDER[::-1]}),
        ({}, False, {}),
        ({"transforms": TRANSFORMS[:1]}, False, {"alignment_transform": IN_ORDER[:1]}),
        (
            {"target_params": "all"},
            False,
            {"target_params": {"representation": True, "source_head": False, "target_head": True}},
        ),
        ({"params": ("representation",)}, False, {}),  # which is all that source and target share
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else f"shared={value}",
)
def test_soseleto(fields, shared, options):
  """The published step; in transfer the target's own classifier descends the target loss."""
  fields = {f"alpha.{name}": value for name, value in fields.items()}
  (phase,) = phases_of(shared, **fields)
  assert (phase.num_steps, phase.sets) == (8, ("source", "target"))
  model = task_and_model(shared)[1]
  heads = (None, None) if shared else ("source", "target")
  source_loss, target_loss = (classification_loss(model, head=head) for head in heads)
  if not shared:
    options = {"target_params": {"representation": False, "source_head": False, "target_head": True}} | options
  expected_step = make_train_step(source_loss, target_loss, phase.optimizer, **STEP_SIZE | options)
  state, metrics = two_steps(phase.step, phase.optimizer, shared)
  problems.assert_close((state, metrics), two_steps(expected_step, phase.optimizer, shared))
  assert np.count_nonzero(state.alpha != state_of(phase.optimizer, shared).alpha) > 6
  if options:
    leaves = lambda state: jax.tree.leaves((state.params, state.alpha))
    pairs = zip(leaves(state), leaves(without_options(shared)), strict=True)
    assert not all(np.allclose(*pair, rtol=0, atol=1e-4) for pair in pairs)


def test_the_target_descends_its_cross_entropy_whatever_steers():
  """With weights that stay, the steering loss makes no difference."""
  fields = {"alpha.step_size": 0.0, "alpha.target_params": "all"}
  states = []
  for name in ("cross_entropy", "margin"):
    (phase,) = phases_of(**fields | {"alpha.target_loss": name})
    states.append(two_steps(phase.step, phase.optimizer, True)[0])
  problems.assert_close(states[0].params, states[1].params)
  pairs = zip(jax.tree.leaves(states[0].params), jax.tree.leaves(without_options(True).params), strict=True)
  assert not all(np.allclose(*pair, rtol=0, atol=1e-4) for pair in pairs)


def test_the_margin_steers():
  (phase,) = phases_of(alpha__target_loss="margin")
  state, data = state_of(phase.optimizer), batches(0)
  _, metrics = problems.jit(phase.step)(state, data["source"], data["target"])
  logits = task_and_model(True)[1].apply({"params": state.params}, data["target"]["x"])
  expected = np.mean(margin(logits, data["target"]["label"])[data["target"]["mask"]])
  np.testing.assert_allclose(metrics["target_loss"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "contraction, microbatch_size, message",
    [("vmap_grad", 0, "microbatch_size=0"), ("jvp", 4, "microbatch_size=4 with contraction='jvp'")],
)
def test_the_contraction_is_the_configs(contraction, microbatch_size, message):
  with pytest.raises(ValueError, match=message):
    phases_of(alpha__contraction=contraction, alpha__microbatch_size=microbatch_size)
  (phase,) = phases_of(alpha__contraction="vmap_grad", alpha__microbatch_size=2)
  state = state_of(optax.identity()).replace(model_state={})
  with pytest.raises(ValueError, match="contraction='vmap_grad' with a model_state"):
    phase.step(state, *batches(0).values())


@pytest.mark.parametrize("method", ["soseleto", "source_only", "target_only", "finetune", "joint"])
def test_only_soseleto_starts_from_the_weights_of_the_config(method):
  assert alpha_init(runs.make_config(method=method, alpha__init=0.3)) == (0.3 if method == "soseleto" else 1.0)


def test_a_layer_that_is_not_there():
  with pytest.raises(ValueError, match="config.alpha.params names 'conv9'; .*classifier, .*dense1"):
    phases_of(True, **{"alpha.params": ("classifier", "conv9")})


@pytest.mark.parametrize("names", [("target_head",), ("source_head", "target_head")])
def test_layers_that_source_and_target_do_not_share(names):
  """No gradient of the one set meets one of the other there."""
  with pytest.raises(ValueError, match=r"config.alpha.params=\('.*_head',?\) names no layer .* 'representation'"):
    phases_of(False, **{"alpha.params": names})
