"""What `benchmark` times of reinforcement learning: acting, episodes, updates."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, reinforce
from experiments.benchmark_case import (
  STEPS,
  Case,
  Cases,
  base_params,
  metacontroller_params,
  random_actions,
  random_observations,
)
from internal_rl.baselines import raw_rl
from internal_rl.control.closed_loop import RawEpisodes
from internal_rl.models.sequence_model import Carry, SequenceModel
from internal_rl.rl import learner
from internal_rl.rl.internal_env import Frozen
from internal_rl.rl.rollout import Decisions, InternalRollout
from internal_rl.types import Key, Params

# Lengths that recomputation is compiled for. One for each prefix would spare it a fifth of its work
# and take far longer to compile.
PREFIX_LENGTHS = 4


def _internal(config: common.Config) -> tuple[Any, Params, Frozen]:
  """Returns internal RL's rollout, its policy and what is frozen; nothing is trained."""
  env, policy = common.post_training_environment(config), common.policy(config)
  frozen = Frozen(
    base_params(config),
    jax.jit(functools.partial(metacontroller_params, config))(jax.random.key(0)),
  )
  params = policy.init(jax.random.key(0), jnp.zeros((1, 1, config.model.width)))
  play = common.internal_rollout(config, env, policy, config.reinforce.max_decisions)
  return play, params, frozen


@dataclasses.dataclass(frozen=True)
class Recomputed:
  """Stands in for a base model in a rollout: it carries what it read, and reads it all again.

  Attributes:
    model: the base model.
    capacity: observations of a whole episode.
    length: how many of them it reads, those to come as zeros, which nothing before them sees.
  """

  model: SequenceModel
  capacity: int
  length: int

  def initial_carry(self, batch: int, max_length: int) -> Carry:
    del max_length
    past = jnp.zeros((batch, self.capacity, self.model.width))
    return Carry(lower=(), upper=(past, jnp.zeros((), jnp.int32)))

  def apply(self, params: Params, carry: Any, x: jax.Array, method: Callable[..., Any]) -> Any:
    if not carry:  # What observations look like is known from the first.
      shape = (x.shape[0], self.capacity, *x.shape[1:])
      carry = jnp.zeros(shape, x.dtype), jnp.zeros((), jnp.int32)
    past, time = carry
    past = jax.lax.dynamic_update_index_in_dim(past, x, time, 1)
    lower = method is SequenceModel.lower_step
    whole = SequenceModel.lower if lower else SequenceModel.upper
    found = self.model.apply(params, past[:, : self.length], method=whole)
    at_time = lambda x: jax.lax.dynamic_index_in_dim(x, time, 1, keepdims=False)
    return (past, time + 1), jax.tree.map(at_time, found)


def internal_steps(config: common.Config, batch: int) -> Cases:
  """Raw steps of internal RL: policy, decoder, upper blocks, environment, lower blocks, switch.

  As in `env_steps`, what has ended goes on being stepped.
  """
  play, params, frozen = _internal(config)
  steps = min(play.env.time_limit, STEPS)
  return {'internal_steps': _stepping(params, frozen, [(play, steps)], batch)}


def internal_recompute(config: common.Config, batch: int) -> Cases:
  """The same, and in a second row with a base model that reads the whole past again every step."""
  play, params, frozen = _internal(config)
  steps, again = min(play.env.time_limit, STEPS), []
  for times in np.array_split(np.arange(steps), min(PREFIX_LENGTHS, steps)):
    # The last of these steps ends by reading the observation after it.
    model: Any = Recomputed(play.model, steps + 1, int(times[-1]) + 2)
    again.append((dataclasses.replace(play, model=model), len(times)))
  recomputed = _stepping(params, frozen, again, batch)
  return {**internal_steps(config, batch), 'internal_recompute': recomputed}


def _stepping(
  params: Params, frozen: Frozen, parts: list[tuple[InternalRollout, int]], batch: int
) -> Case:
  """Steps a batch of episodes from their start, so many times with one rollout after another."""
  tasks = common.task_batch(parts[0][0].env, batch)

  def function(params, frozen, carry):
    for play, count in parts:
      step = lambda carry, _, play=play: (play.step(params, frozen, carry), None)
      carry, _ = jax.lax.scan(step, carry, length=count)
    return carry

  @jax.jit
  def start(frozen, key):
    return parts[0][0].start(frozen, jax.random.split(key, batch), tasks)

  inputs = lambda key: (params, frozen, start(frozen, key))
  return Case(function, inputs, sum(count for _, count in parts) * batch, 'steps')


def rollout(config: common.Config, batch: int) -> Cases:
  """Episodes of internal RL with untrained models, from reset until the last one has ended."""
  play, params, frozen = _internal(config)
  function = lambda params, frozen, key, tasks: play(params, frozen, key, tasks)
  inputs = lambda key: (params, frozen, key, common.task_batch(play.env, batch))
  details = lambda output: {'longest_episode': int(output.lengths.max())}
  return {'rollout': Case(function, inputs, batch, 'episodes', details)}


