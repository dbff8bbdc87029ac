"""How programs are compiled on CPUs, where most runs are so short that compiling takes much of them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

# XLA's former generator of fused loops. It takes half the time, but for a transformer, whose step is slower by a tenth.
_QUICKLY = {"xla_cpu_use_fusion_emitters": False}
# Loops are neither unrolled nor vectorized, which pays for programs that are run often.
_ONCE = _QUICKLY | {"xla_backend_optimization_level": 1}


def jit_quickly(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """`jax.jit` that compiles in about half the time on CPUs, to a program that is a little slower at most.

  Numbers are the same to rounding. While another program is traced it is `jax.jit` alone: what is nested has no
  options.
  """
  return _jit(function, _QUICKLY, options)


def jit_once(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """`jit_quickly` of what is run once, and may take longer for it."""
  return _jit(function, _ONCE, options)


def _jit(function, compiler_options, options):
  is_traced = isinstance(jnp.zeros(()), jax.core.Tracer)
  if jax.default_backend() == "cpu" and not is_traced:
    options["compiler_options"] = known(compiler_options)
  return jax.jit(function, **options)


def known(compiler_options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those of the options for compiling that this version of XLA has."""
  return {name: value for name, value in compiler_options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name, value):
  try:
    jax.jit(lambda: 0, compiler_options={name: value})()
  except jax.errors.JaxRuntimeError:
    return False
  return True
