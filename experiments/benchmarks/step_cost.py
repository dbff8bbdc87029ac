"""Cost of the SOSELETO step against plain training: `python -m experiments.benchmarks.step_cost`.

    python -m experiments.benchmarks.step_cost --model=cifar_quick --batch_size=256 --target_batch_size=32
    python -m experiments.benchmarks.step_cost --vary=batch_size --values=64,128,256,512
    python -m experiments.benchmarks.step_cost --vary=hidden --values=64,256,1024 --model=mlp
    python -m experiments.benchmarks.step_cost --model=transformer --batch_size=16 --target_batch_size=2

All steps are compiled first, then take turns. Printed is a Markdown table: the median time, processor time on a CPU;
its ratio to a plain Flax/optax step on the same source batch, of the same round; the bound of that ratio, which is that
of the arithmetic by XLA's count; and the temporary memory that XLA plans for. The plain step is written here with optax
alone. `--vary` prints the ratios alone as a batch size or the network grows. For one core, on a CPU:
XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from experiments.benchmarks import timing
from soseleto_jax import Alignment, TargetDescent, init_train_state, make_train_step
from soseleto_jax.models import get_model
from soseleto_jax.models.byte_transformer import ByteTransformer
from soseleto_jax.models.losses import sequence_cross_entropy

_MODEL = flags.DEFINE_string(
  "model", "cifar_quick", "The network: of soseleto_jax.models, on 32x32x3 images, or transformer, on 64 bytes."
)
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Units of each of the two hidden layers of --model=mlp.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("batch_size", 256, "B", lower_bound=1)
_TARGET = flags.DEFINE_integer("target_batch_size", 32, "T", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "How often each step is timed.", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype of the network.")
_STEPS = flags.DEFINE_list("steps", [], "Which of the steps, by name; all by default.")
_VARY = flags.DEFINE_enum("vary", None, ["batch_size", "target_batch_size", "hidden"], "What grows.")
_VALUES = flags.DEFINE_list("values", ["64", "128", "256"], "Its values.")

_CLASSIFIER = object()  # stands for the marks of the network's last layer
_VARIANTS = {
  "jvp": {},
  "alpha first": dict(alpha_first=True),
  "lookahead": dict(lookahead=0.01),
  "classifier only": dict(alignment=_CLASSIFIER),
  "target descends too": dict(target_descent=TargetDescent(True, weight=0.25)),
  "vjp": dict(alignment=Alignment(contraction="vjp")),
  "vmap_grad": dict(alignment=Alignment(contraction="vmap_grad")),
}
flags.register_validator("steps", lambda names: set(names) <= _VARIANTS.keys(), f"choose of {', '.join(_VARIANTS)}")


@dataclasses.dataclass(frozen=True)
class Problem:
  """A network to be trained: its parameters, a loss `(params, batch) -> [B]`, marks of its last layer, and batches."""

  params: Any
  losses: Callable[[Any, Any], jax.Array]
  classifier: Any
  batch: Callable[[int, int], dict[str, jax.Array]]


def on_images(hidden: int) -> Problem:
  """A network of `soseleto_jax.models`."""
  options = dict(hidden=(hidden, hidden)) if _MODEL.value == "mlp" else {}
  model = get_model(_MODEL.value, 10, dtype=_DTYPE.value, **options)

  def losses(params, batch):
    logits = model.apply({"params": params}, batch["x"], train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

  def batch(size, seed):
    image_key, label_key = jax.random.split(jax.random.key(seed))
    return _batch(jax.random.normal(image_key, (size, 32, 32, 3)), jax.random.randint(label_key, (size,), 0, 10))

  params = model.init(jax.random.key(2), batch(1, 0)["x"])["params"]
  return Problem(params, losses, {"representation": False, "classifier": True}, batch)


def on_bytes() -> Problem:
  """A transformer of 11 million parameters."""
  network = ByteTransformer(length=64, width=384, depth=6, heads=6, dtype=jnp.dtype(_DTYPE.value), rngs=nnx.Rngs(2))
  graph, params, rest = nnx.split(network, nnx.Param, ...)

  def losses(params, batch):
    return sequence_cross_entropy(nnx.merge(graph, params, rest, copy=True)(batch["x"]), batch["label"])

  def batch(size, seed):
    text = jax.random.randint(jax.random.key(seed), (size, 65), 0, 256)
    return _batch(text[:, :-1], text[:, 1:])

  classifier = jax.tree.map_with_path(lambda path, _: "classifier" in jax.tree_util.keystr(path), params)
  return Problem(params, losses, classifier, batch)


def _batch(x, label):
  return {"x": x, "label": label, "index": jnp.arange(len(x), dtype=jnp.int32)}


def make_steps(batch_size, target_batch_size, hidden):
  """Returns compiled steps by name, each with the arguments to call it with, the plain one first."""
  problem = on_bytes() if _MODEL.value == "transformer" else on_images(hidden)
  optimizer = optax.sgd(0.01, momentum=0.9)
  source, target = problem.batch(batch_size, 0), problem.batch(target_batch_size, 1)
  params = problem.params
  state = init_train_state(params, optimizer, num_source=50_000)

  def loss(params, batch, rng):
    del rng
    return problem.losses(params, batch)

  def plain(params, opt_state, batch):
    value, gradient = jax.value_and_grad(lambda params: jnp.mean(problem.losses(params, batch)))(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  steps = {"plain": (plain, (params, state.opt_state, source))}
  for name, variant in _VARIANTS.items():
    if not _STEPS.value or name in _STEPS.value:
      if variant.get("alignment") is _CLASSIFIER:
        variant = dict(alignment=Alignment(params=problem.classifier))
      step = make_train_step(loss, loss, optimizer, alpha_step_size=0.1, **variant)
      steps[name] = (step, (state, source, target))
  return {name: (jax.jit(step).lower(*args).compile(), args) for name, (step, args) in steps.items()}


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
