"""Algorithm 1 in float64 NumPy, written from its definition: what the step is compared with.

The network is softmax(tanh(x w + b) h), with h one of the heads in its dict of parameters; gradients are by hand, one
example at a time, and Q is really formed.
"""

import numpy as np


class Sgd:
  """Gradient descent, with heavy-ball momentum."""

  def __init__(self, learning_rate, momentum=0.0):
    self.learning_rate, self.momentum, self.velocity = learning_rate, momentum, 0.0

  def __call__(self, gradient):
    self.velocity = self.momentum * self.velocity + gradient
    return -self.learning_rate * self.velocity


class Adam:
  """Adam with bias correction."""

  def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    self.learning_rate, self.b1, self.b2, self.eps = learning_rate, b1, b2, eps
    self.mean, self.square, self.count = 0.0, 0.0, 0

  def __call__(self, gradient):
    self.count += 1
    self.mean = self.b1 * self.mean + (1 - self.b1) * gradient
    self.square = self.b2 * self.square + (1 - self.b2) * gradient**2
    mean = self.mean / (1 - self.b1**self.count)
    square = self.square / (1 - self.b2**self.count)
    return -self.learning_rate * mean / (np.sqrt(square) + self.eps)


def example_loss(params, head, x, label):
  """Cross-entropy of one example and its gradient, a dict shaped as `params`."""
  hidden = np.tanh(x @ params["w"] + params["b"])
  logits = hidden @ params[head]
  log_probabilities = logits - logits.max()
  log_probabilities -= np.log(np.sum(np.exp(log_probabilities)))
  residual = np.exp(log_probabilities)
  residual[label] -= 1
  upstream = (params[head] @ residual) * (1 - hidden**2)
  gradient = {name: np.zeros_like(value) for name, value in params.items()}
  gradient |= {"w": np.outer(x, upstream), "b": upstream, head: np.outer(hidden, residual)}
  return -log_probabilities[label], gradient


def batch_losses(params, head, batch):
  """Losses `[B]` and Q, `[B, P]`: the gradient of every example, flat."""
  pairs = [example_loss(params, head, x, label) for x, label in zip(batch["x"], batch["label"], strict=True)]
  return np.array([loss for loss, _ in pairs]), np.stack([flatten(gradient) for _, gradient in pairs])


def flatten(params):
  return np.concatenate([params[name].ravel() for name in sorted(params)])


def unflatten(flat, like):
  sizes = np.cumsum([like[name].size for name in sorted(like)])[:-1]
  return {name: part.reshape(like[name].shape) for name, part in zip(sorted(like), np.split(flat, sizes), strict=True)}


def orthogonal(matrix):
  """Nuclear norm times the orthogonal polar factor, on the matrix's span."""
  left, values, right = np.linalg.svd(matrix, full_matrices=False)
  rank = np.sum(values > 1e-6 * values[0])
  return np.sum(values) * left[:, :rank] @ right[:rank]


def run(
  params,
  alpha,
  batches,
  optimizer,
  *,
  alpha_step_size,
  source_head="classifier",
  target_head="classifier",
  target_params=(),
  target_weight=1.0,
  descent_head=None,
  alignment_params=None,
  alignment_head=None,
  direction=None,
  transform=None,
  source_weights=lambda alpha, step: alpha,
  alpha_first=False,
  lookahead=None,
):
  """Runs Algorithm 1 over `batches`, pairs of a source and a target batch.

  `target_params` and `alignment_params` name parameters; `alignment_head` and `descent_head` are those of the losses
  that the alignment is of and that `target_params` descend, by default as the source's and the target's; `direction`
  maps the aligned part of the target gradient, a dict with zeros elsewhere, to what the inner product is taken with;
  `transform` is `f(q, losses, labels) -> q`; `source_weights` maps weights and step to those in use; step sizes may be
  functions of the step. Yields (params, alpha, metrics) after each step.
  """
  params = {name: np.asarray(value, np.float64) for name, value in params.items()}
  alpha = np.array(alpha, np.float64)

  def marks(names):
    return flatten({name: np.full(value.shape, name in names) for name, value in params.items()})

  descends_target = marks(target_params)
  aligned = marks(params if alignment_params is None else alignment_params)

  for step, (source, target) in enumerate(batches):

    def at(value, step=step):
      return value(step) if callable(value) else value

    inside = (source["index"] >= 0) & (source["index"] < len(alpha))
    source = _rows(source, source.get("mask", True) & inside)
    target = _rows(target, target.get("mask", np.ones(len(target["label"]), bool)))
    index = source["index"]

    losses, rows = batch_losses(params, source_head, source)
    theta, old = flatten(params), source_weights(alpha[index], step)
    point = params
    if lookahead is not None:
      point = unflatten(theta - at(lookahead) * old @ rows / len(old), params)
    target_losses, target_rows = batch_losses(point, target_head, target)
    target_gradient = target_rows.mean(axis=0)
    descent_losses, descent_rows = target_losses, target_rows
    if descent_head is not None:
      descent_losses, descent_rows = batch_losses(point, descent_head, target)

    aligned_gradient = aligned * target_gradient
    if direction is not None:
      aligned_gradient = flatten(direction(unflatten(aligned_gradient, params)))
    q_rows = rows if alignment_head is None else batch_losses(params, alignment_head, source)[1]
    products = q = q_rows @ aligned_gradient
    if transform is not None:
      q = transform(q, losses, source["label"])
    for row, change in zip(index, at(alpha_step_size) * q, strict=True):
      alpha[row] += change
    alpha = np.clip(alpha, 0, 1)

    weights = source_weights(alpha[index], step) if alpha_first else old
    gradient = weights @ rows / len(weights) + target_weight * descends_target * descent_rows.mean(axis=0)
    descended = target_weight * descent_losses.mean() if len(target_params) else 0.0
    params = unflatten(theta + optimizer(gradient), params)
    needed = aligned | descends_target if descent_head is None else aligned
    yield (
      params,
      alpha.copy(),
      {
        "source_loss": np.mean(weights * losses),
        "loss": np.mean(weights * losses) + descended,
        "valid_rows": len(index),
        "target_loss": np.mean(target_losses),
        "alpha_mean": np.mean(alpha[index]),
        "alignment_mean": np.mean(q),
        "alpha_step_size": at(alpha_step_size),
        "alpha_step_bound": _sufficient(q, products),
        "grad_norm": np.linalg.norm(gradient),
        "target_grad_norm": np.linalg.norm(needed * target_gradient),
      },
    )


def _sufficient(moves, q):
  """Appendix C: the step s from which on (α + s m)ᵀq cannot be below 0, for any α in [0, 1]."""
  if not q.any():
    return 0.0
  return np.sqrt(len(q)) * np.linalg.norm(q) / (moves @ q) if moves @ q > 0 else np.inf


def _rows(batch, mask):
  return {name: np.asarray(value)[mask] for name, value in batch.items()}
