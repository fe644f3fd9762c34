"""What every training stage's section of a config has."""

from ml_collections import ConfigDict


def stage(**kwargs) -> ConfigDict:
  """A training stage: optimiser, lengths and intervals (in updates)."""
  return ConfigDict(
    {
      'steps': 0,
      'batch': 0,
      'optimiser': 'adamw',  # or 'muon'
      'learning_rate': 1e-3,
      'weight_decay': 0.0,
      'schedule': 'constant',
      'warmup_steps': 0,
      'clip_norm': 0.0,  # 0 leaves gradients alone.
      'updates_per_call': 50,
      'eval_every': 0,
      'eval_batch': 512,
      'checkpoint_every': 0,
      **kwargs,
    }
  )
