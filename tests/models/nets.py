"""Networks of each kind, small and alike, that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from soseleto_jax.models.network import as_network

HEADS = {"source": 3, "target": 2}
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


class LinenNet(nn.Module):
  """Two layers in a list; with `norm` a BatchNorm, with `dropout` a Dropout after them."""

  norm: bool = False
  dropout: float = 0.0

  def setup(self):
    self.blocks = [nn.Dense(5), nn.Dense(6)]
    if self.norm:
      self.bn = nn.BatchNorm(momentum=0.9)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x, *, train=False):
    for block in self.blocks:
      x = jnp.tanh(block(x))
    if self.norm:
      x = self.bn(x, use_running_average=not train)
    return self.drop(x, deterministic=not train)


class NnxNet(nnx.Module):
  """The same."""

  def __init__(self, norm=False, dropout=0.0, *, rngs):
    self.blocks = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 6, rngs=rngs)])
    self.bn = nnx.BatchNorm(6, momentum=0.9, rngs=rngs) if norm else None
    self.drop = nnx.Dropout(dropout, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = jnp.tanh(block(x))
    if self.bn is not None:
      x = self.bn(x)
    return self.drop(x)


class Functions:
  """One layer in two functions, centred in place of BatchNorm, with noise in place of dropout."""

  def __init__(self, norm=False, dropout=0.0):
    self.norm, self.dropout = norm, dropout

  def init(self, key, x):
    params = {"w": jax.random.normal(key, (x.shape[1], 6)), "out": jnp.ones((6, 3))}
    return params, {"mean": jnp.zeros(6)} if self.norm else {}

  def apply(self, params, state, x, *, rng, train):
    x = jnp.tanh(x @ params["w"])
    if self.norm:
      mean = x.mean(axis=0)
      x, state = x - (mean if train else state["mean"]), {"mean": 0.9 * state["mean"] + 0.1 * mean}
    if train and self.dropout:
      x += jax.random.normal(rng, x.shape)
    return x @ params["out"], state


def make(kind, num_classes=3, **options):
  if kind == "nnx":
    return as_network(NnxNet(**options, rngs=nnx.Rngs(1)), num_classes)
  return as_network({"linen": LinenNet, "functions": Functions}[kind](**options), num_classes)


@functools.cache
def start(kind, num_classes=3, **options):
  """A network with its parameters and state at the start, which Linen compiles a program for."""
  network = make(kind, num_classes, **options)
  return network, *network.init(KEY, X)
