"""The step equals Algorithm 1 written in float64 NumPy (tests/oracle.py), over several steps."""

import functools

import jax
import numpy as np
import optax
import pytest

from soseleto_jax import (
  Alignment,
  TargetDescent,
  burn_in,
  center_by_class,
  init_train_state,
  make_joint_step,
  make_train_step,
  orthogonal,
  residual_normalize,
  scale_by_std,
  sharpened,
)
from tests import oracle, problems

NUM_SOURCE = 11
ALPHA = np.random.default_rng(1).uniform(size=NUM_SOURCE)
OPTIMIZERS = {
  "sgd": (lambda: optax.sgd(0.3), lambda: oracle.Sgd(0.3)),
  "momentum": (lambda: optax.sgd(0.1, momentum=0.9), lambda: oracle.Sgd(0.1, 0.9)),
  "adam": (lambda: optax.adam(0.05), lambda: oracle.Adam(0.05)),
}
# Parameter names of the source's and the target's head, those that descend the target loss too, and all heads.
HEADS = {
  "shared": ("classifier", "classifier", (), {"classifier": 3}),
  "shared_marked": ("classifier", "classifier", ("classifier",), {"classifier": 3}),
  "two_heads": ("source_head", "target_head", ("target_head",), {"source_head": 3, "target_head": 2}),
  "with_another": ("classifier", "classifier", ("b", "other"), {"classifier": 3, "other": 3}),
}


def _batches(target_classes):
  """Five steps: plain ones, one with repeated and impossible rows, and last a short one, padded under a mask."""
  source = [problems.batch(s, 6, dtype=float, index=problems.index(s, 6, NUM_SOURCE)) for s in range(5)]
  target = [problems.batch(10 + s, 4, dtype=float, classes=target_classes) for s in range(5)]
  for side in (*source, *target):
    side["mask"] = np.ones(len(side["label"]), bool)
  source[2]["index"][:] = [3, 3, -1, 5, 3, NUM_SOURCE]
  source[4]["mask"][4:] = False
  target[4]["mask"][1:] = False
  return list(zip(source, target, strict=True))


def _compare(
  optimizer="sgd",
  heads="shared",
  *,
  aligned=None,
  alignment_head=None,
  descent_head=None,
  target_weight=1.0,
  alignment=None,
  source_weights=None,
  by_oracle=None,
  **options,
):
  """Runs both; float64 throughout, so that any difference in the mathematics shows on every machine.

  `alignment`, `source_weights` and `by_oracle` are what one of the two gets alone.
  """
  source_head, target_head, target_params, classes = HEADS[heads]
  params = problems.tanh_params(dtype=float, **classes)
  make_optax, make_oracle = OPTIMIZERS[optimizer]
  options = {"alpha_step_size": 0.4} | options

  def marks(names):
    return None if names is None else {name: name in names for name in params}

  def loss(head):
    return None if head is None else problems.tanh_loss(head)

  step = make_train_step(
    loss(source_head),
    loss(target_head),
    make_optax(),
    alignment=Alignment(params=marks(aligned), loss=loss(alignment_head), **(alignment or {})),
    target_descent=TargetDescent(marks(target_params), loss(descent_head), target_weight) if target_params else None,
    source_weights=source_weights,
    **options,
  )
  expected = functools.partial(
    oracle.run,
    optimizer=make_oracle(),
    source_head=source_head,
    target_head=target_head,
    target_params=target_params,
    target_weight=target_weight,
    descent_head=descent_head,
    alignment_params=aligned,
    alignment_head=alignment_head,
    **(options | (by_oracle or {})),
  )
  return _follow(step, expected, params, make_optax(), classes[target_head])


def _follow(step, by_oracle, params, optimizer, target_classes=3):
  """Compares each of the steps; returns the last state, and whether a weight reached a bound."""
  batches = _batches(target_classes)
  state = init_train_state(params, optimizer, NUM_SOURCE).replace(alpha=ALPHA)
  step, clipped = problems.jit(step), False
  expected = by_oracle(params, ALPHA, batches)
  for (source, target), (new_params, new_alpha, new_metrics) in zip(batches, expected, strict=True):
    state, metrics = step(state, source, target)
    np.testing.assert_allclose(state.alpha, new_alpha, rtol=1e-9, atol=1e-11)
    problems.assert_close(state.params, new_params, rtol=1e-9, atol=1e-11)
    problems.assert_close(metrics, {name: new_metrics[name] for name in metrics}, rtol=1e-5, atol=1e-7)
    clipped |= np.any((new_alpha == 0) | (new_alpha == 1))
  return state, clipped


@pytest.mark.parametrize("head", ["source_head", "target_head"])
def test_oracle_gradients_by_automatic_differentiation(x64, head):
  params = problems.tanh_params(dtype=float, source_head=3, target_head=2)
  batch = problems.batch(0, 3, classes=2, dtype=float)
  losses, rows = oracle.batch_losses(jax.tree.map(np.asarray, params), head, batch)
  gradient = problems.jit(jax.value_and_grad(lambda params, row: problems.tanh_loss(head)(params, row, None)[0]))
  for j in range(3):
    loss, row = gradient(params, {name: value[j : j + 1] for name, value in batch.items()})
    np.testing.assert_allclose(losses[j], loss, rtol=1e-12)
    np.testing.assert_allclose(rows[j], oracle.flatten(jax.tree.map(np.asarray, row)), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
  "optimizer, heads, alpha_first",
  [("sgd", "shared", False), ("momentum", "shared_marked", True), ("adam", "two_heads", False)],
)
def test_algorithm_1(x64, optimizer, heads, alpha_first):
  _, clipped = _compare(optimizer, heads, alpha_first=alpha_first)
  assert clipped, "no weight reached a bound: the clip was not tested"


