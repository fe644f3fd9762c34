"""The metacontroller's causal memory, `h_t = GRU(e_t, h_{t-1})` (App. D.2, Eq. 11)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class History(nn.Module):
  """A gated recurrent unit whose input products are hoisted out of the scan over time.

  Attributes:
    size: width of the memory, `n_h`.
  """

  size: int

  def setup(self):
    self.input = nn.Dense(3 * self.size)
    self.recurrent = nn.Dense(3 * self.size, kernel_init=nn.initializers.orthogonal())

  def _cell(self, h: Float[Array, 'b h'], inputs: Float[Array, 'b h3']) -> Float[Array, 'b h']:
    reset_in, update_in, new_in = jnp.split(inputs, 3, -1)
    reset_h, update_h, new_h = jnp.split(self.recurrent(h), 3, -1)
    update = nn.sigmoid(update_in + update_h)
    new = nn.tanh(new_in + nn.sigmoid(reset_in + reset_h) * new_h)
    return (1 - update) * new + update * h

  def initial(self, batch: int) -> Float[Array, 'b h']:
    """Returns `h_0`, zeros."""
    return jnp.zeros((batch, self.size))

  def step(self, h: Float[Array, 'b h'], e: Float[Array, 'b d']) -> Float[Array, 'b h']:
    """Returns `h_t` from `h_{t-1}` and `e_t`."""
    return self._cell(h, self.input(e))

  def __call__(self, e: Float[Array, 'b t d']) -> Float[Array, 'b t h']:
    """Returns `h_0 .. h_{T-1}`: at time `t`, what was remembered before `e_t`."""
    scan = nn.transforms.scan(
      lambda module, h, inputs: (module._cell(h, inputs), h),
      variable_broadcast='params',
      split_rngs={'params': False},
      in_axes=1,
      out_axes=1,
    )
    return scan(self, self.initial(e.shape[0]), self.input(e))[1]
