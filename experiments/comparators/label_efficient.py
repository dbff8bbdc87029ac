"""Luo, Zou, Hoffman and Fei-Fei 2017, "Label efficient learning of transferable representations across domains and
tasks", arXiv:1712.00123.

The network is trained on the source; a copy goes on, on the target, and descends (equation 1)

    L_sup + α L_DT + β L_ST,

L_sup the cross-entropy of the labelled target images. L_DT is adversarial (equations 2-4): a discriminator is shown the
features of each layer, of the source images by the network as the source left it, which stays, and of unlabelled target
images by the copy; it learns to tell them apart, and the copy learns to have its own taken for the source's. L_ST is
semantic transfer (equations 5-8): the entropy of each unlabelled image's softmax over its similarities to the source's
classes, with temperature 2, and to the target's, with temperature 1, plus the cross-entropy of the labelled images by
the latter. With β = 0 this is the authors' "fine-tune + adversarial".

Equations and weights are as summaries of the paper give them. Chosen here: a similarity is the dot product of features
with a class's centroid, of norm 1, in the batch of the source or in all of the labelled target; the discriminator's
width; Adam and its rate.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.comparators.common import network_training, refuse_state
from soseleto_jax.data import lazy
from soseleto_jax.data.task import Task
from soseleto_jax.losses import classification_loss, cross_entropy
from soseleto_jax.methods import Phase
from soseleto_jax.models.pooling import max_pool
from soseleto_jax.train_step import make_plain_step


class Discriminator(nn.Module):
  """Tells source from target by features of several layers: d_l = D_l(relu(decay d_{l-1} ⊕ E_l)), then one number.

  Attributes:
    decay: γ, of what comes from the layer before.
    hidden: width of each D_l.
  """

  decay: float = 0.1
  hidden: int = 64

  @nn.compact
  def __call__(self, layers: Sequence[jax.Array]) -> jax.Array:
    """Maps features, one `[B, ...]` for each layer, to the logit of the source, `[B]`."""
    seen = jnp.zeros((len(layers[0]), 0))
    for layer in layers:
      seen = jnp.concatenate([self.decay * seen, layer.reshape(len(layer), -1)], axis=-1)
      seen = nn.Dense(self.hidden)(nn.relu(seen))
    return nn.Dense(1)(nn.relu(seen))[:, 0]


def forward(model: nn.Module, params: Any, x: jax.Array) -> tuple[list[jax.Array], jax.Array, jax.Array]:
  """Returns the output of each layer of the representation, its features `[B, F]`, and the target head's logits.

  Images between layers are pooled, 2x2, to be fewer numbers.
  """
  of_representation = lambda module, _: module.path[:1] == ("representation",) and len(module.path) <= 2
  logits, variables = model.apply(
      {"params": params},
      x,
      train=True,
      head="target",
      capture_intermediates=of_representation,
      mutable=["intermediates"],
  )
  outputs = dict(variables["intermediates"]["representation"])
  (features,) = outputs.pop("__call__")
  layers = [output["__call__"][0] for output in outputs.values()]
  layers = [max_pool(layer, 2, 2) if layer.ndim == 4 else layer for layer in layers]
  return [layer.astype(jnp.float32) for layer in layers], features.astype(jnp.float32), logits


def domain_losses(
    discriminator: Discriminator, params: Any, source: Sequence[jax.Array], target: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Returns what the discriminator descends and what the target's features descend, both `[B]`.

  Equations 3 and 4. The former has no gradient by the features, the latter none by `params`; and what equation 4 has
  of the source's, which stay as they are, is left out.
  """
  stop = jax.lax.stop_gradient
  apply = lambda params, layers: discriminator.apply({"params": params}, layers)
  telling = jax.nn.softplus(-apply(params, stop(source))) + jax.nn.softplus(apply(params, stop(target)))
  return telling, jax.nn.softplus(-apply(stop(params), target))


