"""That every phase learns: through its own `run`, on worlds and for lengths that take seconds."""

import dataclasses
import math
import pathlib
import shutil

import numpy as np
import pytest

from configs.gridworld import get_config
from experiments import discover, pretrain, reinforce
from internal_rl.envs import tasks

SHIPPED = pathlib.Path(__file__).parents[2] / 'checkpoints' / 'gridworld_small'


def two_colours():
  """Which of two colours the expert walks to shows in its moves, and nowhere else."""
  config = get_config('quickstart')
  config.env.update(family='two_colours', num_objects=2)
  config.data.horizon = 8
  config.model.update(num_blocks=2, mlp_width=128, controlled_layer=1)
  config.metacontroller.initial_std = 0.1  # Less noise to learn to ignore first.
  config.pretrain.update(steps=400, warmup_steps=20, eval_every=0, checkpoint_every=0)
  config.discover.update(
    steps=400,
    learning_rate=1e-2,
    warmup_steps=10,
    alphas=(0.05,),
    alpha_delay=100,
    alpha_ramp=100,
    eval_every=0,
    eval_batch=128,
    checkpoint_every=0,
  )
  config.evaluate.update(episodes=256, batch=256)
  return config


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """A workdir with a base model, which discovery goes on from, and its result."""
  workdir = str(tmp_path_factory.mktemp('two_colours'))
  return workdir, pretrain.run(two_colours(), workdir)


def test_the_base_model_comes_near_the_exact_floor(pretrained):
  _, result = pretrained
  untrained, floor = result['curve']['eval/nll'][0], result['bayes_nll']
  assert untrained == pytest.approx(math.log(4), abs=0.2)  # It knows nothing of the four moves.
  assert floor - 0.01 < result['nll'] < floor + 0.1 * (untrained - floor)


def test_codes_tell_the_base_model_what_it_cannot_see_coming(pretrained):
  workdir, base = pretrained
  result = discover.run(two_colours(), workdir)
  # With hard gates, as internal RL acts.
  assert base['nll'] - result['hard_nll'] > 0.5 * (base['nll'] - base['goal_nll'])
  # And at a price: codes begin far dearer.
  assert result['kl'] < 4 < 10 < result['curve'][0]['eval/kl'][0]


def test_internal_rl_finds_codes_that_solve_an_unseen_task(tmp_path, monkeypatch):
  for stage in ('pretrain', 'discover'):
    shutil.copytree(SHIPPED / stage, tmp_path / stage)
  config = get_config('small')
  # The preset's own task takes minutes. No demonstration has the transition of this one either.
  family = dataclasses.replace(tasks.FAMILIES[config.env.family], post_training='0-1-2-3')
  monkeypatch.setitem(tasks.FAMILIES, config.env.family, family)
  config.reinforce.update(
    steps=40,
    batch=256,
    epochs=1,
    minibatches=1,
    warmup_steps=0,
    learning_rates=(3e-3,),
    seeds=1,
    time_limit=24,
    max_decisions=8,
    eval_every=0,
    eval_batch=256,
    checkpoint_every=0,
  )
  config.evaluate.update(episodes=256, batch=256)
  (run,) = reinforce.run(config, str(tmp_path))['runs']
  rates = [row['success'] for row in run['curve']]  # Means of five updates each.
  assert np.mean(rates[-2:]) > max(0.25, 4 * rates[0])
  assert run['success'] > 0.25
