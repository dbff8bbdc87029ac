"""Cost of the SOSELETO step against plain training: `python -m experiments.benchmarks.step_cost`.

    python -m experiments.benchmarks.step_cost --model=cifar_quick --batch_size=256 --target_batch_size=32
    python -m experiments.benchmarks.step_cost --vary=batch_size --values=64,128,256,512
    python -m experiments.benchmarks.step_cost --vary=hidden --values=64,256,1024 --model=mlp

All steps are compiled first, then take turns. Printed is a Markdown table: the median time, processor time on a CPU;
its ratio to a plain Flax/optax step on the same source batch, of the same round; the bound of that ratio, which is that
of the arithmetic by XLA's count; and the temporary memory that XLA plans for. The plain step is written here with optax
alone. `--vary` prints the ratios alone as a batch size or the network grows. For one core, on a CPU:
XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from experiments.benchmarks import timing
from soseleto_jax import Alignment, TargetDescent, init_train_state, make_train_step
from soseleto_jax.models import get_model
from soseleto_jax.models.losses import classification_loss

_MODEL = flags.DEFINE_string("model", "cifar_quick", "The network, on 32x32x3 images.")
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Units of each of the two hidden layers of --model=mlp.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("batch_size", 256, "B", lower_bound=1)
_TARGET = flags.DEFINE_integer("target_batch_size", 32, "T", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "How often each step is timed.", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype of the network.")
_STEPS = flags.DEFINE_list("steps", [], "Which of the steps, by name; all by default.")
_VARY = flags.DEFINE_enum("vary", None, ["batch_size", "target_batch_size", "hidden"], "What grows.")
_VALUES = flags.DEFINE_list("values", ["64", "128", "256"], "Its values.")

_CLASSIFIER = {"representation": False, "classifier": True}
_VARIANTS = {
  "jvp": {},
  "alpha first": dict(alpha_first=True),
  "lookahead": dict(lookahead=0.01),
  "classifier only": dict(alignment=Alignment(params=_CLASSIFIER)),
  "target descends too": dict(target_descent=TargetDescent(True, weight=0.25)),
  "vjp": dict(alignment=Alignment(contraction="vjp")),
  "vmap_grad": dict(alignment=Alignment(contraction="vmap_grad")),
}
flags.register_validator("steps", lambda names: set(names) <= _VARIANTS.keys(), f"choose of {', '.join(_VARIANTS)}")


def make_steps(batch_size, target_batch_size, hidden):
  """Returns compiled steps by name, each with the arguments to call it with, the plain one first."""
  options = dict(hidden=(hidden, hidden)) if _MODEL.value == "mlp" else {}
  model = get_model(_MODEL.value, 10, dtype=_DTYPE.value, **options)
  loss = classification_loss(model)
  optimizer = optax.sgd(0.01, momentum=0.9)
  source, target = (_batch(size, key) for size, key in ((batch_size, 0), (target_batch_size, 1)))
  params = model.init(jax.random.key(2), source["x"][:1])["params"]
  state = init_train_state(params, optimizer, num_source=50_000)

  def plain(params, opt_state, batch):
    def mean_loss(params):
      logits = model.apply({"params": params}, batch["x"], train=True)
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    value, gradient = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  steps = {"plain": (plain, (params, state.opt_state, source))}
  for name, variant in _VARIANTS.items():
    if not _STEPS.value or name in _STEPS.value:
      step = make_train_step(loss, loss, optimizer, alpha_step_size=0.1, **variant)
      steps[name] = (step, (state, source, target))
  return {name: (jax.jit(step).lower(*args).compile(), args) for name, (step, args) in steps.items()}


def _batch(size, seed):
  image_key, label_key = jax.random.split(jax.random.key(seed))
  return {
    "x": jax.random.normal(image_key, (size, 32, 32, 3)),
    "label": jax.random.randint(label_key, (size,), 0, 10),
    "index": jnp.arange(size, dtype=jnp.int32),
  }


def measure(steps):
  """Returns the seconds `[rounds]` of each step."""
  calls = {
    name: lambda step=step, args=args: jax.block_until_ready(step(*args)) for name, (step, args) in steps.items()
  }
  return timing.take_turns(calls, _ROUNDS.value)


def _print_table(steps):
  seconds = measure(steps)
  memory = {name: step.memory_analysis().temp_size_in_bytes for name, (step, _) in steps.items()}
  flops = {name: step.cost_analysis().get("flops", np.nan) for name, (step, _) in steps.items()}
  print("| step | ms | ratio | bound | temporary MB | ratio |\n|---|---|---|---|---|---|")
  for name in steps:
    cells = (
      f"{1e3 * np.median(seconds[name]):.1f}",
      f"{timing.ratio(seconds[name], seconds['plain']):.2f}",
      f"{flops[name] / flops['plain']:.2f}",
      f"{memory[name] / 1e6:.1f}",
      f"{memory[name] / memory['plain']:.3f}",
    )
    print(f"| {name} | {' | '.join(cells)} |")


def _print_growth(sizes):
  rows = {}
  for value in map(int, _VALUES.value):
    steps = make_steps(**(sizes | {_VARY.value: value}))
    seconds = measure(steps)
    rows[value] = {name: timing.ratio(seconds[name], seconds["plain"]) for name in steps if name != "plain"}
  names = list(next(iter(rows.values())))
  print(f"| {_VARY.value} | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
  for value, ratios in rows.items():
    print(f"| {value} | {' | '.join(f'{ratios[name]:.2f}' for name in names)} |")


def main(_):
  """Times the steps and prints the table."""
  what, _ = timing.clock()
  sizes = dict(batch_size=_SOURCE.value, target_batch_size=_TARGET.value, hidden=_HIDDEN.value)
  print(
    f"{_MODEL.value}, B={_SOURCE.value}, T={_TARGET.value}, {_DTYPE.value}, {jax.devices()[0].device_kind}, {what}\n"
  )
  if _VARY.value:
    _print_growth(sizes)
  else:
    _print_table(make_steps(**sizes))


if __name__ == "__main__":
  app.run(main)
