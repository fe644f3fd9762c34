"""Dynamic programming finds what a breadth-first search finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.envs import pinpad, shortest_path
from internal_rl.envs.tasks import FAMILIES, TaskFamily
from tests.envs import oracle

WORLDS = {
  'gridworld': (7, 8, 4, FAMILIES['gridworld']),
  'ant': (4, 4, 1, FAMILIES['ant']),
  'small': (5, 4, 2, FAMILIES['ant']),
  'crowded': (4, 4, 5, TaskFamily(((0,), (1,), (2,), (3,)), ('0-1', '2-2-3', '3'), '0-1')),
}


def sampled(name, count):
  """Returns layouts, distances and solvability as arrays, and the same layouts as boards."""
  size, num_objects, num_walls, family = WORLDS[name]
  tasks = family.arrays(family.pretraining)

  @jax.jit
  @jax.vmap
  def solve(key):
    layout = pinpad.sample_layout(key, size, num_objects, num_walls)
    distance = shortest_path.distances(layout, size)
    return (
      layout,
      distance,
      shortest_path.optimal_moves(distance),
      shortest_path.solvable(layout, distance, tasks),
    )

  results = jax.device_get(solve(jax.random.split(jax.random.key(0), count)))
  layout = results[0]
  boards = [
    oracle.board_of(size, *row)
    for row in zip(layout.objects, layout.walls, layout.start)  # noqa: B905
  ]
  return *results, boards


@pytest.mark.parametrize('name', WORLDS)
def test_distances_and_optimal_moves_match_breadth_first_search(name):
  size, num_objects, _, _ = WORLDS[name]
  _, distance, moves, _, boards = sampled(name, 150)
  walled = [{row * size + column for row, column in board.walls} for board in boards]
  for i, board in enumerate(boards):
    for colour in range(num_objects):
      expected_distance = np.full((size, size), shortest_path.UNREACHABLE)
      expected_moves = np.zeros((size * size, 4), bool)
      for cell, steps in board.distances(colour).items():
        if cell not in board.colours:
          expected_distance[cell] = steps
      expected_distance[board.where(colour)] = 0
      for (row, column), optimal in board.optimal(colour).items():
        expected_moves[row * size + column, sorted(optimal)] = True
      np.testing.assert_array_equal(distance[i, colour], expected_distance)
      free = [cell for cell in range(size**2) if cell not in walled[i]]
      np.testing.assert_array_equal(moves[i, colour][free], expected_moves[free])


@pytest.mark.parametrize('name', WORLDS)
def test_solvability_matches_breadth_first_search_on_thousands_of_layouts(name):
  *_, solvable, boards = sampled(name, 1500)
  tasks = [tuple(map(int, task.split('-'))) for task in WORLDS[name][3].pretraining]
  np.testing.assert_array_equal(solvable, [board.solves(tasks) for board in boards])
  assert 0.02 < 1 - solvable.mean() < 0.98


def test_safe_moves_are_those_that_leave_the_oracles_episode_running():
  rng = np.random.default_rng(0)
  size, task = 5, (0, 1)
  safe = jax.jit(shortest_path.safe_moves, static_argnums=1)
  for _ in range(40):
    board = oracle.random_board(rng, size, 3, 4)
    number = lambda cell: cell[0] * size + cell[1]
    layout = pinpad.Layout(
      jnp.array([number(board.where(colour)) for colour in range(3)]),
      jnp.array([number(cell) for cell in board.walls]),
      jnp.array(number(board.start)),
    )
    cells = [divmod(cell, size) for cell in range(size**2)]
    for cell in rng.permutation([cell for cell in cells if cell not in board.walls])[:6]:
      for visited in range(2):
        expected = []
        for move in range(4):
          episode = oracle.Episode(board, task, 100)
          episode.cell, episode.visited = tuple(cell.tolist()), visited
          episode.step(move)
          expected.append(not episode.done)
        got = safe(
          layout, size, jnp.array(number(cell)), jnp.array(task[visited]), jnp.array(visited == 1)
        )
        np.testing.assert_array_equal(got, expected)
