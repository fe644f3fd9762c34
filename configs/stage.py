"""What the configs of all worlds share: presets, and a training stage's section."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict


def select(
  preset: str, config: ConfigDict, presets: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
  """Returns `config` as changed by one of `presets`.

  Raises:
    ValueError: there is no such preset.
  """
  if preset not in presets:
    raise ValueError(f'config preset {preset!r}: must be one of {", ".join(presets)}')
  presets[preset](config)
  config.preset = preset
  return config


def section(**kwargs) -> ConfigDict:
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
