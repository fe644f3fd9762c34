"""Linear controllers of the residual stream, `U e` (App. C.3; App. D.2, Eqs. 17-18).

A controller matrix is a combination of learned matrices with the entries of a `basis` vector as
weights. With a one-hot basis there is one matrix for each label (App. C.3); with the hidden layer
of the hypernetwork as basis it is `U_t = f_hyp(z_t)` (App. D.2). `U` itself is never built: a
`[batch, time, width, width]` tensor would be gigabytes. Both forms contract the basis with products
of `e` and the learned weights instead.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

KINDS = ('low_rank', 'full')


class Controller(nn.Module):
  """Applies `U(basis)` to the residual stream.

  Low rank: `U = (sum_k basis_k A_k) (sum_k basis_k B_k)^T` with `A_k, B_k` of `width x rank`
  (rank 16 in Tables A7 and A9). Full: `U = sum_k basis_k W_k` (Tables A8 and A10).

  Attributes:
    width: width of the residual stream, `n_e`.
    basis_size: entries of the basis.
    kind: 'low_rank' or 'full'.
    rank: rank of `U`, between 1 and `width`; low rank only.
    init_scale: variance scaling of the initialisers; the paper leaves it open.
  """

  width: int
  basis_size: int
  kind: str = 'low_rank'
  rank: int = 16
  init_scale: float = 0.1

  def setup(self):
    if self.kind not in KINDS:
      raise ValueError(f'controller.kind={self.kind!r}: must be one of {KINDS}')
    if self.kind == 'low_rank' and not 1 <= self.rank <= self.width:
      raise ValueError(
        f'controller.rank={self.rank}: must be between 1 and model.width ({self.width})'
      )
    size = (self.basis_size, self.width)
    init = nn.initializers.variance_scaling(
      self.init_scale, 'fan_in', 'truncated_normal', in_axis=1, out_axis=2, batch_axis=0
    )
    if self.kind == 'full':
      self.weight = self.param('weight', init, (*size, self.width))
    else:
      self.read = self.param('read', init, (*size, self.rank))
      self.write = self.param('write', init, (self.basis_size, self.rank, self.width))

  def __call__(self, basis: Float[Array, '*b k'], e: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Returns `U e`."""
    outer = lambda x: (basis[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)
    if self.kind == 'full':
      return outer(e) @ self.weight.reshape(-1, self.width)
    # B_k^T e for every k in one product of the stream with a [width, k * rank] matrix.
    read = e @ jnp.moveaxis(self.read, 1, 0).reshape(self.width, -1)
    latent = jnp.einsum('...kr,...k->...r', read.reshape(*basis.shape, self.rank), basis)
    return outer(latent) @ self.write.reshape(-1, self.width)

  def matrix(self, basis: Float[Array, '*b k']) -> Float[Array, '*b d d']:
    """Builds `U`, for inspection of single controllers."""
    if self.kind == 'full':
      return jnp.einsum('...k,kde->...ed', basis, self.weight)
    read = jnp.einsum('...k,kdr->...dr', basis, self.read)
    write = jnp.einsum('...k,krd->...dr', basis, self.write)
    return write @ jnp.swapaxes(read, -1, -2)
