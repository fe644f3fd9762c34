"""Gridworld-pinpad again, in plain Python from the paper's words: the tests' independent oracle.

Cells are (row, column) tuples, a layout is a dictionary, searches use a queue.
"""

import collections
import dataclasses
import functools

import numpy as np

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclasses.dataclass
class Board:
  """One layout: `colours` maps coloured cells to colours, `walls` lists wall cells in order."""

  size: int
  colours: dict
  walls: list
  start: tuple

  def go(self, cell, move):
    row, column = cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]
    inside = 0 <= row < self.size and 0 <= column < self.size
    return (row, column) if inside and (row, column) not in self.walls else cell

  def where(self, colour):
    return next(cell for cell, other in self.colours.items() if other == colour)

  def distances(self, colour):
    """Moves from each cell to `colour` past no other colour; unreachable cells are left out.

    A coloured cell counts as a cell to set out from, the target itself too.
    """
    target = self.where(colour)
    found, queue = {target: 0}, collections.deque([target])
    while queue:
      cell = queue.popleft()
      for move in range(4):
        onto = self.go(cell, move)
        if onto not in found and onto not in self.colours:
          found[onto] = found[cell] + 1
          queue.append(onto)
    result = {cell: steps for cell, steps in found.items() if cell != target}
    for cell in self.colours:
      onward = [found[self.go(cell, move)] for move in range(4) if self.go(cell, move) in found]
      onward = onward if cell != target else [steps for steps in onward if steps > 0]
      if onward:
        result[cell] = 1 + min(onward)
    return result

  def optimal(self, colour, distances=None):
    """From each cell, the set of moves that begin a shortest path to `colour`."""
    distances = self.distances(colour) if distances is None else distances
    target = self.where(colour)
    result = {}
    for cell, steps in distances.items():
      onto = [self.go(cell, move) for move in range(4)]
      left = [
        0 if new == target != cell else distances.get(new) if new not in self.colours else None
        for new in onto
      ]
      result[cell] = {m for m in range(4) if onto[m] != cell and left[m] == steps - 1}
    return result

  def solves(self, tasks):
    """Whether each of these sequences of colours can be visited."""
    distances = functools.cache(self.distances)
    for task in tasks:
      cells = [self.start] + [self.where(colour) for colour in task[:-1]]
      if any(cell not in distances(colour) for cell, colour in zip(cells, task, strict=True)):
        return False
    return True


class Episode:
  """One episode of `task` on `board`."""

  def __init__(self, board, task, limit):
    self.board, self.task, self.limit = board, task, limit
    self.cell, self.visited, self.time, self.done = board.start, 0, 0, False
    channels = len(board.colours) + len(board.walls) + 1
    self.scene = np.zeros((board.size, board.size, channels), np.uint8)
    for cell, colour in board.colours.items():
      self.scene[cell][colour] = 1
    for index, cell in enumerate(board.walls):
      self.scene[cell][len(board.colours) + index] = 1

  def observe(self):
    scene = self.scene.copy()
    scene[self.cell][-1] = 1
    return scene.ravel()

  def step(self, move):
    """Returns the reward."""
    if self.done:
      return 0
    self.time += 1
    before, self.cell = self.cell, self.board.go(self.cell, move)
    reward = 0
    if self.cell != before and self.cell in self.board.colours:
      if self.board.colours[self.cell] == self.task[self.visited]:
        self.visited += 1
        reward = int(self.visited == len(self.task))
        self.done = reward == 1
      else:
        self.done = True
    self.done = self.done or self.time >= self.limit
    return reward


def random_board(rng, size, num_objects, num_walls):
  cells = [divmod(int(cell), size) for cell in rng.permutation(size * size)]
  return Board(
    size=size,
    colours={cells[k]: k for k in range(num_objects)},
    walls=cells[num_objects : num_objects + num_walls],
    start=cells[num_objects + num_walls],
  )


def board_of(size, objects, walls, start):
  """Reads a board from arrays of cell numbers."""
  cell = lambda number: divmod(int(number), size)
  return Board(
    size, {cell(c): k for k, c in enumerate(objects)}, [cell(c) for c in walls], cell(start)
  )
