"""Dynamic programming on a layout: distances, optimal moves, solvability (App. C.1.1).

Moves are 0 north (row - 1), 1 south, 2 west, 3 east. A path to a colour enters no wall and no other
coloured cell, since visiting a wrong colour ends the episode.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from internal_rl.envs import pinpad
from internal_rl.envs.pinpad import Layout, colour_at
from internal_rl.envs.tasks import Tasks
from internal_rl.types import Key

NUM_MOVES = 4
UNREACHABLE = 10_000  # Longer than any path, small enough to add to.


def neighbours(grid_size: int) -> Int[np.ndarray, 'cells 4']:
  """Returns the cell that each move leads to from each cell; itself where the grid ends."""
  row, column = np.divmod(np.arange(grid_size**2), grid_size)
  moves = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
  rows = np.clip(row[:, None] + moves[:, 0], 0, grid_size - 1)
  columns = np.clip(column[:, None] + moves[:, 1], 0, grid_size - 1)
  return (rows * grid_size + columns).astype(np.int32)


def shifted(values: Int[Array, 'o g g']) -> Int[Array, '4 o g g']:
  """Returns, for each move, the value at the cell it leads to; UNREACHABLE beyond the grid."""
  g = values.shape[-1]
  padded = jnp.pad(values, ((0, 0), (1, 1), (1, 1)), constant_values=UNREACHABLE)
  return jnp.stack(
    [padded[:, :g, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :g], padded[:, 1:-1, 2:]]
  )


def distances(layout: Layout, grid_size: int) -> Int[Array, 'o g g']:
  """Returns the number of moves from every free cell to every object.

  Coloured cells other than the target, and walls, are UNREACHABLE: an agent that stands on a colour
  reads the distances of the cells it can move to.
  """
  cells = jnp.arange(grid_size**2)
  blocked = (cells[:, None] == jnp.concatenate([layout.objects, layout.walls])[None]).any(-1)
  target = cells[None] == layout.objects[:, None]
  square = (-1, grid_size, grid_size)
  free = ~blocked.reshape(square)
  start = jnp.where(target, 0, UNREACHABLE).reshape(square)

  def relax(carry):
    distance, _ = carry
    closer = jnp.minimum(distance, jnp.where(free, 1 + shifted(distance).min(0), UNREACHABLE))
    return closer, (closer < distance).any()

  return jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.array(True)))[0]


def optimal_moves(distance: Int[Array, 'o g g']) -> Bool[Array, 'o cells 4']:
  """Returns, for each target and cell, the set of moves that begin a shortest path."""
  onward = jnp.moveaxis(shifted(distance), 0, -1)
  best = onward.min(-1, keepdims=True)
  moves = (onward == best) & (best < UNREACHABLE)
  return moves.reshape(distance.shape[0], -1, NUM_MOVES)


def solvable(layout: Layout, distance: Int[Array, 'o g g'], tasks: Tasks) -> Bool[Array, '']:
  """Returns whether every one of `tasks` can be completed on `layout`."""
  reach = optimal_moves(distance).any(-1)  # [target, cell]
  colours = np.asarray(tasks.colours)
  pairs = np.stack([colours[:, :-1], colours[:, 1:]], -1).reshape(-1, 2)
  pairs = np.unique(pairs[pairs[:, 1] >= 0], axis=0)
  first = np.unique(colours[:, 0])
  return reach[pairs[:, 1], layout.objects[pairs[:, 0]]].all() & reach[first, layout.start].all()


def sample_layout(
  key: Key, grid_size: int, num_objects: int, num_walls: int, tasks: Tasks, resample: bool = True
) -> tuple[Layout, Int[Array, '']]:
  """Draws layouts until one lets every one of `tasks` be completed.

  Args:
    key: consumed.
    grid_size: side of the grid.
    num_objects: coloured cells.
    num_walls: wall cells.
    tasks: what has to be possible.
    resample: if False, the first layout is returned whatever it is.

  Returns:
    The layout, and the number of unsolvable ones that were rejected on the way to it; with
    `resample=False`, 1 if this very layout is unsolvable.
  """

  def sample(key: Key) -> Layout:
    return pinpad.sample_layout(key, grid_size, num_objects, num_walls)

  def is_solvable(layout: Layout) -> Bool[Array, '']:
    return solvable(layout, distances(layout, grid_size), tasks)

  if not resample:
    layout = sample(key)
    return layout, 1 - is_solvable(layout).astype(jnp.int32)

  def draw(carry):
    key, _, tries, _ = carry
    key, layout_key = jax.random.split(key)
    layout = sample(layout_key)
    return key, layout, tries + 1, is_solvable(layout)

  first = draw((key, None, jnp.array(0), None))
  _, layout, tries, _ = jax.lax.while_loop(lambda carry: ~carry[-1], draw, first)
  return layout, tries - 1


def safe_moves(
  layout: Layout,
  grid_size: int,
  cell: Int[Array, ''],
  target: Int[Array, ''],
  last: Bool[Array, ''],
) -> Bool[Array, ' 4']:
  """Returns the moves that do not end the episode.

  Args:
    layout: the layout.
    grid_size: side of the grid.
    cell: where the agent is.
    target: the next colour of the task.
    last: whether visiting `target` would complete the task, and so end the episode too.
  """
  onto = jnp.asarray(neighbours(grid_size))[cell]
  colour = jax.vmap(colour_at, (None, 0))(layout, onto)
  stays = (onto[:, None] == layout.walls[None]).any(-1) | (onto == cell)
  return stays | (colour < 0) | ((colour == target) & ~last)
