"""The paper's Figure 1, points of the plane, some mislabelled: `python -m experiments.figure1`.

The data, network and rates are those of configs/synthetic.py, for both protocols. Every seed draws its own points,
flips and initial weights; the seeds are mapped by `jax.vmap` and the steps scanned, so that one dispatch trains them
all, in seconds: nothing is left in the runs' folders.
"""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy import stats

from configs import synthetic as synthetic_config
from experiments import runs, tables
from soseleto_jax import init_train_state, make_train_step
from soseleto_jax.data import synthetic
from soseleto_jax.feed.sampling import EpochSampler
from soseleto_jax.methods.optimizers import make_optimizer, make_schedule
from soseleto_jax.models import make_network
from soseleto_jax.models.losses import classification_loss, predict_fn
from soseleto_jax.report import figure_style, source_weights

THRESHOLD = 0.1  # a point below it counts as found to be mislabelled, as in the paper
THRESHOLDS = np.linspace(0.01, 1, 100)

# Metric -> its name in the table, in which unit, digits, and the range of the authors' code, run as released.
_ROWS = {
  "kept": ("clean points kept, α ≥ 0.1, %", 100, 1, (100.0, 100.0)),
  "found": ("wrong labels found, α < 0.1, %", 100, 1, (90.1, 91.2)),
  "alpha_right": ("mean α of right labels", 1, 3, (0.83, 0.86)),
  "alpha_wrong": ("mean α of wrong labels", 1, 3, (0.04, 0.04)),
  "auc": ("area under the ROC curve of 1 - α", 1, 3, None),
  "test_accuracy": ("test accuracy, %", 100, 1, None),
}


