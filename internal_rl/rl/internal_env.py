"""Algorithms 1-2 as the paper writes them (App. C.5): the frozen model is part of the environment.

The readable definition, and the oracle that `rollout` is tested against. One episode at a time; a
vmapped `step` would make every decision wait for the slowest episode, so training uses `rollout`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from internal_rl.envs.environment import Environment
from internal_rl.metacontroller.metacontroller import Metacontroller, SwitchCarry
from internal_rl.models.sequence_model import Carry, SequenceModel
from internal_rl.types import Key, Params, TimeStep


@struct.dataclass
class Frozen:
  """Parameters that internal RL never changes."""

  base: Params
  metacontroller: Params


def action_key(key: Key, time: Int[Array, '']) -> Key:
  """The key of the raw action at raw time `time` of an episode with key `key`."""
  return jax.random.fold_in(key, 2 * time)


def code_key(key: Key, time: Int[Array, '']) -> Key:
  """The key of a code chosen at raw time `time` of an episode with key `key`."""
  return jax.random.fold_in(key, 2 * time + 1)


def episode_keys(key: Key) -> tuple[Key, Key]:
  """Splits an episode's key into one for `reset` and one for `action_key` and `code_key`."""
  reset_key, sampling_key = jax.random.split(key)
  return reset_key, sampling_key


@struct.dataclass
class InternalState:
  """An episode under way, seen from a decision point.

  Attributes:
    env: state of the real environment.
    key: key of `action_key` and `code_key`.
    carry: caches of the base model.
    switch: what the switch remembers.
    e: residual stream at the controlled layer.
    time: raw steps taken.
    done: whether the episode has ended.
  """

  env: Any
  key: Key
  carry: Carry
  switch: SwitchCarry
  e: Float[Array, ' d']
  time: Int[Array, '']
  done: Any


@dataclasses.dataclass(frozen=True)
class InternalEnvironment:
  """An environment whose observations are `e` and whose actions are codes.

  Attributes:
    env: the real environment.
    model: the base sequence model.
    metacontroller: switch and decoder.
    threshold: beta from which on the switch fires, so that a new decision is due (App. C.6: 0.5).
    max_steps: raw steps that the caches hold; at least the environment's time limit.
  """

  env: Environment
  model: SequenceModel
  metacontroller: Metacontroller
  threshold: float = 0.5
  max_steps: int | None = None

  def reset(self, frozen: Frozen, key: Key, task: Int[Array, '']) -> tuple[InternalState, TimeStep]:
    """`init()`: resets the real environment and all carries, and reads `o_1`."""
    reset_key, sampling_key = episode_keys(key)
    env_state, timestep = self.env.reset(reset_key, task)
    carry = self.model.initial_carry(1, self.max_steps or self.env.time_limit)
    lower, e = self._lower(frozen, carry.lower, timestep.observation)
    switch = self.metacontroller.initial_carry(1)
    # The switch reads e_1 too, but whatever it says, the first code has to come from the policy.
    no_code = jnp.zeros((1, self.metacontroller.code_size))
    switch, _ = self._switch(frozen, switch, e, no_code)
    state = InternalState(
      env=env_state,
      key=sampling_key,
      carry=carry.replace(lower=lower),
      switch=switch,
      e=e[0],
      time=jnp.zeros((), jnp.int32),
      done=timestep.done,
    )
    return state, TimeStep(state.e, timestep.reward, timestep.done)

  def step(
    self, frozen: Frozen, state: InternalState, z: Float[Array, ' z']
  ) -> tuple[InternalState, TimeStep]:
    """`step(z, s)`: acts under code `z` until the switch fires or the episode ends."""

    def not_due(carry):
      state, fires, _ = carry
      return ~fires & ~state.done

    def act(carry):
      state, _, reward = carry
      state, fires, step_reward = self._raw_step(frozen, state, z)
      return state, fires, reward + step_reward

    start = (state, jnp.array(False), jnp.zeros(()))
    state, _, reward = jax.lax.while_loop(not_due, act, start)
    return state, TimeStep(state.e, reward, state.done)

  def _raw_step(self, frozen: Frozen, state: InternalState, z: Float[Array, ' z']):
    controlled = self.metacontroller.apply(
      frozen.metacontroller, z[None], state.e[None], method=Metacontroller.control
    )
    upper, predictions = self.model.apply(
      frozen.base, state.carry.upper, controlled, method=SequenceModel.upper_step
    )
    distribution = jax.tree.map(lambda x: x[0], predictions.action)
    action = distribution.sample(action_key(state.key, state.time))
    env_state, timestep = self.env.step(state.env, action)
    lower, e = self._lower(frozen, state.carry.lower, timestep.observation)
    switch, beta = self._switch(frozen, state.switch, e, z[None])
    state = state.replace(
      env=env_state,
      carry=Carry(lower=lower, upper=upper),
      switch=switch,
      e=e[0],
      time=state.time + 1,
      done=timestep.done,
    )
    return state, beta[0, 0] >= self.threshold, timestep.reward

  def _lower(self, frozen: Frozen, carry, observation):
    return self.model.apply(frozen.base, carry, observation[None], method=SequenceModel.lower_step)

  def _switch(self, frozen: Frozen, carry: SwitchCarry, e, z):
    return self.metacontroller.apply(
      frozen.metacontroller, carry, e, z, method=Metacontroller.switch_step
    )
