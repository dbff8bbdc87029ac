"""The alignment of source examples with a direction: inner products of per-example gradients, `Qᵀ v`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.core import axis, calls, trees
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.contraction import check_contraction
from soseleto_jax.core.forward import Forward, directional_derivative
from soseleto_jax.core.losses import Batch, Examples, LossFn, batch_size_of, checked_losses

_OF_TRANSFORMS = ("q", "losses", "batch", "axis_name")
Transform = Callable[[jax.Array, jax.Array, Batch, AxisName], jax.Array]


@dataclasses.dataclass(frozen=True)
class Alignment:
  r"""What q, by which `alpha` moves, is: :math:`q_j = \langle \partial\ell_j, f(g_t) \rangle`, then reshaped.

  The defaults are the published rule.

  Attributes:
    params: prefix tree of bools over `params`, True where a leaf takes part in the inner product; leaves without a part
      cost no tangent pass. None: all.
    direction: f, what q is the product with, made of the target gradient, whose structure and shapes it has, such as
      `soseleto_jax.orthogonal`; leaves without a part in the product are None. None: the gradient itself.
    transforms: `f(q, losses, batch, axis_name) -> q`, applied in turn before `alpha` moves: see
      `soseleto_jax.core.alignment_rules`.
    loss: the `LossFn` of the source batch whose gradients q takes. None: the loss that the parameters descend, whose
      forward pass then serves both.
    contraction: "auto", "jvp", "vjp" or "vmap_grad", see `gradient_alignment`.
    microbatch_size: for "vmap_grad", rows of Q at a time.

  Raises:
    ValueError: a contraction that does not exist, a misplaced `microbatch_size`, `params` that are no bools or all
      False, a direction or transform that cannot be called as it is to be. When traced: `params` that do not fit the
      parameters, a direction of other shapes.
  """

  params: Any = None
  direction: Callable[[Any], Any] | None = None
  transforms: Sequence[Transform] = ()
  loss: LossFn | None = None
  contraction: str = "auto"
  microbatch_size: int | None = None

  def __post_init__(self):
    check_contraction(self.contraction, self.microbatch_size)
    if self.params is not None:
      trees.check_marks(self.params, "Alignment.params")
    if self.direction is not None:
      calls.check_takes(
        self.direction, ("gradient",), "Alignment.direction", "give a function that does, or None", "orthogonal"
      )
    if isinstance(self.transforms, str) or not isinstance(self.transforms, Sequence):
      raise ValueError(
        f"Alignment.transforms={self.transforms!r}: give a tuple of functions, such as (scale_by_std(),)"
      )
    for number, transform in enumerate(self.transforms):
      cure = f"give a function that does; what makes one wants to be called, {calls.name_of(transform)}(...)"
      calls.check_takes(transform, _OF_TRANSFORMS, f"Alignment.transforms[{number}]", cure, "scale_by_std()")

  def of(self, source: Forward, source_loss: LossFn, examples: Examples, g_target: Any) -> tuple[jax.Array, jax.Array]:
    """Returns q `[B]` as it moves `alpha`, and the inner products before the transforms; 0 in masked rows.

    Args:
      source: forward pass of the source's examples.
      source_loss: whose losses it has.
      examples: the source's.
      g_target: gradient of the target loss, with None for leaves without a part in the product, if need be.
    """
    direction = trees.select(self.params, g_target)
    if self.direction is not None:
      gradient, direction = direction, self.direction(direction)
      _check_direction(direction, gradient, "Alignment.direction returned")
    products = self.products(source, source_loss, examples, direction)
    products, losses = (jnp.where(examples.mask, values, 0.0) for values in (products, source.losses))
    q = products
    batch = {**examples.batch, "mask": examples.mask}
    for transform in self.transforms:
      q = jnp.where(examples.mask, transform(q, losses, batch, examples.axis_name), 0.0)
    return q, products

  def products(self, source: Forward, source_loss: LossFn, examples: Examples, direction: Any) -> jax.Array:
    """Returns the inner products `[B]` alone; arguments as in `of`, with the direction as it is."""
    direction = axis.varying(direction, examples.axis_name)
    loss = source_loss if self.loss is None else self.loss
    if self.contraction == "vmap_grad" and examples.model_state is None:
      jax.eval_shape(examples.bind(loss, "alignment.loss"), source.params)  # which refuses one that is not per example
      return per_example_products(loss, source.params, examples.seen, examples.rng, direction, self.microbatch_size)
    if self.loss is None:
      return source.push(direction, self.contraction, self.microbatch_size)
    bound = examples.bind(loss, "alignment.loss")
    return directional_derivative(
      lambda params: bound(params)[0], source.params, direction, self.contraction, self.microbatch_size
    )


def _check_direction(direction, like, name):
  """Raises ValueError for what has not the structure and shapes of `like`; leaves, but not all, may be None."""
  shapes = jax.tree.map(jnp.shape, like)
  try:
    fits = jax.tree.leaves(direction) and jax.tree.map(jnp.shape, trees.fill(direction, like)) == shapes
  except ValueError:
    fits = False
  if not fits:
    raise ValueError(f"{name} arrays of shapes {jax.tree.map(jnp.shape, direction)}: they have to be as {shapes}")


def gradient_alignment(
  loss_fn: LossFn,
  params: Any,
  batch: Any,
  direction: Any,
  *,
  contraction: str = "auto",
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
    contraction: all equal to rounding. "jvp", one forward-mode pass, no per-example gradient is formed. "vjp", the same
      by reverse mode over reverse mode, for what forward mode cannot pass, a `jax.custom_vjp`. "auto", "jvp" where the
      loss allows it, else "vjp". "vmap_grad", the definition: Q by `jax.vmap(jax.grad)`, contracted with `direction`.
    microbatch_size: for "vmap_grad", how many rows of Q exist at a time. None: all. (It loops by `lax.map`, which is
      slow for convolutions on CPU.)
    rng: key for the loss; "vmap_grad" hands it on row by row, so that a loss that draws differs there.

  Returns:
    float32 `[B]`.

  Raises:
    ValueError: no such contraction, "jvp" through a `jax.custom_vjp`, a loss that is not one per example, a direction
      of other shapes, a batch that is no mapping of arrays with a common leading axis.

  >>> loss = lambda params, batch, rng: (batch["x"] @ params - batch["y"]) ** 2
  >>> batch = {"x": jnp.eye(2), "y": jnp.ones(2)}
  >>> gradient_alignment(loss, jnp.zeros(2), batch, jnp.array([1.0, 3.0])).tolist()
  [-2.0, -6.0]
  """
  check_contraction(contraction, microbatch_size)
  batch_size = batch_size_of(batch)
  rng = jax.random.key(0) if rng is None else rng
  _check_direction(direction, params, "direction has")

  def losses_of(params):
    return checked_losses(loss_fn(params, batch, rng), batch_size, "loss_fn")

  if contraction == "vmap_grad":
    jax.eval_shape(losses_of, params)
    return per_example_products(loss_fn, params, batch, rng, direction, microbatch_size)
  return directional_derivative(losses_of, params, direction, contraction)


def per_example_products(
  loss_fn: LossFn, params: Any, batch: Any, rng: jax.Array, direction: Any, microbatch_size: int | None = None
) -> jax.Array:
  """`Qᵀ v` by its definition: every row of Q from `jax.grad`, `microbatch_size` rows at a time, times `direction`."""

  def product(row, key):
    marked = trees.alike(direction, params)
    single = jax.tree.map(lambda leaf: leaf[None], row)
    gradient = jax.grad(lambda m: loss_fn(trees.fill(m, params), single, key)[0])(marked)
    return trees.dot(gradient, direction)

  rows = (batch, jax.random.split(rng, batch_size_of(batch)))
  if microbatch_size is None:
    return jax.vmap(product)(*rows)
  return jax.lax.map(lambda row: product(*row), rows, batch_size=microbatch_size)
