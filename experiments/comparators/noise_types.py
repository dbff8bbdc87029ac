"""Xiao et al. 2015, "Learning from massive noisy labeled data for image classification", CVPR 2015: noise types.

Beside the network that tells the class y of an image x, a second one tells the type z of the noise in its label ỹ
(section 3 of the paper):

    p(ỹ | x) = Σ_y Σ_z p(ỹ | y, z) p(y | x) p(z | x)

where p(ỹ | y, z) is the identity without noise, the same for all other classes with random noise, and with confusing
noise a matrix C, whose diagonal is 0. In EM, the gradient of both networks' cross-entropies with the posterior of
(y, z) at the current parameters is that of -log p(ỹ | x), so that the M step of a batch descends this. The clean
examples stay in the loss, and both networks are trained in advance.

The paper has noisy labels of its clean examples too, counts C in these pairs, and trains the second network on them in
advance. There are no such pairs here. In their place are the source's noisy labels and the classes that the first
network finds most likely, once it is trained in advance on source and target jointly; its mistakes count as noise, and
C is not sparse. Its probabilities instead of its classes would not do: trained on noisy labels, they tell how often a
label is wrong, so that the second network ends at "no noise" for every image, and EM at joint training.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.comparators.common import network_training
from soseleto_jax import optimizers
from soseleto_jax.data.task import Task
from soseleto_jax.losses import classification_loss
from soseleto_jax.methods import Phase
from soseleto_jax.models import get_model
from soseleto_jax.train_step import make_joint_step, make_plain_step


def noisy_cross_entropy(
    logits: jax.Array, type_logits: jax.Array, label: jax.Array, confusion_logits: jax.Array
) -> jax.Array:
  """Returns -log p(ỹ | x), `[B]`.

  Args:
    logits: float `[B, K]` of the true classes.
    type_logits: float `[B, 3]` of the noise: none, random, confusing.
    label: int `[B]`, noisy labels ỹ.
    confusion_logits: float `[K, K]`: row y of C is their softmax, the diagonal, which is not read, left out.
  """
  num_classes = logits.shape[-1]
  log_class, log_type = jax.nn.log_softmax(logits), jax.nn.log_softmax(type_logits)
  is_label = jax.nn.one_hot(label, num_classes, dtype=bool)
  log_confusion = jax.nn.log_softmax(jnp.where(jnp.eye(num_classes, dtype=bool), -jnp.inf, confusion_logits))
  log_other = jnp.where(is_label, -jnp.inf, log_class)
  log_noisy = [
      jnp.sum(jnp.where(is_label, log_class, 0.0), axis=-1),
      jax.nn.logsumexp(log_other, axis=-1) - jnp.log(num_classes - 1.0),
      jax.nn.logsumexp(log_other + log_confusion.T[label], axis=-1),
  ]
  return -jax.nn.logsumexp(log_type + jnp.stack(log_noisy, axis=-1), axis=-1)


def most_likely_class(logits: jax.Array) -> jax.Array:
  """Returns logits `[B, K]` of probability 1, to float32's precision, for the largest one's class."""
  return 30.0 * jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])


def make_phases(
    config: ConfigDict,
    model: nn.Module,
    params: Any,
    task: Task,
    steps_per_epoch: int,
    *,
    mutable: bool,
    axis_name: str | None,
    joint_epochs: float = 5.0,
    type_epochs: float = 2.0,
    confusion_rate: float = 0.03,
) -> tuple[Phase, ...]:
  """Builds the method for `train_and_evaluate(config, workdir, task, make_phases)`.

  Args:
    config: as in `soseleto_jax.methods.make_phases`, like the rest up to `axis_name`. Its epochs are those of EM.
    model: one whose classes source and target share; the noise types get another of the same kind.
    params: not read.
    task: names the shape of the images and the number of classes.
    steps_per_epoch: steps of one pass over the source.
    mutable: whether the model carries state, which is refused.
    axis_name: the axis that the step is mapped over, or None.
    joint_epochs: so long the first network is trained in advance, on both sets.
    type_epochs: then so long the second network and C, on the source; either takes one step at least.
    confusion_rate: learning rate of Adam for the logits of C.

  Raises:
    ValueError: for a model that carries state.
  """
  del params
  if mutable:
    raise ValueError(
        f"config.model.name={config.model.name!r} carries state (BatchNorm), and there is no room for that of a second "
        "network; take one without, such as 'cifar_quick'"
    )
  num_steps, schedule, _ = network_training(config, steps_per_epoch)
  before_em = optax.constant_schedule(config.optimizer.learning_rate)

  def optimizer(rate, *trained):
    """Moves the parts that are named."""
    parts = {name: optimizers.make_optimizer(config.optimizer, rate) for name in ("network", "types")}
    parts["confusion"] = optax.adam(confusion_rate)
    parts = {name: part if name in trained else optax.set_to_zero() for name, part in parts.items()}
    return optax.partition(parts, {"network": "network", "extra": {"types": "types", "confusion": "confusion"}})

  types = get_model(num_classes=3, **config.model)
  key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not the network's
  start = {
      "types": types.init(key, jnp.zeros((1, *task.source["x"].shape[1:])))["params"],
      "confusion": jnp.zeros((task.num_source_classes, task.num_source_classes)),
  }

  def clean_loss(params, *rest):
    return classification_loss(model)(params["network"], *rest)

  def noisy_loss(params, batch, rng, read=lambda logits: logits):
    type_logits = types.apply({"params": params["extra"]["types"]}, batch["x"], train=True, rngs={"dropout": rng})
    through = lambda logits, label: noisy_cross_entropy(read(logits), type_logits, label, params["extra"]["confusion"])
    return classification_loss(model, loss=through)(params["network"], batch, rng)

  def type_loss(params, *rest):
    return noisy_loss(params, *rest, read=most_likely_class)

  options = dict(skip_nonfinite=config.on_nonfinite == "skip", axis_name=axis_name)

  def phase(num_steps, losses, optimizer):
    if len(losses) == 1:
      step = make_plain_step(*losses, optimizer, **options)
    else:
      step = make_joint_step(*losses, optimizer, target_weight=config.target_weight, **options)
    return Phase(num_steps, ("source", "target")[: len(losses)], losses, step, optimizer, start)

  in_advance = lambda epochs: max(1, round(epochs * steps_per_epoch))
  return (
      phase(in_advance(joint_epochs), (clean_loss, clean_loss), optimizer(before_em, "network")),
      phase(in_advance(type_epochs), (type_loss,), optimizer(before_em, "types", "confusion")),
      phase(num_steps, (noisy_loss, clean_loss), optimizer(schedule, "network", "types")),
  )
