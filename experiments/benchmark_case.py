"""What the benchmark's cases are made of: `Case`, and inputs that they share."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments import common
from internal_rl.envs.environment import Environment
from internal_rl.envs.gridworld import Gridworld
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.types import Key, Params, TimeStep, Trajectories

# Raw steps of a call, at most: an episode of the ant is longer, and its steps all cost the same.
STEPS = 100


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


def cores() -> int:
  """Returns how many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def base_params(config: common.Config) -> Params:
  """Returns untrained parameters: the values decide nothing about speed."""
  size = common.environment(config).observation_size
  init = jax.jit(common.base_model(config).init)
  return init(jax.random.key(0), jnp.zeros((1, 1, size), jnp.uint8))


def metacontroller_params(config: common.Config, key: Key) -> Params:
  """Returns untrained parameters, likewise."""
  e = jnp.zeros((1, config.data.horizon, config.model.width))
  mask = jnp.ones(e.shape[:2], bool)
  module = common.metacontroller(config)
  return module.init(key, e, mask, key, method=Metacontroller.touch_everything)


def random_actions(env: Environment, key: Key, shape: tuple[int, ...]) -> jax.Array:
  """Returns random actions: moves, or torques."""
  if isinstance(env, Gridworld):
    return jax.random.randint(key, shape, 0, env.num_actions)
  return jax.random.uniform(key, (*shape, env.num_actions), minval=-1.0)


def random_observations(env: Environment, key: Key, shape: tuple[int, ...]) -> jax.Array:
  """Returns noise in the form of observations."""
  shape = (*shape, env.observation_size)
  if isinstance(env, Gridworld):
    return jax.random.bernoulli(key, 0.1, shape).astype(jnp.uint8)
  return jax.random.normal(key, shape)


def reset(env: Environment, key: Key, batch: int) -> tuple[Any, TimeStep]:
  """Begins episodes of all tasks in turn, on fresh layouts."""
  return jax.vmap(env.reset)(jax.random.split(key, batch), common.task_batch(env, batch))


def demonstrations(
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
      observations=random_observations(env, key, (batch, horizon + 1)),
      actions=random_actions(env, key, (batch, horizon)),
      mask=jnp.ones((batch, horizon), bool),
      subgoals=zeros,
      segments=zeros,
      tasks=common.task_batch(env, batch),
    )
  )
