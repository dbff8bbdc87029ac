"""Sukhbaatar et al. 2014, "Training convolutional networks with noisy labels", arXiv:1406.2080: a noise layer.

A confusion matrix after the softmax turns the probabilities of the classes into those of the noisy labels (the paper's
bottom-up model of label flips). It is learned with the network: the source's loss goes through it, the clean target's
loss bypasses it. The matrix starts as the identity and is held there at first; then weight decay, the paper's stand-in
for a small trace, draws it away from the identity, to which the network alone would let it shrink. After each update
its rows are projected back onto the probabilities.
"""

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core.train_step import make_joint_step
from soseleto_jax.methods.base import Method, Phase, Setup, beside_network, loss_of_network, predict_of_network

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it


def noisy_cross_entropy(logits: jax.Array, label: jax.Array, matrix: jax.Array) -> jax.Array:
  """Returns -log of the labels' probability after the noise layer, `[B]`.

  Args:
    logits: float `[B, K]` of the true classes.
    label: int `[B]`, noisy labels.
    matrix: float `[K, K]`: in row i, column j the probability of label j where the class is i.
  """
  probability = jnp.sum(jax.nn.softmax(logits) * matrix.T[label], axis=-1)
  return -jnp.log(jnp.maximum(probability, jnp.finfo(probability.dtype).tiny))


def project_rows() -> optax.GradientTransformation:
  """Changes the update of a matrix so that it ends on the nearest one whose rows are probabilities."""
  nearest = jax.vmap(optax.projections.projection_simplex)
  return optax.stateless_with_tree_map(lambda update, matrix: nearest(matrix + update) - matrix)


def make_method(
  setup: Setup, *, fixed_epochs: float = 5.0, rate_factor: float = 0.01, weight_decay: float = 1.0
) -> Method:
  """Makes the method, for source and target with the same classes.

  The matrix is trained by SGD with the network's momentum. Its gradient holds 1 / p for labels of probability p, and
  the network's own rate would throw it from one corner of the simplex to another.

  Args:
    setup: what it is made for.
    fixed_epochs: so long the matrix stays the identity.
    rate_factor: the matrix's learning rate as a multiple of the network's.
    weight_decay: of the matrix. Both depend on the data; the defaults are the best of a few by validation accuracy on
      the handwritten digits.
  """
  setup.require(transfer=False, classes=True)
  config, schedule, fixed_steps = setup.config, setup.schedule(), setup.steps_of(fixed_epochs)

  def matrix_rate(step):
    return jnp.where(step < fixed_steps, 0.0, rate_factor * schedule(step))

  of_matrix = optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(matrix_rate, config.optimizer.momentum or None),
    project_rows(),
  )
  optimizer = optax.partition(
    {"network": setup.optimizer(), "matrix": of_matrix}, {"network": "network", "extra": "matrix"}
  )

  def noisy_loss(params, *rest):
    def through(logits, label):
      return noisy_cross_entropy(logits, label, params["extra"])

    return setup.loss("source", through)(params["network"], *rest)

  clean_loss = loss_of_network(setup, "target")
  step = make_joint_step(
    noisy_loss, clean_loss, optimizer, target_weight=config.target_weight, axis_name=setup.axis_name
  )
  return Method(
    (Phase(setup.num_steps, step),),
    init=beside_network(jnp.eye(setup.task.num_source_classes)),
    predict=predict_of_network(setup),
  )