def train(seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Trains S seeds at once.

  Returns:
    The weights at the start and after each of E epochs, float32 `[S, E + 1, N]`, and the test accuracies `[S]`.
  """
  config = synthetic_config.get_config()
  sets = [synthetic.make(seed) for seed in seeds]
  num_source = len(sets[0]["source"]["label"])
  samplers = [EpochSampler(num_source, config.batch_size, seed) for seed in seeds]
  steps_per_epoch = samplers[0].steps_per_epoch
  num_steps = config.num_epochs * steps_per_epoch

  network = make_network(config.model.to_dict(), 2, seed=0)
  loss, predict = classification_loss(network), predict_fn(network)
  optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, steps_per_epoch, num_steps))
  step = make_train_step(loss, loss, optimizer, alpha_step_size=config.alpha.step_size, alpha_first=config.alpha.first)

  def init(seed):
    params, _ = network.init(jax.random.key(seed), jnp.zeros((1, 2)))
    return init_train_state(params, optimizer, num_source, alpha_init=config.alpha.init, seed=seed)

  def stack(name):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(one[name] for one in sets))

  def batches(part):
    rows = np.array([[sampler.batch(i)[part] for i in range(num_steps)] for sampler in samplers])
    return rows.reshape(len(seeds), config.num_epochs, steps_per_epoch, -1)

  states = jax.vmap(init)(jnp.asarray(seeds))
  run = jax.jit(jax.vmap(functools.partial(_train_epochs, step)))
  params, alpha = run(states, stack("source"), stack("target"), (batches(0), batches(1)))
  test = stack("test")
  logits = jax.vmap(predict, in_axes=(0, None, 0))(params, None, test["x"])
  return np.asarray(alpha), np.mean(np.argmax(logits, axis=-1) == test["label"], axis=1)


def _train_epochs(step, state, source, target, rows):
  """Takes the steps of one seed, with source batches of rows (index, mask), `[E, steps, B]` each, and whole targets.

  Returns:
    The parameters at the end, and the weights at the start and after each of E epochs, `[E + 1, N]`.
  """

  def one(state, row):
    index, mask = row
    batch = {"x": source["x"][index], "label": source["label"][index], "index": index, "mask": mask}
    return step(state, batch, target)[0], None

  def epoch(state, rows):
    state, _ = jax.lax.scan(one, state, rows)
    return state, state.alpha

  final, alpha = jax.lax.scan(epoch, state, rows)
  return final.params, jnp.concatenate([state.alpha[None], alpha])


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns a run for each seed; the first to be trained trains them all."""
  del protocol  # the paper's sizes are small
  train_one = functools.partial(_train_one, seeds=tuple(seeds))
  return [runs.Run("soseleto", {}, _config(seed), train_one) for seed in seeds]


def _config(seed):
  config = synthetic_config.get_config()
  config.seed = seed
  return config


_train_once = functools.cache(train)


def _train_one(config: ConfigDict, workdir: pathlib.Path, seeds: tuple[int, ...]):
  """Returns what to record of a seed: the weights at the end, and their means in the course of training."""
  del workdir
  alpha, accuracy = (of_all[seeds.index(config.seed)] for of_all in _train_once(seeds))
  wrong = _is_wrong(synthetic.make(config.seed)["source"])
  final = np.round(alpha[-1].astype(np.float64), 4)
  return {
    "test_accuracy": float(accuracy),
    "kept": float(np.mean(final[~wrong] >= THRESHOLD)),
    "found": float(np.mean(final[wrong] < THRESHOLD)),
    **source_weights.detection(final, wrong),
    "alpha_right_by_epoch": np.round(alpha[:, ~wrong].mean(axis=1), 4).tolist(),
    "alpha_wrong_by_epoch": np.round(alpha[:, wrong].mean(axis=1), 4).tolist(),
    "alpha": final.tolist(),
  }


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes figure1_PROTOCOL.md and .png."""
  rows = []
  for name, (title, unit, digits, published) in _ROWS.items():
    ours = [unit * record["metrics"][name] for record in records]
    cells = ["", ""]
    if published:
      low, high = published
      cells[0] = f"{low:g}" if low == high else f"{low:g} to {high:g}"
      cells[1] = f"{np.mean(ours) - (low + high) / 2:+.{digits}f}" if ours else ""
    rows.append([title, tables.mean_sd(ours, digits), *cells])
  by_seed = [
    [str(record["config"]["seed"])]
    + [f"{unit * record['metrics'][name]:.{digits}f}" for name, (_, unit, digits, _) in _ROWS.items()]
    for record in records
  ]
  tables.write(
    folder / f"figure1_{protocol}.md",
    (
      "Mean ± sd over seeds (how many); beside it what the authors' released code gives, lowest to highest of four "
      "seeds, and the difference from the middle. Bands in the figure are 95 % confidence intervals of the mean "
      "over seeds, by the t distribution",
      tables.markdown(["", "ours", "authors' code", "difference"], rows),
    ),
    ("Each seed", tables.markdown(["seed", *(title for title, *_ in _ROWS.values())], by_seed)),
    records=records,
  )
  if records:
    figure_style.save(draw(records), folder / f"figure1_{protocol}.png")


def draw(records: Sequence[runs.Record]) -> Figure:
  """Draws the five panels: points of the first record's seed, curves of all."""
  first = records[0]
  source = synthetic.make(first["config"]["seed"])["source"]
  alpha, wrong = np.array(first["metrics"]["alpha"]), _is_wrong(source)
  figure = figure_style.new_figure(11, 7.2)
  axes = figure.subplot_mosaic(
    [["a", "a", "b", "b", "c", "c"], ["d", "d", "d", "e", "e", "e"]], height_ratios=[1.15, 1]
  )
  _draw_labels(axes["a"], source, wrong)
  _draw_split(axes["b"], source["x"][~wrong], alpha[~wrong] >= THRESHOLD, figure_style.BLUE, ("kept", "lost"))
  _draw_split(axes["c"], source["x"][wrong], alpha[wrong] < THRESHOLD, figure_style.VERMILION, ("found", "missed"))
  titles = {
    "a": f"a  Given labels, seed {first['config']['seed']}",
    "b": f"b  Clean points, kept at α ≥ {THRESHOLD}",
    "c": f"c  Wrong labels, found at α < {THRESHOLD}",
  }
  below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False, columnspacing=1, fontsize=9)
  for panel, title in titles.items():
    figure_style.style_axes(axes[panel], title, "$x_1$", "$x_2$")
    axes[panel].set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axes[panel].grid(visible=False)
    axes[panel].legend(handletextpad=0.2, **below)

  of_seeds = f"{len(records)} seeds and 95 % band" if len(records) > 1 else "1 seed"
  for kind, color, style in (("right", figure_style.BLUE, "-"), ("wrong", figure_style.VERMILION, "--")):
    means = np.array([record["metrics"][f"alpha_{kind}_by_epoch"] for record in records])
    draw_band(axes["d"], np.arange(means.shape[1]), means, label=f"{kind} labels", color=color, linestyle=style)
  figure_style.style_axes(axes["d"], f"d  Mean weight, {of_seeds}", "epoch", "mean α")

  curves = np.array([precision_and_recall(record) for record in records])
  draw_band(axes["e"], THRESHOLDS, curves[:, 0], label="precision", color=figure_style.GREEN, linestyle="-")
  draw_band(axes["e"], THRESHOLDS, curves[:, 1], label="recall", color=figure_style.PURPLE, linestyle="--")
  axes["e"].axvline(THRESHOLD, color=figure_style.GREY, linewidth=1.2, linestyle=":", label=f"threshold {THRESHOLD}")
  figure_style.style_axes(axes["e"], f"e  Wrong labels found, {of_seeds}", "threshold on α", "precision, recall")
  for panel, place in (("d", "center right"), ("e", "lower center")):
    axes[panel].set_ylim(-0.03, 1.03)
    figure_style.add_legend(axes[panel], place)
  return figure


