"""What `config.domain_weight` does, beyond the paper: `python -m experiments.domain_alignment`.

The paper names a domain alignment term as future work. Handwritten digits; the source's are negatives of low contrast,
with noise. Joint training on source and target, with the maximum mean discrepancy of their features times a weight:
with the same classes on both sides and 20 labelled images, and, as in Table 2, with 0-4 as source and 25 labelled
images of 5-9. A seed draws images, noise and initial weights. The weights of a seed are mapped by `jax.vmap` and the
steps scanned, in seconds; both protocols are the same.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import runs, tables
from soseleto_jax import init_train_state
from soseleto_jax.config import default_config
from soseleto_jax.core.domain_alignment import DISTANCE, add_domain_term
from soseleto_jax.core.train_step import make_joint_step
from soseleto_jax.data import digits, draws
from soseleto_jax.models import make_network
from soseleto_jax.models.losses import classification_loss, predict_fn

WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
NUM_STEPS, BATCH_SIZE = 400, 64

# Condition -> its column, the classes of source and target, and the target's labelled images of each.
_CASES = {
  "same": ("the same ten classes, 20 images", range(10), range(10), 2),
  "other": ("0-4 to 5-9, 25 images", range(5), range(5, 10), 5),
}


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns a run, of all weights, for each case and seed."""
  del protocol  # the digits are small
  settings = {"weights": list(WEIGHTS), "num_steps": NUM_STEPS}
  return [runs.Run("joint", {"case": case}, _config(seed, case), train, settings) for case in _CASES for seed in seeds]


def _config(seed, case):
  config = default_config()
  config.name, config.seed, config.method = f"Digits, {case} classes", seed, "joint"
  config.model = dict(name="mlp", hidden=(64, 32), dtype="float32")
  config.batch_size = BATCH_SIZE
  config.optimizer.learning_rate = 0.05
  config.user.case = case
  return config


def train(config: ConfigDict, workdir: pathlib.Path, weights: Sequence[float], num_steps: int) -> dict[str, Any]:
  """Trains with every weight; returns by weight "test_accuracy" and the discrepancy of the last batch, "distance"."""
  del workdir
  _, source_classes, target_classes, shots = _CASES[config.user.case]
  source, target, test = make_sets(config.seed, source_classes, target_classes, shots)
  shared = source_classes == target_classes
  classes = 10 if shared else {"source": len(source_classes), "target": len(target_classes)}
  network = make_network(config.model.to_dict(), classes, seed=0)
  params, _ = network.init(jax.random.key(config.seed), source["x"][:1])
  rows = np.array([draws.permutation(len(source["x"]), config.seed, "batch", step) for step in range(num_steps)])
  options = config.optimizer.learning_rate, config.optimizer.momentum
  trained, distance = _train(
    network, shared, options, jnp.float32(weights), params, source, target, rows[:, :BATCH_SIZE]
  )
  predict = predict_fn(network, head=None if shared else "target")
  logits = jax.vmap(predict, in_axes=(0, None, None))(trained, None, test["x"])
  accuracy = np.mean(np.argmax(logits, axis=-1) == test["label"], axis=1)
  return {"test_accuracy": accuracy.tolist(), "distance": np.asarray(distance).tolist()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(network, shared, options, weights, params, source, target, rows):
  """Returns the parameters and the last discrepancy of each weight."""
  losses = [classification_loss(network, head=None if shared else side) for side in ("source", "target")]
  rate, momentum = options
  optimizer = optax.sgd(optax.cosine_decay_schedule(rate, len(rows)), momentum=momentum)

  def features(params, batch, rng):
    return network.features(params, None, batch["x"], train=True, rng=rng)[0]

  def of_weight(weight):
    step = add_domain_term(make_joint_step(*losses, optimizer), (features, features), weight)
    state = init_train_state(params, optimizer, len(source["x"]), alpha_init=1.0)

    def one(state, row):
      batch = {"x": source["x"][row], "label": source["label"][row], "index": row}
      state, metrics = step(state, batch, target)
      return state, metrics[DISTANCE]

    state, distances = jax.lax.scan(one, state, rows)
    return state.params, distances[-1]

  return jax.vmap(of_weight)(weights)


def make_sets(seed: int, source_classes: range, target_classes: range, shots: int) -> tuple[Any, Any, Any]:
  """Returns source, target and test: "x" float32 `[N, 64]`, "label" int32 `[N]`; the test's images are the split's."""
  split, test = digits.load("train"), digits.load("test")
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(split["label"]))
  labelled = np.concatenate([order[split["label"][order] == digit][:shots] for digit in target_classes])
  rest = np.setdiff1d(np.flatnonzero(np.isin(split["label"], source_classes)), labelled)
  x = split["x"].reshape(-1, 64).astype(np.float32) / 255
  negative = 0.3 + 0.4 * (1 - x[rest]) + 0.1 * rng.normal(size=(len(rest), 64)).astype(np.float32)
  tested = np.isin(test["label"], target_classes)
  mean, std = x.mean(), x.std()
  source = {"x": (negative - negative.mean()) / negative.std(), "label": split["label"][rest] - source_classes[0]}
  target = {"x": (x[labelled] - mean) / std, "label": split["label"][labelled] - target_classes[0]}
  images = test["x"][tested].reshape(-1, 64).astype(np.float32) / 255
  return source, target, {"x": (images - mean) / std, "label": test["label"][tested] - target_classes[0]}


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes domain_alignment_PROTOCOL.md."""
  found = {case: [r["metrics"] for r in records if r["conditions"] == {"case": case}] for case in _CASES}

  def table(cell):
    body = [
      [f"{weight:g}", *(tables.mean_sd([cell(metrics, n) for metrics in of], 1) for of in found.values())]
      for n, weight in enumerate(WEIGHTS)
    ]
    return tables.markdown(["domain_weight", *(name for name, *_ in _CASES.values())], body)

  gains = [
    [f"{weight:g}"]
    + [tables.interval([100 * (m["test_accuracy"][n] - m["test_accuracy"][0]) for m in of]) for of in found.values()]
    for n, weight in enumerate(WEIGHTS)
    if n
  ]
  tables.write(
    folder / f"domain_alignment_{protocol}.md",
    (
      "Test accuracy in % of joint training, last step: mean ± sd over draws (how many)",
      table(lambda metrics, n: 100 * metrics["test_accuracy"][n]),
    ),
    (
      "What the term adds to it, in points, draw by draw: mean with its 95 % interval by Student's t (how many)",
      tables.markdown(["domain_weight", *(name for name, *_ in _CASES.values())], gains),
    ),
    ("100 times the discrepancy of the last batches' features", table(lambda metrics, n: 100 * metrics["distance"][n])),
    records=records,
  )


EXPERIMENT = runs.Experiment("domain_alignment", make_runs, render, seeds=tuple(range(10)))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
