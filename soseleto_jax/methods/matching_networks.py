"""Vinyals et al. 2016, "Matching networks for one shot learning", arXiv:1606.04080, in the setting of Luo et al. 2017.

An example is classified by a labelled support set: attention is the softmax over the cosine similarities of its
features to those of the support set (section 2.1.1, without full context embeddings), and the probability of a class is
the attention that its members get (equation 1). Training is by episodes (section 2.2): a support set with k examples of
each class, here of the source's, and queries of the same classes. Then target images are classified with the labelled
ones as support set. Luo et al. (arXiv:1712.00123, section 4.1) also fine-tune on those, in episodes with k - 1 of the k
images of each class as support and the last as query.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soseleto_jax.core.losses import LossFn
from soseleto_jax.core.step import make_plain_step
from soseleto_jax.data import lazy
from soseleto_jax.data.normalization import Normalization
from soseleto_jax.data.selection import Examples
from soseleto_jax.feed.preparation import Preparation
from soseleto_jax.methods.base import Method, Phase, Predict, Setup
from soseleto_jax.models.network import Network
from soseleto_jax.models.row_norm import with_row_norm

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it


def class_log_probabilities(queries: jax.Array, support: jax.Array, keep: jax.Array, scale: float = 1.0) -> jax.Array:
  """Returns the log of the attention that each class gets, `[Q, K]`.

  Args:
    queries: features `[Q, F]`.
    support: features `[K, M, F]`, M of each of K classes.
    keep: bool, `[Q, K, M]` or such that it broadcasts: which of the support set count, one of each class at least.
    scale: of the similarities.
  """
  similarity = jnp.einsum("qf,kmf->qkm", with_row_norm(queries), with_row_norm(support))
  similarity = jnp.where(keep, scale * similarity, -jnp.inf)
  total = jax.nn.logsumexp(similarity, axis=(1, 2), keepdims=True)
  return jax.nn.logsumexp(similarity - total, axis=2)


def rows_by_class(label: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns each class's rows, int32 `[K, most of a class]`, filled up with -1."""
  rows = [np.flatnonzero(label == c) for c in range(num_classes)]
  most = max(map(len, rows))
  return np.stack([np.pad(own, (0, most - len(own)), constant_values=-1) for own in rows]).astype(np.int32)


def draw_support(key: jax.Array, rows: jax.Array, count: int) -> jax.Array:
  """Draws `count` different rows of each class, int32 `[K, count]`, of those that `rows_by_class` returns."""
  order = jnp.where(rows >= 0, jax.random.uniform(key, rows.shape), -1.0)
  return jnp.take_along_axis(rows, jax.lax.top_k(order, count)[1], axis=1)


def leave_one_out(index: jax.Array, drawn: jax.Array) -> jax.Array:
  """Marks M - 1 of the M drawn rows of each class as each query's support: all but the query itself, or the last.

  Args:
    index: int32 `[Q]`, the queries' rows.
    drawn: int32 `[K, M]`.

  Returns:
    bool `[Q, K, M]`.
  """
  own = drawn == index[:, None, None]
  last = jnp.arange(drawn.shape[1]) == drawn.shape[1] - 1
  return jnp.where(own.any(axis=2, keepdims=True), ~own, ~last)


def episode_loss(
  network: Network, examples: Examples, preparation: Preparation, num_classes: int, shots: int, scale: float
) -> LossFn:
  """A loss of each query, the rows of a batch, given a support set with `shots` of each class that the key draws.

  Args:
    network: its representation is used.
    examples: the set that the batches are of, more than `shots` of each class.
    preparation: of the set's pixels.
    num_classes: K.
    shots: examples of each class in the support set of a query, none of them the query itself.
    scale: of the similarities.
  """
  rows, images = rows_by_class(examples["label"], num_classes), lazy.load(examples["x"])

  def loss(params, batch, rng):
    draw_key, preparation_key, network_key = jax.random.split(rng, 3)
    drawn = draw_support(draw_key, jnp.asarray(rows), shots + 1)
    flat = drawn.reshape(-1)
    support = preparation({"x": jnp.asarray(images)[flat], "index": flat}, preparation_key)["x"]
    x = jnp.concatenate([batch["x"], support])
    features, _ = network.features(params, None, x, train=True, rng=network_key)
    queries, support = jnp.split(features.astype(jnp.float32), [len(batch["x"])])
    keep = leave_one_out(batch["index"], drawn)
    log_probability = class_log_probabilities(queries, support.reshape(*drawn.shape, -1), keep, scale)
    return -jnp.take_along_axis(log_probability, batch["label"][:, None], axis=1)[:, 0]

  return loss


def predict_fn(
  network: Network, examples: Examples, normalization: Normalization, num_classes: int, scale: float
) -> Predict:
  """Returns `(params, model_state, x) -> log of the class probabilities [B, K]`, with all examples as support set."""
  rows = rows_by_class(examples["label"], num_classes)
  support = normalization.apply(lazy.load(examples["x"])[np.maximum(rows, 0).reshape(-1)])

  def predict(params, model_state, x):
    features, _ = network.features(params, model_state, jnp.concatenate([x, support]))
    queries, support_features = jnp.split(features.astype(jnp.float32), [len(x)])
    return class_log_probabilities(queries, support_features.reshape(*rows.shape, -1), rows >= 0, scale)

  return predict


def make_method(setup: Setup, *, finetune: bool = False, scale: float = 10.0) -> Method:
  """Makes the method, for transfer. The heads of the network are not trained.

  A batch of the source or target holds the queries of an episode. Support sets of source episodes have as many of each
  class as the target has of its smallest. Evaluation is by the labelled target images as support set. The images that
  support sets are drawn from live on the devices.

  Args:
    setup: what it is made for.
    finetune: whether `config.finetune_epochs` of episodes on the target follow, at `config.finetune_learning_rate`.
    scale: of the similarities, 1 in the paper.

  Raises:
    ValueError: a class has too few examples.
  """
  setup.require(transfer=True, stateless=True, classes=True)
  task = setup.task

  def phase(name, num_steps, shots, optimizer):
    examples, num_classes = getattr(task, name), getattr(task, f"num_{name}_classes")
    smallest = _smallest_class(examples["label"])
    if shots < 1 or smallest <= shots:
      raise ValueError(
        f"a class with {smallest} {name} examples: episodes need {max(shots, 1)} of each class and a query beside "
        "them; give more examples"
      )
    loss = episode_loss(setup.network, examples, setup.preparations[name], num_classes, shots, scale)
    return Phase(num_steps, make_plain_step(loss, optimizer, side=name, axis_name=setup.axis_name))

  shots = _smallest_class(task.target["label"])
  phases = [phase("source", setup.num_steps, shots, setup.optimizer())]
  if finetune:
    last = setup.optimizer(optax.constant_schedule(setup.config.finetune_learning_rate))
    phases.append(phase("target", setup.steps_of(setup.config.finetune_epochs), shots - 1, last))
  predict = predict_fn(setup.network, task.target, task.target_normalization, task.num_target_classes, scale)
  return Method(tuple(phases), predict=predict)


def _smallest_class(label):
  return int(np.bincount(label).min())
