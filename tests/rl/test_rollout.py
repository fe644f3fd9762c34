"""Batched rollouts against Algorithm 1, episode by episode, in the gridworld and on MuJoCo."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.envs.ant import Ant
from internal_rl.envs.ant_body import AntBody
from internal_rl.envs.tasks import FAMILIES
from internal_rl.models.heads import GaussianHead
from internal_rl.rl.internal_env import InternalEnvironment, code_key
from internal_rl.rl.policy import CodePolicy
from internal_rl.rl.rollout import InternalRollout
from tests import tiny

# A single colour each, so that untrained models meet some of them.
ENV = dataclasses.replace(tiny.ENV, task_names=('0', '1', '2', '3'))
ANT = Ant(4, 4, 1, 3, FAMILIES['ant'], body=AntBody(frame_skip=1))
EPISODES = 8
KEYS = jax.random.split(jax.random.key(11), EPISODES)
TASKS = jnp.arange(EPISODES) % 4


@functools.cache
def make(kind, env=ENV):
  model, module, policy = tiny.model(kind), tiny.metacontroller(), tiny.policy()
  if env == ANT:  # Torques, and a switch that opens in some of the few steps.
    model = model.clone(action_head=GaussianHead(env.num_actions, init_scale=1.0))
    module = module.clone(switch_bias=3.0)
  params = policy.init(jax.random.key(1), jnp.zeros((1, 1, tiny.WIDTH)))
  # A policy whose mean and spread depend on what it reads, not the prior it starts from.
  head = params['params']['head']
  head['kernel'] = 0.3 * jax.random.normal(jax.random.key(2), head['kernel'].shape)
  return model, module, policy, params, tiny.frozen(model, module, env.observation_size)


def episodes(kind, env=ENV, count=EPISODES, **kwargs):
  model, module, policy, params, frozen = make(kind, env)
  rollout = InternalRollout(env, model, module, policy, **kwargs)
  return jax.jit(rollout.episodes)(params, frozen, KEYS[:count], TASKS[:count])


def assert_is_algorithm_1(batch, kind, env=ENV):
  model, module, policy, params, frozen = make(kind, env)
  internal = InternalEnvironment(env, model, module)
  reset, step = jax.jit(internal.reset), jax.jit(internal.step)
  decide = jax.jit(functools.partial(policy.apply, method=CodePolicy.step))
  for i in range(len(batch.returns)):
    state, timestep = reset(frozen, KEYS[i], TASKS[i])
    carry, count, total = policy.initial_carry(1), 0, 0.0
    while not timestep.done:
      carry, distribution = decide(params, carry, timestep.observation[None])
      distribution = jax.tree.map(lambda x: x[0], distribution)
      z = distribution.sample(code_key(state.key, state.time))
      np.testing.assert_allclose(batch.e[i, count], timestep.observation, atol=1e-5)
      np.testing.assert_allclose(batch.z[i, count], z, atol=1e-5)
      np.testing.assert_allclose(batch.log_prob[i, count], distribution.log_prob(z), atol=1e-4)
      assert batch.times[i, count] == state.time
      state, timestep = step(frozen, state, z)
      count, total = count + 1, total + timestep.reward
    assert batch.mask[i].sum() == count
    assert batch.returns[i] == total
    assert batch.lengths[i] == state.time
    final = jax.tree.map(lambda x, i=i: x[i], batch.final)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), final, state.env
    )


@pytest.mark.parametrize('kind', ['transformer', 'hawk'])
def test_batch_takes_the_decisions_rewards_and_log_probabilities_of_algorithm_1(kind):
  batch = episodes(kind)
  assert 1.2 < batch.mask.sum(-1).mean() < 10  # Neither a single decision nor one a step.
  assert 0 < batch.returns.sum() < EPISODES
  assert_is_algorithm_1(batch, kind)


def test_the_batch_is_algorithm_1_on_a_simulated_ant_too():
  batch = episodes('hawk', ANT, count=4)
  assert set(batch.mask.sum(-1).tolist()) == {1, 2, 3}
  assert_is_algorithm_1(batch, 'hawk', ANT)


def test_parallel_policy_gives_the_recorded_log_probabilities():
  _, _, policy, params, _ = make('transformer')
  batch = episodes('transformer')
  gap = policy.apply(params, batch.e).log_prob(batch.z) - batch.log_prob
  assert np.abs(jnp.where(batch.mask, gap, 0)).max() < 1e-4


def test_a_full_buffer_drops_records_but_not_decisions():
  whole, short = episodes('transformer'), episodes('transformer', max_decisions=2)
  assert (whole.mask.sum(-1) > 2).any()
  np.testing.assert_array_equal(short.dropped, jnp.maximum(whole.mask.sum(-1) - 2, 0))
  np.testing.assert_array_equal(short.lengths, whole.lengths)
  np.testing.assert_allclose(short.z, whole.z[:, :2], atol=1e-6)


def test_forced_switching_decides_at_every_raw_step():
  batch = episodes('transformer', forced=True)
  np.testing.assert_array_equal(batch.mask.sum(-1), batch.lengths)


def test_an_episode_does_not_depend_on_its_neighbours():
  model, module, policy, params, frozen = make('transformer')
  rollout = jax.jit(InternalRollout(ENV, model, module, policy).episodes)
  part = rollout(params, frozen, KEYS[2:4], TASKS[2:4])
  whole = episodes('transformer')
  np.testing.assert_array_equal(part.lengths, whole.lengths[2:4])
  np.testing.assert_allclose(part.z, whole.z[2:4], atol=1e-5)


def test_a_gate_for_every_dimension_is_refused():
  model, module, policy, _, _ = make('transformer')
  with pytest.raises(ValueError, match='scalar_gate=False'):
    InternalRollout(ENV, model, module.clone(scalar_gate=False), policy)


def test_fresh_policy_is_the_prior():
  policy = tiny.policy()
  e = jax.random.normal(jax.random.key(0), (2, 3, tiny.WIDTH))
  distribution = policy.apply(policy.init(jax.random.key(1), e), e)
  np.testing.assert_array_equal(distribution.mean, 0)
  np.testing.assert_array_equal(distribution.log_std, 0)
