"""Labelled controllers, as they are and amplified (App. C.3)."""

import jax
import jax.numpy as jnp
import pytest

from configs.gridworld import get_config
from experiments import common, control
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.control.controller import Controller


def test_a_gain_is_that_of_the_controllers_and_none_leaves_the_base_alone():
  config = get_config('smoke')
  config.evaluate.update(episodes=64, batch=64)
  env, model, layer = common.environment(config), common.base_model(config), 1
  count, width = len(env.family.subgoals), config.model.width
  controller = Controller(width, count, 'full', 1)
  observations = jnp.zeros((1, 1, env.observation_size), jnp.uint8)
  base = model.init(jax.random.key(0), observations)
  params = controller.init(jax.random.key(1), jnp.zeros((1, 1, count)), jnp.zeros((1, 1, width)))
  noise = lambda x: jax.random.normal(jax.random.key(2), x.shape)
  params = jax.tree.map(noise, params)
  success = lambda params, gain: control._closed_loop(config, controller, params, base, layer, env)(
    jax.random.key(3), gain
  )
  unsteered = common.success_rate(
    env,
    lambda key: BaseRollout(env, model, layer)(base, key, common.task_batch(env, 64)),
    jax.random.key(3),
    64,
    64,
  )
  assert success(params, 0.0) == unsteered
  doubled = jax.tree.map(lambda x: 2 * x, params)
  assert success(params, 2.0) == success(doubled, 1.0) != success(params, 1.0)


@pytest.mark.parametrize('gains', [(1.0,), (0.5,), (-2.0,), (float('nan'),), (2.0, 2.0)])
def test_gains_are_checked_before_anything_is_trained(gains, tmp_path):
  config = get_config('smoke')
  config.control.gains = gains
  with pytest.raises(ValueError, match=r'control.gains=.*must be different numbers above 1'):
    control.run(config, str(tmp_path))
