"""Gridworld-pinpad (App. A.1)."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int, UInt8

from internal_rl.envs import pinpad, shortest_path
from internal_rl.envs.pinpad import Layout, Progress
from internal_rl.envs.tasks import TaskFamily, Tasks
from internal_rl.types import Key, TimeStep


@struct.dataclass
class State:
  """An episode under way.

  Attributes:
    layout: where everything is.
    position: the agent's cell.
    progress: the task and how far it has come.
    time: raw steps taken.
    rejected: layouts drawn before this one that were unsolvable; with `resample=False`, 1 if this
      very layout is unsolvable.
    subgoal: ground-truth subgoal in force. Analysis only.
    picture: what is observed of the layout, to which a step only adds the agent.
  """

  layout: Layout
  position: Int[Array, '*b']
  progress: Progress
  time: Int[Array, '*b']
  rejected: Int[Array, '*b']
  subgoal: Int[Array, '*b']
  picture: UInt8[Array, '*b o']


@functools.cache
def _agents(cells: int, channels: int) -> UInt8[np.ndarray, 'c o']:
  """Returns, for every cell, the observation of nothing but an agent that stands there."""
  table = np.zeros((cells, cells, channels), np.uint8)
  table[range(cells), range(cells), -1] = 1
  return table.reshape(cells, -1)


@dataclasses.dataclass(frozen=True)
class Gridworld:
  """A grid with coloured cells to be visited in the order that a task asks for.

  Four moves (north, south, west, east); moving into a wall or off the grid does nothing. The
  paper's world is `grid_size=7, num_objects=8, num_walls=4, time_limit=100` (App. A.1).

  Attributes:
    grid_size: side of the grid, `G`.
    num_objects: coloured cells, `O`.
    num_walls: wall cells, `W`.
    time_limit: raw steps after which an episode ends, `T`.
    family: subgoals and tasks.
    task_names: the tasks of `family` notation that `reset` accepts, by index; `()` stands for all
      of the family's pretraining tasks.
    resample: draw layouts again until every one of the tasks can be completed.
  """

  grid_size: int
  num_objects: int
  num_walls: int
  time_limit: int
  family: TaskFamily
  task_names: tuple[str, ...] = ()
  resample: bool = True

  def __post_init__(self):
    pinpad.check_world(
      self.grid_size, self.num_objects, self.num_walls, self.time_limit, self.family
    )

  @property
  def tasks(self) -> Tasks:
    return self.family.arrays(self.task_names or self.family.pretraining)

  @property
  def num_channels(self) -> int:
    """Channels of a cell: one for each object, one for each wall, one for the agent."""
    return self.num_objects + self.num_walls + 1

  @property
  def observation_size(self) -> int:
    return self.grid_size**2 * self.num_channels

  @property
  def num_actions(self) -> int:
    return shortest_path.NUM_MOVES

  def observe(self, layout: Layout, position: Int[Array, '']) -> UInt8[Array, ' o']:
    """Returns the flat one-hot observation, cells major and channels minor."""
    return self._add_agent(self._draw(layout), position)

  def _draw(self, layout: Layout) -> UInt8[Array, ' o']:
    no_agent = jnp.full(1, -1, layout.objects.dtype)
    entities = jnp.concatenate([layout.objects, layout.walls, no_agent])
    cells = jnp.arange(self.grid_size**2)
    return (cells[:, None] == entities[None]).astype(jnp.uint8).reshape(-1)

  def _add_agent(self, picture: UInt8[Array, ' o'], position: Int[Array, '']) -> UInt8[Array, ' o']:
    # A row of a table: unlike a scatter, this is one pass with whatever writes the observation.
    return picture | jnp.asarray(_agents(self.grid_size**2, self.num_channels))[position]

  def sample_layout(self, key: Key) -> tuple[Layout, Int[Array, '']]:
    """Returns a layout and the number of unsolvable ones that were rejected on the way to it."""
    return shortest_path.sample_layout(
      key, self.grid_size, self.num_objects, self.num_walls, self.tasks, self.resample
    )

  def reset(self, key: Key, task: Int[Array, '']) -> tuple[State, TimeStep]:
    """Starts an episode of task `task` on a fresh layout."""
    layout, rejected = self.sample_layout(key)
    return self.start(key, layout, task, rejected)

  def start(
    self, key: Key, layout: Layout, task: Int[Array, ''], rejected: Int[Array, ''] | int = 0
  ) -> tuple[State, TimeStep]:
    """Starts an episode of task `task` on a given layout, which leaves nothing to chance."""
    del key
    progress = pinpad.begin(task)
    state = State(
      layout=layout,
      position=layout.start,
      progress=progress,
      time=jnp.zeros((), jnp.int32),
      rejected=jnp.asarray(rejected, jnp.int32),
      subgoal=pinpad.subgoal(self.tasks, progress),
      picture=self._draw(layout),
    )
    return state, TimeStep(
      self._add_agent(state.picture, layout.start), jnp.zeros(()), jnp.array(False)
    )

  def step(self, state: State, action: Int[Array, '']) -> tuple[State, TimeStep]:
    """Moves the agent; absorbing after the end."""
    layout, was_done = state.layout, state.progress.done
    onto = jnp.asarray(shortest_path.neighbours(self.grid_size))[state.position, action]
    blocked = was_done | (layout.walls == onto).any()
    position = jnp.where(blocked, state.position, onto)
    progress, reward = pinpad.visit(self.tasks, layout, state.progress, state.position, position)
    time = state.time + ~was_done
    progress = progress.replace(done=progress.done | (time >= self.time_limit))
    state = state.replace(
      position=position,
      progress=progress,
      time=time,
      subgoal=pinpad.subgoal(self.tasks, progress),
    )
    return state, TimeStep(self._add_agent(state.picture, position), reward, progress.done)

  @property
  def endings(self) -> tuple[str, ...]:
    return ('success', 'time is up', 'wrong colour')

  def ending(self, state: State) -> Int[Array, '']:
    complete = pinpad.is_complete(self.tasks, state.progress)
    return jnp.where(complete, 0, jnp.where(state.time >= self.time_limit, 1, 2))