def precision_and_recall(record: runs.Record) -> tuple[np.ndarray, np.ndarray]:
  """Returns both of finding wrong labels at each of THRESHOLDS; precision is 1 where nothing is found."""
  wrong = _is_wrong(synthetic.make(record["config"]["seed"])["source"])
  found = np.array(record["metrics"]["alpha"]) < THRESHOLDS[:, None]
  right_finds, finds = np.sum(found & wrong, axis=1), np.sum(found, axis=1)
  return np.where(finds, right_finds / np.maximum(finds, 1), 1.0), right_finds / wrong.sum()


def draw_band(axes: Axes, x: np.ndarray, values: np.ndarray, **look) -> None:
  """Draws the mean of `[S, P]` over S seeds, and its 95 % confidence interval by the t distribution where S > 1."""
  mean, count = values.mean(axis=0), len(values)
  axes.plot(x, mean, linewidth=1.8, **look)
  if count > 1:
    half = stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    axes.fill_between(x, mean - half, mean + half, color=look["color"], alpha=0.2, linewidth=0)


def _is_wrong(source):
  return source["label"] != source["true_label"]


def _draw_labels(axes, source, wrong):
  for value, name in enumerate(synthetic.CLASS_NAMES):
    color, marker = figure_style.CLASS_LOOKS[value]
    axes.scatter(*source["x"][source["label"] == value].T, s=12, c=color, marker=marker, linewidths=0, label=name)
  ring = {"facecolors": "none", "edgecolors": figure_style.VERMILION, "label": "wrong label"}
  axes.scatter(*source["x"][wrong].T, s=36, linewidths=1, **ring)


def _draw_split(axes, x, chosen, color, names):
  """Draws the chosen points filled and the others as crosses, with how many they are."""
  labels = [f"{name}: {count}" for name, count in zip(names, (chosen.sum(), (~chosen).sum()), strict=True)]
  axes.scatter(*x[chosen].T, s=12, c=color, linewidths=0, label=labels[0])
  axes.scatter(*x[~chosen].T, s=28, c=figure_style.INK, marker="x", linewidths=1.1, label=labels[1])


EXPERIMENT = runs.Experiment("figure1", make_runs, render, seeds=tuple(range(8)))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
