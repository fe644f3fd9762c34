"""Hawk blocks: a gated linear recurrence with O(1) memory (De et al. 2024; Tables A5 and A15).

The recurrence runs only forwards, so right-padded sequences need no mask.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from internal_rl.models.layers import ResidualBlock, dense, float32, kernel_init

_C = 8.0  # sharpness of the recurrence gate, De et al. 2024, Eq. 4
_MIN_VARIANCE = 1e-12  # keeps the derivative of the square root finite where a is 1


@struct.dataclass
class HawkCarry:
  """What a Hawk block remembers between steps.

  Attributes:
    window: the last `conv_width - 1` inputs of the temporal convolution, oldest first.
    state: of the recurrence, float32.
    first: whether no step has been taken; a scalar.
  """

  window: Float[Array, 'b w d']
  state: Float[Array, 'b d']
  first: Bool[Array, '']


class BlockDiagonalLinear(nn.Module):
  """A linear layer whose kernel has `num_blocks` square blocks on its diagonal."""

  width: int
  num_blocks: int
  init_scale: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    if self.width % self.num_blocks:
      raise ValueError(f'num_heads={self.num_blocks}: must divide lru_width ({self.width})')
    size = self.width // self.num_blocks
    init = kernel_init(self.init_scale, batch_axis=(0,))
    w = self.param('w', init, (self.num_blocks, size, size))
    b = self.param('b', nn.initializers.zeros, (self.num_blocks, size))
    blocks = x.reshape(-1, self.num_blocks, size).astype(self.dtype)
    y = jnp.einsum('bhi,hij->bhj', blocks, w.astype(self.dtype)) + b.astype(self.dtype)[None]
    return y.reshape(x.shape)


class TemporalConv(nn.Module):
  """A causal convolution over time, separate for every feature."""

  width: int
  conv_width: int = 4
  init_scale: float = 0.1
  dtype: Any = jnp.float32

  def setup(self) -> None:
    w = self.param('w', kernel_init(self.init_scale), (self.conv_width, self.width))
    b = self.param('b', nn.initializers.zeros, (self.width,))
    self.w, self.b = w.astype(self.dtype), b.astype(self.dtype)

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    length = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (self.conv_width - 1, 0), (0, 0)))
    shifted = (padded[:, i : i + length] * self.w[i][None, None] for i in range(self.conv_width))
    return sum(shifted, start=self.b[None, None])

  def step(
    self, window: Float[Array, 'b w d'], x: Float[Array, 'b d']
  ) -> tuple[Float[Array, 'b w d'], Float[Array, 'b d']]:
    window = jnp.concatenate([window, x[:, None]], axis=1)
    return window[:, 1:], jnp.sum(window * self.w[None], axis=1) + self.b[None]


@jax.custom_vjp
def linear_recurrence(a: Float[Array, 'b t d'], x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
  """Returns `h_t = a_t h_{t-1} + x_t` with `h_0 = 0`.

  Its derivative is the same recurrence backwards in time, which spares the backward pass the
  intermediate levels of the parallel scan.
  """
  return _recur(a, x)


def _recur(a, x, reverse=False):
  # A CPU takes 2.5 times as long for the parallel scan as for the loop, and 5 times to compile it.
  return jax.lax.platform_dependent(
    a,
    x,
    cpu=functools.partial(sequential_scan, reverse=reverse),
    default=functools.partial(associative_scan, reverse=reverse),
  )


def associative_scan(a, x, reverse=False):
  """Solves the recurrence in O(log t) parallel steps."""

  def combine(left, right):
    (a_left, h_left), (a_right, h_right) = left, right
    return a_left * a_right, a_right * h_left + h_right

  return jax.lax.associative_scan(combine, (a, x), axis=1, reverse=reverse)[1]


def sequential_scan(a, x, reverse=False):
  """Solves the recurrence in t steps."""

  def step(h, inputs):
    a, x = inputs
    h = a * h + x
    return h, h

  inputs = (a.swapaxes(0, 1), x.swapaxes(0, 1))
  return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), inputs, reverse=reverse)[1].swapaxes(0, 1)


def _recurrence_forward(a, x):
  h = _recur(a, x)
  return h, (a, h)


def _recurrence_backward(residuals, grad_h):
  a, h = residuals
  decay_to_next = jnp.pad(a[:, 1:], ((0, 0), (0, 1), (0, 0)))
  grad_x = _recur(decay_to_next, grad_h, reverse=True)
  previous = jnp.pad(h[:, :-1], ((0, 0), (1, 0), (0, 0)))
  return grad_x * previous, grad_x


linear_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


class RGLRU(nn.Module):
  """The real-gated linear recurrent unit (De et al. 2024, Eqs. 1-4).

      r_t = sigmoid(W_a x_t + b_a)                    recurrence gate, block-diagonal
      i_t = sigmoid(W_x x_t + b_x)                    input gate, block-diagonal
      a_t = a^(8 r_t),  a = exp(-softplus(a_param))
      h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)   the first input is not scaled down

  At the start `a^8` is uniform in [0.9, 0.999].

  Attributes:
    width: features in and out.
    num_heads: blocks on the diagonals of the gates.
    init_scale: variance scaling of the gates.
    dtype: of the gates' products; the recurrence is always float32.
  """

  width: int
  num_heads: int
  init_scale: float = 0.1
  dtype: Any = jnp.float32

  def setup(self) -> None:
    gate = (self.width, self.num_heads, self.init_scale, self.dtype)
    self.a_gate = BlockDiagonalLinear(*gate)
    self.input_gate = BlockDiagonalLinear(*gate)
    self.a_param = self.param('a_param', _decay_init, (self.width,))

  def _gated(
    self, x: Float[Array, '*b d'], first: Bool[Array, '*#b 1']
  ) -> tuple[Float[Array, '*b d'], Float[Array, '*b d']]:
    """Returns `a_t` and the gated and scaled input, in float32."""
    rate = _C * jax.nn.softplus(self.a_param).reshape((1,) * (x.ndim - 1) + (-1,))
    log_a = -rate * jax.nn.sigmoid(float32(self.a_gate(x)))
    variance = jnp.maximum(-jnp.expm1(2 * log_a), _MIN_VARIANCE)
    scale = jnp.where(first, 1.0, jnp.sqrt(variance))
    return jnp.exp(log_a), scale * jax.nn.sigmoid(float32(self.input_gate(x))) * float32(x)

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    first = jnp.arange(x.shape[1])[None, :, None] == 0
    return linear_recurrence(*self._gated(x, first)).astype(self.dtype)

  def step(
    self, state: Float[Array, 'b d'], x: Float[Array, 'b d'], first: Bool[Array, '']
  ) -> tuple[Float[Array, 'b d'], Float[Array, 'b d']]:
    a, x = self._gated(x, first[None, None])
    state = a * state + x
    return state, state.astype(self.dtype)


def _decay_init(key, shape, dtype=jnp.float32):
  decay = jax.random.uniform(key, shape, dtype, 0.9, 0.999)
  return jnp.log(jnp.expm1(-jnp.log(decay) / _C))  # inverse of decay = exp(-8 softplus(a_param))


class HawkMixing(nn.Module):
  """`linear(RG-LRU(conv(linear(x))) * gelu(linear(x)))` (De et al. 2024, Fig. 2).

  Attributes:
    width: features in and out.
    lru_width: features of the recurrence.
    num_heads: blocks on the diagonals of the gates.
    conv_width: steps that the temporal convolution sees.
    init_scale: variance scaling of every kernel.
    dtype: compute dtype outside the recurrence.
  """

  width: int
  lru_width: int
  num_heads: int
  conv_width: int = 4
  init_scale: float = 0.1
  dtype: Any = jnp.float32

  def setup(self) -> None:
    self.branches = dense(2 * self.lru_width, self.init_scale, self.dtype)
    self.conv = TemporalConv(self.lru_width, self.conv_width, self.init_scale, self.dtype)
    self.recurrence = RGLRU(self.lru_width, self.num_heads, self.init_scale, self.dtype)
    self.out = dense(self.width, self.init_scale, self.dtype)

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    x, gate = jnp.split(self.branches(x), 2, axis=-1)
    return self.out(self.recurrence(self.conv(x)) * nn.gelu(gate))

  def step(self, carry: HawkCarry, x: Float[Array, 'b d']) -> tuple[HawkCarry, Float[Array, 'b d']]:
    x, gate = jnp.split(self.branches(x), 2, axis=-1)
    window, x = self.conv.step(carry.window, x)
    state, x = self.recurrence.step(carry.state, x, carry.first)
    carry = HawkCarry(window, state, jnp.zeros_like(carry.first))
    return carry, self.out(x * nn.gelu(gate))


class HawkBlock(ResidualBlock, kw_only=True):
  """Pre-norm Hawk mixing and MLP; the attributes are `ResidualBlock`'s and `HawkMixing`'s."""

  lru_width: int
  num_heads: int
  conv_width: int = 4

  def make_mixing(self) -> HawkMixing:
    return HawkMixing(
      self.width, self.lru_width, self.num_heads, self.conv_width, self.init_scale, self.dtype
    )

  def initial_carry(self, batch: int, max_length: int) -> HawkCarry:
    """Returns the carry before the first step; it does not grow with `max_length`."""
    del max_length
    window = jnp.zeros((batch, self.conv_width - 1, self.lru_width), self.dtype)
    return HawkCarry(window, jnp.zeros((batch, self.lru_width)), jnp.ones((), bool))
