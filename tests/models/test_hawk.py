"""The gated linear recurrence against a loop over time and against recurrentgemma."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrentgemma.jax as reference

from internal_rl.models import HawkBlock
from internal_rl.models.hawk import (
  RGLRU,
  TemporalConv,
  associative_scan,
  linear_recurrence,
  sequential_scan,
)

WIDTH, HEADS, LENGTH = 16, 4, 21


def _inputs(length):
  key_a, key_x, key_w = jax.random.split(jax.random.key(0), 3)
  a = jax.random.uniform(key_a, (3, length, 5))
  x, weights = (jax.random.normal(key, (3, length, 5)) for key in (key_x, key_w))
  return a, x, weights


def _literal(a, x):
  """Row by row in numpy; returns `h`."""
  h = np.zeros_like(x)
  for t in range(x.shape[1]):
    h[:, t] = a[:, t] * (h[:, t - 1] if t else 0) + x[:, t]
  return h


@pytest.mark.parametrize('length', [1, 2, 27])
@pytest.mark.parametrize('scan', [associative_scan, sequential_scan])
def test_every_scan_equals_a_loop_forwards_and_backwards_in_time(scan, length):
  a, x, _ = (np.asarray(y, np.float64) for y in _inputs(length))
  scan = jax.jit(scan, static_argnames='reverse')
  np.testing.assert_allclose(scan(jnp.array(a), jnp.array(x)), _literal(a, x), atol=1e-5)
  backwards = scan(jnp.array(a), jnp.array(x), reverse=True)
  np.testing.assert_allclose(backwards, _literal(a[:, ::-1], x[:, ::-1])[:, ::-1], atol=1e-5)


@pytest.mark.parametrize('length', [1, 2, 27])
def test_recurrence_equals_either_scan_in_value_and_gradient(length):
  a, x, weights = _inputs(length)

  def value_and_pullback(recurrence):
    value, pullback = jax.vjp(recurrence, a, x)
    return value, pullback(weights)

  actual, *expected = (
    jax.jit(functools.partial(value_and_pullback, f))()
    for f in (linear_recurrence, sequential_scan, associative_scan)
  )
  for other in expected:
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=1e-5), actual, other)


def _rg_lru():
  x = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
  unit = RGLRU(WIDTH, HEADS, init_scale=1.0)
  return unit, jax.jit(unit.init)(jax.random.key(1), x), x


def _reference_rg_lru(dtype):
  """The layer of recurrentgemma; its parameters have the same names."""
  unit = reference.layers.RGLRU(WIDTH, HEADS, dtype=dtype)

  @jax.numpy_rank_promotion('allow')
  def apply(params, x):
    return unit.apply(params, x, _positions(x), return_cache=False)[0]

  return apply


def _positions(x):
  return jnp.tile(jnp.arange(x.shape[1])[None], (x.shape[0], 1))


def test_rg_lru_equals_recurrentgemma_in_value_and_gradient():
  unit, params, x = _rg_lru()
  weights = jax.random.normal(jax.random.key(2), x.shape)
  fast = lambda params, x: jnp.sum(weights * unit.apply(params, x))
  value, grad = jax.jit(jax.value_and_grad(fast, argnums=(0, 1)))(params, x)
  # In float64, because the reference computes 1 - a^2 by subtraction.
  with jax.enable_x64(True):
    apply = _reference_rg_lru(jnp.float64)
    literal = lambda params, x: jnp.sum(np.float64(weights) * apply(params, x))
    double = jax.tree.map(np.float64, (params, x))
    expected, expected_grad = jax.jit(jax.value_and_grad(literal, argnums=(0, 1)))(*double)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5), grad, expected_grad
  )


def test_rg_lru_steps_equal_recurrentgemma():
  unit, params, x = _rg_lru()
  expected = jax.jit(_reference_rg_lru(jnp.float32))(params, x)
  step = jax.jit(lambda *args: unit.apply(params, *args, method='step'))
  state = jnp.zeros((2, WIDTH))
  for t in range(LENGTH):
    state, y = step(state, x[:, t], jnp.array(t == 0))
    np.testing.assert_allclose(y, expected[:, t], atol=1e-5)


def test_first_input_is_not_scaled_down():
  unit, params, x = _rg_lru()
  gate = jax.nn.sigmoid(
    jnp.einsum(
      'bhi,hij->bhj', x[:, 0].reshape(2, HEADS, -1), params['params']['input_gate']['w']
    ).reshape(2, WIDTH)
  )
  np.testing.assert_allclose(jax.jit(unit.apply)(params, x)[:, 0], gate * x[:, 0], atol=1e-6)


def test_temporal_convolution_equals_recurrentgemma_in_value_and_gradient():
  x = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
  conv = TemporalConv(WIDTH, conv_width=4, init_scale=1.0)
  params = jax.jit(conv.init)(jax.random.key(1), x)
  other = reference.layers.Conv1D(WIDTH, temporal_width=4)

  def value_and_pullback(apply):
    value, pullback = jax.vjp(apply, params)
    return value, pullback(jnp.sin(value))

  with jax.numpy_rank_promotion('allow'):
    literal = lambda params: other.apply(params, x, _positions(x), return_cache=False)[0]
    expected = jax.jit(functools.partial(value_and_pullback, literal))()
  actual = jax.jit(functools.partial(value_and_pullback, lambda params: conv.apply(params, x)))()
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5), actual, expected
  )


def test_decay_starts_uniform_between_its_bounds():
  params = jax.jit(RGLRU(4000, 400).init)(jax.random.key(0), jnp.zeros((1, 1, 4000)))['params']
  decay = np.sort(np.exp(-8 * jax.nn.softplus(params['a_param'])))
  np.testing.assert_allclose(decay, np.linspace(0.9, 0.999, 4000), atol=3e-3)


def test_gradient_is_finite_where_the_recurrence_gate_is_closed():
  unit, params, x = _rg_lru()
  params['params']['a_gate']['b'] -= 200.0  # a = 1 to the last bit, where sqrt(1 - a^2) is steep
  grads = jax.jit(jax.grad(lambda params: jnp.sum(unit.apply(params, x))))(params)
  assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


def test_recurrence_stays_float32_under_a_bfloat16_backbone():
  block = HawkBlock(width=8, mlp_width=8, lru_width=8, num_heads=2, dtype=jnp.bfloat16)
  x = jnp.ones((1, 3, 8), jnp.bfloat16)
  params = jax.jit(block.init)(jax.random.key(0), x)
  step = jax.jit(functools.partial(block.apply, method='step'))
  carry, y = step(params, block.initial_carry(1, 3), x[:, 0])
  assert carry.state.dtype == jnp.float32
  assert carry.window.dtype == y.dtype == jnp.bfloat16


def test_heads_must_divide_the_recurrence():
  block = HawkBlock(width=8, mlp_width=8, lru_width=10, num_heads=4)
  with pytest.raises(ValueError, match=r'num_heads=4: must divide lru_width \(10\)'):
    jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 2, 8)))
