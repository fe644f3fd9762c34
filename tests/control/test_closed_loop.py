"""Rollouts of the base model against its parallel mode and the environment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from internal_rl.control.closed_loop import BaseRollout
from tests import tiny

# A single colour each, so that an untrained model meets some of them.
ENV = dataclasses.replace(tiny.ENV, task_names=('0', '1', '2', '3'))


def rollout(steer=None, layer=None):
  model = tiny.model()
  params = tiny.frozen(model, tiny.metacontroller()).base
  tasks = jnp.arange(24) % 4
  args = (params, jax.random.key(1), tasks) + ((steer,) if steer else ())
  return model, params, BaseRollout(ENV, model, layer)(*args)


def test_log_probabilities_are_those_of_the_parallel_model_on_what_was_read():
  model, params, episodes = rollout()
  action = model.apply(params, episodes.observations).action
  gap = jnp.where(episodes.mask, action.log_prob(episodes.actions) - episodes.log_prob, 0)
  assert np.abs(gap).max() < 1e-5


def test_observations_and_returns_are_those_of_stepping_the_environment():
  _, _, episodes = rollout()
  reset_key, _ = jax.random.split(jax.random.key(1))
  keys = jax.random.split(reset_key, 24)
  assert 0 < episodes.returns[:6].sum() < 6
  for i in range(6):
    state, timestep = ENV.reset(keys[i], jnp.asarray(i % 4))
    total, steps = 0.0, 0
    while not timestep.done:
      np.testing.assert_array_equal(episodes.observations[i, steps], timestep.observation)
      state, timestep = ENV.step(state, episodes.actions[i, steps])
      total, steps = total + timestep.reward, steps + 1
    assert episodes.mask[i].sum() == steps == episodes.lengths[i]
    assert episodes.returns[i] == total


def test_steering_acts_at_its_layer_on_every_step():
  shift = jnp.cos(jnp.arange(tiny.WIDTH)) * 3
  for layer in (0, 2):
    model, params, episodes = rollout(lambda state, e, context: e + shift[None], layer)
    e = model.apply(params, episodes.observations, layer, method='lower')
    action = model.apply(params, e + shift[None, None], layer, method='upper').action
    gap = jnp.where(episodes.mask, action.log_prob(episodes.actions) - episodes.log_prob, 0)
    assert np.abs(gap).max() < 1e-5
