"""The wiring from config to objects."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ant, gridworld
from experiments import common

WITHOUT_ANT = """
import sys
sys.modules.update(dict.fromkeys(('mujoco', 'brax')))
from configs import ant, gridworld
from experiments import common, pipeline
common.environment(gridworld.get_config('smoke'))
common.environment(ant.get_config('smoke'))
"""


def test_a_world_can_be_built_under_trace():
  config = gridworld.get_config('smoke')
  common.require_solvable.cache_clear()
  jax.jit(lambda: (common.environment(config), 0)[1])()


def test_a_world_without_solvable_layouts_is_refused():
  config = gridworld.get_config('smoke')
  config.env.update(family='three_pairs', grid_size=3, num_objects=6, num_walls=2)
  with pytest.raises(ValueError, match='none lets every task be completed'):
    common.environment(config)


def test_without_the_extra_the_gridworld_runs_and_the_ant_names_it():
  done = subprocess.run(
    [sys.executable, '-c', WITHOUT_ANT], capture_output=True, text=True, check=False
  )
  assert "env.kind='ant' needs mujoco; run: pip install -e '.[ant]'" in done.stderr


@pytest.mark.parametrize('kind', ['transformer', 'hawk'])
@pytest.mark.parametrize('world', [gridworld, ant], ids=['gridworld', 'ant'])
def test_either_model_predicts_either_world(world, kind):
  config = world.get_config('smoke')
  config.model.kind = kind
  env, model = common.environment(config), common.base_model(config)
  observations = jax.random.uniform(jax.random.key(0), (2, 3, env.observation_size))
  predictions = jax.jit(lambda key: model.init_with_output(key, observations)[0])(jax.random.key(1))
  actions = predictions.action.sample(jax.random.key(2))
  assert actions.shape == ((2, 3) if world is gridworld else (2, 3, env.num_actions))
  for nll in (
    predictions.action.log_prob(actions),
    predictions.observation.log_prob(jnp.round(observations)),
  ):
    assert nll.shape == (2, 3)
    assert np.isfinite(nll).all()


@pytest.mark.parametrize(('world', 'likelihood'), [(gridworld, 'gaussian'), (ant, 'categorical')])
def test_a_likelihood_of_another_worlds_observations_is_refused(world, likelihood):
  config = world.get_config('smoke')
  config.model.observation_likelihood = likelihood
  with pytest.raises(ValueError, match=rf"model\.observation_likelihood='{likelihood}': must be"):
    common.base_model(config)


@pytest.mark.parametrize(
  ('world', 'presets'),
  [(gridworld, ('paper', 'small', 'quickstart', 'smoke')), (ant, ('paper', 'small', 'smoke'))],
  ids=['gridworld', 'ant'],
)
def test_the_lengths_of_all_stages_fit_their_calls(world, presets):
  for config in map(world.get_config, presets):
    sections = {name: s for name, s in config.items() if isinstance(s, common.Config)}
    stages = [name for name, section in sections.items() if 'updates_per_call' in section]
    assert set(stages) >= {'pretrain', 'probe', 'control', 'discover', 'reinforce'}
    assert all(common.fit_config(config, stage).steps for stage in stages)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('updates_per_call', 0, r'expert\.updates_per_call=0: must be at least 1'),
    ('updates_per_call', 3, r'expert\.steps=8000: must be a multiple of updates_per_call \(3\)'),
    ('eval_every', 15, r'expert\.eval_every=15: must be a multiple of updates_per_call \(10\)'),
  ],
)
def test_lengths_that_do_not_fit_are_refused_by_field(field, value, message):
  config = ant.get_config('small')
  config.expert[field] = value
  with pytest.raises(ValueError, match=message):
    common.fit_config(config, 'expert')


def test_xla_knows_the_flags():
  code = "common.prefer_quick_kernels(gridworld.get_config('paper')); import jax; jax.devices()"
  code = f'from configs import gridworld; from experiments import common; {code}'
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  subprocess.run([sys.executable, '-c', code], check=True, env=environment)


@pytest.mark.parametrize(
  ('preset', 'given', 'expected'),
  [
    ('small', '', '--xla_cpu_use_fusion_emitters=false'),
    (
      'paper',
      '',
      '--xla_cpu_use_fusion_emitters=false --xla_cpu_experimental_ynn_fusion_type=-individual_dot',
    ),
    (
      'paper',
      '--xla_cpu_use_fusion_emitters=true --xla_dump_to=dump',
      '--xla_cpu_use_fusion_emitters=true --xla_dump_to=dump '
      '--xla_cpu_experimental_ynn_fusion_type=-individual_dot',
    ),
  ],
)
def test_kernels_are_chosen_by_width_unless_the_user_chose(monkeypatch, preset, given, expected):
  monkeypatch.setenv('XLA_FLAGS', given)
  common.prefer_quick_kernels(gridworld.get_config(preset))
  assert os.environ['XLA_FLAGS'] == expected
