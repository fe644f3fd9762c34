"""Tasks and subgoals as data: Tables A1 and A2, the post-training tasks, and smaller families.

A task is a sequence of colours to be visited in order; a subgoal is a run of colours that tasks are
composed of (App. A). Tasks are written as the paper prints them, `'0-1-4-5-0-1'`.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from flax import struct
from jaxtyping import Array, Int

TABLE_A1 = (
  ('0-1-4-5-0-1', '0-1-4-5-2-3', '0-1-6-7-2-3', '2-3-0-1-4-5'),
  ('2-3-6-7-2-3', '2-3-6-7-4-5', '4-5-0-1-4-5', '4-5-0-1-6-7'),
  ('4-5-2-3-6-7', '6-7-2-3-0-1', '6-7-2-3-6-7', '6-7-4-5-0-1'),
  ('0-1-6-7-4-5', '2-3-0-1-6-7', '4-5-2-3-0-1', '6-7-4-5-2-3'),
)
TABLE_A2 = (
  ('0-3-2', '1-0-3', '2-1-0', '3-2-1', '0-2-0', '0-2-1', '0-3-1', '1-0-2'),
  ('1-3-1', '1-3-2', '2-0-2', '2-0-3', '2-1-3', '3-1-0', '3-1-3', '3-2-0'),
)


@struct.dataclass
class Tasks:
  """Tasks as arrays, padded with -1: what a jitted environment reads.

  Attributes:
    colours: `[n, p]`, the colour to be visited at each stage of progress.
    lengths: `[n]`, colours in each task.
    subgoals: `[n, p]`, index of the subgoal that each stage belongs to.
    segments: `[n, p]`, how many subgoals of the task lie before that one.
  """

  colours: Int[Array | np.ndarray, 'n p']
  lengths: Int[Array | np.ndarray, ' n']
  subgoals: Int[Array | np.ndarray, 'n p']
  segments: Int[Array | np.ndarray, 'n p']


@dataclasses.dataclass(frozen=True)
class TaskFamily:
  """The tasks of one world.

  Attributes:
    subgoals: the colours of each subgoal, in order.
    pretraining: tasks that the experts demonstrate.
    post_training: the longer task, made of transitions between subgoals that no pretraining task
      contains; the target of internal RL.
  """

  subgoals: tuple[tuple[int, ...], ...]
  pretraining: tuple[str, ...]
  post_training: str

  @property
  def num_colours(self) -> int:
    return 1 + max(colour for subgoal in self.subgoals for colour in subgoal)

  def parse(self, task: str) -> tuple[int, ...]:
    """Returns the subgoals that a task is composed of, in order.

    Raises:
      ValueError: if the task is not a concatenation of this family's subgoals.
    """
    rest = tuple(int(colour) for colour in task.split('-'))
    goals: list[int] = []
    while rest:
      match = [k for k, goal in enumerate(self.subgoals) if rest[: len(goal)] == goal]
      if not match:
        raise ValueError(f'task {task!r}: {rest} does not start with any of {self.subgoals}')
      goals.append(match[0])
      rest = rest[len(self.subgoals[match[0]]) :]
    return tuple(goals)

  @property
  def clone_success(self) -> float:
    """How often a clone of an expert that never fails completes a random pretraining task.

    No observation tells it the task. So it does one of the pretraining tasks, as the demonstrations
    do, and completes the one asked for if its own begins like that.
    """
    tasks = [tuple(task.split('-')) for task in self.pretraining]
    return float(np.mean([done[: len(asked)] == asked for asked in tasks for done in tasks]))

  def arrays(self, tasks: tuple[str, ...]) -> Tasks:
    """Returns `tasks` as padded NumPy arrays."""
    goals = [self.parse(task) for task in tasks]
    # A stage is one colour of one subgoal: (colour, subgoal, how many subgoals come before it).
    stages = [
      [(colour, k, i) for i, k in enumerate(row) for colour in self.subgoals[k]] for row in goals
    ]
    width = max(map(len, stages))
    padded = np.array([row + [(-1, -1, -1)] * (width - len(row)) for row in stages], np.int32)
    lengths = np.array([len(row) for row in stages], np.int32)
    return Tasks(padded[..., 0], lengths, padded[..., 1], padded[..., 2])


def _flat(table: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
  return tuple(task for row in table for task in row)


GRIDWORLD = TaskFamily(
  subgoals=((0, 1), (2, 3), (4, 5), (6, 7)),
  pretraining=_flat(TABLE_A1),
  post_training='0-1-2-3-4-5-6-7-0-1-2-3',
)


def _name(subgoals: Iterable[tuple[int, ...]]) -> str:
  return '-'.join(str(colour) for subgoal in subgoals for colour in subgoal)


def _three_pairs() -> TaskFamily:
  """Returns all tasks of three pairs in which pair k is followed by itself or by pair k - 1."""
  pairs = ((0, 1), (2, 3), (4, 5))
  tasks = tuple(
    _name((pairs[k], pairs[k - i], pairs[(k - i - j) % 3]))
    for k in range(3)
    for i in range(2)
    for j in range(2)
  )
  return TaskFamily(pairs, tasks, _name((*pairs, pairs[0])))


FAMILIES = {
  'gridworld': GRIDWORLD,
  'ant': TaskFamily(
    subgoals=((0,), (1,), (2,), (3,)), pretraining=_flat(TABLE_A2), post_training='0-1-2-3'
  ),
  # What even an untrained ant brings about: for runs that only show that everything runs.
  'two_colours': TaskFamily(subgoals=((0,), (1,)), pretraining=('0', '1'), post_training='0-1'),
  # For small grids: no colour ends two pairs, so that what follows depends on the last one alone.
  'three_pairs': _three_pairs(),
}
