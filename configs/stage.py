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


def metacontroller(**kwargs) -> ConfigDict:
  """Tables A9 and A10; see `internal_rl.metacontroller.Metacontroller` for what is open."""
  return ConfigDict(
    {
      'code_size': 8,
      'encoder_hidden': 64,
      'initial_std': 1.0,  # [open]
      'decoder_hidden': 32,
      'decoder_activation': 'tanh',  # [open] or 'relu'
      'history_size': 32,
      'embedding_size': 32,
      'embedder_blocks': 1,
      'summary': 'last',
      'switch_hidden': 32,
      'switch_bias': 0.0,
      'first_gate': 'open',
      'threshold': 0.5,
      'temperature': 1.0,
      'rank': 16,  # Of the controller 'low_rank'.
      'controller_scale': 0.1,
      'normalise': True,
      **kwargs,
    }
  )


def discover(**kwargs) -> ConfigDict:
  """A `section` for metacontrollers."""
  config = section(**kwargs)
  config.alphas = (0.0, 0.05, 0.1, 0.17, 0.3, 0.5, 1.0)
  config.seeds = 1
  config.gate = 'soft'  # or 'gumbel' (App. C.6), or 'open' (App. C.4.1)
  config.observation_weight = 0.0  # lambda of Eq. 3
  config.kl_weight = 'all'  # [open] or 'gated'
  # [open] alpha is 0 for so many updates, then grows linearly to its value over so many more.
  config.alpha_delay = 0
  config.alpha_ramp = 0
  config.hard_steps = 0  # [open] last updates, with the gate thresholded
  config.labelled_steps = 0  # A ceiling, not the method: first updates, told the true subgoals.
  return config


def policy() -> ConfigDict:
  """One Hawk block that reads the stream at decisions (App. C.5, Table A15)."""
  return ConfigDict(
    {'width': 256, 'mlp_width': 512, 'num_heads': 8, 'initial_std': 1.0, 'normalise': True}
  )


def reinforce(**kwargs) -> ConfigDict:
  """A `section` for reinforcement learning."""
  config = section(**kwargs)
  del config.learning_rate
  config.learning_rates = (3e-5,)  # one run each; the paper scans 3e-6 to 3e-4
  config.raw_learning_rates = (3e-5,)
  config.seeds = 1
  config.epochs = 1  # [open]
  config.minibatches = 1  # [open]
  config.clip = 0.2  # [open]
  config.entropy_coefficient = 0.0
  return config
