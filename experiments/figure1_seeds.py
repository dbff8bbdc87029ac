"""Figure 1's settings for several seeds as one program: `python -m experiments.figure1_seeds --seeds=8`.

The data, network and rates are those of configs/synthetic.py. Every seed draws its own points, flips and initial
weights; the seeds are mapped by `jax.vmap` and the steps scanned, so that one dispatch trains them all.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import synthetic as synthetic_config
from soseleto_jax import init_train_state, make_train_step
from soseleto_jax.data import synthetic
from soseleto_jax.data.sampling import EpochSampler
from soseleto_jax.losses import classification_loss
from soseleto_jax.models import get_model
from soseleto_jax.optimizers import make_optimizer, make_schedule

_SEEDS = flags.DEFINE_integer("seeds", 8, "How many seeds, 0, 1, ...", lower_bound=1)
_THRESHOLD = 0.1  # a point below it counts as found to be mislabelled, as in the paper's Figure 1


def train(seeds):
  """Trains all seeds at once.

  Args:
    seeds: the seeds, S of them.

  Returns:
    alpha float32 `[S, N]`, whether each label is wrong bool `[S, N]`, test accuracy `[S]`, and the seconds of compiling
    and of running.
  """
  config = synthetic_config.get_config()
  sets = [synthetic.make(seed) for seed in seeds]
  num_source = len(sets[0]["source"]["label"])
  samplers = [EpochSampler(num_source, config.batch_size, seed) for seed in seeds]
  steps_per_epoch = samplers[0].steps_per_epoch
  num_steps = config.num_epochs * steps_per_epoch

  options = dict(config.model)
  model = get_model(options.pop("name"), 2, **options)
  loss = classification_loss(model)
  optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, steps_per_epoch, num_steps))
  step = make_train_step(
      loss, loss, optimizer, alpha_step_size=config.alpha.step_size, alpha_first=config.alpha.first
  )

  def init(seed):
    params = model.init(jax.random.key(seed), jnp.zeros((1, 2)))["params"]
    return init_train_state(params, optimizer, num_source, alpha_init=config.alpha.init, seed=seed)

  def run(state, source, target, rows):
    def one(state, row):
      index, mask = row
      batch = {"x": source["x"][index], "label": source["label"][index], "index": index, "mask": mask}
      return step(state, batch, target)[0], None

    return jax.lax.scan(one, state, rows)[0]

  def stack(name):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(one[name] for one in sets))

  batches = [[sampler.batch(i) for i in range(num_steps)] for sampler in samplers]
  rows = tuple(np.array([[batch[part] for batch in seed] for seed in batches]) for part in (0, 1))
  states = jax.vmap(init)(jnp.asarray(seeds))
  arguments = (states, stack("source"), stack("target"), rows)

  began = time.perf_counter()
  compiled = jax.jit(jax.vmap(run)).lower(*arguments).compile()
  compiled_at = time.perf_counter()
  final = jax.block_until_ready(compiled(*arguments))
  ended = time.perf_counter()

  test = stack("test")
  logits = jax.vmap(lambda params, x: model.apply({"params": params}, x))(final.params, test["x"])
  accuracy = np.mean(np.argmax(logits, axis=-1) == test["label"], axis=1)
  source = stack("source")
  wrong = source["label"] != source["true_label"]
  return np.asarray(final.alpha), wrong, accuracy, compiled_at - began, ended - compiled_at


def main(_):
  """Prints a table, one row a seed."""
  seeds = list(range(_SEEDS.value))
  alpha, wrong, accuracy, compile_seconds, run_seconds = train(seeds)
  found = alpha < _THRESHOLD
  print(f"{'seed':>4}  {'clean kept':>10}  {'wrong found':>11}  {'alpha clean':>11}  {'alpha wrong':>11}  {'test':>6}")
  for s, seed in enumerate(seeds):
    kept, caught = np.mean(~found[s][~wrong[s]]), np.mean(found[s][wrong[s]])
    means = alpha[s][~wrong[s]].mean(), alpha[s][wrong[s]].mean()
    print(f"{seed:>4}  {kept:>10.1%}  {caught:>11.1%}  {means[0]:>11.3f}  {means[1]:>11.3f}  {accuracy[s]:>6.1%}")
  print(f"compile {compile_seconds:.2f} s, run {run_seconds:.2f} s for {len(seeds)} seeds")


if __name__ == "__main__":
  app.run(main)
