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

import dataclasses

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core.step import make_plain_step
from soseleto_jax.core.train_step import make_joint_step
from soseleto_jax.methods.base import Method, Phase, Setup, beside_network, loss_of_network, predict_of_network
from soseleto_jax.models import make_network

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it


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


def _as_they_are(logits):
  return logits


def make_method(
  setup: Setup, *, joint_epochs: float = 5.0, type_epochs: float = 2.0, confusion_rate: float = 0.03
) -> Method:
  """Makes the method, for source and target with the same classes. The epochs of the config are those of EM.

  Args:
    setup: what it is made for. The noise types get another network that `config.model` describes.
    joint_epochs: so long the first network is trained in advance, on both sets.
    type_epochs: then so long the second network and C, on the source; either takes one step at least.
    confusion_rate: learning rate of Adam for the logits of C.
  """
  setup.require(transfer=False, stateless=True, classes=True)
  config, task = setup.config, setup.task
  types = make_network(config.model.to_dict(), 3, seed=(config.seed + 1) % 2**32)
  key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not the network's
  of_types, state = types.init(key, jnp.zeros((1, *task.source["x"].shape[1:])))
  dataclasses.replace(setup, model_state=state).require(stateless=True)  # where the first network was given
  num_classes = task.num_source_classes
  start = {"types": of_types, "confusion": jnp.zeros((num_classes, num_classes))}

  clean_loss = loss_of_network(setup, "target")

  def noisy_loss(params, batch, rng, read=_as_they_are):
    type_logits, _ = types.apply(params["extra"]["types"], None, batch["x"], train=True, rng=rng)

    def through(logits, label):
      return noisy_cross_entropy(read(logits), type_logits, label, params["extra"]["confusion"])

    return setup.loss("source", through)(params["network"], batch, rng)

  def type_loss(params, batch, rng):
    return noisy_loss(params, batch, rng, most_likely_class)

  def optimizer(rate, *trained):
    """Moves the parts that are named."""
    parts = {name: setup.optimizer(rate) for name in ("network", "types")} | {"confusion": optax.adam(confusion_rate)}
    parts = {name: part if name in trained else optax.set_to_zero() for name, part in parts.items()}
    return optax.partition(parts, {"network": "network", "extra": {"types": "types", "confusion": "confusion"}})

  def joint(source_loss, optimizer):
    return make_joint_step(
      source_loss, clean_loss, optimizer, target_weight=config.target_weight, axis_name=setup.axis_name
    )

  def in_advance(epochs):
    return max(1, setup.steps_of(epochs))

  constant = optax.constant_schedule(config.optimizer.learning_rate)
  type_step = make_plain_step(type_loss, optimizer(constant, "types", "confusion"), axis_name=setup.axis_name)
  return Method(
    (
      Phase(in_advance(joint_epochs), joint(clean_loss, optimizer(constant, "network"))),
      Phase(in_advance(type_epochs), type_step),
      Phase(setup.num_steps, joint(noisy_loss, optimizer(setup.schedule(), "network", "types"))),
    ),
    init=beside_network(start),
    predict=predict_of_network(setup),
  )
