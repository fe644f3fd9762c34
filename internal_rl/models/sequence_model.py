"""The base autoregressive model, cut in two at the layer that is controlled (App. D.1, Eq. 5)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Shaped

from internal_rl.models.hawk import HawkBlock
from internal_rl.models.heads import Predictions
from internal_rl.models.layers import dense, normalisation
from internal_rl.models.transformer import TransformerBlock

Carries = tuple[Any, ...]  # one per block


@struct.dataclass
class Carry:
  """What the blocks below and above the controlled layer carry between steps."""

  lower: Carries
  upper: Carries


class SequenceModel(nn.Module, kw_only=True):
  """Predicts `a_t` and `o_{t+1}` from `o_{1:t}`, with the residual stream open at one layer.

  The residual stream has `num_blocks + 1` layers: 0 is the embedding of the observations and `l`
  the output of block `l`. `lower` ends at the controlled layer and `upper` begins there, so that
  `upper(lower(o))` is the model and `upper(lower(o) + U lower(o))` the controlled model.

  Attributes:
    kind: 'transformer' (Table A4) or 'hawk' (Table A5).
    width: features of the residual stream, `n_e`.
    num_blocks: number of blocks, `L`.
    num_heads: attention heads, or blocks on the diagonals of Hawk's gates.
    mlp_width: hidden features of the MLPs.
    action_head: module that maps `[..., width]` to a distribution of actions.
    observation_head: likewise for the next observation; None where lambda is 0. Its likelihood is
      open in the paper.
    lru_width: features of Hawk's recurrence; None for `width`.
    conv_width: steps that Hawk's temporal convolution sees.
    relative_buckets: relative biases per head of the transformer.
    relative_max_distance: distance from which on all share the last bucket.
    activation: of the MLPs: 'relu', 'gelu' or 'silu'; open in the paper for the transformer.
    norm: 'rms' or 'layer'; open in the paper.
    init_scale: variance scaling of every kernel.
    embedding_scale: that of the embedding's kernel, whose inputs may be mostly zeros; None for
      `init_scale`.
    controlled_layer: in `0..num_blocks`; None for the middle, `num_blocks // 2`.
    dtype: compute dtype; parameters, recurrences and predictions are float32.
    remat: recompute blocks in the backward pass instead of storing their activations.
  """

  kind: str
  width: int
  num_blocks: int
  num_heads: int
  mlp_width: int
  action_head: nn.Module
  observation_head: nn.Module | None = None
  lru_width: int | None = None
  conv_width: int = 4
  relative_buckets: int = 32
  relative_max_distance: int = 128
  activation: str = 'relu'
  norm: str = 'rms'
  init_scale: float = 0.1
  embedding_scale: float | None = None
  controlled_layer: int | None = None
  dtype: Any = jnp.float32
  remat: bool = False

  def setup(self) -> None:
    scale = self.init_scale if self.embedding_scale is None else self.embedding_scale
    self.embedding = dense(self.width, scale, self.dtype)
    self.blocks = [self._make_block() for _ in range(self.num_blocks)]
    self.final_norm = normalisation(self.norm, self.dtype)

  def __call__(self, observations: Shaped[Array, 'b t o']) -> Predictions:
    """Returns the predictions at every position: `upper(lower(observations))`."""
    return self.upper(self.lower(observations))

  def lower(
    self, observations: Shaped[Array, 'b t o'], layer: int | None = None
  ) -> Float[Array, 'b t d']:
    """Returns `e_{t,l}` at `layer`, by default the controlled one."""
    e = self._embed(observations)
    for block in self.blocks[: self._resolve(layer)]:
      e = block(e)
    return e

  def upper(self, e: Float[Array, 'b t d'], layer: int | None = None) -> Predictions:
    """Returns the predictions that follow from the residual stream at `layer`."""
    for block in self.blocks[self._resolve(layer) :]:
      e = block(e)
    return self._predict(e)

  def residuals(self, observations: Shaped[Array, 'b t o']) -> Float[Array, 'l b t d']:
    """Returns the residual stream at every layer, `0..num_blocks`, for probes (App. C.2)."""
    stream = [self._embed(observations)]
    for block in self.blocks:
      stream.append(block(stream[-1]))
    return jnp.stack(stream)

  def initial_carry(self, batch: int, max_length: int, layer: int | None = None) -> Carry:
    """Returns the carry of `batch` sequences, cut at `layer`, before the first step.

    Needs no parameters: call it on the module itself. A transformer takes at most `max_length`
    steps and gives NaN after that.
    """
    block, layer = self._make_block(parent=None), self._resolve(layer)
    carries = tuple(block.initial_carry(batch, max_length) for _ in range(self.num_blocks))
    return Carry(lower=carries[:layer], upper=carries[layer:])

  def lower_step(
    self, carry: Carries, observation: Shaped[Array, 'b o']
  ) -> tuple[Carries, Float[Array, 'b d']]:
    """One step of `lower`, from `Carry.lower`, whose length says where the model is cut."""
    return self._step(self.blocks[: len(carry)], carry, self._embed(observation))

  def upper_step(self, carry: Carries, e: Float[Array, 'b d']) -> tuple[Carries, Predictions]:
    """One step of `upper`, from `Carry.upper`, whose length says where the model is cut."""
    carry, e = self._step(self.blocks[self.num_blocks - len(carry) :], carry, e)
    return carry, self._predict(e)

  def _resolve(self, layer: int | None = None) -> int:
    """Returns `layer`, by default the controlled one, after checking that it exists."""
    layer = self.controlled_layer if layer is None else layer
    layer = self.num_blocks // 2 if layer is None else layer
    if not 0 <= layer <= self.num_blocks:
      raise ValueError(
        f'model.controlled_layer={layer}: must be between 0 and model.num_blocks'
        f' ({self.num_blocks})'
      )
    return layer

  def _embed(self, observations: Shaped[Array, '*b o']) -> Float[Array, '*b d']:
    return self.embedding(observations.astype(self.dtype))

  def _predict(self, e: Float[Array, '*b d']) -> Predictions:
    e = self.final_norm(e)
    return Predictions(
      action=self.action_head(e),
      observation=None if self.observation_head is None else self.observation_head(e),
    )

  def _step(self, blocks, carries: Carries, e: Float[Array, 'b d']):
    updated = []
    for block, carry in zip(blocks, carries, strict=True):
      carry, e = block.step(carry, e)
      updated.append(carry)
    return tuple(updated), e

  def _make_block(self, **kwargs) -> nn.Module:
    kwargs |= {
      'width': self.width,
      'num_heads': self.num_heads,
      'mlp_width': self.mlp_width,
      'activation': self.activation,
      'norm': self.norm,
      'init_scale': self.init_scale,
      'dtype': self.dtype,
    }
    if self.kind == 'transformer':
      block: type[nn.Module] = TransformerBlock
      kwargs['relative_buckets'] = self.relative_buckets
      kwargs['relative_max_distance'] = self.relative_max_distance
    elif self.kind == 'hawk':
      block = HawkBlock
      kwargs['lru_width'] = self.lru_width or self.width
      kwargs['conv_width'] = self.conv_width
    else:
      raise ValueError(f"model.kind={self.kind!r}: must be 'transformer' or 'hawk'")
    return (nn.remat(block) if self.remat else block)(**kwargs)
