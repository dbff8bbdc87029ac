"""The paper's Appendix C, step by step: `python -m experiments.appendix_c`.

The appendix has a condition under which a step lets the target loss fall: λ_α ≥ √n^s / (λ_p ‖Qᵀ∂L_t/∂θ‖), the
metric "alpha_step_bound" (`soseleto_jax.core.sufficient_step`). Here α moves at each step by so many times that bound,
with what the condition is about as it is in the paper: the published q, gradient descent without momentum, α updated
first. The target is whole in every step, so that its loss is one function all along and can be compared from step to
step. Handwritten digits, a perceptron, as configs/digits_noise.py; both protocols are the same. The factors of a seed
are mapped by `jax.vmap` and the steps scanned: one dispatch trains them all, in seconds.
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

from configs import digits_noise
from experiments import runs, tables
from soseleto_jax import Alignment, init_train_state, make_train_step
from soseleto_jax.core.sufficient_step import sufficient_alpha_step
from soseleto_jax.feed.sampling import EpochSampler
from soseleto_jax.models import make_network
from soseleto_jax.models.losses import classification_loss, predict_fn
from soseleto_jax.report import figure_style

FACTORS = (0.0, 0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
NOISE = (0.3, 0.8)
RATES = (0.05, 0.005)

# Condition -> its name in table and figure.
_COLUMNS = {
  (noise, rate): f"{noise:.0%} wrong labels, rate {rate:g}".replace("%", " %") for noise in NOISE for rate in RATES
}
_LOOKS = dict(zip(_COLUMNS, ((c, s) for c in (figure_style.BLUE, figure_style.VERMILION) for s in "-:"), strict=True))


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns a run, of all factors, for each noise, rate of descent and seed."""
  del protocol  # the digits are small
  return [
    runs.Run("soseleto", {"noise": noise, "rate": rate}, _config(noise, rate, seed), train, {"factors": list(FACTORS)})
    for seed in seeds
    for noise in NOISE
    for rate in RATES
  ]


def _config(noise, rate, seed):
  config = digits_noise.get_config(f"paper,noise={noise}")
  config.alpha.first = True
  config.optimizer.update(learning_rate=rate, momentum=0.0)
  config.seed = seed
  return config


def train(config: ConfigDict, workdir: pathlib.Path, factors: Sequence[float]) -> dict[str, Any]:
  """Trains with every factor, and once with the config's own step of α.

  Returns:
    By factor: "falls", the share of steps at which the target loss fell, "rises", by how much it rose in the mean over
    all steps, "target_loss" at the beginning of each epoch and in the end, and "test_accuracy". Of the config's own
    step "usual_falls", and "usual_share", how much of the bound it is at the median step.
  """
  del workdir
  task = runs.task_of(config)
  sets = [(task.source, task.source_normalization), (task.target, task.target_normalization)]
  source, target = ({"x": norm.apply(part["x"]), "label": part["label"]} for part, norm in sets)
  network = make_network(config.model.to_dict(), task.num_target_classes, seed=config.seed)
  params, _ = network.init(jax.random.key(config.seed), source["x"][:1])
  state = init_train_state(params, optax.sgd(1.0), task.num_source, alpha_init=config.alpha.init, seed=config.seed)
  sampler = EpochSampler(task.num_source, config.batch_size, config.seed)
  batches = [sampler.batch(step) for step in range(config.num_epochs * sampler.steps_per_epoch)]
  rows = tuple(np.array(part) for part in zip(*batches, strict=True))

  sets = config.optimizer.learning_rate, state, source, target, rows
  params, losses = _descend_by_factors(network, jnp.float32(factors), *sets)
  usual, bounds = _descend_by_step(network, config.alpha.step_size, *sets)

  test = task.target_normalization.apply(task.test["x"])
  logits = jax.vmap(predict_fn(network), in_axes=(0, None, None))(params, None, test)
  losses, bounds = np.asarray(losses), np.asarray(bounds)
  changes = np.diff(losses, axis=1)
  return {
    "falls": np.mean(changes < 0, axis=1).tolist(),
    "rises": np.mean(np.maximum(changes, 0), axis=1).tolist(),
    "target_loss": np.round(losses[:, :: sampler.steps_per_epoch], 5).tolist(),
    "test_accuracy": np.mean(np.argmax(logits, axis=-1) == task.test["label"], axis=1).tolist(),
    "usual_falls": float(np.mean(np.diff(usual) < 0)),
    "usual_share": float(np.median(config.alpha.step_size / bounds)),
  }


# Programs that all runs share.


@functools.partial(jax.jit, static_argnums=0)
def _descend_by_factors(network, factors, *sets):
  """Returns the parameters of each factor, and the target losses, `[F, steps + 1]`."""

  def descend(factor):
    params, losses, _ = _descend(network, 1.0, Alignment(transforms=(_times_the_bound(factor),)), *sets)
    return params, losses

  return jax.vmap(descend)(factors)


