"""Domain alignment: how far apart the features of source and target lie, as a term that the parameters descend."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from soseleto_jax.core import axis, trees
from soseleto_jax.core.alternating import alternating
from soseleto_jax.core.losses import Examples, mask_of
from soseleto_jax.core.step import Step

DISTANCE = "domain_loss"  # the metric
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, times the mean squared distance of two examples

Features = Callable[..., jax.Array]  # (params, batch, rng, *model_state) -> [B, F]


def mean_discrepancy(source: jax.Array, target: jax.Array, source_mask: jax.Array, target_mask: jax.Array) -> jax.Array:
  r"""Squared maximum mean discrepancy of two samples, by their own means (Gretton et al. 2012, equation 5).

  :math:`\frac1{B^2} \sum k(x, x') + \frac1{T^2} \sum k(y, y') - \frac2{BT} \sum k(x, y)`, with k the mean of Gaussian
  kernels :math:`\exp(-\lVert x - x' \rVert^2 / b \sigma^2)`, b of `BANDWIDTHS` (Long et al. 2015). σ² is the mean
  squared distance of two different examples of both samples, and has no gradient.

  Args:
    source: features, float `[B, F]`.
    target: features, float `[T, F]`.
    source_mask: bool `[B]`; False for rows that count for nothing, whatever finite values they hold.
    target_mask: bool `[T]`.

  Returns:
    A scalar in [0, 2]; 0 where either sample is empty.
  """
  mask = jnp.concatenate([source_mask, target_mask])
  features = jnp.where(mask[:, None], jnp.concatenate([source, target]), 0.0)
  features -= jax.lax.stop_gradient(jnp.sum(features, axis=0) / jnp.maximum(jnp.sum(mask), 1))  # for precision alone
  features = jnp.where(mask[:, None], features, 0.0)
  products = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
  norms = jnp.diagonal(products)
  distances = jnp.maximum(norms[:, None] + norms - 2 * products, 0.0)

  pairs = mask[:, None] & mask & ~jnp.eye(len(mask), dtype=bool)
  width = jnp.sum(jnp.where(pairs, distances, 0.0)) / jnp.maximum(jnp.sum(pairs), 1)
  width = jax.lax.stop_gradient(jnp.where(width > 0, width, 1.0))
  kernel = jnp.mean(jnp.stack([jnp.exp(-distances / (factor * width)) for factor in BANDWIDTHS]), axis=0)

  counts = [jnp.sum(of_side) for of_side in (source_mask, target_mask)]
  shares = [
    jnp.where(of_side, sign / jnp.maximum(count, 1), 0.0)
    for of_side, count, sign in zip((source_mask, target_mask), counts, (1.0, -1.0), strict=True)
  ]
  weights = jnp.concatenate(shares).astype(kernel.dtype) * (jnp.minimum(*counts) > 0)
  return weights @ kernel @ weights


def add_domain_term(step: Step, features: tuple[Features, Features], weight: float) -> Step:
  """Returns the step, whose parameters also descend `weight` times the discrepancy of its two batches' features.

  Every source example counts alike in it, whatever its `alpha`, and α's own update is as it was. On several devices
  the discrepancy is that of the whole batches. Its metrics also hold "domain_loss", the discrepancy, and "loss" has
  the term. It costs a forward pass over both batches, which XLA shares with the step's own where they are the same,
  and a backward pass.

  Args:
    step: of two batches, source and target, that trains parameters of which `features` are made.
    features: of the source and of the target, `(params, batch, rng, *model_state) -> [B, F]`, called as a `LossFn`
      is; with a `model_state`, what they would make of it is lost: the step's losses carry it on.
    weight: above 0.

  Raises:
    ValueError: a step of other batches.
  """
  if step.sets != ("source", "target"):
    raise ValueError(f"a step of {step.sets}: the term is of a step on source and target")
  if step.learns is not None and step.parts is not None:
    return alternating(step.learns, *(add_domain_term(part, features, weight) for part in step.parts))
  name = step.axis_name

  def gradients(state, *batches):
    gradient, after, metrics = step.gradients(state, *batches)
    keys = axis.step_keys(state.seed, state.step, name)
    masks = [mask_of(batch) for batch in batches]
    seen = [Examples(*of_side, state.model_state, name).seen for of_side in zip(batches, masks, keys, strict=True)]
    carried = () if state.model_state is None else (state.model_state,)

    def both(params):
      made = [of(params, batch, key, *carried) for of, batch, key in zip(features, seen, keys, strict=True)]
      return [values.astype(jnp.promote_types(values.dtype, jnp.float32)) for values in made]

    values, pull = jax.vjp(both, axis.varying(state.params, name))
    distance, cotangents = _distance(values, masks, name)
    (change,) = pull(cotangents)
    gradient = trees.add(gradient, axis.total(change, name), weight)
    metrics = metrics | {DISTANCE: distance.astype(jnp.float32)}
    if "loss" in metrics:
      metrics["loss"] = metrics["loss"] + weight * metrics[DISTANCE]
    return gradient, after, metrics

  return dataclasses.replace(step, gradients=gradients)


def _distance(features, masks, axis_name):
  """Returns the discrepancy of the whole batches, and its gradient by this device's features."""
  if axis_name is None:
    return jax.value_and_grad(functools.partial(_of_samples, masks))(features)
  features, masks = jax.lax.all_gather((features, masks), axis_name)  # [D, B / D, ...]
  distance, cotangents = jax.value_and_grad(functools.partial(_of_samples, masks))(features)
  device = jax.lax.axis_index(axis_name)
  first = jnp.where(device == 0, distance, 0.0)  # the sum of which is the same number on all devices
  return axis.total(first, axis_name), [leaf[device] for leaf in cotangents]


def _of_samples(masks, features):
  samples = [leaf.reshape(-1, leaf.shape[-1]) for leaf in features]
  return mean_discrepancy(*samples, *(mask.reshape(-1) for mask in masks))
