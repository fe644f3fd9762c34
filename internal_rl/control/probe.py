"""Linear probes: is the subgoal decodable from the residual stream (App. C.2, Figs. 3, A1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LayerProbes(nn.Module):
  """One linear softmax classifier for each layer of the residual stream, trained side by side.

  Attributes:
    num_layers: layers of the stream, `L + 1`.
    num_subgoals: classes.
  """

  num_layers: int
  num_subgoals: int

  @nn.compact
  def __call__(self, residuals: Float[Array, 'l b t d']) -> Float[Array, 'l b t k']:
    """Returns the logits of the subgoal in force."""
    probes = nn.vmap(
      nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True}, axis_size=self.num_layers
    )
    return probes(self.num_subgoals)(jax.lax.stop_gradient(residuals))


def cross_entropy(
  logits: Float[Array, 'l b t k'], subgoals: Int[Array, 'b t'], mask: Bool[Array, 'b t']
) -> Float[Array, ' l']:
  """Returns each layer's mean cross-entropy, nats a step."""
  chosen = jax.nn.log_softmax(logits) * jax.nn.one_hot(subgoals, logits.shape[-1])[None]
  return -(chosen.sum(-1) * mask[None]).sum((1, 2)) / jnp.maximum(mask.sum(), 1)
