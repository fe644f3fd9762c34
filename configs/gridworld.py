"""Gridworld-pinpad, at four scales.

  python -m experiments.pipeline --config=configs/gridworld.py:quickstart --workdir=runs/quickstart

'paper' is App. C of the paper; 'small' two to three hours of one CPU core; 'quickstart' a quarter
of an hour on two; 'smoke' seconds, to see that everything runs. Every field can be overridden from
the command line, `--config.pretrain.batch=256`.
"""

from ml_collections import ConfigDict, config_dict

from configs import stage


def get_config(preset: str = 'quickstart') -> ConfigDict:
  """Returns the config of one scale: 'paper', 'small', 'quickstart' or 'smoke'."""
  presets = {
    'paper': lambda config: None,
    'small': _small,
    'quickstart': _quickstart,
    'smoke': _smoke,
  }
  return stage.select(preset, _paper(), presets)


def _paper() -> ConfigDict:
  """App. A.1 and C, Tables A4, A7, A9, A13 and A16."""
  config = ConfigDict()
  config.preset = 'paper'
  config.seed = 0
  config.env = ConfigDict(
    {
      'kind': 'gridworld',
      'grid_size': 7,
      'num_objects': 8,
      'num_walls': 4,
      'time_limit': 100,
      'family': 'gridworld',
    }
  )
  config.expert = ConfigDict({'epsilon': 0.0})
  # Demonstrations are generated inside the update, or read from a directory that `collect` made.
  config.data = ConfigDict(
    {
      'directory': '',
      'horizon': 72,
      'episodes': 100_000,
      'episodes_per_shard': 10_000,
      'collect_batch': 1000,  # Episodes side by side.
    }
  )
  config.model = ConfigDict(
    {
      'kind': 'transformer',
      'width': 256,
      'num_blocks': 6,
      'num_heads': 4,
      'mlp_width': 512,
      'activation': 'relu',
      'norm': 'rms',
      'relative_buckets': 32,
      'init_scale': 0.1,
      'embedding_scale': config_dict.placeholder(float),  # None: init_scale
      'controlled_layer': 3,
      'observation_likelihood': 'categorical',  # [open] or 'bernoulli'
      'dtype': 'float32',
      'remat': False,
    }
  )
  config.pretrain = stage.section(
    steps=256_000,
    batch=1024,
    learning_rate=3e-4,
    weight_decay=0.03,
    eval_every=2000,
    checkpoint_every=2000,
  )
  config.pretrain.observation_weight = 0.01  # lambda of Eq. 5
  # Updates after which the model is kept, to be probed (Fig. A1).
  config.pretrain.milestones = (4000, 16_000, 64_000, 128_000)
  config.probe = stage.section(steps=8000, batch=512, learning_rate=1e-3)
  config.control = stage.section(steps=3200, batch=512, learning_rate=1e-3, weight_decay=0.03)
  config.control.kind = 'low_rank'
  config.control.rank = 16
  config.control.layers = (0, 1, 2, 3, 4, 5, 6)
  # Ours: what controllers, once trained, are amplified by, beside being measured as they are.
  config.control.gains = ()
  config.metacontroller = stage.metacontroller(controller='low_rank')
  config.discover = stage.discover(
    steps=64_000,
    batch=512,
    learning_rate=1e-3,
    weight_decay=0.03,
    eval_every=2000,
    checkpoint_every=2000,
    tolerances=(0, 1),  # Steps, within which a switch counts as aligned.
    base='frozen',  # or co-trained from 'random' (App. C.4.2) or 'pretrained'
  )
  config.policy = stage.policy()
  config.reinforce = stage.reinforce(
    steps=100_000,
    batch=1024,
    eval_every=1000,
    eval_batch=1024,
    checkpoint_every=1000,
    updates_per_call=10,
    time_limit=100,
    max_decisions=50,
  )
  config.evaluate = ConfigDict(
    # Gains are ours: what mean goal codes are multiplied by, beside being measured as they are.
    {'episodes': 4096, 'batch': 1024, 'floor_episodes': 4096, 'gains': ()}
  )
  return config


