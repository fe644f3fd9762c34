"""The posterior over codes, `mu_t, Sigma_t = f_enc(e_t, h_{t-1}, s)` (App. D.2, Eq. 13)."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from internal_rl.models.heads import DiagonalGaussian

LOG_STD_RANGE = (-6.0, 2.0)  # Keeps the likelihood finite; neither end is reached in practice.


class Encoder(nn.Module):
  """One hidden layer from the stream, its history and the whole sequence to a Gaussian.

  Attributes:
    hidden: width of the hidden layer (64 in Tables A9 and A10).
    code_size: width of a code, `n_z`.
    initial_std: standard deviation of the posterior at the start; the paper leaves it open.
  """

  hidden: int
  code_size: int
  initial_std: float = 1.0

  @nn.compact
  def __call__(
    self, e: Float[Array, 'b t d'], h: Float[Array, 'b t h'], s: Float[Array, 'b t s']
  ) -> DiagonalGaussian:
    hidden = nn.relu(nn.Dense(self.hidden)(jnp.concatenate([e, h, s], -1)))
    mean, log_std = jnp.split(nn.Dense(2 * self.code_size)(hidden), 2, -1)
    log_std = log_std + math.log(self.initial_std)
    return DiagonalGaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))
