"""What codes reach when each subgoal has one."""

import jax
import jax.numpy as jnp
import pytest

from configs.gridworld import get_config
from experiments import common, discover, evaluate
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.rl.internal_env import Frozen


def test_the_true_subgoals_code_steers_and_a_gain_multiplies_it():
  config = get_config('smoke')
  config.evaluate.update(episodes=64, batch=64)
  env, model, module = (
    make(config) for make in (common.environment, common.base_model, common.metacontroller)
  )
  base = model.init(jax.random.key(0), jnp.zeros((1, 1, env.observation_size), jnp.uint8))
  tx = common.optimiser(config.discover)
  state = discover.create(config, tx, base, jax.random.key(1), 0.1)
  noise = lambda x: x + 3 * jax.random.normal(jax.random.key(2), x.shape)
  models = Frozen(base, jax.tree.map(noise, state.params))
  codes = 2.0 * jax.random.normal(jax.random.key(3), (len(env.family.subgoals), module.code_size))
  success = lambda codes, gain: evaluate._steered(config, models, codes, env)(gain)

  def by_hand(state, e, context):
    z = sum((state.subgoal == k)[:, None] * 2 * codes[k][None] for k in range(len(codes)))
    return module.apply(models.metacontroller, z, e, method=Metacontroller.control)

  tasks = common.task_batch(env, 64)
  played = evaluate._success(
    config, env, 'goal codes', lambda key: BaseRollout(env, model)(base, key, tasks, by_hand)
  )
  assert success(codes, 2.0) == success(2 * codes, 1.0) == played
  assert success(codes, 2.0) != success(codes, 1.0)
  assert success(codes, 1.0) != success(codes[::-1], 1.0)


@pytest.mark.parametrize('gains', [(1.0,), (float('inf'),), (2.0, 2.0)])
def test_gains_are_checked_before_anything_is_measured(gains, tmp_path):
  config = get_config('smoke')
  config.evaluate.gains = gains
  with pytest.raises(ValueError, match=r'evaluate.gains=.*must be different numbers above 1'):
    evaluate.run(config, str(tmp_path))
