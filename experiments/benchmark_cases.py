"""What `benchmark` times: the hot paths of every stage, each as a function and its fresh inputs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments import benchmark_rl, common, discover, pretrain
from experiments.benchmark_case import (
  STEPS,
  Case,
  Cases,
  base_params,
  demonstrations,
  random_actions,
  reset,
)
from internal_rl.envs.gridworld import Gridworld
from internal_rl.metacontroller import loss as loss_lib
from internal_rl.training import state as state_lib

# Of pretraining, a call.
UPDATES = 4


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
    state, _ = reset(env, key, batch)
    return state, random_actions(env, key, (steps, batch))

  cases = {'env_steps': Case(function, inputs, steps * batch, 'steps')}
  if isinstance(env, Gridworld):
    return cases
  from experiments import benchmark_physics  # Needs the extra `ant`.

  return cases | benchmark_physics.cases(env.body, inputs, steps * batch)


def env_reset(config: common.Config, batch: int) -> Cases:
  """New layouts, unsolvable ones drawn again, and their first observations."""
  env = common.environment(config)
  function = lambda key: reset(env, key, batch)
  return {'env_reset': Case(function, lambda key: (key,), batch, 'resets')}


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


def pretrain_update(config: common.Config, batch: int) -> Cases:
  """Updates of pretraining on demonstrations at hand, several a call as in `fit`.

  Transitions include the padding. The first row has the optimiser of Table A4, AdamW, as rivals
  have, beside the config's clipping and schedule, which they do without. Where the config asks for
  another optimiser, a second row has that one.
  """
  chosen, samples = config.pretrain.optimiser, jax.jit(jax.vmap(demonstrations(config, batch)))
  model, params = common.base_model(config), base_params(config)

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
  section, base = config.discover, base_params(config)
  tx, sample = common.optimiser(section), demonstrations(config, batch, clean=True)
  members = len(section.alphas) * section.seeds
  alphas = jnp.repeat(jnp.array(section.alphas, jnp.float32), section.seeds)

  create = jax.jit(jax.vmap(functools.partial(discover.create, config, tx, base)))
  population = create(jax.random.split(jax.random.key(0), members), alphas)

  function = functools.partial(discover.update_members, config, tx)
  inputs = lambda key: (population, base, sample(key), jax.random.split(key, members))
  items = members * batch * config.data.horizon
  details = lambda output: {'members': members}
  return {'discover': Case(function, inputs, items, 'transitions', details)}


GROUPS: dict[str, Callable[[common.Config, int], Cases]] = {
  'env_steps': env_steps,
  'env_reset': env_reset,
  'expert': expert,
  'pretrain': pretrain_update,
  'discover': discover_update,
  'internal_steps': benchmark_rl.internal_steps,
  'internal_recompute': benchmark_rl.internal_recompute,
  'rollout': benchmark_rl.rollout,
  'policy_update': benchmark_rl.policy_update,
  'raw_update': benchmark_rl.raw_update,
  'decode': benchmark_rl.decode,
}
