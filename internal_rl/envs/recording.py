"""Remembers every state of an episode, so that any rollout can be looked at afterwards."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Shaped

from internal_rl.envs.environment import Environment, State
from internal_rl.envs.tasks import Tasks
from internal_rl.types import Key, TimeStep


@struct.dataclass
class RecordedState:
  """A state and those before it.

  Attributes:
    state: the environment's own.
    trail: the states after 0, 1, .., `time_limit` raw steps, on a new leading axis; zeros beyond
      the present.
  """

  state: State
  trail: Any

  @property
  def subgoal(self):
    return self.state.subgoal

  @property
  def progress(self):
    return self.state.progress

  @property
  def time(self):
    return self.state.time


@dataclasses.dataclass(frozen=True)
class RecordingEnvironment:
  """The same environment, with a memory.

  Rollouts hand back the final state of each episode: rolled out in here, that holds all of them.
  Observations and rewards are those of `env`. Costs memory: for tens of episodes, not for training.

  Attributes:
    env: the environment.
  """

  env: Environment

  @property
  def time_limit(self) -> int:
    return self.env.time_limit

  @property
  def tasks(self) -> Tasks:
    return self.env.tasks

  @property
  def observation_size(self) -> int:
    return self.env.observation_size

  @property
  def num_actions(self) -> int:
    return self.env.num_actions

  def reset(self, key: Key, task: Int[Array, '']) -> tuple[RecordedState, TimeStep]:
    state, timestep = self.env.reset(key, task)
    empty = jax.tree.map(lambda x: jnp.zeros((self.time_limit + 1, *x.shape), x.dtype), state)
    return self._record(state, empty), timestep

  def step(
    self, state: RecordedState, action: Shaped[Array, '*a']
  ) -> tuple[RecordedState, TimeStep]:
    following, timestep = self.env.step(state.state, action)
    return self._record(following, state.trail), timestep

  @property
  def endings(self) -> tuple[str, ...]:
    return self.env.endings

  def ending(self, state: RecordedState) -> Int[Array, '']:
    return self.env.ending(state.state)

  def _record(self, state: State, trail: Any) -> RecordedState:
    # Time stands still after the end, so that an ended episode writes its last state again.
    write = lambda before, now: before.at[state.time].set(now)
    return RecordedState(state, jax.tree.map(write, trail, state))
