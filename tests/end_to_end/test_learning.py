"""That every phase learns: through its own `run`, on worlds and for lengths that take seconds."""

import dataclasses
import math
import pathlib
import shutil

import numpy as np
import pytest

from configs.gridworld import get_config
from experiments import artifacts, discover, pretrain, reinforce
from internal_rl.envs import tasks

SHIPPED = pathlib.Path(__file__).parents[2] / 'checkpoints' / 'gridworld_small'


@pytest.fixture
def shipped(tmp_path):
  """A workdir to go on from what is shipped, stage by stage."""

  def copy(*stages):
    for stage in stages:
      shutil.copytree(SHIPPED / stage, tmp_path / stage)
    return str(tmp_path)

  return copy


def test_a_base_model_comes_to_infer_the_goal_from_the_moves_that_it_sees(tmp_path):
  config = get_config('quickstart')
  # Which of two colours the expert walks to shows in its moves, and nowhere else.
  config.env.update(family='two_colours', num_objects=2)
  config.data.horizon = 8
  config.model.update(num_blocks=2, mlp_width=128, controlled_layer=1)
  config.pretrain.update(steps=400, warmup_steps=20, eval_every=0, checkpoint_every=0)
  result = pretrain.run(config, str(tmp_path))
  floor, untrained = result['bayes_nll'], result['curve']['eval/nll'][0]
  assert untrained == pytest.approx(math.log(4), abs=0.1)
  # A tenth of what there is to learn. Without the goals, best guesses are .1 above the floor.
  assert floor < result['nll'] < floor + 0.09


def test_internal_rl_finds_codes_that_solve_an_unseen_task(shipped, monkeypatch):
  config = get_config('small')
  # The task of the preset takes minutes. No demonstration has this one's transition either.
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
  result = reinforce.run(config, shipped('pretrain', 'discover'))
  (run,) = result['runs']
  rates = [row['success'] for row in run['curve']]
  assert run['success'] > 0.25
  assert np.mean(rates[-2:]) > max(0.3, 4 * rates[0])
