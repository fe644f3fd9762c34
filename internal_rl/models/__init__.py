"""Who predicts: autoregressive sequence models with an open residual stream (App. D.1)."""

from internal_rl.models.hawk import HawkBlock, HawkCarry
from internal_rl.models.heads import (
  Bernoulli,
  BernoulliHead,
  Categorical,
  CategoricalGrid,
  CategoricalGridHead,
  CategoricalHead,
  DiagonalGaussian,
  GaussianHead,
  Predictions,
)
from internal_rl.models.sequence_model import Carry, SequenceModel
from internal_rl.models.transformer import KVCache, TransformerBlock

__all__ = [
  'Bernoulli',
  'BernoulliHead',
  'Carry',
  'Categorical',
  'CategoricalGrid',
  'CategoricalGridHead',
  'CategoricalHead',
  'DiagonalGaussian',
  'GaussianHead',
  'HawkBlock',
  'HawkCarry',
  'KVCache',
  'Predictions',
  'SequenceModel',
  'TransformerBlock',
]
