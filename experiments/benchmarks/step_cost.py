"""Cost of the SOSELETO step against plain training: `python -m experiments.benchmarks.step_cost`.

All steps are compiled first, then timed in turn, round after round, so that whatever else the machine does meets each
alike. Printed are medians, their ratio to a plain Flax/optax step on the same source batch, and the temporary memory
that XLA plans for. The plain step is written here with optax alone.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from soseleto_jax import Alignment, init_train_state, make_train_step
from soseleto_jax.models import get_model
from soseleto_jax.models.losses import classification_loss

_MODEL = flags.DEFINE_string("model", "cifar_quick", "The network, on 32x32x3 images.")
_SOURCE = flags.DEFINE_integer("batch_size", 256, "B", lower_bound=1)
_TARGET = flags.DEFINE_integer("target_batch_size", 32, "T", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "How often each step is timed.", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype of the network.")

_VARIANTS = {
  "jvp": {},
  "jvp, alpha first": dict(alpha_first=True),
  "jvp, lookahead": dict(lookahead=0.01),
  "jvp, classifier only": dict(alignment=Alignment(params={"representation": False, "classifier": True})),
  "vmap_grad": dict(alignment=Alignment(contraction="vmap_grad")),
}


def make_steps():
  """Returns compiled steps by name, each with the arguments to call it with."""
  model = get_model(_MODEL.value, 10, dtype=_DTYPE.value)
  loss = classification_loss(model)
  optimizer = optax.sgd(0.01, momentum=0.9)
  source, target = (_batch(size, key) for size, key in ((_SOURCE.value, 0), (_TARGET.value, 1)))
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
  for name, options in _VARIANTS.items():
    steps[name] = (
      make_train_step(loss, loss, optimizer, alpha_step_size=0.1, **options),
      (state, source, target),
    )
  return {name: (jax.jit(step).lower(*args).compile(), args) for name, (step, args) in steps.items()}


def _batch(size, seed):
  image_key, label_key = jax.random.split(jax.random.key(seed))
  return {
    "x": jax.random.normal(image_key, (size, 32, 32, 3)),
    "label": jax.random.randint(label_key, (size,), 0, 10),
    "index": jnp.arange(size, dtype=jnp.int32),
  }


def main(_):
  """Times the steps and prints the table."""
  steps = make_steps()
  seconds = {name: [] for name in steps}
  for _ in range(_ROUNDS.value + 1):
    for name, (step, args) in steps.items():
      began = time.perf_counter()
      jax.block_until_ready(step(*args))
      seconds[name].append(time.perf_counter() - began)
  medians = {name: np.median(values[1:]) for name, values in seconds.items()}
  memory = {name: step.memory_analysis().temp_size_in_bytes for name, (step, _) in steps.items()}
  print(f"{_MODEL.value}, B={_SOURCE.value}, T={_TARGET.value}, {_DTYPE.value}, {jax.devices()[0].device_kind}")
  print(f"{'step':<22}  {'ms':>8}  {'ratio':>6}  {'temp MB':>8}  {'ratio':>6}")
  for name in steps:
    time_ratio, memory_ratio = medians[name] / medians["plain"], memory[name] / memory["plain"]
    print(
      f"{name:<22}  {1e3 * medians[name]:>8.1f}  {time_ratio:>6.2f}  {memory[name] / 1e6:>8.1f}  {memory_ratio:>6.2f}"
    )


if __name__ == "__main__":
  app.run(main)
