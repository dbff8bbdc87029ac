"""The domain alignment term of a config, added to a method's steps."""

import dataclasses

from soseleto_jax.core.domain_alignment import Features, add_domain_term
from soseleto_jax.methods.base import Method, Setup, keep_params


def with_domain_term(setup: Setup, method: Method) -> Method:
  """Returns a method whose steps on source and target also descend `config.domain_weight` times their discrepancy.

  With a weight of 0 it is the method itself.

  Raises:
    ValueError: it has no such step, or trains other parameters than the network's.
  """
  weight = setup.config.domain_weight
  if not weight:
    return method
  if method.init is not keep_params or not any(_is_of_both(phase) for phase in method.phases):
    raise ValueError(
      f"config.domain_weight={weight}: method {setup.config.method!r} trains the network in no step on source and "
      "target; take 'soseleto' or 'joint', or a weight of 0"
    )
  features = _features_of(setup)
  phases = (
    dataclasses.replace(phase, step=add_domain_term(phase.step, (features, features), weight))
    if _is_of_both(phase)
    else phase
    for phase in method.phases
  )
  return dataclasses.replace(method, phases=tuple(phases))


def _is_of_both(phase):
  return phase.step.sets == ("source", "target")


def _features_of(setup: Setup) -> Features:
  def features(params, batch, rng, *model_state):
    carried = model_state[0] if model_state else None
    return setup.network.features(params, carried, batch["x"], train=True, rng=rng)[0]

  return features