def test_algorithm_1_with_q_formed(x64):
  _compare("momentum", "two_heads", alignment={"contraction": "vmap_grad", "microbatch_size": 4})


def test_lookahead(x64):
  """With one set of classes: in test_source_weights."""
  _compare("sgd", "two_heads", lookahead=0.7)


@pytest.mark.parametrize(
  "heads, aligned, contraction", [("shared", ["classifier"], "vmap_grad"), ("shared_marked", ["w", "b"], "jvp")]
)
def test_alignment_params(x64, heads, aligned, contraction):
  _compare("sgd", heads, aligned=aligned, alignment={"contraction": contraction}, lookahead=0.2)


def test_alignment_direction(x64):
  def by_definition(gradient):
    return {name: oracle.orthogonal(leaf) if leaf.ndim == 2 and leaf.any() else leaf for name, leaf in gradient.items()}

  alignment, by_oracle = {"direction": functools.partial(orthogonal, damping=1e-9)}, {"direction": by_definition}
  _compare("sgd", "shared_marked", aligned=["b", "classifier"], alignment=alignment, by_oracle=by_oracle, lookahead=0.2)


@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
def test_alignment_of_another_loss(x64, contraction):
  """The parameters descend the one, and alpha moves by the other; both read the same target gradient."""
  _compare("momentum", "with_another", alignment_head="other", alignment={"contraction": contraction}, lookahead=0.2)


def test_target_descent_of_another_loss(x64):
  """Leaves that no alignment needs descend a loss that steers nothing, with a weight, ahead of the parameters."""
  _compare("momentum", "with_another", aligned=["w"], descent_head="other", target_weight=0.3, lookahead=0.2)


def test_burn_in(x64):
  by_definition = {"source_weights": lambda alpha, step: np.ones_like(alpha) if step < 3 else alpha}
  _compare("momentum", "two_heads", source_weights=burn_in(3), by_oracle=by_definition, lookahead=0.3)


def test_burn_in_of_little_weight_before_weights_that_are_sharpened(x64):
  by_definition = {
    "source_weights": lambda alpha, step: np.full_like(alpha, 0.2) if step < 2 else np.clip(4 * alpha - 1.5, 0, 1)
  }
  _compare(source_weights=burn_in(2, 0.2, sharpened(4.0)), by_oracle=by_definition, alpha_first=True)


def test_source_weights(x64):
  """Of one's own: of the old weights ahead of the parameters, of the new ones in their update where alpha is first."""

  def weights(alpha, step):
    return alpha**2 + 0.1 * step

  _compare(source_weights=weights, by_oracle={"source_weights": weights}, alpha_first=True, lookahead=0.7)


def test_schedules(x64):
  """One of optax, and one of one's own."""
  options = {"alpha_step_size": optax.piecewise_constant_schedule(0.1, {2: 4.0})}
  by_oracle = {"alpha_step_size": lambda step: 0.1 if step < 2 else 0.4}
  _compare("adam", by_oracle=by_oracle, lookahead=lambda step: 0.5 / (step + 1), **options)


def test_transforms(x64):
  def in_numpy(q, losses, labels):
    q = q - np.array([q[labels == label].mean() for label in labels])
    return q / (1 - np.exp(-losses)) / np.std(q / (1 - np.exp(-losses)))

  transforms = (center_by_class(problems.CLASSES), residual_normalize(), scale_by_std())
  _compare("sgd", alignment={"transforms": transforms}, by_oracle={"transform": in_numpy}, alpha_step_size=0.02)


def test_joint_training(x64):
  """All parameters descend both losses, and alpha stays as it is to the bit."""
  loss, params, target_weight = problems.tanh_loss(), problems.tanh_params(dtype=float), 0.25
  make_optax, make_oracle = OPTIMIZERS["momentum"]
  step = make_joint_step(loss, loss, make_optax(), target_weight=target_weight)
  by_oracle = functools.partial(
    oracle.run,
    optimizer=make_oracle(),
    alpha_step_size=0.0,
    target_params=tuple(params),
    target_weight=target_weight,
    direction=lambda gradient: jax.tree.map(np.zeros_like, gradient),
  )
  state, _ = _follow(step, by_oracle, params, make_optax())
  problems.assert_same_bits(state.alpha, ALPHA)


def test_algorithm_1_in_float32():
  """The same mathematics in the precision that users get."""
  params, batches = problems.tanh_params(), _batches(3)
  optimizer, loss = optax.sgd(0.1, momentum=0.9), problems.tanh_loss()
  step = problems.jit(make_train_step(loss, loss, optimizer, alpha_step_size=0.4))
  state = init_train_state(params, optimizer, NUM_SOURCE)
  expected = oracle.run(params, np.full(NUM_SOURCE, 0.5), batches, oracle.Sgd(0.1, 0.9), alpha_step_size=0.4)
  for (source, target), (params, alpha, metrics) in zip(batches, expected, strict=True):
    state, step_metrics = step(state, source, target)
    assert state.alpha.dtype == np.float32
    np.testing.assert_allclose(state.alpha, alpha, rtol=1e-4, atol=1e-5)
    problems.assert_close(state.params, params, rtol=1e-4, atol=1e-5)
    problems.assert_close(step_metrics, metrics, rtol=1e-4, atol=1e-5)
