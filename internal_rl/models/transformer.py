"""Causal transformer blocks with T5-style relative biases (App. D.1, Tables A4 and A16).

Attention sees only the past, so right-padded sequences need no padding mask: what stands after an
episode's end cannot reach the positions before it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from internal_rl.models.layers import ResidualBlock, dense, kernel_init

_MASKED = -1e30  # finite, so that the product of a masked score and zero stays zero


def relative_buckets(num_distances: int, buckets: int, max_distance: int) -> np.ndarray:
  """Returns the bucket of each distance `0 .. num_distances - 1` into the past.

  These are the causal buckets of T5 (Raffel et al. 2020).
  The first half holds one distance each; the second half divides the distances up to `max_distance`
  logarithmically, and the last bucket also takes all that lie beyond.
  """
  exact = buckets // 2
  distance = np.arange(num_distances)
  log_ratio = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
  logarithmic = exact + (log_ratio * (buckets - exact)).astype(int)
  return np.where(distance < exact, distance, np.minimum(logarithmic, buckets - 1))


@struct.dataclass
class KVCache:
  """Keys and values of the steps so far, in buffers of fixed length.

  Attributes:
    keys: of step `t` at position `t`; zeros where no step has been.
    values: likewise.
    index: number of steps so far; a scalar, so that each of several vmapped caches has its own.
  """

  keys: Float[Array, 'b h max_length k']
  values: Float[Array, 'b h max_length k']
  index: Int[Array, '']


class CausalAttention(nn.Module):
  """Multi-head attention to the past and the present with a learned bias per head and distance.

  Attributes:
    width: features in and out; a head has `width / num_heads` of them.
    num_heads: number of heads.
    relative_buckets: number of learned biases per head; the paper does not say whether blocks share
      them, here each has its own.
    relative_max_distance: distance from which on all share the last bucket.
    init_scale: variance scaling of all parameters.
    dtype: compute dtype; scores and the softmax are float32.
  """

  width: int
  num_heads: int
  relative_buckets: int = 32
  relative_max_distance: int = 128
  init_scale: float = 0.1
  dtype: Any = jnp.float32

  def setup(self) -> None:
    if self.width % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads}: must divide width ({self.width})')
    self.query_key_value = dense(3 * self.width, self.init_scale, self.dtype)
    self.out = dense(self.width, self.init_scale, self.dtype)
    shape = (self.relative_buckets, self.num_heads)
    self.relative_bias = self.param('relative_bias', kernel_init(self.init_scale), shape)

  def _bias_by_distance(self, length: int) -> Float[Array, 'length h']:
    buckets = relative_buckets(length, self.relative_buckets, self.relative_max_distance)
    return self.relative_bias[buckets]

  def _project(self, x: Float[Array, 'b t d']) -> list[Float[Array, 'b h t k']]:
    """Returns queries, keys and values, with heads before time so that products are batched."""
    heads = (*x.shape[:2], self.num_heads, -1)
    projections = jnp.split(self.query_key_value(x), 3, axis=-1)
    return [y.reshape(heads).swapaxes(1, 2) for y in projections]

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    length = x.shape[1]
    query, key, value = self._project(x)
    distance = np.arange(length)[:, None] - np.arange(length)
    bias = self._bias_by_distance(length)[np.maximum(distance, 0)]
    bias = jnp.where(distance[..., None] >= 0, bias, _MASKED).transpose(2, 0, 1)
    mixed = attend(query, key, value, bias)
    return self.out(jnp.swapaxes(mixed, 1, 2).reshape(x.shape))

  def step(self, carry: KVCache, x: Float[Array, 'b d']) -> tuple[KVCache, Float[Array, 'b d']]:
    """Attends from one new position; past the end of the buffer the output is NaN, never wrong."""
    max_length = carry.keys.shape[2]
    query, key, value = self._project(x[:, None])
    keys = jax.lax.dynamic_update_slice_in_dim(carry.keys, key, carry.index, axis=2)
    values = jax.lax.dynamic_update_slice_in_dim(carry.values, value, carry.index, axis=2)
    # Position j is index - j steps ago: a window into the biases from the furthest past to the
    # present, followed by the mask for the positions that no step has reached.
    bias = self._bias_by_distance(max_length).T
    masked = jnp.full_like(bias, _MASKED)
    window = jnp.concatenate([bias[:, ::-1], masked], axis=1)
    bias = jax.lax.dynamic_slice_in_dim(window, max_length - 1 - carry.index, max_length, axis=1)
    mixed = attend(query, keys, values, bias[:, None]).reshape(x.shape)
    mixed = jnp.where(carry.index < max_length, mixed, jnp.nan)
    return KVCache(keys, values, carry.index + 1), self.out(mixed)


@jax.custom_vjp
def attend(
  query: Float[Array, 'b h q k'],
  key: Float[Array, 'b h s k'],
  value: Float[Array, 'b h s k'],
  bias: Float[Array, 'h q s'],
) -> Float[Array, 'b h q k']:
  """Softmax attention with an additive bias, which also holds the mask.

  Written out because `jax.nn.dot_product_attention` wants time before heads, which on a CPU costs
  the forward and backward pass a third more. The backward pass is written out for the sake of the
  bias: its gradient is that of the scores summed over the batch, which XLA on a CPU does slowly
  unless it is a matrix product. That spares a small transformer a twentieth of its training time.
  """
  return _attend_forward(query, key, value, bias)[0]


def _attend_forward(query, key, value, bias):
  # Scaling the queries touches fewer numbers than scaling the scores.
  query = _scaled(query)
  scores = _product('bhqk,bhsk->bhqs', query, key)
  weights = jax.nn.softmax(scores + bias[None])
  mixed = jnp.einsum('bhqs,bhsk->bhqk', weights.astype(value.dtype), value)
  return mixed, (query, key, value, weights)


def _attend_backward(residuals, grad):
  query, key, value, weights = residuals
  grad_weights = weights * _product('bhqk,bhsk->bhqs', grad, value)
  scores = grad_weights - weights * grad_weights.sum(-1, keepdims=True)
  # In full precision, which on accelerators is not the default of a product.
  batch = jnp.ones(scores.shape[0])
  bias = jnp.tensordot(batch, scores, 1, precision=jax.lax.Precision.HIGHEST)
  # With bfloat16 activations the products are bfloat16, too, which accelerators have units for.
  scores = scores.astype(query.dtype)
  return (
    _scaled(jnp.einsum('bhqs,bhsk->bhqk', scores, key)),
    jnp.einsum('bhsq,bhqk->bhsk', _transposed(scores), query),
    jnp.einsum('bhsq,bhqk->bhsk', _transposed(weights.astype(grad.dtype)), grad),
    bias,
  )


attend.defvjp(_attend_forward, _attend_backward)


def _transposed(scores):
  """Swaps the last two axes.

  On a CPU in memory: XLA's batched products of the transpose of something take four times as long.
  """
  swap = lambda scores: jnp.swapaxes(scores, -1, -2)
  written = lambda scores: jax.lax.optimization_barrier(swap(scores))
  return jax.lax.platform_dependent(scores, cpu=written, default=swap)


def _scaled(query):
  return query / np.sqrt(query.shape[-1]).astype(query.dtype)


def _product(subscripts, x, y):
  return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


class TransformerBlock(ResidualBlock, kw_only=True):
  """Pre-norm attention and MLP; the attributes are `ResidualBlock`'s and `CausalAttention`'s."""

  num_heads: int
  relative_buckets: int = 32
  relative_max_distance: int = 128

  def make_mixing(self) -> CausalAttention:
    return CausalAttention(
      self.width,
      self.num_heads,
      self.relative_buckets,
      self.relative_max_distance,
      self.init_scale,
      self.dtype,
    )

  def initial_carry(self, batch: int, max_length: int) -> KVCache:
    """Returns an empty cache for at most `max_length` steps."""
    shape = (batch, self.num_heads, max_length, self.width // self.num_heads)
    zeros = jnp.zeros(shape, self.dtype)
    return KVCache(zeros, zeros, jnp.zeros((), jnp.int32))
