"""What `benchmark` times: the hot paths of every stage, each as a function and its fresh inputs."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, discover, pretrain, reinforce
from internal_rl.envs.environment import Environment
from internal_rl.envs.gridworld import Gridworld
from internal_rl.metacontroller import loss as loss_lib
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.models.sequence_model import Carry, SequenceModel
from internal_rl.rl import learner
from internal_rl.rl.internal_env import Frozen
from internal_rl.rl.rollout import Decisions, InternalRollout
from internal_rl.training import state as state_lib
from internal_rl.types import Key, Params, Trajectories


@dataclasses.dataclass(frozen=True)
class Case:
  """One function to be timed.

  Attributes:
    function: jitted by the benchmark, unless `jitted` is False; everything it returns is computed.
    inputs: returns its arguments for one call, from a key, outside the clock.
    items: units of work a call.
    unit: what they are.
    details: what else a row says, from one call's output.
    jitted: False for a function of numpy arrays on the host.
    updates: how many updates a call makes, one after another.
  """

  function: Callable[..., Any]
  inputs: Callable[[jax.Array], tuple]
  items: float
  unit: str
  details: Callable[[Any], dict[str, Any]] = lambda output: {}
  jitted: bool = True
  updates: int = 1


Cases = dict[str, Case]
# Lengths that recomputation is compiled for. One for each prefix would spare it a fifth of its work
# and take far longer to compile.
PREFIX_LENGTHS = 4
# Raw steps of a call, at most: an episode of the ant is longer, and its steps all cost the same.
STEPS = 100
# Of pretraining, a call.
UPDATES = 4


def cores() -> int:
  """Returns how many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def shapes(config: common.Config, batch: int) -> dict[str, Any]:
  """Returns what a rival is told, so that it does the same work."""
  env: Any = common.environment(config)
  model = config.model
  return {
    'batch': batch,
    'env_steps': env.time_limit,
    'horizon': config.data.horizon,
    'observation_size': env.observation_size,
    'cells': env.grid_size**2,
    'channels': env.num_channels,
    'num_actions': env.num_actions,
    'kind': model.kind,
    'width': model.width,
    'num_blocks': model.num_blocks,
    'num_heads': model.num_heads,
    'mlp_width': model.mlp_width,
    'observation_weight': config.pretrain.observation_weight,
    'learning_rate': config.pretrain.learning_rate,
    'weight_decay': config.pretrain.weight_decay,
  }


def _base_params(config: common.Config) -> Params:
  """Returns untrained parameters: the values decide nothing about speed."""
  size = common.environment(config).observation_size
  init = jax.jit(common.base_model(config).init)
  return init(jax.random.key(0), jnp.zeros((1, 1, size), jnp.uint8))


def _metacontroller_params(config: common.Config, key: jax.Array) -> Params:
  e = jnp.zeros((1, config.data.horizon, config.model.width))
  mask = jnp.ones(e.shape[:2], bool)
  module = common.metacontroller(config)
  return module.init(key, e, mask, key, method=Metacontroller.touch_everything)


def env_steps(config: common.Config, batch: int) -> Cases:
  """Random actions from reset, at most to the time limit; every step's observation is written.

  An episode that has ended goes on being stepped, which costs the same. On the ant, its physics
  alone stands beside.
  """
  env: Any = common.environment(config)
  steps = min(env.time_limit, STEPS)

  def function(state, actions):
    return jax.lax.scan(jax.vmap(env.step), state, actions)

  @jax.jit
  def inputs(key):
    state, _ = _reset(env, key, batch)
    return state, _actions(env, key, (steps, batch))

  cases = {'env_steps': Case(function, inputs, steps * batch, 'steps')}
  if isinstance(env, Gridworld):
    return cases
  from experiments import benchmark_physics  # Needs the extra `ant`.

  return cases | benchmark_physics.cases(env.body, inputs, steps * batch)


def _actions(env: Environment, key: Key, shape: tuple[int, ...]) -> jax.Array:
  """Returns random actions: moves, or torques."""
  if isinstance(env, Gridworld):
    return jax.random.randint(key, shape, 0, env.num_actions)
  return jax.random.uniform(key, (*shape, env.num_actions), minval=-1.0)


def _observations(env: Environment, key: Key, shape: tuple[int, ...]) -> jax.Array:
  """Returns noise in the form of observations."""
  shape = (*shape, env.observation_size)
  if isinstance(env, Gridworld):
    return jax.random.bernoulli(key, 0.1, shape).astype(jnp.uint8)
  return jax.random.normal(key, shape)


