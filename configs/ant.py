"""Ant-pinpad, at three scales.

  python -m experiments.expert --config=configs/ant.py:small --workdir=runs/ant

'paper' is App. A.2 and C of the paper; 'small' hours on one CPU core or minutes of GPU; 'smoke'
seconds, to see that everything runs. Every field can be overridden from the command line,
`--config.expert.batch=256`. The world is the same at every scale: it is as small as the paper's.
"""

from ml_collections import ConfigDict

from configs import stage


def get_config(preset: str = 'small') -> ConfigDict:
  """Returns the config of one scale: 'paper', 'small' or 'smoke'."""
  presets = {'paper': lambda config: None, 'small': _small, 'smoke': _smoke}
  return stage.select(preset, _paper(), presets)


def _paper() -> ConfigDict:
  """App. A.2 and C, Table A3."""
  config = ConfigDict()
  config.preset = 'paper'
  config.seed = 0
  config.env = ConfigDict(
    {
      'kind': 'ant',
      'grid_size': 4,
      'num_objects': 4,
      'num_walls': 1,
      'time_limit': 500,
      'family': 'ant',
      'cell_size': 2.0,  # [open] metres
      'off_grid': 'clamp',  # [open] or 'end'
      # [open] all of the simulation, see envs/ant_body.py
      'body': {
        'contacts': 'feet_torso',
        'frame_skip': 5,
        'timestep': 0.01,
        'gear': 150.0,
        'iterations': 1,
        'ls_iterations': 4,
      },
    }
  )
  # Table A3 counts 256k gradient steps: 16k updates of 4 passes in 4 parts each.
  config.expert = stage.section(
    steps=16_000,
    batch=1024,  # Episodes side by side.
    learning_rate=3e-4,
    weight_decay=0.03,
    clip_norm=1.0,
    updates_per_call=10,
    eval_every=500,
    eval_batch=1024,
    checkpoint_every=500,
  )
  config.expert.width = 256
  config.expert.depth = 3
  config.expert.centring = 1.0
  config.expert.unroll = 32
  config.expert.epochs = 4
  config.expert.minibatches = 4
  config.expert.discount = 0.98
  config.expert.gae_lambda = 0.95
  config.expert.clip = 0.2
  config.expert.entropy = 3e-4
  config.expert.reward_scale = 0.1
  # A control step, see experts/ant_ppo.py.
  config.expert.reward = ConfigDict(
    {
      'velocity': 1.0,
      'max_speed': 2.5,
      'alive': 0.5,
      'control': 0.02,
      'bounce': 0.2,
      'visit': 5.0,
      'failure': 10.0,
    }
  )
  return config


def _small(config: ConfigDict) -> None:
  """The same world and expert, for one CPU core."""
  config.expert.update(
    steps=8000, batch=128, eval_every=200, eval_batch=128, checkpoint_every=100, width=128, depth=2
  )


def _smoke(config: ConfigDict) -> None:
  """Everything once, in seconds; the numbers mean nothing."""
  config.env.time_limit = 4
  config.expert.update(
    steps=2,
    batch=4,
    updates_per_call=1,
    eval_every=1,
    eval_batch=4,
    checkpoint_every=1,
    width=8,
    depth=1,
    unroll=2,
    epochs=2,
    minibatches=2,
  )
