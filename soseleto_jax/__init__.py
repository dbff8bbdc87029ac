"""SOSELETO in JAX: learns a weight for every source example together with the network.

The pure core is `make_train_step` with `init_train_state` and `gradient_alignment`; `train_and_evaluate`, in
`soseleto_jax.train`, runs a whole experiment.
"""

from soseleto_jax import models
from soseleto_jax.alignment import LossFn, gradient_alignment
from soseleto_jax.directions import orthogonal
from soseleto_jax.sharding import make_mesh, shard_train_state, shard_train_step
from soseleto_jax.train_state import TrainState, init_train_state
from soseleto_jax.train_step import make_joint_step, make_plain_step, make_train_step
from soseleto_jax.transforms import center_by_class, residual_normalize, standardize

__all__ = [
    "LossFn",
    "TrainState",
    "center_by_class",
    "gradient_alignment",
    "init_train_state",
    "make_joint_step",
    "make_mesh",
    "make_plain_step",
    "make_train_step",
    "models",
    "orthogonal",
    "residual_normalize",
    "shard_train_state",
    "shard_train_step",
    "standardize",
]