def env_reset(config: common.Config, batch: int) -> Cases:
  """New layouts, unsolvable ones drawn again, and their first observations."""
  env = common.environment(config)
  function = lambda key: _reset(env, key, batch)
  return {'env_reset': Case(function, lambda key: (key,), batch, 'resets')}


def _reset(env, key, batch):
  return jax.vmap(env.reset)(jax.random.split(key, batch), common.task_batch(env, batch))


def expert(config: common.Config, batch: int) -> Cases:
  """Demonstrations as training draws them: layouts (with rejection), episodes, observations.

  An expert that has to be trained is not.
  """
  env, params = common.environment(config), None
  if common.learns_expert(config):
    trainer = common.ant().trainer(config, env)
    params, statistics, _ = jax.jit(trainer.init)(jax.random.key(0))
    params = {**params, 'statistics': statistics}
  demonstrator = common.expert(config, env=env, params=params)
  function = lambda key: demonstrator.sample(key, batch, config.data.horizon)
  return {'expert': Case(function, lambda key: (key,), batch, 'episodes')}


def _demonstrations(
  config: common.Config, batch: int, clean: bool = False
) -> Callable[[Key], Trajectories]:
  """Returns what draws demonstrations from a key; noise, where no expert is at hand."""
  horizon = config.data.horizon
  if not common.learns_expert(config):
    demonstrator = common.expert(config, clean)
    return jax.jit(lambda key: demonstrator.sample(key, batch, horizon))
  env, zeros = common.environment(config), jnp.zeros((batch, horizon), jnp.int32)
  return jax.jit(
    lambda key: Trajectories(
      observations=_observations(env, key, (batch, horizon + 1)),
      actions=_actions(env, key, (batch, horizon)),
      mask=jnp.ones((batch, horizon), bool),
      subgoals=zeros,
      segments=zeros,
      tasks=common.task_batch(env, batch),
    )
  )


def pretrain_update(config: common.Config, batch: int) -> Cases:
  """Updates of pretraining on demonstrations at hand, several a call as in `fit`.

  Transitions include the padding. The first row has the optimiser of Table A4, AdamW, as rivals
  have, beside the config's clipping and schedule, which they do without. Where the config asks for
  another optimiser, a second row has that one.
  """
  chosen, samples = config.pretrain.optimiser, jax.jit(jax.vmap(_demonstrations(config, batch)))
  model, params = common.base_model(config), _base_params(config)

  def case(optimiser: str) -> Case:
    section = config.pretrain.copy_and_resolve_references()
    section.optimiser = optimiser
    tx = common.optimiser(section)
    state = state_lib.create(params, tx, jax.random.key(0))

    def update(state, batch):
      def loss_fn(params):
        losses = pretrain.losses(model, params, batch)
        action, observation = (loss_lib.masked_mean(x, batch.mask) for x in losses)
        return action + section.observation_weight * observation

      loss, grads = jax.value_and_grad(loss_fn)(state.params)
      return state_lib.apply_gradients(state, grads, tx), loss

    return Case(
      lambda state, batches: jax.lax.scan(update, state, batches),
      lambda key: (state, samples(jax.random.split(key, UPDATES))),
      UPDATES * batch * config.data.horizon,
      'transitions',
      updates=UPDATES,
    )

  cases = {'pretrain': case('adamw')}
  return cases if chosen == 'adamw' else cases | {f'pretrain_{chosen}': case(chosen)}


def discover_update(config: common.Config, batch: int) -> Cases:
  """One update of the population on demonstrations at hand; each member's transitions count."""
  section, base = config.discover, _base_params(config)
  tx, sample = common.optimiser(section), _demonstrations(config, batch, clean=True)
  members = len(section.alphas) * section.seeds
  alphas = jnp.repeat(jnp.array(section.alphas, jnp.float32), section.seeds)

  create = jax.jit(jax.vmap(functools.partial(discover.create, config, tx, base)))
  population = create(jax.random.split(jax.random.key(0), members), alphas)

  function = functools.partial(discover.update_members, config, tx)
  inputs = lambda key: (population, base, sample(key), jax.random.split(key, members))
  items = members * batch * config.data.horizon
  details = lambda output: {'members': members}
  return {'discover': Case(function, inputs, items, 'transitions', details)}


