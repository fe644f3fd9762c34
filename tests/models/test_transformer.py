"""Attention, its biases and its cache against slow literal versions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.models import TransformerBlock, transformer
from internal_rl.models.transformer import CausalAttention, relative_buckets


def _literal_bucket(distance, buckets, max_distance):
  """T5's `_relative_position_bucket` with `bidirectional=False`, for one distance."""
  exact = buckets // 2
  if distance < exact:
    return distance
  position = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
  return min(exact + int(position), buckets - 1)


@pytest.mark.parametrize(('buckets', 'max_distance'), [(32, 128), (8, 20)])
def test_buckets_follow_t5(buckets, max_distance):
  expected = [_literal_bucket(d, buckets, max_distance) for d in range(600)]
  actual = relative_buckets(600, buckets, max_distance)
  np.testing.assert_array_equal(actual, expected)
  assert set(actual) == set(range(buckets))
  assert actual[max_distance] == buckets - 1


def _linear(params, x):
  return x @ params['kernel'] + params['bias'][None, None]


def _literal_attention(params, x, num_heads, buckets, max_distance):
  """One query at a time, over its own past only; no mask anywhere."""
  qkv = _linear(params['query_key_value'], x)
  batch, length, width = x.shape
  size = width // num_heads
  query, key, value = (y.reshape(batch, length, num_heads, size) for y in jnp.split(qkv, 3, -1))
  rows = []
  for t in range(length):
    past = slice(0, t + 1)
    scores = jnp.einsum('bhk,bshk->bhs', query[:, t], key[:, past]) / math.sqrt(size)
    bucket = np.array([_literal_bucket(t - s, buckets, max_distance) for s in range(t + 1)])
    weights = jax.nn.softmax(scores + params['relative_bias'][bucket].T[None])
    rows.append(jnp.einsum('bhs,bshk->bhk', weights, value[:, past]).reshape(batch, width))
  return _linear(params['out'], jnp.stack(rows, axis=1))


def test_attention_equals_one_query_at_a_time_in_value_and_gradient():
  attention = CausalAttention(16, 4, relative_buckets=6, relative_max_distance=9, init_scale=1.0)
  x = jax.random.normal(jax.random.key(0), (3, 8, 16))
  weights = jax.random.normal(jax.random.key(1), x.shape)
  params = jax.jit(attention.init)(jax.random.key(2), x)

  def fast(params, x):
    return jnp.sum(weights * attention.apply(params, x))

  def literal(params, x):
    return jnp.sum(weights * _literal_attention(params['params'], x, 4, 6, 9))

  actual, expected = (
    jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(params, x) for f in (fast, literal)
  )
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5), actual, expected
  )


def _steps(block, params, carry, x):
  outputs = []
  step = jax.jit(lambda carry, x: block.apply(params, carry, x, method='step'))
  for t in range(x.shape[1]):
    carry, y = step(carry, x[:, t])
    outputs.append(y)
  return jnp.stack(outputs, axis=1)


def test_steps_do_not_depend_on_how_much_longer_the_cache_is():
  block = TransformerBlock(width=16, mlp_width=8, num_heads=2, init_scale=1.0)
  x = jax.random.normal(jax.random.key(0), (2, 7, 16))
  params = jax.jit(block.init)(jax.random.key(1), x)
  expected = jax.jit(block.apply)(params, x)
  for max_length in (7, 50):
    actual = _steps(block, params, block.initial_carry(2, max_length), x)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_steps_beyond_the_cache_are_nan():
  block = TransformerBlock(width=16, mlp_width=8, num_heads=2)
  x = jax.random.normal(jax.random.key(0), (2, 5, 16))
  params = jax.jit(block.init)(jax.random.key(1), x)
  y = _steps(block, params, block.initial_carry(2, 3), x)
  assert bool(jnp.all(jnp.isfinite(y[:, :3])))
  assert bool(jnp.all(jnp.isnan(y[:, 3:])))


def test_heads_must_divide_the_width():
  block = TransformerBlock(width=16, mlp_width=8, num_heads=3)
  with pytest.raises(ValueError, match=r'num_heads=3: must divide width \(16\)'):
    jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 2, 16)))


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize('mapped', [False, True])
def test_the_backward_pass_of_attention_is_what_differentiating_it_gives(dtype, tolerance, mapped):
  keys = jax.random.split(jax.random.key(0), 5)
  query, key, value, weights = (jax.random.normal(k, (2, 3, 5, 4, 8), dtype) for k in keys[:4])
  bias = jax.random.normal(keys[4], (5, 4, 4))

  def gradient(attend):
    def loss(query, key, value, bias, weights):
      return jnp.sum((weights * attend(query, key, value, bias)).astype(jnp.float32))

    grad = jax.grad(loss, argnums=(0, 1, 2, 3))
    if mapped:
      return jax.vmap(grad, (0, 0, 0, None, 0))(query, key, value, bias, weights)
    return grad(query[0], key[0], value[0], bias, weights[0])

  literal = lambda *arguments: transformer._attend_forward(*arguments)[0]
  for actual, expected in zip(gradient(transformer.attend), gradient(literal), strict=True):
    assert actual.dtype == expected.dtype
    error = jnp.linalg.norm((actual - expected).astype(jnp.float32))
    assert error < tolerance * jnp.linalg.norm(expected.astype(jnp.float32))
