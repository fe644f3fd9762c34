"""Ant-pinpad, at three scales.

  python -m experiments.pipeline --config=configs/ant.py:small --workdir=runs/ant

'paper' is App. A.2 and C of the paper; 'small' hours on one CPU core or minutes of GPU; 'smoke'
seconds, to see that everything runs. Every field can be overridden from the command line,
`--config.expert.batch=256`. The world is the same at every scale, as small as the paper's; but in
'small' it is observed from the ant's heading, in whose axes torques are simpler functions.
"""

from ml_collections import ConfigDict, config_dict

from configs import stage


def get_config(preset: str = 'small') -> ConfigDict:
  """Returns the config of one scale: 'paper', 'small' or 'smoke'."""
  presets = {'paper': lambda config: None, 'small': _small, 'smoke': _smoke}
  return stage.select(preset, _paper(), presets)


def _paper() -> ConfigDict:
  """App. A.2 and C, Tables A3, A5, A8, A10, A14 and A15."""
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
      'frame': 'world',  # [open] of observations, or 'heading'
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
  # Demonstrations are read from what `collect` left in data.directory, or else in the workdir.
  config.data = ConfigDict(
    {
      'directory': '',
      'horizon': 500,
      'episodes': 102_400,  # [open]
      'episodes_per_shard': 1024,  # The first shard is held out.
      'collect_batch': 1024,  # Episodes side by side.
    }
  )
  config.model = ConfigDict(
    {
      'kind': 'hawk',
      'width': 256,
      'num_blocks': 8,
      'num_heads': 8,
      'mlp_width': 512,
      'activation': 'relu',
      'norm': 'rms',
      'relative_buckets': 32,  # Of a transformer.
      'init_scale': 0.1,
      'embedding_scale': config_dict.placeholder(float),  # None: init_scale
      'controlled_layer': 4,
      'observation_likelihood': 'gaussian',  # [open]
      'min_log_std': -5.0,  # [open] of actions and of observations
      'dtype': 'float32',
      'remat': False,
    }
  )
  config.pretrain = stage.section(
    steps=204_800,
    batch=512,
    learning_rate=3e-4,
    weight_decay=0.03,
    updates_per_call=20,
    eval_every=2000,
    checkpoint_every=2000,
  )
  config.pretrain.observation_weight = 10.0  # lambda of Eq. 5
  # Updates after which the model is kept, to be probed.
  config.pretrain.milestones = (3200, 12_800, 51_200)
  config.probe = stage.section(steps=8000, batch=512, learning_rate=1e-3, updates_per_call=20)
  config.control = stage.section(
    steps=3200, batch=256, learning_rate=3e-4, weight_decay=0.03, updates_per_call=20
  )
  config.control.kind = 'full'
  config.control.rank = 16  # Of kind 'low_rank'.
  config.control.layers = (0, 1, 2, 3, 4, 5, 6, 7, 8)
  # Ours: what controllers, once trained, are amplified by, beside being measured as they are.
  config.control.gains = ()
  config.metacontroller = stage.metacontroller(controller='full')
  config.discover = stage.discover(
    steps=32_000,
    batch=128,
    learning_rate=3e-4,
    weight_decay=0.03,
    updates_per_call=20,
    eval_every=2000,
    eval_batch=128,
    checkpoint_every=2000,
    tolerances=(0, 10),  # Steps: half a second.
    base='frozen',  # or co-trained from 'pretrained' (App. C.4.2) or 'random'
  )
  config.policy = stage.policy()
  config.reinforce = stage.reinforce(
    steps=51_200,
    batch=256,
    eval_every=1000,
    eval_batch=256,
    checkpoint_every=1000,
    updates_per_call=10,
    time_limit=500,
    max_decisions=100,
  )
  config.evaluate = ConfigDict(
    # Ours: control steps under random torques, and under constant ones, to see the physics hold.
    {'episodes': 1000, 'batch': 250, 'gains': (), 'stress_steps': 500_000}
  )
  return config


def _small(config: ConfigDict) -> None:
  """The same world and expert, and models that two CPU cores train in hours."""
  config.expert.update(
    steps=8000, batch=128, eval_every=200, eval_batch=128, checkpoint_every=100, width=128, depth=2
  )
  config.env.frame = 'heading'
  # Padding costs as much as steps do, and one demonstration in a hundred takes longer.
  config.data.update(horizon=320, episodes=16_384, episodes_per_shard=512, collect_batch=128)
  config.model.update(
    width=64, num_blocks=4, num_heads=4, mlp_width=256, controlled_layer=2, embedding_scale=0.9
  )
  config.pretrain.update(
    steps=10_000,
    batch=16,
    optimiser='muon',
    learning_rate=2e-2,
    # Decay is multiplied by the learning rate, and Muon's is large.
    weight_decay=0.0,
    schedule='cosine',
    warmup_steps=200,
    clip_norm=1.0,
    eval_every=500,
    eval_batch=128,
    checkpoint_every=500,
    milestones=(1000, 4000),
    # With the paper's 10, observations drown out the torques, which are learnt several times later.
    observation_weight=0.01,
  )
  config.probe.update(steps=1000, batch=32, learning_rate=3e-3, eval_batch=256)
  config.control.update(steps=400, batch=32, learning_rate=1e-3, eval_batch=256, layers=(0, 2, 4))
  config.discover.update(
    steps=1000,
    batch=32,
    optimiser='muon',
    learning_rate=6e-3,
    schedule='cosine',
    warmup_steps=50,
    clip_norm=1.0,
    weight_decay=0.0,
    alphas=(0.05, 0.17),
    alpha_delay=100,
    alpha_ramp=200,
    eval_every=200,
    checkpoint_every=200,
  )
  config.policy.update(width=64, mlp_width=128, num_heads=4)
  config.reinforce.update(
    steps=60,
    batch=256,
    learning_rates=(1e-3,),
    raw_learning_rates=(1e-4,),
    epochs=4,
    minibatches=4,
    eval_every=20,
    checkpoint_every=10,
    updates_per_call=2,
  )


def _smoke(config: ConfigDict) -> None:
  """Everything once; the numbers mean nothing. Cells so small that an untrained ant gets around."""
  _small(config)
  config.env.update(grid_size=2, num_objects=2, time_limit=16, family='two_colours', cell_size=0.1)
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
  config.data.update(horizon=16, episodes=32, episodes_per_shard=16, collect_batch=32)
  config.model.update(width=16, num_blocks=2, num_heads=2, mlp_width=16, controlled_layer=1)
  config.policy.update(width=16, mlp_width=16, num_heads=2)
  tiny = dict(steps=4, batch=8, updates_per_call=2, eval_every=2, eval_batch=8, checkpoint_every=2)
  for name in ('pretrain', 'probe', 'control', 'discover', 'reinforce'):
    config[name].update(tiny, warmup_steps=1)
  config.pretrain.milestones = (2,)
  config.control.update(layers=(1,))
  config.discover.update(alphas=(0.1, 0.2), alpha_delay=1, alpha_ramp=2, hard_steps=2)
  config.reinforce.update(
    minibatches=2, epochs=2, time_limit=16, learning_rates=(1e-3,), raw_learning_rates=(1e-3,)
  )
  config.evaluate.update(episodes=16, batch=16, stress_steps=256)