def _internal(config: common.Config) -> tuple[Any, Params, Frozen]:
  """Returns internal RL's rollout, its policy and what is frozen; nothing is trained."""
  env, policy = common.post_training_environment(config), common.policy(config)
  frozen = Frozen(
    _base_params(config),
    jax.jit(functools.partial(_metacontroller_params, config))(jax.random.key(0)),
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

  As in `env_steps`, what has ended goes on being stepped. In the second row the base model carries
  nothing from step to step and reads the whole past again.
  """
  play, params, frozen = _internal(config)
  steps = min(play.env.time_limit, STEPS)
  tasks = common.task_batch(play.env, batch)

  def case(parts: list[tuple[InternalRollout, int]]) -> Case:
    def function(params, frozen, carry):
      for play, count in parts:
        step = lambda carry, _, play=play: (play.step(params, frozen, carry), None)
        carry, _ = jax.lax.scan(step, carry, length=count)
      return carry

    @jax.jit
    def start(frozen, key):
      return parts[0][0].start(frozen, jax.random.split(key, batch), tasks)

    inputs = lambda key: (params, frozen, start(frozen, key))
    return Case(function, inputs, steps * batch, 'steps')

  again = []
  for times in np.array_split(np.arange(steps), min(PREFIX_LENGTHS, steps)):
    # The last of these steps ends by reading the observation after it.
    model: Any = Recomputed(play.model, steps + 1, int(times[-1]) + 2)
    again.append((dataclasses.replace(play, model=model), len(times)))
  return {'internal_steps': case([(play, steps)]), 'internal_recompute': case(again)}


def rollout(config: common.Config, batch: int) -> Cases:
  """Episodes of internal RL with untrained models, from reset until the last one has ended."""
  play, params, frozen = _internal(config)
  function = lambda params, frozen, key, tasks: play(params, frozen, key, tasks)
  inputs = lambda key: (params, frozen, key, common.task_batch(play.env, batch))
  details = lambda output: {'longest_episode': int(output.lengths.max())}
  return {'rollout': Case(function, inputs, batch, 'episodes', details)}


def policy_update(config: common.Config, batch: int) -> Cases:
  """All epochs and minibatches of one batch of episodes."""
  section, policy = config.reinforce, common.policy(config)
  decisions = section.max_decisions or section.time_limit
  params = policy.init(jax.random.key(0), jnp.zeros((1, 1, config.model.width)))
  tx = common.optimiser(section, section.learning_rates[0])
  opt_state = tx.init(params)
  how = learner.LearnerConfig(
    section.epochs, section.minibatches, section.clip, section.entropy_coefficient
  )
  score = functools.partial(reinforce.evaluate_codes, policy)

  def function(params, opt_state, batch, key):
    return learner.learn(how, tx, score, params, opt_state, batch, key)

  @jax.jit
  def inputs(key):
    e_key, z_key, return_key = jax.random.split(key, 3)
    z = jax.random.normal(z_key, (batch, decisions, config.metacontroller.code_size))
    none = jnp.zeros(batch, jnp.int32)
    episodes = Decisions(
      e=jax.random.normal(e_key, (batch, decisions, config.model.width)),
      z=z,
      log_prob=jax.scipy.stats.norm.logpdf(z).sum(-1),
      mask=jnp.ones((batch, decisions), bool),
      times=jnp.zeros((batch, decisions), jnp.int32),
      returns=jax.random.bernoulli(return_key, 0.1, (batch,)).astype(jnp.float32),
      lengths=none,
      dropped=none,
      final=None,
    )
    return params, opt_state, episodes, key

  return {'policy_update': Case(function, inputs, batch, 'episodes')}


def decode(config: common.Config, batch: int) -> Cases:
  """Acting step by step from what blocks carry, and by reading the whole past again every step."""
  env, model = common.post_training_environment(config), common.base_model(config)
  steps, params = env.time_limit, _base_params(config)

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

  @jax.jit
  def inputs(key):
    return params, _observations(env, key, (steps, batch))

  items = steps * batch
  return {
    'decode_cached': Case(cached, inputs, items, 'steps'),
    'decode_recompute': Case(recompute, inputs, items, 'steps'),
  }


GROUPS: dict[str, Callable[[common.Config, int], Cases]] = {
  'env_steps': env_steps,
  'env_reset': env_reset,
  'expert': expert,
  'pretrain': pretrain_update,
  'discover': discover_update,
  'internal_steps': internal_steps,
  'rollout': rollout,
  'policy_update': policy_update,
  'decode': decode,
}