def policy_update(config: common.Config, batch: int) -> Cases:
  """All epochs and minibatches of one batch of episodes, with as many decisions as fit."""
  policy, size = common.policy(config), config.metacontroller.code_size
  decisions = config.reinforce.max_decisions or config.reinforce.time_limit
  params = policy.init(jax.random.key(0), jnp.zeros((1, 1, config.model.width)))

  def episodes(key: Key) -> Decisions:
    e_key, z_key, return_key = jax.random.split(key, 3)
    z = jax.random.normal(z_key, (batch, decisions, size))
    none = jnp.zeros(batch, jnp.int32)
    return Decisions(
      e=jax.random.normal(e_key, (batch, decisions, config.model.width)),
      z=z,
      log_prob=jax.scipy.stats.norm.logpdf(z).sum(-1),
      mask=jnp.ones((batch, decisions), bool),
      times=jnp.zeros((batch, decisions), jnp.int32),
      returns=_returns(return_key, batch),
      lengths=none,
      dropped=none,
      final=None,
    )

  score = functools.partial(reinforce.evaluate_codes, policy)
  return {'policy_update': _learning(config, score, params, episodes, batch)}


def raw_update(config: common.Config, batch: int) -> Cases:
  """The same of raw-action RL, which learns from every step up to the time limit."""
  env, model = common.post_training_environment(config), common.base_model(config)
  shape = batch, env.time_limit

  def episodes(key: Key) -> RawEpisodes:
    observation_key, action_key, return_key = jax.random.split(key, 3)
    return RawEpisodes(
      observations=random_observations(env, observation_key, shape),
      actions=random_actions(env, action_key, shape),
      log_prob=jnp.zeros(shape),
      mask=jnp.ones(shape, bool),
      returns=_returns(return_key, batch),
      lengths=jnp.full(batch, env.time_limit),
      final=None,
    )

  score = functools.partial(raw_rl.evaluate, model)
  return {'raw_update': _learning(config, score, base_params(config), episodes, batch)}


def _returns(key: Key, batch: int) -> jax.Array:
  """Returns rewards, one of them for certain: without any there is nothing to learn."""
  return jax.random.bernoulli(key, 0.1, (batch,)).astype(jnp.float32).at[0].set(1)


def _learning(
  config: common.Config,
  score: learner.Evaluate,
  params: Params,
  episodes: Callable[[Key], Any],
  batch: int,
) -> Case:
  section = config.reinforce
  tx = common.optimiser(section, section.learning_rates[0])
  how = learner.LearnerConfig(
    section.epochs, section.minibatches, section.clip, section.entropy_coefficient
  )

  def function(params, opt_state, batch, key):
    return learner.learn(how, tx, score, params, opt_state, batch, key)

  opt_state, draw = tx.init(params), jax.jit(episodes)

  def inputs(key):
    episodes_key, learn_key = jax.random.split(key)
    return params, opt_state, draw(episodes_key), learn_key

  return Case(function, inputs, batch, 'episodes')


def decode(config: common.Config, batch: int) -> Cases:
  """Acting step by step from what blocks carry, and by reading the whole past again every step."""
  env, model = common.post_training_environment(config), common.base_model(config)
  steps, params = env.time_limit, base_params(config)

  def cached(params, observations):
    def step(carry, observation):
      lower, e = model.apply(params, carry.lower, observation, method=SequenceModel.lower_step)
      upper, predictions = model.apply(params, carry.upper, e, method=SequenceModel.upper_step)
      return Carry(lower=lower, upper=upper), predictions.action

    return jax.lax.scan(step, model.initial_carry(batch, steps), observations)[1]

  def recompute(params, observations):
    def step(length, past, now):
      # Written as it comes: were the past constant, XLA would move the model out of the loop.
      time, observation = now
      past = jax.lax.dynamic_update_index_in_dim(past, observation, time, 1)
      action = model.apply(params, past[:, :length]).action
      at_time = lambda x: jax.lax.dynamic_index_in_dim(x, time, 1, keepdims=False)
      return past, jax.tree.map(at_time, action)

    past = jnp.zeros((batch, steps, env.observation_size), observations.dtype)
    parts = []
    for times in np.array_split(np.arange(steps), min(PREFIX_LENGTHS, steps)):
      now = (jnp.asarray(times), observations[times[0] : times[-1] + 1])
      past, actions = jax.lax.scan(functools.partial(step, int(times[-1]) + 1), past, now)
      parts.append(actions)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

  draw = jax.jit(lambda key: random_observations(env, key, (steps, batch)))
  inputs = lambda key: (params, draw(key))

  items = steps * batch
  return {
    'decode_cached': Case(cached, inputs, items, 'steps'),
    'decode_recompute': Case(recompute, inputs, items, 'steps'),
  }
