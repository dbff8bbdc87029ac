"""The step equals Algorithm 1 written in float64 NumPy (tests/oracle.py), over several steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import center_by_class, init_train_state, make_train_step, residual_normalize, standardize
from soseleto_jax.core import alignment_rules
from tests import oracle, problems

NUM_SOURCE = 11
OPTIMIZERS = {
  "sgd": (lambda: optax.sgd(0.3), lambda: oracle.Sgd(0.3)),
  "momentum": (lambda: optax.sgd(0.1, momentum=0.9), lambda: oracle.Sgd(0.1, 0.9)),
  "adam": (lambda: optax.adam(0.05), lambda: oracle.Adam(0.05)),
}
# Parameter names of the source's and the target's head, and those that descend the target loss too.
HEADS = {
  "shared": ("classifier", "classifier", ()),
  "shared_marked": ("classifier", "classifier", ("classifier",)),
  "two_heads": ("source_head", "target_head", ("target_head",)),
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


def _names_to_mask(names, params):
  return None if names is None else {name: name in names for name in params}


def _compare(optimizer="sgd", heads="shared", *, direction=None, transform=None, oracle_transform=None, **options):
  """Runs both; float64 throughout, so that any difference in the mathematics shows."""
  source_head, target_head, target_params = HEADS[heads]
  classes = {"classifier": 3} if heads != "two_heads" else {"source_head": 3, "target_head": 2}
  params = problems.tanh_params(dtype=float, **classes)
  batches = _batches(classes[target_head])
  alpha = np.random.default_rng(1).uniform(size=NUM_SOURCE)
  make_optax, make_oracle = OPTIMIZERS[optimizer]

  step_options = {"alpha_step_size": 0.4} | options
  alignment_params = step_options.pop("alignment_params", None)
  step = problems.jit(
    make_train_step(
      problems.tanh_loss(source_head),
      problems.tanh_loss(target_head),
      make_optax(),
      target_params=_names_to_mask(target_params, params) if target_params else None,
      alignment_params=_names_to_mask(alignment_params, params),
      alignment_direction=None if direction is None else functools.partial(alignment_rules.orthogonal, damping=1e-9),
      alignment_transform=transform,
      **step_options,
    )
  )
  state = init_train_state(params, make_optax(), NUM_SOURCE)
  state = state.replace(alpha=jnp.asarray(alpha, float))

  oracle_options = {k: v for k, v in step_options.items() if k not in ("contraction", "microbatch_size")}
  expected = oracle.run(
    params,
    alpha,
    batches,
    make_oracle(),
    source_head=source_head,
    target_head=target_head,
    target_params=target_params,
    alignment_params=alignment_params,
    direction=direction,
    transform=oracle_transform,
    **oracle_options,
  )
  clipped = False
  for (source, target), (params, alpha, metrics) in zip(batches, expected, strict=True):
    state, step_metrics = step(state, source, target)
    np.testing.assert_allclose(state.alpha, alpha, rtol=1e-9, atol=1e-11)
    problems.assert_close(state.params, params, rtol=1e-9, atol=1e-11)
    problems.assert_close(step_metrics, metrics, rtol=1e-5, atol=1e-7)
    clipped |= np.any((alpha == 0) | (alpha == 1))
  return clipped


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


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("alpha_first", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_algorithm_1(x64, optimizer, alpha_first, heads):
  assert _compare(optimizer, heads, alpha_first=alpha_first), "no weight reached a bound: the clip was not tested"


@pytest.mark.parametrize("heads, microbatch_size", [("shared", None), ("shared_marked", 4), ("two_heads", 4)])
def test_algorithm_1_with_q_formed(x64, heads, microbatch_size):
  _compare("momentum", heads, contraction="vmap_grad", microbatch_size=microbatch_size)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("alpha_first", [False, True])
def test_lookahead(x64, heads, alpha_first):
  _compare("sgd", heads, alpha_first=alpha_first, lookahead=0.7)


@pytest.mark.parametrize(
  "heads, aligned, contraction",
  [
    ("shared", ["classifier"], "jvp"),
    ("shared", ["classifier"], "vmap_grad"),
    ("shared_marked", ["w", "b"], "jvp"),
    ("two_heads", ["w"], "vmap_grad"),
    ("two_heads", ["source_head", "target_head"], "jvp"),
  ],
)
def test_alignment_params(x64, heads, aligned, contraction):
  _compare("sgd", heads, alignment_params=aligned, contraction=contraction, lookahead=0.2)


@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
@pytest.mark.parametrize("heads, aligned", [("shared", None), ("shared_marked", ["classifier"]), ("two_heads", ["w"])])
def test_alignment_direction(x64, heads, aligned, contraction):
  orthogonal = lambda gradient: {
    name: oracle.orthogonal(leaf) if leaf.ndim == 2 else leaf for name, leaf in gradient.items()
  }
  _compare("sgd", heads, direction=orthogonal, alignment_params=aligned, contraction=contraction, lookahead=0.2)


@pytest.mark.parametrize("alpha_first", [False, True])
@pytest.mark.parametrize("heads", ["shared", "two_heads"])
def test_burn_in(x64, heads, alpha_first):
  _compare("momentum", heads, burn_in=3, alpha_first=alpha_first, lookahead=0.3)


def test_schedules(x64):
  schedule = lambda step: 0.1 * (step + 1)
  _compare("adam", alpha_step_size=schedule, lookahead=lambda step: 0.5 / (step + 1))


def test_transforms(x64):
  def in_numpy(q, losses, labels):
    q = q - np.array([q[labels == label].mean() for label in labels])
    return q / (1 - np.exp(-losses)) / np.std(q / (1 - np.exp(-losses)))

  transform = [center_by_class(problems.CLASSES), residual_normalize(), standardize()]
  _compare("sgd", transform=transform, oracle_transform=in_numpy, alpha_step_size=0.02)


@pytest.mark.parametrize("contraction", ["jvp", "vmap_grad"])
def test_algorithm_1_in_float32(contraction):
  """The same mathematics in the precision that users get."""
  params, batches = problems.tanh_params(), _batches(3)
  optimizer = optax.adam(0.05)
  step = problems.jit(
    make_train_step(problems.tanh_loss(), problems.tanh_loss(), optimizer, alpha_step_size=0.4, contraction=contraction)
  )
  state = init_train_state(params, optimizer, NUM_SOURCE)
  expected = oracle.run(params, np.full(NUM_SOURCE, 0.5), batches, oracle.Adam(0.05), alpha_step_size=0.4)
  for (source, target), (params, alpha, metrics) in zip(batches, expected, strict=True):
    state, step_metrics = step(state, source, target)
    assert state.alpha.dtype == np.float32
    np.testing.assert_allclose(state.alpha, alpha, rtol=1e-4, atol=1e-5)
    problems.assert_close(state.params, params, rtol=1e-4, atol=1e-5)
    problems.assert_close(step_metrics, metrics, rtol=1e-4, atol=1e-5)
