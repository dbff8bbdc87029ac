"""Small problems and comparisons that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soseleto_jax.core import compiling

FEATURES, HIDDEN, CLASSES = 4, 5, 3


def jit(fn, **options):
  """`jax.jit` for code that runs a few times: several times faster to compile, slower to run."""
  return jax.jit(fn, compiler_options=compiler_options(), **options)


@functools.cache
def compiler_options():
  """What makes XLA compile fast, of it what this version knows."""
  options = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
  }

  return compiling.known(options)


def tanh_params(seed=0, *, dtype=np.float32, **heads):
  """Parameters of the oracle's network; `heads` are names and numbers of classes, by default one classifier."""
  rng = np.random.default_rng(seed)
  shapes = {"w": (FEATURES, HIDDEN), "b": (HIDDEN,)}
  shapes |= {name: (HIDDEN, classes) for name, classes in (heads or {"classifier": CLASSES}).items()}
  return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def tanh_loss(head="classifier"):
  """The oracle's network in JAX, as a `LossFn`."""

  def loss(params, batch, rng):
    del rng
    logits = jnp.tanh(batch["x"] @ params["w"] + params["b"]) @ params[head]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

  return loss


def drawing_loss(params, batch, rng):
  """The oracle's network on noisy inputs."""
  noise = jax.random.uniform(rng, batch["x"].shape, batch["x"].dtype, -1, 1)
  return tanh_loss()(params, {**batch, "x": batch["x"] + noise}, rng)


def batch(seed, size, *, classes=CLASSES, shape=(FEATURES,), dtype=np.float32, **arrays):
  """A batch of random inputs and labels, with further arrays; NumPy."""
  rng = np.random.default_rng([7, seed])
  inputs = rng.normal(size=(size, *shape)).astype(dtype)
  arrays = {name: np.asarray(value) for name, value in arrays.items()}
  return {"x": inputs, "label": rng.integers(0, classes, size, np.int32), **arrays}


def index(seed, size, num_source):
  """Different rows of `alpha`."""
  return np.random.default_rng([8, seed]).permutation(num_source)[:size].astype(np.int32)


def assert_same_bits(a, b):
  """Two pytrees with the same structure, shapes, dtypes and bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.shape, x.dtype) == (y.shape, y.dtype), jax.tree_util.keystr(path)
    assert x.tobytes() == y.tobytes(), f"{jax.tree_util.keystr(path)}: {x} and {y}"


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  """Two pytrees with the same structure and close values."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol, atol, err_msg=jax.tree_util.keystr(path))
