"""Policy gradients without a critic (App. C.5, Eq. 10)."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float


@struct.dataclass
class SurrogateStats:
  """How far an update has moved the policy.

  Attributes:
    clipped: share of decisions whose probability ratio lies outside the clip range.
    approx_kl: estimate of KL(old || new), nats per decision.
  """

  clipped: Float[Array, '']
  approx_kl: Float[Array, '']


def advantages(returns: Float[Array, ' b']) -> Float[Array, ' b']:
  """Returns each trajectory's return normalised over the batch, `(R - mean) / (std + 1e-3)`."""
  return (returns - returns.mean()) / (returns.std() + 1e-3)


def surrogate_loss(
  log_prob: Float[Array, 'b m'],
  old_log_prob: Float[Array, 'b m'],
  advantage: Float[Array, ' b'],
  mask: Bool[Array, 'b m'],
  clip: float,
) -> tuple[Float[Array, ''], SurrogateStats]:
  """PPO's clipped surrogate, with one advantage for a whole trajectory.

  Args:
    log_prob: log-probability of the decisions under the policy being trained.
    old_log_prob: the same under the policy that took them.
    advantage: advantage of each trajectory.
    mask: True on real decisions.
    clip: clip range of the probability ratio; the paper leaves it open.

  Returns:
    The loss, averaged over real decisions, and statistics.
  """
  # Padding has no meaningful ratio; it must not reach exp, whose gradient could be infinite there.
  log_ratio = jnp.where(mask, log_prob - old_log_prob, 0.0)
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
  gain = jnp.minimum(ratio * advantage[:, None], clipped * advantage[:, None])
  mean = lambda x: jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)
  stats = SurrogateStats(mean(jnp.abs(ratio - 1) > clip), mean(ratio - 1 - log_ratio))
  return -mean(gain), stats
