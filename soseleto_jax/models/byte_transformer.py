"""A small transformer over bytes, in Flax NNX, as a network that is given whole."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_BYTES = 256


class ByteTransformer(nnx.Module):
  """Predicts each next byte from those before it: pre-norm blocks of causal attention and a GELU perceptron."""

  def __init__(
    self,
    length: int = 64,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.0,
    *,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Makes the parameters.

    Args:
      length: the longest sequence.
      width: of the residual stream; a multiple of `heads`.
      depth: how many blocks.
      heads: of the attention.
      dropout: rate, on what each half of a block adds.
      dtype: of the arithmetic; parameters are float32.
      rngs: for the parameters.
    """
    if width % heads:
      raise ValueError(f"width={width} is no multiple of heads={heads}")
    self.bytes = nnx.Embed(_BYTES, width, dtype=dtype, rngs=rngs)
    self.places = nnx.Embed(length, width, dtype=dtype, rngs=rngs)
    self.blocks = nnx.List([_Block(width, heads, dropout, dtype, rngs) for _ in range(depth)])
    self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
    self.classifier = nnx.Linear(width, _BYTES, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps bytes uint8 `[B, L]` to logits `[B, L, 256]`."""
    x = self.bytes(x.astype(jnp.int32)) + self.places(jnp.arange(x.shape[1]))
    for block in self.blocks:
      x = block(x)
    return self.classifier(self.norm(x))


class _Block(nnx.Module):
  def __init__(self, width, heads, dropout, dtype, rngs):
    self.heads = heads
    self.norms = nnx.List([nnx.LayerNorm(width, dtype=dtype, rngs=rngs) for _ in range(2)])
    self.attention_in = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
    self.attention_out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
    self.wide = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
    self.narrow = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)
    self.dropout = nnx.Dropout(dropout, rngs=rngs)

  def __call__(self, x):
    x = x + self.dropout(self._attention(self.norms[0](x)))
    return x + self.dropout(self.narrow(nnx.gelu(self.wide(self.norms[1](x)))))

  def _attention(self, x):
    heads = (*x.shape[:2], self.heads, -1)
    query, key, value = (part.reshape(heads) for part in jnp.split(self.attention_in(x), 3, axis=-1))
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return self.attention_out(mixed.reshape(x.shape))
