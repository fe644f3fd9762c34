"""What stages compute, at the paper's own sizes, against arithmetic by hand."""

import pytest

from configs import ant
from configs.gridworld import get_config
from experiments import flops
from internal_rl.envs.ant_body import AntBody
from tests.end_to_end.test_ant_pipeline import glide

WIDTH, BLOCKS, MLP, CELLS, CHANNELS, HORIZON = 256, 6, 512, 49, 13, 72


def forward(tokens):
  """Products of the paper's transformer (Tables A4 and A16), heads included."""
  attention = 4 * WIDTH**2 + 2 * HORIZON * WIDTH
  block = attention + 2 * WIDTH * MLP
  ends = 2 * CELLS * CHANNELS * WIDTH + 4 * WIDTH
  return 2 * tokens * (ends + BLOCKS * block)


def test_an_update_of_the_papers_base_model_is_three_forward_passes():
  counted = flops.case_flops(get_config('paper'), 'pretrain', 1024)
  # Give or take that of the embedding, whose input needs no gradient.
  assert counted == pytest.approx(3 * forward(1024 * HORIZON), rel=0.03)


def test_an_update_counts_what_its_optimiser_multiplies():
  config = get_config('small')
  assert config.pretrain.optimiser == 'muon'
  counted = flops.case_flops(config, 'pretrain', 2)
  config.pretrain.optimiser = 'adamw'
  assert counted > flops.case_flops(config, 'pretrain', 2)


def test_a_stage_is_reckoned_from_its_updates_and_a_speed():
  table = flops.table({'probe': flops.Cost(update=3e12, updates=2000)}, tflops=20.0)
  assert '| `probe` | 3,000 | 2,000 | 6 | 5 |' in table


def test_a_probe_reads_every_layer_and_sends_no_gradient_into_the_base():
  config = get_config('paper')
  layers, subgoals = BLOCKS + 1, 4
  probes = 2 * 2 * layers * WIDTH * subgoals  # Forward, and the gradient of the weights.
  tokens = config.probe.batch * HORIZON
  counted = flops.probe_flops(config)
  assert counted == pytest.approx(forward(tokens) + tokens * probes, rel=0.06)


def test_raw_episodes_are_acted_through_once_and_learnt_from_once():
  config = get_config('paper')
  config.reinforce.batch = 256  # More than a rollout steps in one loop.
  steps = config.reinforce.time_limit
  # Learning is three forward passes; acting is one, whose attention reads the whole cache.
  tokens = config.reinforce.batch * steps
  counted = flops.raw_flops(config)
  assert counted == pytest.approx(4 * forward(tokens), rel=0.02)


def test_the_ant_has_every_stage_and_its_expert(monkeypatch):
  monkeypatch.setattr(AntBody, 'advance', glide)
  config = ant.get_config('smoke')
  found = flops.costs(config)
  assert list(found) == [
    'expert',
    'pretrain',
    'probe',
    'control',
    'discover',
    'reinforce',
    'reinforce --raw',
  ]
  assert all(cost.total > 0 for cost in found.values())
  # Told the way, an expert of one hidden layer: features times width, width times 16 moments.
  width, features = config.expert.width, 41
  policy, value = width * (features + 16), width * (features + 1)
  section, steps = config.expert, config.expert.batch * config.expert.unroll
  learning = section.epochs * 2 * 2 * steps * (policy + value)  # Forward, and of the weights.
  assert found['expert'].update > learning + 2 * steps * policy
