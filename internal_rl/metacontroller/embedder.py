"""The non-causal view of a whole sequence, `s = f_emb(e_{1:T})` (App. D.2, Eq. 12)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from internal_rl.models.hawk import HawkBlock

SUMMARIES = ('last', 'mean', 'per_step')


class SequenceEmbedder(nn.Module):
  """A stack of state-space blocks.

  Attributes:
    size: width of the embedding, `n_s` (32 in Tables A9 and A10).
    num_blocks: layers of the state-space model, `L_emb`; the paper leaves it open.
    summary: what of the model's output is `s`; the paper leaves it open. 'last' is the output at
      the last step of an episode and 'mean' the average over its steps: one vector for the whole
      sequence. 'per_step' runs backwards in time, so that `s_t` describes `e_t .. e_T`.
  """

  size: int
  num_blocks: int = 1
  summary: str = 'last'

  @nn.compact
  def __call__(self, e: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t s']:
    """Returns `s` at every step, the same at all of them unless `summary` is 'per_step'."""
    if self.summary not in SUMMARIES:
      raise ValueError(f'metacontroller.summary={self.summary!r}: must be one of {SUMMARIES}')
    backwards = self.summary == 'per_step'
    x = nn.Dense(self.size)(e) * mask[..., None]
    x = jnp.flip(x, 1) if backwards else x
    for _ in range(self.num_blocks):
      x = HawkBlock(width=self.size, mlp_width=2 * self.size, lru_width=self.size, num_heads=1)(x)
    x = nn.RMSNorm()(x)
    if backwards:
      return jnp.flip(x, 1)
    weight = mask if self.summary == 'mean' else _last(mask)
    s = jnp.einsum('bts,bt->bs', x, weight / jnp.maximum(weight.sum(-1, keepdims=True), 1))
    return jnp.broadcast_to(s[:, None], x.shape)


def _last(mask: Bool[Array, 'b t']) -> Bool[Array, 'b t']:
  """Marks the last step of each episode."""
  return mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
