"""The policy over codes, `pi(z | e_1, ..)`: internal RL's only trained part (App. C.5)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from internal_rl.models.hawk import HawkBlock
from internal_rl.models.heads import DiagonalGaussian


class CodePolicy(nn.Module):
  """A one-layer Hawk model that reads the residual stream at decision points only.

  Its Gaussian head starts at the prior N(0, I), which the metacontroller's KL term made the natural
  start; the paper leaves the start open.

  Attributes:
    code_size: `n_z`.
    width: 256 in App. C.5.
    mlp_width: hidden features of the block's MLP; the paper leaves it open.
    num_heads: blocks on the diagonals of Hawk's gates.
    initial_std: spread of the codes at the start; the paper leaves it open.
    normalise: whether to normalise the stream before reading it; the paper leaves it open.
  """

  code_size: int
  width: int = 256
  mlp_width: int = 512
  num_heads: int = 8
  initial_std: float = 1.0
  normalise: bool = True

  def setup(self):
    self.read_norm = nn.RMSNorm()
    self.read = nn.Dense(self.width)
    self.block = self._block()
    self.norm = nn.RMSNorm()
    self.head = nn.Dense(2 * self.code_size, kernel_init=nn.initializers.zeros)

  def _block(self, **kwargs) -> HawkBlock:
    return HawkBlock(
      width=self.width,
      mlp_width=self.mlp_width,
      lru_width=self.width,
      num_heads=self.num_heads,
      **kwargs,
    )

  def _embed(self, e: Float[Array, '*b d']) -> Float[Array, '*b w']:
    return self.read(self.read_norm(e) if self.normalise else e)

  def _distribution(self, x: Float[Array, '*b w']) -> DiagonalGaussian:
    mean, log_std = jnp.split(self.head(self.norm(x)), 2, -1)
    return DiagonalGaussian(mean, jnp.log(self.initial_std) + log_std)

  def __call__(self, e: Float[Array, 'b m d']) -> DiagonalGaussian:
    """Returns the distribution of codes at each of a sequence of decisions."""
    return self._distribution(self.block(self._embed(e)))

  def initial_carry(self, batch: int) -> Any:
    """Returns what the policy remembers before its first decision."""
    return self._block(parent=None).initial_carry(batch, max_length=0)

  def step(self, carry: Any, e: Float[Array, 'b d']) -> tuple[Any, DiagonalGaussian]:
    """Returns the distribution of codes at the next decision."""
    carry, x = self.block.step(carry, self._embed(e))
    return carry, self._distribution(x)
