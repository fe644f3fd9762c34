"""The metacontroller's objective (Eqs. 3 and 9)."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from internal_rl.metacontroller.metacontroller import Codes

KL_WEIGHTS = ('all', 'gated')


@struct.dataclass
class Terms:
  """Terms of the objective, in nats per step.

  Attributes:
    loss: what is minimised.
    nll: action negative log-likelihood under control.
    kl: KL of the posterior to N(0, I), weighted over steps as in the loss.
  """

  loss: Float[Array, '']
  nll: Float[Array, '']
  kl: Float[Array, '']


def masked_mean(values: Float[Array, 'b t'], mask: Bool[Array, 'b t']) -> Float[Array, '']:
  """Averages over the steps that count."""
  return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def objective(
  log_prob: Float[Array, 'b t'],
  codes: Codes,
  mask: Bool[Array, 'b t'],
  alpha: Float[Array, ''] | float,
  kl_weight: str = 'all',
) -> Terms:
  """Returns `-log p(a_t | o_{1:t}, z_{1:t}) + alpha KL(N(mu_t, Sigma_t) || N(0, I))`, averaged.

  Eq. 9 sums over time; dividing by the number of steps only rescales the gradient, to which AdamW
  is indifferent, and makes the terms readable as nats per step.

  Args:
    log_prob: log-likelihood of the demonstrated actions under control.
    codes: the metacontroller's inference.
    mask: True on real steps.
    alpha: KL strength.
    kl_weight: 'all' charges every step in full; 'gated' weighs a step by its beta, so that a
      proposal which the gate ignores is free. The paper leaves it open.
  """
  if kl_weight not in KL_WEIGHTS:
    raise ValueError(f'discover.kl_weight={kl_weight!r}: must be one of {KL_WEIGHTS}')
  kl = codes.posterior.kl_to_standard_normal()
  if kl_weight == 'gated':
    kl = kl * codes.beta.mean(-1)
  nll, kl = -masked_mean(log_prob, mask), masked_mean(kl, mask)
  return Terms(nll + alpha * kl, nll, kl)
