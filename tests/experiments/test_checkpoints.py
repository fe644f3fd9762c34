"""What is shipped works as the presets that it is shipped for."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ant, gridworld
from experiments import artifacts, common, discover
from internal_rl.analysis import bayes
from internal_rl.metacontroller.loss import masked_mean

SHIPPED = pathlib.Path(__file__).parents[2] / 'checkpoints'
MEGABYTES = {
  'ant_small': 1.5,
  'gridworld_small': 1.5,
  'gridworld_small_1': 1.0,
  'gridworld_small_2': 1.0,
}


@pytest.mark.parametrize('seed', range(3))
def test_base_models_are_as_near_their_floor_as_their_results_say(seed):
  config = gridworld.get_config('small')
  config.seed = seed
  workdir = str(SHIPPED / 'gridworld_small') + (f'_{seed}' if seed else '')
  result = artifacts.read_result(config, workdir, 'pretrain')
  base, expert = artifacts.base_params(config, workdir), common.expert(config)

  @jax.jit
  def gap(base, key):
    episodes = expert.rollout(key, 512, config.data.horizon)
    batch = expert.observations(episodes)
    action = common.base_model(config).apply(base, batch.inputs).action
    floor = bayes.known_beliefs(expert, episodes).bayes_nll
    return masked_mean(-action.log_prob(batch.actions) - floor, batch.mask)

  assert float(gap(base, jax.random.key(5))) == pytest.approx(result['gap'], abs=0.006)


def test_the_metacontroller_switches_where_the_subgoal_changes():
  config, workdir = gridworld.get_config('small'), str(SHIPPED / 'gridworld_small')
  result = artifacts.read_result(config, workdir, 'discover')
  models, expert = artifacts.discovered(config, workdir), common.expert(config, clean=True)

  @jax.jit
  def measure(models, key):
    batch = expert.sample(key, 512, config.data.horizon)
    return discover.measure(config, models, batch, key)[0]['f1']

  assert float(measure(models, jax.random.key(5))) == pytest.approx(result['f1'], abs=0.02)


def test_the_ants_base_model_is_that_of_its_preset():
  config, workdir = ant.get_config('small'), str(SHIPPED / 'ant_small')
  assert artifacts.read_result(config, workdir, 'pretrain')
  assert artifacts.base_params(config, workdir)


def test_the_ants_expert_walks_to_its_goals_as_often_as_the_papers():
  config, workdir = ant.get_config('small'), str(SHIPPED / 'ant_small')
  assert artifacts.read_result(config, workdir, 'expert')
  family = common.family(config)
  # One world for both kinds of task, so that it is compiled once.
  world = common.environment(config, (*family.pretraining, family.post_training))
  expert = artifacts.expert(config, workdir, clean=True, env=world)
  count, seen = 64, len(family.pretraining)
  tasks = jnp.concatenate([jnp.arange(count) % seen, jnp.full(count, seen)])
  play = jax.jit(lambda expert, key: expert.play(key, tasks, horizon=500).mask[:, 0])
  success = play(expert, jax.random.key(0))  # Masked out where it failed.
  # About .8 on tasks that it was trained on and .7 on the unseen one, less three standard errors.
  for paper, ours in ((0.8, success[:count]), (0.7, success[count:])):
    assert ours.mean() > paper - 3 * np.sqrt(paper * (1 - paper) / count)


@pytest.mark.parametrize('name', MEGABYTES)
def test_checkpoints_stay_small(name):
  files = [path for path in (SHIPPED / name).rglob('*') if path.is_file()]
  assert sum(path.stat().st_size for path in files) < MEGABYTES[name] * 1e6
  assert not [path for path in files if path.name == 'commit_success.txt']  # It names a machine.
