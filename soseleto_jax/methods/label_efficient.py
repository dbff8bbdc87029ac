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

from soseleto_jax.core import axis
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.losses import LossFn, mask_of
from soseleto_jax.core.step import make_plain_step
from soseleto_jax.data import lazy
from soseleto_jax.data.unlabelled import get_unlabelled
from soseleto_jax.methods.base import Method, Phase, Setup, beside_network, loss_of_network, predict_of_network
from soseleto_jax.models.losses import cross_entropy
from soseleto_jax.models.network import LinenNetwork, Network
from soseleto_jax.models.pooling import max_pool
from soseleto_jax.models.row_norm import with_row_norm
from soseleto_jax.models.two_headed import HeadedNetwork

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it


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


def forward(
  model: nn.Module, params: Any, x: jax.Array, rng: jax.Array
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
  """Returns the output of each layer of the representation, its features `[B, F]`, and the target head's logits.

  Images between layers are pooled, 2x2, to be fewer numbers. A representation without layers counts as one.
  """

  def is_layer(module, method):
    return method == "__call__" and module.path[:1] == ("representation",) and len(module.path) <= 2

  logits, variables = model.apply(
    {"params": params},
    x,
    train=True,
    head="target",
    rngs={"dropout": rng},
    capture_intermediates=is_layer,
    mutable=["intermediates"],
  )
  outputs = dict(variables["intermediates"]["representation"])
  (features,) = outputs.pop("__call__")
  layers = [output["__call__"][0] for output in outputs.values()] or [features]
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

  def logits(params, layers):
    return discriminator.apply({"params": params}, layers)

  telling = jax.nn.softplus(-logits(params, stop(source))) + jax.nn.softplus(logits(params, stop(target)))
  return telling, jax.nn.softplus(-logits(stop(params), target))


def centroids(
  features: jax.Array, label: jax.Array, mask: jax.Array, num_classes: int, axis_name: AxisName = None
) -> tuple[jax.Array, jax.Array]:
  """Returns the mean features of each class scaled to norm 1, `[K, F]`, and whether the class occurs, `[K]`."""
  members = jax.nn.one_hot(label, num_classes) * mask[:, None]
  total, count = axis.total((members.T @ features, members.sum(axis=0)), axis_name)
  return with_row_norm(total), count > 0


def entropy(similarity: jax.Array, temperature: float, occurs: jax.Array) -> jax.Array:
  """Returns the entropy of softmax(similarity / temperature) over the classes that occur, `[B, K]` to `[B]`."""
  log_p = jax.nn.log_softmax(jnp.where(occurs, similarity / temperature, -1e9))
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def adaptation_loss(
  setup: Setup,
  model: nn.Module,
  discriminator: Discriminator,
  pool: np.ndarray,
  *,
  adversarial_weight: float,
  semantic_weight: float,
  temperatures: tuple[float, float],
  axis_name: AxisName = None,
) -> LossFn:
  """The loss of equation 1 plus the discriminator's, for each row of a source batch.

  Args:
    setup: holds the labelled target images.
    model: the network's module.
    discriminator: of the two domains.
    pool: unlabelled target images as stored, of which a batch's key draws as many as it has rows.
    adversarial_weight: α.
    semantic_weight: β.
    temperatures: of the similarities to the source's and to the target's classes.
    axis_name: the axis that batches are split over, or None.
  """
  task, prepare = setup.task, setup.preparations["target"]
  images, label = lazy.load(task.target["x"]), task.target["label"]

  def target_images(batch_size, rng):
    """Returns drawn unlabelled images, then all labelled ones."""
    rows = jax.random.randint(rng, (batch_size,), 0, len(pool))
    keys = jax.random.split(jax.random.fold_in(rng, 1))
    drawn = prepare({"x": jnp.asarray(pool)[rows], "index": rows}, keys[0])["x"]
    labelled = prepare({"x": jnp.asarray(images), "index": jnp.arange(len(images))}, keys[1])["x"]
    return jnp.concatenate([drawn, labelled])

  def semantic(features, batch_size, source_features, batch):
    """Equations 5-8."""
    free, known = jnp.split(features, [batch_size])
    source = centroids(source_features, batch["label"], mask_of(batch), task.num_source_classes, axis_name)
    target = centroids(known, label, jnp.ones(len(label)), task.num_target_classes)
    similarities = [free @ source[0].T, free @ target[0].T]
    total = entropy(similarities[0], temperatures[0], source[1]) + entropy(similarities[1], temperatures[1], target[1])
    return total + jnp.mean(cross_entropy(known @ target[0].T, label))

  def loss(params, batch, rng):
    batch_size, extra = len(batch["x"]), params["extra"]
    key = jax.random.fold_in(rng, 2)
    layers, features, logits = forward(model, params["network"], target_images(batch_size, rng), key)
    source_layers, source_features, _ = jax.lax.stop_gradient(forward(model, extra["source"], batch["x"], key))
    telling, hiding = domain_losses(
      discriminator, extra["discriminator"], source_layers, [layer[:batch_size] for layer in layers]
    )
    supervised = jnp.mean(cross_entropy(logits[batch_size:], label))
    transfer = semantic(features, batch_size, source_features, batch)
    return supervised + telling + adversarial_weight * hiding + semantic_weight * transfer

  return loss


def make_method(
  setup: Setup,
  *,
  unlabelled: np.ndarray | None = None,
  adversarial_weight: float = 0.1,
  semantic_weight: float = 0.1,
  source_temperature: float = 2.0,
  target_temperature: float = 1.0,
  decay: float = 0.1,
  adaptation_epochs: float = 1.0,
  learning_rate: float = 3e-4,
) -> Method:
  """Makes the method, for transfer.

  The source is learned as the config says, the rest by Adam. Each of its steps takes a batch of the source, as many
  unlabelled images, drawn on the device, and all labelled images of the target.

  Args:
    setup: what it is made for; its network is a Linen module that gets heads.
    unlabelled: target images as the task stores them, `[N, ...]`; they live on the devices. None: all that
      `config.data` names and the task leaves, see `soseleto_jax.data.unlabelled`.
    adversarial_weight: α.
    semantic_weight: β; 0 for "fine-tune + adversarial".
    source_temperature: τ of the similarities to the source's classes.
    target_temperature: τ of those to the target's.
    decay: γ of the discriminator.
    adaptation_epochs: how long it goes on, in passes over the source.
    learning_rate: of Adam.

  Raises:
    ValueError: another network, or unlabelled images of another shape.
  """
  setup.require(transfer=True, stateless=True, classes=True)
  model, discriminator = _linen_module(setup.network), Discriminator(decay)
  pool = _pool(setup, unlabelled)

  loss = adaptation_loss(
    setup,
    model,
    discriminator,
    pool,
    adversarial_weight=adversarial_weight,
    semantic_weight=semantic_weight,
    temperatures=(source_temperature, target_temperature),
    axis_name=setup.axis_name,
  )
  shape = setup.task.target["x"].shape[1:]
  key = jax.random.fold_in(jax.random.key(setup.config.seed), 1)  # not the network's
  layers = jax.eval_shape(lambda params: forward(model, params, jnp.zeros((1, *shape)), key)[0], setup.params)
  start = discriminator.init(key, jax.tree.map(lambda layer: jnp.zeros(layer.shape), layers))["params"]
  adapt = optax.partition(
    {"trained": optax.adam(learning_rate), "fixed": optax.set_to_zero()},
    {"network": "trained", "extra": {"discriminator": "trained", "source": "fixed"}},
  )
  twins = _train_twins(setup.optimizer())
  on_source = make_plain_step(loss_of_network(setup, "source"), twins, axis_name=setup.axis_name)
  adaptation = make_plain_step(loss, adapt, axis_name=setup.axis_name)
  return Method(
    (Phase(setup.num_steps, on_source), Phase(setup.steps_of(adaptation_epochs), adaptation)),
    init=beside_network({"source": setup.params, "discriminator": start}),
    predict=predict_of_network(setup),
  )


def _linen_module(network: Network) -> nn.Module:
  """Returns the module whose layers can be looked into."""
  if isinstance(network, LinenNetwork) and isinstance(network.module, HeadedNetwork):
    return network.module
  raise ValueError(
    "method 'label_efficient' reads the outputs of each layer, by Flax Linen's capture_intermediates: give it a "
    "Linen module from [B, ...] to features [B, F], or one of the library's networks"
  )


def _pool(setup: Setup, unlabelled: np.ndarray | None) -> np.ndarray:
  """Returns the unlabelled images on the host."""
  if unlabelled is None:
    unlabelled = get_unlabelled(setup.config.data, setup.config.seed)["x"]
  shape = setup.task.target["x"].shape
  if not len(unlabelled) or unlabelled.shape[1:] != shape[1:]:
    raise ValueError(f"unlabelled has shape {unlabelled.shape}, target x {shape}; give such images")
  return lazy.load(unlabelled)


def _train_twins(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Trains the network, gives "source", which starts as its equal, the same updates, and leaves the rest alone."""

  def init(params):
    return optimizer.init(params["network"])

  def update(gradient, state, params):
    change, state = optimizer.update(gradient["network"], state, params["network"])
    rest = jax.tree.map(jnp.zeros_like, params["extra"])
    return {"network": change, "extra": rest | {"source": change}}, state

  return optax.GradientTransformation(init, update)
