"""From codes to controllers, `U_t = f_hyp(z_t)` (App. D.2, Eq. 17)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from internal_rl.control.controller import Controller

ACTIVATIONS = {'tanh': nn.tanh, 'relu': nn.relu}


class Decoder(nn.Module):
  """A hypernetwork with one hidden layer.

  Attributes:
    width: width of the residual stream, `n_e`.
    hidden: width of the hidden layer (32 in Tables A9 and A10).
    kind: 'low_rank' or 'full'; see `Controller`.
    rank: rank of `U`; low rank only.
    init_scale: variance scaling of the controller's weights.
    activation: 'tanh' or 'relu'; the paper leaves it open. While codes mean nothing yet, the
      likelihood gains by ignoring them: rectified units then die, and no code can ever matter.
  """

  width: int
  hidden: int
  kind: str = 'low_rank'
  rank: int = 16
  init_scale: float = 0.1
  activation: str = 'tanh'

  def setup(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f'metacontroller.decoder_activation={self.activation!r}: must be one of '
        f'{sorted(ACTIVATIONS)}'
      )
    self.layer = nn.Dense(self.hidden)
    # One more entry in the basis is the bias of the hypernetwork's output.
    self.controller = Controller(self.width, self.hidden + 1, self.kind, self.rank, self.init_scale)

  def basis(self, z: Float[Array, '*b z']) -> Float[Array, '*b k']:
    """Returns the controller of code `z`, as weights of the learned matrices."""
    hidden = ACTIVATIONS[self.activation](self.layer(z))
    return jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], -1)

  def __call__(self, z: Float[Array, '*b z'], e: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Returns the controlled stream, `e + U e` (Eq. 18)."""
    return e + self.controller(self.basis(z), e)
