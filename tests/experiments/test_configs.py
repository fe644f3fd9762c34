"""The presets named after the paper are what its tables say."""

import pytest

from configs import ant, gridworld
from experiments import artifacts, common

# One row a field of the config: in the gridworld, on the ant. The comments name the tables.
PAPER = {
  # App. A.1 and A.2
  'env.kind': ('gridworld', 'ant'),
  'env.grid_size': (7, 4),
  'env.num_objects': (8, 4),
  'env.num_walls': (4, 1),
  'env.time_limit': (100, 500),
  'env.family': ('gridworld', 'ant'),
  'reinforce.time_limit': (100, 500),
  # A4 and A16, A5 and A15
  'model.kind': ('transformer', 'hawk'),
  'model.width': (256, 256),
  'model.num_blocks': (6, 8),
  'model.num_heads': (4, 8),
  'model.mlp_width': (512, 512),
  'model.activation': ('relu', 'relu'),
  'model.init_scale': (0.1, 0.1),
  'model.embedding_scale': (None, None),
  'model.controlled_layer': (3, 4),
  'pretrain.observation_weight': (0.01, 10.0),
  'pretrain.steps': (256_000, 204_800),
  'pretrain.batch': (1024, 512),
  'pretrain.optimiser': ('adamw', 'adamw'),
  'pretrain.learning_rate': (3e-4, 3e-4),
  'pretrain.weight_decay': (0.03, 0.03),
  'pretrain.schedule': ('constant', 'constant'),
  'pretrain.warmup_steps': (0, 0),
  'pretrain.clip_norm': (0.0, 0.0),
  # App. C.2
  'probe.steps': (8000, 8000),
  'probe.batch': (512, 512),
  'probe.optimiser': ('adamw', 'adamw'),
  'probe.learning_rate': (1e-3, 1e-3),
  'probe.weight_decay': (0.0, 0.0),
  # A7, A8
  'control.kind': ('low_rank', 'full'),
  'control.steps': (3200, 3200),
  'control.batch': (512, 256),
  'control.optimiser': ('adamw', 'adamw'),
  'control.learning_rate': (1e-3, 3e-4),
  'control.weight_decay': (0.03, 0.03),
  # A9, A10
  'metacontroller.controller': ('low_rank', 'full'),
  'metacontroller.code_size': (8, 8),
  'metacontroller.encoder_hidden': (64, 64),
  'metacontroller.decoder_hidden': (32, 32),
  'metacontroller.history_size': (32, 32),
  'metacontroller.embedding_size': (32, 32),
  'metacontroller.threshold': (0.5, 0.5),
  'discover.alphas': 2 * ([0.0, 0.05, 0.1, 0.17, 0.3, 0.5, 1.0],),
  'discover.base': ('frozen', 'frozen'),
  'discover.observation_weight': (0.0, 0.0),
  'discover.steps': (64_000, 32_000),
  'discover.batch': (512, 128),
  'discover.optimiser': ('adamw', 'adamw'),
  'discover.learning_rate': (1e-3, 3e-4),
  'discover.weight_decay': (0.03, 0.03),
  'discover.schedule': ('constant', 'constant'),
  'discover.labelled_steps': (0, 0),
  # A13, A14
  'policy.width': (256, 256),
  'reinforce.steps': (100_000, 51_200),
  'reinforce.batch': (1024, 256),
  'reinforce.optimiser': ('adamw', 'adamw'),
  'reinforce.learning_rates': ([3e-5], [3e-5]),
  'reinforce.weight_decay': (0.0, 0.0),
  'reinforce.entropy_coefficient': (0.0, 0.0),
}
# Fields of one world alone; of the ant's expert, Table A3.
ALONE = (
  {
    'expert.epsilon': 0.0,
    'model.relative_buckets': 32,
    'control.rank': 16,
    'metacontroller.rank': 16,
  },
  {
    'expert.batch': 1024,
    'expert.width': 256,
    'expert.optimiser': 'adamw',
    'expert.learning_rate': 3e-4,
    'expert.weight_decay': 0.03,
    'expert.entropy': 3e-4,
  },
)


@pytest.mark.parametrize(('column', 'world'), [(0, gridworld), (1, ant)], ids=['gridworld', 'ant'])
def test_the_paper_preset_is_what_the_papers_tables_say(column, world):
  found = artifacts.flat(artifacts.mapping(world.get_config('paper')))
  expected = {field: row[column] for field, row in PAPER.items()} | ALONE[column]
  assert {field: found[field] for field in expected} == expected


def test_the_ants_expert_takes_as_many_gradient_steps_as_the_paper_says():
  section = ant.get_config('paper').expert
  assert section.steps * section.epochs * section.minibatches == 256_000


@pytest.mark.parametrize('world', [gridworld, ant])
def test_models_are_built_as_configured(world):
  config = world.get_config('paper')
  model, module = common.base_model(config), common.metacontroller(config)
  assert model.lru_width in (None, 256)
  assert model.controlled_layer == model.num_blocks // 2
  for field in ('kind', 'width', 'num_blocks', 'num_heads', 'mlp_width', 'init_scale'):
    assert getattr(model, field) == config.model[field]
  for field, value in config.metacontroller.items():
    assert getattr(module, field) == value