@functools.partial(jax.jit, static_argnums=0)
def _descend_by_step(network, step_size, *sets):
  """Returns the target losses, `[steps + 1]`, and the bounds, `[steps]`."""
  return _descend(network, step_size, Alignment(), *sets)[1:]


def _descend(network, step_size, alignment, rate, state, source, target, rows):
  """Takes all steps; returns the parameters, the target loss before each step and after the last, and the bounds."""
  loss = classification_loss(network)
  options = {"alpha_step_size": step_size, "alignment": alignment, "alpha_first": True}
  step = make_train_step(loss, loss, optax.sgd(rate), **options)

  def one(state, row):
    index, mask = row
    batch = {"x": source["x"][index], "label": source["label"][index], "index": index, "mask": mask}
    state, metrics = step(state, batch, target)
    return state, (metrics["target_loss"], metrics["alpha_step_bound"])

  state, (losses, bounds) = jax.lax.scan(one, state, rows)
  last = jnp.mean(loss(state.params, target, jax.random.key(0)))
  return state.params, jnp.append(losses, last), bounds


def _times_the_bound(factor):
  def transform(q, losses, batch, axis_name):
    bound = sufficient_alpha_step(q, q, batch["mask"], axis_name)
    return factor * bound * q

  return transform


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes appendix_c_PROTOCOL.md and .png."""
  found = {
    (noise, rate): [r["metrics"] for r in records if r["conditions"] == {"noise": noise, "rate": rate}]
    for noise, rate in _COLUMNS
  }

  def table(metric, digits, scale=1):
    body = []
    for number, factor in enumerate(FACTORS):
      cells = [[scale * metrics[metric][number] for metrics in of] for of in found.values()]
      body.append([f"{factor:g}", *(tables.mean_sd(values, digits) for values in cells)])
    return tables.markdown(["α's step, times the bound", *_COLUMNS.values()], body)

  usual = [
    ["steps at which the target loss fell, %", *(_cell(of, "usual_falls", 1, 100) for of in found.values())],
    ["the step, of the bound, in the median, %", *(_cell(of, "usual_share", 2, 100) for of in found.values())],
  ]
  tables.write(
    folder / f"appendix_c_{protocol}.md",
    ("Steps at which the target loss fell, %: mean ± sd over seeds (how many)", table("falls", 1, 100)),
    ("Test accuracy in %, last epoch", table("test_accuracy", 1, 100)),
    ("By how much the target loss rose in a step, in the mean over all steps, times 10⁶", table("rises", 1, 1e6)),
    ("With the step of configs/digits_noise.py:paper", tables.markdown(["", *_COLUMNS.values()], usual)),
    records=records,
  )
  if records:
    figure_style.save(draw(found), folder / f"appendix_c_{protocol}.png")


def _cell(found, metric, digits, scale):
  return tables.mean_sd([scale * metrics[metric] for metrics in found], digits)


def draw(found: dict[tuple[float, float], list[dict[str, Any]]]) -> Any:
  """Draws how often the target loss falls, by the step's factor, and its course for some factors.

  Args:
    found: the metrics of all seeds, by noise and rate.
  """
  figure = figure_style.new_figure(11, 4.2)
  left, right = figure.subplots(1, 2)
  factors = np.array(FACTORS[1:])
  for key, of in found.items():
    if of:
      color, style = _LOOKS[key]
      falls = np.mean([metrics["falls"] for metrics in of], axis=0)
      left.plot(factors, falls[1:], color=color, linestyle=style, marker="o", ms=3.5, label=_COLUMNS[key])
      left.axhline(falls[0], color=color, linestyle=style, linewidth=0.8, alpha=0.5)
  left.axvline(1, color=figure_style.GREY, linewidth=1.2)
  figure_style.style_axes(left, "a  How often the target loss falls", "α's step, times the bound", "steps")
  left.set_xscale("log")
  left.yaxis.set_major_formatter(figure_style.percent)
  figure_style.add_legend(left, "lower right")

  key = (0.8, 0.05)
  colors = (figure_style.GREY, figure_style.PURPLE, figure_style.AMBER, figure_style.GREEN, figure_style.BLUE)
  for factor, color in zip((0.0, 0.01, 0.1, 1.0, 10.0), colors, strict=True):
    if found[key]:
      course = np.mean([metrics["target_loss"][FACTORS.index(factor)] for metrics in found[key]], axis=0)
      right.plot(course, color=color, linewidth=1.8, label=f"{factor:g} times the bound")
  figure_style.style_axes(right, f"b  Target loss, {_COLUMNS[key]}", "epoch", "loss per example")
  if found[key]:
    figure_style.add_legend(right)
  return figure


EXPERIMENT = runs.Experiment("appendix_c", make_runs, render, seeds=tuple(range(5)))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
