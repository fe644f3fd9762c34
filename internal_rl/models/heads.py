"""Likelihoods of actions and observations, and the linear heads that produce them (App. D.1).

Distributions are pytrees; `log_prob`, `entropy` and the divergences are in nats, summed over the
event's dimensions. Everything here is float32, whatever the backbone computes in.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int, Key, Shaped

from internal_rl.models.layers import dense, float32


@struct.dataclass
class Categorical:
  """One of `n` outcomes; an event is its index."""

  logits: Float[Array, '*b n']

  def log_prob(self, x: Int[Array, '*b']) -> Float[Array, '*b']:
    log_probs = jax.nn.log_softmax(self.logits)
    return jnp.sum(log_probs * jax.nn.one_hot(x, self.logits.shape[-1]), axis=-1)

  def sample(self, key: Key[Array, '']) -> Int[Array, '*b']:
    return jax.random.categorical(key, self.logits)

  def mode(self) -> Int[Array, '*b']:
    return jnp.argmax(self.logits, axis=-1)

  def entropy(self) -> Float[Array, '*b']:
    log_probs = jax.nn.log_softmax(self.logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


@struct.dataclass
class DiagonalGaussian:
  """Independent normals; an event is a vector."""

  mean: Float[Array, '*b n']
  log_std: Float[Array, '*b n']

  def log_prob(self, x: Float[Array, '*b n']) -> Float[Array, '*b']:
    standardised = (x - self.mean) * jnp.exp(-self.log_std)
    per_dim = -0.5 * (jnp.square(standardised) + math.log(2 * math.pi)) - self.log_std
    return jnp.sum(per_dim, axis=-1)

  def sample(self, key: Key[Array, '']) -> Float[Array, '*b n']:
    noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
    return self.mean + jnp.exp(self.log_std) * noise

  def mode(self) -> Float[Array, '*b n']:
    return self.mean

  def entropy(self) -> Float[Array, '*b']:
    return jnp.sum(self.log_std + 0.5 * (1 + math.log(2 * math.pi)), axis=-1)

  def kl_to_standard_normal(self) -> Float[Array, '*b']:
    """`KL(self || N(0, I))`, the regulariser of Eq. 3."""
    variance = jnp.exp(2 * self.log_std)
    return jnp.sum(0.5 * (variance + jnp.square(self.mean) - 1) - self.log_std, axis=-1)


@struct.dataclass
class CategoricalGrid:
  """A gridworld observation: each channel (colour, wall, agent) is in exactly one of the cells.

  An event is the flat 0/1 observation `[..., cells * channels]`, cells major.
  """

  logits: Float[Array, '*b cells channels']

  def log_prob(self, x: Shaped[Array, '*b n']) -> Float[Array, '*b']:
    log_probs = jax.nn.log_softmax(self.logits, axis=-2)
    return jnp.sum(log_probs * float32(x).reshape(log_probs.shape), axis=(-2, -1))

  def _flat(self, cell: Int[Array, '*b channels']) -> Float[Array, '*b n']:
    one_hot = jax.nn.one_hot(cell, self.logits.shape[-2], axis=-2)
    return one_hot.reshape(*self.logits.shape[:-2], -1)

  def sample(self, key: Key[Array, '']) -> Float[Array, '*b n']:
    return self._flat(jax.random.categorical(key, self.logits, axis=-2))

  def mode(self) -> Float[Array, '*b n']:
    return self._flat(jnp.argmax(self.logits, axis=-2))

  def entropy(self) -> Float[Array, '*b']:
    log_probs = jax.nn.log_softmax(self.logits, axis=-2)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=(-2, -1))


@struct.dataclass
class Bernoulli:
  """Independent bits; an event is a flat 0/1 vector."""

  logits: Float[Array, '*b n']

  def log_prob(self, x: Shaped[Array, '*b n']) -> Float[Array, '*b']:
    return jnp.sum(float32(x) * self.logits - jax.nn.softplus(self.logits), axis=-1)

  def sample(self, key: Key[Array, '']) -> Float[Array, '*b n']:
    return float32(jax.random.bernoulli(key, jax.nn.sigmoid(self.logits)))

  def mode(self) -> Float[Array, '*b n']:
    return float32(self.logits > 0)

  def entropy(self) -> Float[Array, '*b']:
    p = jax.nn.sigmoid(self.logits)
    return jnp.sum(jax.nn.softplus(self.logits) - p * self.logits, axis=-1)


@struct.dataclass
class Predictions:
  """What the model expects next, a distribution each: `a_t` and `o_{t+1}`.

  Attributes:
    action: distribution of the action at every position.
    observation: distribution of the next observation; None without an observation head.
  """

  action: Any
  observation: Any = None


class CategoricalHead(nn.Module):
  """Logits of `n` outcomes."""

  n: int
  init_scale: float = 0.1

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> Categorical:
    return Categorical(dense(self.n, self.init_scale)(float32(x)))


class BernoulliHead(nn.Module):
  """Logits of `n` independent bits."""

  n: int
  init_scale: float = 0.1

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> Bernoulli:
    return Bernoulli(dense(self.n, self.init_scale)(float32(x)))


class CategoricalGridHead(nn.Module):
  """Logits of every channel's cell; the likelihood of observations is open in the paper."""

  cells: int
  channels: int
  init_scale: float = 0.1

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> CategoricalGrid:
    logits = dense(self.cells * self.channels, self.init_scale)(float32(x))
    return CategoricalGrid(logits.reshape(*x.shape[:-1], self.cells, self.channels))


class GaussianHead(nn.Module):
  """Means of `n` numbers, with a learned diagonal covariance that no input changes (App. D.1).

  Attributes:
    n: dimensions of the event.
    initial_log_std: starting value of every log standard deviation; the paper leaves it open.
    min_log_std: smooth lower bound, so that the likelihood of a deterministic target stays finite;
      the paper leaves it open.
    init_scale: variance scaling of the kernel.
  """

  n: int
  initial_log_std: float = 0.0
  min_log_std: float = -5.0
  init_scale: float = 0.1

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> DiagonalGaussian:
    mean = dense(self.n, self.init_scale)(float32(x))
    init = nn.initializers.constant(self.initial_log_std)
    log_std = jnp.logaddexp(self.param('log_std', init, (self.n,)), self.min_log_std)
    return DiagonalGaussian(mean, jnp.broadcast_to(log_std, mean.shape))
