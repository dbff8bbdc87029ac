"""SOSELETO in JAX: learns a weight for every source example together with the network.

The pure core is `make_train_step` with `init_train_state` and `gradient_alignment`: it needs JAX and optax alone.
`train_and_evaluate` runs a whole experiment, and needs what `pip install soseleto_jax[train]` brings.
"""

import importlib

from soseleto_jax.core.alignment import Alignment, gradient_alignment
from soseleto_jax.core.alignment_rules import (
  add_agreement,
  center_by_class,
  orthogonal,
  residual_normalize,
  scale_by_std,
)
from soseleto_jax.core.losses import LossFn
from soseleto_jax.core.nonfinite import skip_nonfinite
from soseleto_jax.core.sharding import make_mesh, shard_train_state, shard_train_step, state_specs
from soseleto_jax.core.source_weights import burn_in, sharpened
from soseleto_jax.core.step import Step, make_plain_step
from soseleto_jax.core.target_descent import TargetDescent
from soseleto_jax.core.train_state import TrainState, init_train_state, weights
from soseleto_jax.core.train_step import make_joint_step, make_train_step

__version__ = "0.2.0"

# What is loaded when it is first asked for, since it needs more than JAX.
_LAZY = {
  "fit": "soseleto_jax.fitting",
  "load": "soseleto_jax.loading",
  "models": "soseleto_jax.models",
  "train_and_evaluate": "soseleto_jax.train",
}

__all__ = [
  "Alignment",
  "LossFn",
  "Step",
  "TargetDescent",
  "TrainState",
  "add_agreement",
  "burn_in",
  "center_by_class",
  "fit",
  "gradient_alignment",
  "init_train_state",
  "load",
  "make_joint_step",
  "make_mesh",
  "make_plain_step",
  "make_train_step",
  "models",
  "orthogonal",
  "residual_normalize",
  "scale_by_std",
  "shard_train_state",
  "shard_train_step",
  "sharpened",
  "skip_nonfinite",
  "state_specs",
  "train_and_evaluate",
  "weights",
]


def __getattr__(name):
  if name not in _LAZY:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(_LAZY[name])
  return module if name == "models" else getattr(module, name)