def centroids(
    features: jax.Array, label: jax.Array, mask: jax.Array, num_classes: int, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns the mean features of each class scaled to norm 1, `[K, F]`, and whether the class occurs, `[K]`."""
  members = jax.nn.one_hot(label, num_classes) * mask[:, None]
  total, count = members.T @ features, members.sum(axis=0)
  if axis_name is not None:
    total, count = jax.lax.psum((total, count), axis_name)
  return total * jax.lax.rsqrt(jnp.sum(total**2, axis=1, keepdims=True) + 1e-12), count > 0


def entropy(similarity: jax.Array, temperature: float, occurs: jax.Array) -> jax.Array:
  """Returns the entropy of softmax(similarity / temperature) over the classes that occur, `[B, K]` to `[B]`."""
  log_p = jax.nn.log_softmax(jnp.where(occurs, similarity / temperature, -1e9))
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def make_phases(
    config: ConfigDict,
    model: nn.Module,
    params: Any,
    task: Task,
    steps_per_epoch: int,
    *,
    mutable: bool,
    axis_name: str | None,
    unlabelled: np.ndarray,
    adversarial_weight: float = 0.1,
    semantic_weight: float = 0.1,
    source_temperature: float = 2.0,
    target_temperature: float = 1.0,
    decay: float = 0.1,
    adaptation_epochs: float = 1.0,
    learning_rate: float = 3e-4,
) -> tuple[Phase, ...]:
  """Builds the method for `train_and_evaluate(config, workdir, task, make_phases)`.

  The source is learned as the config says, the rest by Adam. Each of its steps takes a batch of the source, as many
  unlabelled images, drawn on the device, and all labelled images of the target.

  Args:
    config: as in `soseleto_jax.methods.make_phases`, like the rest up to `axis_name`.
    model: a two-headed network.
    params: the network's parameters.
    task: holds the labelled target images.
    steps_per_epoch: steps of one pass over the source.
    mutable: whether the model carries state, which is refused.
    axis_name: the axis that the step is mapped over, or None.
    unlabelled: target images as the task stores them, `[N, ...]`; they live on the devices.
    adversarial_weight: α.
    semantic_weight: β; 0 for "fine-tune + adversarial".
    source_temperature: τ of the similarities to the source's classes.
    target_temperature: τ of those to the target's.
    decay: γ of the discriminator.
    adaptation_epochs: how long it goes on, in passes over the source.
    learning_rate: of Adam.

  Raises:
    ValueError: for shared classes, a model that carries state, or unlabelled images of another shape.
  """
  num_steps, _, optimizer = network_training(config, steps_per_epoch, transfer=True)
  refuse_state(config, mutable)
  shape = task.target["x"].shape[1:]
  if not len(unlabelled) or unlabelled.shape[1:] != shape:
    raise ValueError(f"unlabelled has shape {unlabelled.shape}, target x {task.target['x'].shape}; give such images")
  pool = lazy.load(unlabelled)
  labelled = task.target_normalization.apply(lazy.load(task.target["x"])), task.target["label"]
  discriminator = Discriminator(decay)

  def loss_over(axis):
    def loss(params, batch, rng):
      images, label = labelled
      batch_size = len(batch["x"])
      mask = batch.get("mask", jnp.ones(batch_size, bool))
      drawn = jnp.asarray(pool)[jax.random.randint(rng, (batch_size,), 0, len(pool))]
      x = jnp.concatenate([task.target_normalization.apply(drawn), images])
      layers, features, logits = forward(model, params["network"], x)
      source = jax.lax.stop_gradient(forward(model, params["extra"]["source"], batch["x"])[:2])
      telling, hiding = domain_losses(
          discriminator, params["extra"]["discriminator"], source[0], [layer[:batch_size] for layer in layers]
      )
      total = jnp.mean(cross_entropy(logits[batch_size:], label)) + telling + adversarial_weight * hiding
      free, known = jnp.split(features, [batch_size])
      of_source = centroids(source[1], batch["label"], mask, task.num_source_classes, axis)
      of_target = centroids(known, label, jnp.ones(len(label)), task.num_target_classes)
      total += semantic_weight * entropy(free @ of_source[0].T, source_temperature, of_source[1])
      total += semantic_weight * entropy(free @ of_target[0].T, target_temperature, of_target[1])
      return total + semantic_weight * jnp.mean(cross_entropy(known @ of_target[0].T, label))

    return loss

  options = dict(skip_nonfinite=config.on_nonfinite == "skip", axis_name=axis_name)
  source_loss = classification_loss(model, head="source")
  on_source = lambda params, batch, rng: source_loss(params["network"], batch, rng)
  both = _train_twins(optimizer)
  layers = jax.eval_shape(lambda params: forward(model, params, jnp.zeros((1, *shape)))[0], params)
  key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not the network's
  start = discriminator.init(key, jax.tree.map(lambda layer: jnp.zeros(layer.shape), layers))["params"]
  adapt = optax.partition(
      {"trained": optax.adam(learning_rate), "fixed": optax.set_to_zero()},
      {"network": "trained", "extra": {"discriminator": "trained", "source": "fixed"}},
  )
  return (
      Phase(
          num_steps,
          ("source",),
          (on_source,),
          make_plain_step(on_source, both, **options),
          both,
          extra={"source": params, "discriminator": start},
      ),
      Phase(
          round(adaptation_epochs * steps_per_epoch),
          ("source",),
          (loss_over(None),),
          make_plain_step(loss_over(axis_name), adapt, **options),
          adapt,
      ),
  )


def _train_twins(optimizer):
  """Trains the network, gives "source", which starts as its equal, the same updates, and leaves the rest alone."""

  def update(gradient, state, params):
    change, state = optimizer.update(gradient["network"], state, params["network"])
    rest = jax.tree.map(jnp.zeros_like, params["extra"])
    return {"network": change, "extra": rest | {"source": change}}, state

  return optax.GradientTransformation(lambda params: optimizer.init(params["network"]), update)
