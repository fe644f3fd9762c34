"""The checkpoints that are shipped belong to the presets that they are shipped for."""

import pathlib

import jax
import numpy as np
import pytest

from configs import ant, gridworld
from experiments import artifacts, common
from internal_rl.metacontroller.loss import masked_mean

SHIPPED = pathlib.Path(__file__).parents[2] / 'checkpoints'
MEGABYTES = {'ant_small': 2.0, 'gridworld_small': 5.0}


def test_the_base_model_predicts_as_well_as_its_result_says():
  config, workdir = gridworld.get_config('small'), str(SHIPPED / 'gridworld_small')
  result = artifacts.read_result(config, workdir, 'pretrain')
  base = artifacts.base_params(config, workdir)
  batch = common.expert(config).sample(jax.random.key(5), 256, config.data.horizon)
  predicted = jax.jit(common.base_model(config).apply)(base, batch.inputs)
  nll = -masked_mean(predicted.action.log_prob(batch.actions), batch.mask)
  assert float(nll) == pytest.approx(result['nll'], abs=0.03)


def test_the_ants_expert_is_one_that_its_preset_can_use():
  config, workdir = ant.get_config('small'), str(SHIPPED / 'ant_small')
  assert artifacts.read_result(config, workdir, 'expert')['success'] > 0.8
  expert = artifacts.expert(config, workdir, clean=True)
  actor = expert.actor
  features = jax.random.normal(jax.random.key(0), (64, actor.guide.num_features))
  gaussian = actor.networks.parametric_action_distribution
  actions = np.array(gaussian.mode(actor.distribution(expert.params, features)))
  assert actions.shape == (64, 8)
  assert (np.abs(actions) <= 1).all()
  assert (actions.std(0) > 0.1).all()  # It answers to what it sees.


@pytest.mark.parametrize('name', MEGABYTES)
def test_checkpoints_stay_small(name):
  size = sum(path.stat().st_size for path in (SHIPPED / name).rglob('*') if path.is_file())
  assert size < MEGABYTES[name] * 1e6
