"""The alignment of source examples with a direction: inner products of per-example gradients, `Qᵀ v`."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

CONTRACTIONS = ("jvp", "vmap_grad")


class LossFn(Protocol):
  """One loss per example.

  Called as `loss_fn(params, batch, rng)` it returns float32 `[B]`, never averaged. In a train state with a
  `model_state` it is called as `loss_fn(params, batch, rng, model_state)` and returns `([B], new_model_state)`. What
  else it needs (a model, a label smoothing) it closes over; arrays go into `params`, `batch` or `model_state`, since a
  jitted function makes constants of arrays that it closes over.

  Row j of the loss must depend on row j of the batch alone, or its gradient is not an example's own. BatchNorm in
  training mode breaks that: `contraction="jvp"` then differentiates the coupled losses, and "vmap_grad" refuses.
  """

  def __call__(self, params: Any, batch: Any, rng: jax.Array, *model_state: Any) -> Any: ...


def check_contraction(contraction: str, microbatch_size: int | None) -> None:
  """Raises ValueError for a contraction that does not exist, or a microbatch size that means nothing."""
  if contraction not in CONTRACTIONS:
    raise ValueError(f"contraction={contraction!r}: choose one of {', '.join(CONTRACTIONS)}")
  if microbatch_size is not None and (contraction != "vmap_grad" or microbatch_size < 1):
    raise ValueError(
        f"microbatch_size={microbatch_size} with contraction={contraction!r}: it splits the per-example gradients of "
        "'vmap_grad' and is at least 1; leave it None otherwise"
    )


def check_losses(losses: jax.Array, batch_size: int, name: str) -> None:
  """Raises ValueError unless `losses` is `[batch_size]`."""
  if losses.shape != (batch_size,):
    raise ValueError(
        f"{name} returned shape {losses.shape} for a batch of {batch_size}: return one loss per example, "
        f"shape ({batch_size},), not their mean or sum"
    )


def batch_size_of(batch: Any) -> int:
  """Returns B, the common leading axis of a batch's leaves."""
  sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1 or None in sizes:
    shapes = jax.tree.map(lambda leaf: leaf.shape, batch)
    raise ValueError(f"batch with shapes {shapes}: every array needs the same leading axis, one row per example")
  return sizes.pop()


def select(mask: Any, tree: Any) -> Any:
  """Returns `tree` with None in place of the leaves that `mask` (a prefix tree of bools; None: all) leaves out."""
  if mask is None:
    return tree
  return jax.tree.map(lambda keep, leaf: leaf if keep else None, jax.tree.broadcast(mask, tree), tree)


def fill(selected: Any, tree: Any) -> Any:
  """Returns `selected` with the leaves of `tree` in place of None."""
  return jax.tree.map(
      lambda leaf, other: other if leaf is None else leaf, selected, tree, is_leaf=lambda leaf: leaf is None
  )


def _marked(params, direction):
  """Returns `params` with None where `direction` has None."""
  return jax.tree.map(lambda d, p: None if d is None else p, direction, params, is_leaf=lambda leaf: leaf is None)


def directional_derivative(losses_fn, params, direction):
  """`Qᵀ v` by one forward-mode pass: the derivative of the losses `[B]` along `direction`.

  Leaves of `direction` that are None count as zero and cost no tangent pass.
  """
  marked = _marked(params, direction)
  tangent = jax.tree.map(lambda d, p: d.astype(p.dtype), direction, marked)
  return jax.jvp(lambda m: losses_fn(fill(m, params)), (marked,), (tangent,))[1]


def per_example_products(loss_fn, params, batch, rng, direction, microbatch_size=None):
  """`Qᵀ v` by its definition: every row of Q from `jax.grad`, `microbatch_size` rows at a time, times `direction`."""

  def product(row, key):
    marked = _marked(params, direction)
    single = jax.tree.map(lambda leaf: leaf[None], row)
    gradient = jax.grad(lambda m: loss_fn(fill(m, params), single, key)[0])(marked)
    return tree_dot(gradient, direction)

  rows = (batch, jax.random.split(rng, batch_size_of(batch)))
  if microbatch_size is None:
    return jax.vmap(product)(*rows)
  return jax.lax.map(lambda row: product(*row), rows, batch_size=microbatch_size)


def tree_dot(a: Any, b: Any) -> jax.Array:
  """Inner product of two pytrees, accumulated in float32 or better whatever their dtypes."""

  def dot(x, y):
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return jnp.vdot(x.astype(dtype), y.astype(dtype), precision=jax.lax.Precision.HIGHEST)

  return sum(jax.tree.leaves(jax.tree.map(dot, a, b)), start=jnp.float32(0))


def gradient_alignment(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    direction: Any,
    *,
    contraction: str = "jvp",
    microbatch_size: int | None = None,
    rng: jax.Array | None = None,
) -> jax.Array:
  r"""Inner product of every example's gradient with a direction, :math:`q_j = \langle \partial\ell_j, v \rangle`.

  With `direction` the gradient of a target loss this is the alignment of the paper's equation 5: positive where a
  descent step on the example also lowers the target loss.

  Args:
    loss_fn: a `LossFn` without model state, `(params, batch, rng) -> [B]`.
    params: pytree of arrays.
    batch: pytree of arrays, each with the leading axis B.
    direction: pytree shaped as `params`; a leaf None counts as zero, and costs nothing.
    contraction: "jvp", one forward-mode pass, no per-example gradient is formed; or "vmap_grad", the definition: Q by
      `jax.vmap(jax.grad)`, contracted with `direction`. Equal to rounding.
    microbatch_size: for "vmap_grad", how many rows of Q exist at a time. None: all. (It loops by `lax.map`, which is
      slow for convolutions on CPU.)
    rng: key for the loss; the two contractions hand it on differently, so a loss that draws differs between them.

  Returns:
    float32 `[B]`.

  Raises:
    ValueError: no such contraction, a loss that is not one per example, arrays without a common leading axis.

  >>> loss = lambda params, batch, rng: (batch["x"] @ params - batch["y"]) ** 2
  >>> batch = {"x": jnp.eye(2), "y": jnp.ones(2)}
  >>> gradient_alignment(loss, jnp.zeros(2), batch, jnp.array([1.0, 3.0])).tolist()
  [-2.0, -6.0]
  """
  check_contraction(contraction, microbatch_size)
  rng = jax.random.key(0) if rng is None else rng
  check_losses(jax.eval_shape(loss_fn, params, batch, rng), batch_size_of(batch), "loss_fn")
  if contraction == "vmap_grad":
    return per_example_products(loss_fn, params, batch, rng, direction, microbatch_size)
  return directional_derivative(lambda p: loss_fn(p, batch, rng), params, direction)
