"""Cost of augmentation against a training step: `python -m experiments.benchmarks.augmentation`.

Each augmentation alone, all moves together (one interpolation) and everything at once, as a step calls them: a key per
example, uint8 images already on the device. The unit is the loss and gradient of the network that such images go
through, for the same batch. All are compiled first, then timed in turn, round after round, so that whatever else the
machine does meets each alike; printed are medians. On CPUs it is the time that this process has the cores, all threads
together, which other processes lengthen little.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import linen as nn

from soseleto_jax.feed.augmentation import apply_per_example, make_augmentation
from soseleto_jax.models.cifar_quick import CifarQuick
from soseleto_jax.models.lenet import LeNet

_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "How often each is timed.", lower_bound=1)

_MOVES = ("rotation=15", "shift=2", "scale=0.15", "shear=0.2", "aspect=0.15")
_OTHERS = ("flip", "crop=4", "brightness=0.2", "contrast=0.2", "cutout=8")
AUGMENTATIONS = {
  **{name: (name,) for name in (*_MOVES, "elastic=1.5", *_OTHERS)},
  "flip, crop=4": ("flip", "crop=4"),
  "the five moves": _MOVES,
  "the five moves, elastic=1.5": (*_MOVES, "elastic=1.5"),
  "all eleven": (*_MOVES, "elastic=1.5", *_OTHERS),
}
NETWORKS = {"cifar_quick, 32x32x3": (CifarQuick, (32, 32, 3)), "lenet, 28x28x1": (LeNet, (28, 28, 1))}


def make_calls(network, shape):
  """Returns compiled functions by name, each with its arguments; the first is the gradient of the network's loss."""
  count = _SIZE.value
  model = nn.Sequential([network(), nn.Dense(10)])
  x = jax.random.randint(jax.random.key(0), (count, *shape), 0, 256, jnp.int32).astype(jnp.uint8)
  index = jnp.arange(count, dtype=jnp.int32)

  def mean_loss(params, x, label):
    logits = model.apply(params, x.astype(jnp.float32) / 256)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

  params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, *shape)))
  calls = {"loss and gradient": (jax.value_and_grad(mean_loss), (params, x, index % 10))}
  for name, entries in AUGMENTATIONS.items():
    augment = functools.partial(apply_per_example, make_augmentation(entries))
    calls[name] = (augment, (jax.random.key(2), index, x))
  return {name: (jax.jit(call).lower(*args).compile(), args) for name, (call, args) in calls.items()}


def median_seconds(calls):
  """Times the calls in turn, `--rounds` times, each behind itself, so that none pays for another's memory."""
  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  seconds = {name: [] for name in calls}
  for _ in range(_ROUNDS.value):
    for name, (call, args) in calls.items():
      jax.block_until_ready(call(*args))
      began = clock()
      jax.block_until_ready(call(*args))
      seconds[name].append(clock() - began)
  return {name: np.median(values) for name, values in seconds.items()}


def main(_):
  """Prints one table, with a column of milliseconds and one of ratios for each network."""
  medians = {name: median_seconds(make_calls(*network)) for name, network in NETWORKS.items()}
  print(f"B={_SIZE.value}, {jax.devices()[0].device_kind}, JAX {jax.__version__}, {_ROUNDS.value} rounds\n")
  print(f"| | {' | '.join(f'{name}: ms | ratio' for name in medians)} |")
  print(f"|---|{'--:|' * 2 * len(medians)}")
  for call in ("loss and gradient", *AUGMENTATIONS):
    cells = []
    for times in medians.values():
      cells += [f"{1e3 * times[call]:.2f}", f"{times[call] / times['loss and gradient']:.3f}"]
    print(f"| {call} | {' | '.join(cells)} |")


if __name__ == "__main__":
  app.run(main)
