"""The pieces that every backbone shares: initialisers, norms, the MLP and the residual block."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

_EPSILON = 1e-6  # added to the mean square, as in flax
_ACTIVATIONS = {'relu': nn.relu, 'gelu': nn.gelu, 'silu': nn.silu}


def kernel_init(scale: float, batch_axis: tuple[int, ...] = ()) -> nn.initializers.Initializer:
  """Truncated normal of variance `scale / fan_in`; the paper's scale is 0.1 (Tables A15, A16)."""
  return nn.initializers.variance_scaling(
    scale, 'fan_in', 'truncated_normal', batch_axis=batch_axis
  )


@jax.custom_vjp
def matmul(x: Float[Array, '*b i'], kernel: Float[Array, 'i o']) -> Float[Array, '*b o']:
  """Returns `x @ kernel`.

  JAX derives the kernel's gradient as the transpose of `grad^T x`, for which XLA on a CPU first
  copies the transposed `grad` to memory. Asking for `x^T grad` spares a small transformer a sixth
  of its training time.
  """
  return x @ kernel


def _matmul_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_backward(residuals, grad):
  x, kernel = residuals
  # As matrices: of more axes, XLA would first write out the transpose of x after all.
  rows = lambda y: y.reshape(-1, y.shape[-1])
  return grad @ kernel.T, jnp.tensordot(rows(x), rows(grad), (0, 0))


matmul.defvjp(_matmul_forward, _matmul_backward)


def _dot_general(x, kernel, dimension_numbers, precision=None):
  del dimension_numbers, precision  # nn.Dense always contracts x's last axis with kernel's first
  return matmul(x, kernel)


def dense(features: int, init_scale: float, dtype: Any = jnp.float32) -> nn.Dense:
  """A linear layer with the paper's initialiser and a zero bias; parameters are float32."""
  return nn.Dense(
    features, dtype=dtype, kernel_init=kernel_init(init_scale), dot_general=_dot_general
  )


@jax.custom_vjp
def rms_norm(x: Float[Array, '*b d'], scale: Float[Array, ' d']) -> Float[Array, '*b d']:
  """Returns `x` divided by its root mean square over features, times `scale`.

  In the backward pass XLA on a CPU would write `scale` out for every row before it sums over
  features; a product with a vector does not, and spares a small transformer a tenth of its
  training time.
  """
  return _rms_norm_forward(x, scale)[0]


def _rms_norm_forward(x, scale):
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)
  return x * inverse * _as_row(scale, x), (x, inverse, scale)


def _rms_norm_backward(residuals, grad):
  x, inverse, scale = residuals
  normed = x * inverse
  # In full precision, which on accelerators is not the default of a product.
  along = jnp.matmul(grad * normed, scale, precision=jax.lax.Precision.HIGHEST) / x.shape[-1]
  grad_x = inverse * (grad * _as_row(scale, x) - normed * along[..., None])
  return grad_x, jnp.sum(grad * normed, axis=range(x.ndim - 1))


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def _as_row(vector, x):
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))


class RMSNorm(nn.Module):
  """`rms_norm` with a learned scale; computes in float32 and returns `dtype`."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    return rms_norm(float32(x), scale).astype(self.dtype)


_NORMS = {'rms': RMSNorm, 'layer': nn.LayerNorm}


def lookup(table: dict[str, Any], field: str, name: str) -> Any:
  """Returns `table[name]`, or raises a ValueError that lists what `field` may be."""
  if name not in table:
    raise ValueError(f'{field}={name!r}: must be one of {sorted(table)}')
  return table[name]


def normalisation(kind: str, dtype: Any) -> nn.Module:
  """Returns the norm of that kind, 'rms' or 'layer'."""
  return lookup(_NORMS, 'norm', kind)(dtype=dtype)


class MLP(nn.Module):
  """Two linear layers with an activation between them.

  Attributes:
    width: features in and out.
    hidden: features between.
    activation: 'relu', 'gelu' or 'silu'.
    init_scale: variance scaling of the kernels.
    dtype: compute dtype.
  """

  width: int
  hidden: int
  activation: str = 'relu'
  init_scale: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    x = dense(self.hidden, self.init_scale, self.dtype)(x)
    x = lookup(_ACTIVATIONS, 'activation', self.activation)(x)
    return dense(self.width, self.init_scale, self.dtype)(x)


class ResidualBlock(nn.Module, abc.ABC, kw_only=True):
  """`x + mix(norm(x))`, then `x + mlp(norm(x))` (App. D.1); subclasses say how time is mixed.

  A mixing module maps `[B, T, D]` to `[B, T, D]` causally, and has `step(carry, x[B, D])`, which
  gives the same outputs one time step at a time.

  Attributes:
    width: features of the residual stream, `n_e`.
    mlp_width: hidden features of the MLP.
    activation: of the MLP; ReLU in Table A15, open for the transformer.
    norm: 'rms' or 'layer'; the paper leaves it open.
    init_scale: variance scaling of every kernel.
    dtype: compute dtype; parameters are float32.
  """

  width: int
  mlp_width: int
  activation: str = 'relu'
  norm: str = 'rms'
  init_scale: float = 0.1
  dtype: Any = jnp.float32

  @abc.abstractmethod
  def make_mixing(self) -> nn.Module:
    """Returns the module that mixes time."""

  @abc.abstractmethod
  def initial_carry(self, batch: int, max_length: int) -> Any:
    """Returns what `step` carries before the first of at most `max_length` steps."""

  def setup(self) -> None:
    self.mixing_norm = normalisation(self.norm, self.dtype)
    self.mixing = self.make_mixing()
    self.mlp_norm = normalisation(self.norm, self.dtype)
    self.mlp = MLP(self.width, self.mlp_width, self.activation, self.init_scale, self.dtype)

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    """Maps a whole sequence; output `t` depends on inputs `1..t` alone."""
    x = x + self.mixing(self.mixing_norm(x))
    return x + self.mlp(self.mlp_norm(x))

  def step(self, carry: Any, x: Float[Array, 'b d']) -> tuple[Any, Float[Array, 'b d']]:
    """Maps one time step and returns the next carry first."""
    carry, mixed = self.mixing.step(carry, self.mixing_norm(x))
    x = x + mixed
    return carry, x + self.mlp(self.mlp_norm(x))


def float32(x: jax.Array) -> jax.Array:
  """Casts to float32, the precision of recurrences, logits and losses."""
  return x.astype(jnp.float32)
