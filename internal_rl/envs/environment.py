"""The protocols that both worlds implement."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Int, Shaped

from internal_rl.envs import tasks as tasks_lib
from internal_rl.envs.pinpad import Layout
from internal_rl.types import Key, TimeStep

State = Any


@runtime_checkable
class Environment(Protocol):
  """Static configuration with pure, unbatched methods; callers vmap.

  After the end an episode is absorbing: `step` returns the same state, reward 0 and done. A state
  has at least the fields `subgoal` (ground truth, for analysis only), `progress` (colours visited
  so far) and `time` (raw steps taken).
  """

  @property
  def time_limit(self) -> int:
    """Raw steps after which an episode ends."""
    ...

  @property
  def tasks(self) -> tasks_lib.Tasks:
    """The tasks that `reset` accepts, by index."""
    ...

  @property
  def observation_size(self) -> int:
    """Length of the flat observation."""
    ...

  @property
  def num_actions(self) -> int:
    """Number of discrete actions, or of torques."""
    ...

  def reset(self, key: Key, task: Int[Array, '']) -> tuple[State, TimeStep]:
    """Starts an episode of task `task` on a fresh layout; consumes `key`."""
    ...

  def step(self, state: State, action: Shaped[Array, '*a']) -> tuple[State, TimeStep]:
    """Takes one raw action."""
    ...

  @property
  def endings(self) -> tuple[str, ...]:
    """The ways in which an episode ends, in a word or two each.

    Of two at the same step an environment counts one: on the last step allowed, time is up even if
    the colour was wrong.
    """
    ...

  def ending(self, state: State) -> Int[Array, '']:
    """Returns which of `endings` it was, given the last state of an episode."""
    ...


class Pinpad(Environment, Protocol):
  """An environment laid out on a grid, whose episodes can also begin on a given layout."""

  @property
  def family(self) -> tasks_lib.TaskFamily:
    """Subgoals and tasks."""
    ...

  @property
  def grid_size(self) -> int:
    """Side of the grid."""
    ...

  def start(
    self, key: Key, layout: Layout, task: Int[Array, ''], rejected: Int[Array, ''] | int = 0
  ) -> tuple[State, TimeStep]:
    """Starts an episode of task `task` on a given layout; consumes `key`."""
    ...
