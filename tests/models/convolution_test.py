import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from soseleto_jax.models.convolution import conv_few_channels


def _pair(channels, padding, size):
  """Returns the layer with and without it, their parameters and images."""
  layers = [
    nn.Conv(4, (5, 5), padding=padding, bias_init=nn.initializers.normal(), conv_general_dilated=conv)
    for conv in (conv_few_channels, None)
  ]
  x = jax.random.normal(jax.random.key(1), (3, size, size + 2, channels))
  return layers, layers[1].init(jax.random.key(0), x), x


_CASES = pytest.mark.parametrize(("channels", "padding", "size"), [(3, "SAME", 8), (1, "VALID", 6), (17, "SAME", 5)])


@_CASES
def test_layer_equals_the_plain_one(channels, padding, size):
  (ours, plain), variables, x = _pair(channels, padding, size)
  np.testing.assert_allclose(ours.apply(variables, x), plain.apply(variables, x), rtol=1e-5, atol=1e-5)


@_CASES
@pytest.mark.parametrize("of", ["variables", "x", "both"])
def test_derivatives_equal_the_plain_ones(channels, padding, size, of):
  layers, variables, x = _pair(channels, padding, size)
  at = {"variables": variables, "x": x} if of == "both" else {of: dict(variables=variables, x=x)[of]}
  keys = iter(jax.random.split(jax.random.key(2), 10))
  direction = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), at)
  forward, backward = [], []
  for layer in layers:
    output = lambda at, layer=layer: layer.apply(at.get("variables", variables), at.get("x", x))
    forward.append(jax.jvp(output, (at,), (direction,))[1])
    backward.append(jax.grad(lambda at, output=output: jnp.sum(jnp.sin(output(at))))(at))
  np.testing.assert_allclose(*forward, rtol=1e-4, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *backward)


def test_gradients_of_each_example_and_of_several_kernels():
  (ours, plain), variables, x = _pair(3, "SAME", 8)
  several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
  results = []
  for layer in (ours, plain):
    loss = lambda variables, image, layer=layer: jnp.sum(layer.apply(variables, image[None]) ** 2)
    each = jax.vmap(jax.grad(loss), (None, 0))
    results.append(jax.jit(jax.vmap(each, (0, None)))(several, x))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), *results)


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_only_cpus_go_image_by_image(platform, loops):
  (ours, _), variables, x = _pair(3, "SAME", 8)
  gradient = jax.jit(jax.grad(lambda variables: jnp.sum(ours.apply(variables, x) ** 2)))
  assert gradient.trace(variables).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while") == loops
