"""Layers with gradients of their own against what JAX derives from the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from internal_rl.models.layers import RMSNorm, dense

_X = jnp.logspace(-2, 1, 5)[None, :, None] * jax.random.normal(jax.random.key(0), (3, 5, 8))


def _same_value_and_gradients(ours, oracle, params):
  weights = jax.random.normal(jax.random.key(1), oracle(params, _X).shape)

  def value_and_gradients(function):
    loss = lambda params, x: jnp.sum(weights * jnp.tanh(function(params, x)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, _X)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    value_and_gradients(ours),
    value_and_gradients(oracle),
  )


def test_a_linear_layer_is_x_times_kernel_plus_bias():
  layer = dense(7, init_scale=1.0)
  params = layer.init(jax.random.key(2), _X)
  params['params']['bias'] = jnp.arange(7.0)
  kernel = lambda p: p['params']['kernel']
  oracle = lambda p, x: jnp.einsum('bti,io->bto', x, kernel(p)) + p['params']['bias'][None, None]
  _same_value_and_gradients(layer.apply, oracle, params)


def test_a_linear_layer_takes_one_step_as_well_as_a_sequence():
  layer = dense(7, init_scale=1.0)
  params = layer.init(jax.random.key(2), _X)
  np.testing.assert_allclose(
    layer.apply(params, _X[:, 2]), layer.apply(params, _X)[:, 2], rtol=1e-5
  )


def test_a_linear_layer_computes_in_its_dtype():
  layer = dense(7, init_scale=1.0, dtype=jnp.bfloat16)
  params = layer.init(jax.random.key(2), _X)
  loss = lambda params: jnp.sum(layer.apply(params, _X).astype(jnp.float32))
  assert layer.apply(params, _X).dtype == jnp.bfloat16
  assert jax.grad(loss)(params)['params']['kernel'].dtype == jnp.float32


def test_rms_norm_is_flax_s():
  params = {'params': {'scale': jnp.linspace(-1.0, 2.0, 8)}}
  _same_value_and_gradients(RMSNorm().apply, nn.RMSNorm().apply, params)


def test_rms_norm_of_zeros_has_a_finite_gradient():
  params = {'params': {'scale': jnp.ones(8)}}
  grad = jax.grad(lambda x: jnp.sum(RMSNorm().apply(params, x)))(jnp.zeros((2, 8)))
  assert np.isfinite(grad).all()
