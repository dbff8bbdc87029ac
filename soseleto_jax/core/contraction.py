"""The ways to take inner products of examples' gradients with a direction, and which of them a network allows."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax

from soseleto_jax.core import calls

CONTRACTIONS = ("auto", "jvp", "vjp", "vmap_grad")

_LOGGER = logging.getLogger(__name__)


def check_contraction(contraction: str, microbatch_size: int | None) -> None:
  """Raises ValueError for a contraction that does not exist, and a misplaced `microbatch_size`."""
  if contraction not in CONTRACTIONS:
    raise ValueError(f"contraction={contraction!r}: choose one of {', '.join(CONTRACTIONS)}")
  if microbatch_size is not None and (contraction != "vmap_grad" or not calls.is_count(microbatch_size)):
    raise ValueError(
      f"microbatch_size={microbatch_size!r} with contraction={contraction!r}: it splits the per-example gradients of "
      "'vmap_grad' and is a whole number, at least 1; leave it None otherwise"
    )


def resolve(contraction: str, losses_of: Callable[[Any], jax.Array], params: Any) -> str:
  """Returns the contraction to take: for "auto" forward mode where the losses allow it, else reverse over reverse.

  Decided by tracing alone, on abstract values, and said in the log once.

  Args:
    contraction: one of CONTRACTIONS.
    losses_of: `params -> losses [B]`, of the leaves that the products run over.
    params: these leaves, arrays or shapes.

  Raises:
    ValueError: "jvp" for losses that forward mode cannot pass.
  """
  if contraction not in ("auto", "jvp"):
    return contraction
  obstacle = _obstacle(losses_of, params)
  if obstacle is None:
    return "jvp"
  what = f"the loss calls a jax.custom_vjp, {obstacle}, which forward-mode differentiation cannot pass"
  if contraction == "jvp":
    raise ValueError(f"contraction='jvp': {what}; take contraction='vjp', or 'auto', which chooses it by itself")
  _say(f"alignment by contraction='vjp': {what}")
  return "vjp"


@functools.cache  # once
def _say(message):
  _LOGGER.info(message)


def _obstacle(losses_of, params) -> str | None:
  """Names a function that stops forward mode on its way from the leaves to the losses; None where there is none."""
  custom = list(_custom_vjps(jax.make_jaxpr(losses_of)(params).jaxpr))
  if not custom:
    return None
  pushed = jax.make_jaxpr(lambda point, tangent: jax.jvp(losses_of, (point,), (tangent,))[1])(params, params)
  # A call that no tangent reaches stays what it is; where one does, JAX leaves what only reverse mode can transpose.
  stopped = any(eqn.primitive.name == "custom_lin" for eqn in _equations(pushed.jaxpr))
  return ", ".join(dict.fromkeys(custom)) if stopped else None


def _custom_vjps(jaxpr) -> Iterator[str]:
  for eqn in _equations(jaxpr):
    if eqn.primitive.name.startswith("custom_vjp_call"):
      called = eqn.params.get("call_jaxpr")
      info = getattr(getattr(called, "jaxpr", called), "debug_info", None)
      yield getattr(info, "func_src_info", None) or "one of its functions"


def _equations(jaxpr) -> Iterator[Any]:
  """All equations, those of inner programs too: of scans, branches, and whatever is compiled or recomputed."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from _equations(inner)
