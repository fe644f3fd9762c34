"""What `benchmark` times: the hot paths of every stage, each as a function and its fresh inputs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, discover, pretrain, reinforce
from internal_rl.metacontroller import loss as loss_lib
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.models.sequence_model import Carry, SequenceModel
from internal_rl.rl import learner
from internal_rl.rl.internal_env import Frozen
from internal_rl.rl.rollout import Decisions, InternalRollout
from internal_rl.training import state as state_lib
from internal_rl.types import Params


@dataclasses.dataclass(frozen=True)
class Case:
  """One function to be timed.

  Attributes:
    function: jitted by the benchmark; everything it returns is computed.
    inputs: returns its arguments for one call, from a key, outside the clock.
    items: units of work a call.
    unit: what they are.
    details: what else a row says, from one call's output.
  """

  function: Callable[..., Any]
  inputs: Callable[[jax.Array], tuple]
  items: float
  unit: str
  details: Callable[[Any], dict[str, Any]] = lambda output: {}


Cases = dict[str, Case]
# Lengths that recomputation is compiled for. One for each prefix would spare it a fifth of its work
# and take far longer to compile.
PREFIX_LENGTHS = 4


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
  """Random actions from reset to the time limit; every step's observation is written.

  An episode that has ended goes on being stepped, which costs the same.
  """
  env = common.environment(config)
  steps = env.time_limit

  def function(state, actions):
    return jax.lax.scan(jax.vmap(env.step), state, actions)

  @jax.jit
  def inputs(key):
    state, _ = _reset(env, key, batch)
    return state, jax.random.randint(key, (steps, batch), 0, env.num_actions)

  return {'env_steps': Case(function, inputs, steps * batch, 'steps')}


def env_reset(config: common.Config, batch: int) -> Cases:
  """New layouts, unsolvable ones drawn again, and their first observations."""
  env = common.environment(config)
  function = lambda key: _reset(env, key, batch)
  return {'env_reset': Case(function, lambda key: (key,), batch, 'resets')}


def _reset(env, key, batch):
  return jax.vmap(env.reset)(jax.random.split(key, batch), common.task_batch(env, batch))


def expert(config: common.Config, batch: int) -> Cases:
  """Demonstrations as training draws them: layouts (with rejection), episodes, observations."""
  demonstrator = common.expert(config)
  function = lambda key: demonstrator.sample(key, batch, config.data.horizon)
  return {'expert': Case(function, lambda key: (key,), batch, 'episodes')}


def pretrain_update(config: common.Config, batch: int) -> Cases:
  """One update of pretraining on demonstrations at hand. Transitions include the padding."""
  section, model = config.pretrain, common.base_model(config)
  tx, demonstrator = common.optimiser(section), common.expert(config)
  state = state_lib.create(_base_params(config), tx, jax.random.key(0))
  sample = jax.jit(lambda key: demonstrator.sample(key, batch, config.data.horizon))

  def function(state, batch):
    def loss_fn(params):
      losses = pretrain.losses(model, params, batch)
      action, observation = (loss_lib.masked_mean(x, batch.mask) for x in losses)
      return action + section.observation_weight * observation

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state_lib.apply_gradients(state, grads, tx), loss

  case = Case(
    function,
    lambda key: (state, sample(key)),
    batch * config.data.horizon,
    'transitions',
  )
  return {'pretrain': case}


def discover_update(config: common.Config, batch: int) -> Cases:
  """One update of the population on demonstrations at hand; each member's transitions count."""
  section, base = config.discover, _base_params(config)
  tx, demonstrator = common.optimiser(section), common.expert(config, clean=True)
  members = len(section.alphas) * section.seeds
  alphas = jnp.repeat(jnp.array(section.alphas, jnp.float32), section.seeds)

  create = jax.jit(jax.vmap(functools.partial(discover.create, config, tx, base)))
  population = create(jax.random.split(jax.random.key(0), members), alphas)
  sample = jax.jit(lambda key: demonstrator.sample(key, batch, config.data.horizon))

  function = functools.partial(discover.update_members, config, tx)
  inputs = lambda key: (population, base, sample(key), jax.random.split(key, members))
  items = members * batch * config.data.horizon
  details = lambda output: {'members': members}
  return {'discover': Case(function, inputs, items, 'transitions', details)}


def rollout(config: common.Config, batch: int) -> Cases:
  """Episodes of internal RL with untrained models, from reset until the last one has ended."""
  env, policy = common.post_training_environment(config), common.policy(config)
  frozen = Frozen(
    _base_params(config),
    jax.jit(functools.partial(_metacontroller_params, config))(jax.random.key(0)),
  )
  params = policy.init(jax.random.key(0), jnp.zeros((1, 1, config.model.width)))
  play = InternalRollout(
    env,
    common.base_model(config),
    common.metacontroller(config),
    policy,
    config.metacontroller.threshold,
    config.reinforce.max_decisions,
    forced=config.discover.gate == 'open',
  )
  function = lambda params, frozen, key, tasks: play(params, frozen, key, tasks)
  inputs = lambda key: (params, frozen, key, common.task_batch(env, batch))
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
      return Carry(lower=lower, upper=upper), predictions.action.logits

    return jax.lax.scan(step, model.initial_carry(batch, steps), observations)[1]

  def recompute(params, observations):
    def step(length, past, now):
      # Written as it comes: were the past constant, XLA would move the model out of the loop.
      time, observation = now
      past = jax.lax.dynamic_update_index_in_dim(past, observation, time, 1)
      logits = model.apply(params, past[:, :length]).action.logits
      return past, jax.lax.dynamic_index_in_dim(logits, time, 1, keepdims=False)

    past, parts = jnp.zeros((batch, steps, env.observation_size), jnp.uint8), []
    for times in np.array_split(np.arange(steps), min(PREFIX_LENGTHS, steps)):
      now = (jnp.asarray(times), observations[times[0] : times[-1] + 1])
      past, logits = jax.lax.scan(functools.partial(step, int(times[-1]) + 1), past, now)
      parts.append(logits)
    return jnp.concatenate(parts)

  @jax.jit
  def inputs(key):
    shape = (steps, batch, env.observation_size)
    return params, jax.random.bernoulli(key, 0.1, shape).astype(jnp.uint8)

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
  'rollout': rollout,
  'policy_update': policy_update,
  'decode': decode,
}
