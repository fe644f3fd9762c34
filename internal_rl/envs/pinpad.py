"""Rules that both pinpad worlds share: layouts, visits, progress and the end (App. A)."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.envs.tasks import TaskFamily, Tasks
from internal_rl.types import Key

NO_COLOUR = -1


@struct.dataclass
class Layout:
  """Where everything is; a cell is `row * grid_size + column`.

  Attributes:
    objects: cell of each coloured object.
    walls: cell of each wall.
    start: cell in which the agent starts.
  """

  objects: Int[Array, '*b o']
  walls: Int[Array, '*b w']
  start: Int[Array, '*b']


@struct.dataclass
class Progress:
  """How far an episode has come.

  Attributes:
    task: index of the task.
    stage: colours of the task visited so far.
    done: True once the episode has ended.
  """

  task: Int[Array, '*b']
  stage: Int[Array, '*b']
  done: Bool[Array, '*b']


def check_world(
  grid_size: int, num_objects: int, num_walls: int, time_limit: int, family: TaskFamily
) -> None:
  """Refuses a world that cannot hold what it asks for.

  Raises:
    ValueError: naming the field.
  """
  cells, needed = grid_size**2, num_objects + num_walls + 1
  if needed > cells:
    raise ValueError(
      f'env.grid_size={grid_size}: {needed} objects, walls and agent for {cells} cells'
    )
  if num_objects < family.num_colours:
    raise ValueError(f'env.num_objects={num_objects}: the tasks name {family.num_colours} colours')
  if time_limit < 1:
    raise ValueError(f'env.time_limit={time_limit}: must be at least 1')


def begin(task: Int[Array, '']) -> Progress:
  """Returns the progress of an episode of `task` that has just begun."""
  return Progress(
    task=jnp.asarray(task, jnp.int32), stage=jnp.zeros((), jnp.int32), done=jnp.array(False)
  )


def sample_layout(key: Key, grid_size: int, num_objects: int, num_walls: int) -> Layout:
  """Draws distinct cells for every object, every wall and the start, uniformly."""
  cells = jax.random.permutation(key, grid_size**2)
  return Layout(
    objects=cells[:num_objects],
    walls=cells[num_objects : num_objects + num_walls],
    start=cells[num_objects + num_walls],
  )


def colour_at(layout: Layout, cell: Int[Array, '']) -> Int[Array, '']:
  """Returns the colour of `cell`, or NO_COLOUR."""
  here = layout.objects == cell
  return jnp.where(here.any(), jnp.argmax(here), NO_COLOUR)


def next_colour(tasks: Tasks, progress: Progress) -> Int[Array, '']:
  """Returns the colour that has to be visited next; meaningless once the task is complete."""
  return jnp.asarray(tasks.colours)[progress.task, progress.stage]


def is_complete(tasks: Tasks, progress: Progress) -> Bool[Array, '']:
  """Returns whether all colours of the task have been visited."""
  return progress.stage == jnp.asarray(tasks.lengths)[progress.task]


def subgoal(tasks: Tasks, progress: Progress) -> Int[Array, '']:
  """Returns the ground-truth subgoal in force; the last one after the end. Analysis only."""
  last = jnp.asarray(tasks.lengths)[progress.task] - 1
  return jnp.asarray(tasks.subgoals)[progress.task, jnp.minimum(progress.stage, last)]


def segment(tasks: Tasks, progress: Progress) -> Int[Array, '']:
  """Returns how many subgoals were completed before the one in force. Analysis only."""
  last = jnp.asarray(tasks.lengths)[progress.task] - 1
  return jnp.asarray(tasks.segments)[progress.task, jnp.minimum(progress.stage, last)]


def visit(
  tasks: Tasks, layout: Layout, progress: Progress, old: Int[Array, ''], new: Int[Array, '']
) -> tuple[Progress, Float[Array, '']]:
  """Applies the pinpad rules to a move from cell `old` to cell `new`.

  A coloured cell is visited when it is entered from a different cell. Visiting the next colour of
  the task advances it, and completing the task ends the episode with reward 1; visiting any other
  colour ends it with reward 0. Once done, nothing changes.

  Returns:
    The new progress and the reward.
  """
  visited = (new != old) & (layout.objects == new).any() & ~progress.done
  correct = visited & (layout.objects[next_colour(tasks, progress)] == new)
  progress = progress.replace(stage=progress.stage + correct)
  complete = correct & is_complete(tasks, progress)
  done = progress.done | complete | (visited & ~correct)
  return progress.replace(done=done), complete.astype(jnp.float32)