def _small(config: ConfigDict) -> None:
  """The smallest world of colour pairs whose base model nears its floor on one CPU core."""
  config.env.update(grid_size=4, num_objects=6, num_walls=0, time_limit=64, family='three_pairs')
  config.data.update(horizon=30)
  config.model.update(
    width=64, num_blocks=4, mlp_width=256, controlled_layer=3, embedding_scale=0.9
  )
  config.pretrain.update(
    steps=34_000,
    batch=64,
    optimiser='muon',
    learning_rate=2e-2,
    # Decay is multiplied by the learning rate, and Muon's is large.
    weight_decay=0.0,
    schedule='cosine',
    warmup_steps=200,
    clip_norm=1.0,
    eval_every=2000,
    checkpoint_every=2000,
    # Without it the model forgets colours on the way up, and is late to learn what they are for.
    observation_weight=0.05,
    milestones=(1000, 2000, 4000, 8000, 16_000),
  )
  config.probe.update(steps=1000, batch=128, learning_rate=3e-3)
  # The base model knows which pair never follows which. To overrule it controllers must become
  # stronger than the pretraining tasks ask of them.
  config.control.update(
    steps=2000,
    batch=128,
    learning_rate=5e-3,
    schedule='cosine',
    warmup_steps=100,
    weight_decay=0.0,
    layers=(0, 1, 2, 3, 4),
    gains=(1.5, 2.0),
  )
  config.metacontroller.update(initial_std=0.1)
  config.discover.update(
    steps=2400,
    batch=256,  # With 64 codes name no subgoal on two base models of three.
    optimiser='muon',
    learning_rate=6e-3,
    schedule='cosine',
    warmup_steps=100,
    clip_norm=1.0,
    weight_decay=0.0,
    alphas=(0.02,),
    seeds=3,
    alpha_delay=500,
    alpha_ramp=500,
    eval_every=200,
    checkpoint_every=200,
  )
  # Wider than the prior: what steers the base model through unseen transitions is a longer code.
  config.policy.update(width=64, mlp_width=128, num_heads=4, initial_std=1.5)
  config.reinforce.update(
    steps=200,
    batch=2048,
    # As the policy grows sure of itself its gradient grows, and a single update can undo it all.
    clip_norm=1.0,
    schedule='cosine',
    learning_rates=(1e-4, 1e-3, 3e-3),
    raw_learning_rates=(1e-4, 1e-3, 3e-3),
    time_limit=64,
    max_decisions=32,
    epochs=2,
    minibatches=4,
    eval_every=20,
    eval_batch=4096,
    checkpoint_every=20,
    updates_per_call=5,
  )
  config.evaluate.update(episodes=2048, batch=512, floor_episodes=2048, gains=(1.5, 2.0))


def _quickstart(config: ConfigDict) -> None:
  """Small enough for a base model at its floor within minutes: 3 x 3 cells, 4 colours, no walls."""
  _small(config)
  config.env.update(grid_size=3, num_objects=4, num_walls=0, time_limit=24, family='ant')
  config.data.update(horizon=16)
  config.model.update(controlled_layer=2)
  config.pretrain.update(steps=4000, eval_every=1000, checkpoint_every=1000, milestones=())
  config.probe.update(steps=300)
  config.control.update(
    steps=800,
    batch=64,
    learning_rate=1e-2,
    warmup_steps=50,
    weight_decay=0.03,
    layers=(2,),
    gains=(1.5,),
  )
  # What the lengths and rates below were tuned with.
  config.metacontroller.update(decoder_activation='relu', initial_std=1.0)
  config.discover.update(
    steps=2400,
    batch=64,
    optimiser='muon',
    learning_rate=6e-3,
    alphas=(0.2,),
    seeds=1,
    alpha_delay=200,
    alpha_ramp=400,
    eval_every=400,
    checkpoint_every=400,
  )
  config.policy.update(initial_std=1.0)
  config.reinforce.update(
    steps=30,
    batch=4096,
    clip_norm=0.0,
    schedule='constant',
    seeds=1,
    learning_rates=(3e-3, 5e-3),
    raw_learning_rates=(1e-4, 1e-3),
    time_limit=24,
    max_decisions=16,
    epochs=1,
    minibatches=2,
    eval_every=10,
    eval_batch=4096,
    checkpoint_every=10,
  )
  config.evaluate.update(episodes=4096, batch=2048, gains=(1.5,))


def _smoke(config: ConfigDict) -> None:
  """Everything once, in seconds; the numbers mean nothing."""
  _quickstart(config)
  config.model.update(width=16, num_blocks=2, num_heads=2, mlp_width=16, controlled_layer=1)
  config.metacontroller.update(rank=4)
  config.policy.update(width=16, mlp_width=16, num_heads=2)
  tiny = dict(steps=4, batch=8, updates_per_call=2, eval_every=2, eval_batch=8, checkpoint_every=2)
  for name in ('pretrain', 'probe', 'control', 'discover', 'reinforce'):
    config[name].update(tiny, warmup_steps=1)
  config.pretrain.milestones = (2,)
  config.control.update(layers=(0, 1), gains=(2.0,))
  config.discover.update(alphas=(0.1, 0.2), alpha_delay=1, alpha_ramp=2, hard_steps=2)
  config.reinforce.update(minibatches=2, epochs=2)
  config.data.update(episodes=32, episodes_per_shard=16, collect_batch=8)
  config.evaluate.update(episodes=16, batch=16, floor_episodes=16)
