"""What the ant's expert is told beside the observation, and from whose point of view (App. C.1.1).

The paper tells its expert, for every cell of the grid, the direction of the shortest path to the
current goal, one-hot. Here it is told as much of that as it is about to need: the way on from the
cell that it is in, from the next one, and which cells around end the episode. All of it, and the
body, is told in the frame of a *command*, the unit vector along which the ant should move now; and
since a quarter turn maps the ant onto itself, legs are numbered from the command, too. So one gait
serves every direction, and an ant at a bend relabels its legs instead of turning around.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from internal_rl.envs import pinpad, shortest_path
from internal_rl.envs.ant import Ant, State
from internal_rl.envs.ant_body import NUM_JOINTS, NUM_LEGS, rotation
from internal_rl.envs.pinpad import Layout

# The moves of shortest_path, as steps along x and y.
STEPS = np.array([(0, 1), (0, -1), (-1, 0), (1, 0)], np.float32)
# Ahead and to the left, in cells: the eight cells around.
AROUND = np.array([(i, j) for i in (1, 0, -1) for j in (1, 0, -1) if (i, j) != (0, 0)], np.float32)
# The ankles of legs 2 and 3 bend the other way; see assets/ant.xml.
BENDS = np.array([(1, 1), (1, -1), (1, -1), (1, 1)], np.float32)

# Cosine and sine of no, one, two and three quarter turns.
QUARTERS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)], np.float32)


@struct.dataclass
class Guided:
  """An episode under way, and the way to every colour.

  Attributes:
    state: the episode.
    route: the move that begins a shortest path from each cell to each colour.
  """

  state: State
  route: Int[Array, '*b o cells']


@dataclasses.dataclass(frozen=True)
class Guide:
  """Where to go, and how the ant stands to it.

  Attributes:
    env: the world.
    centring: pull towards the centre line of the path, per half cell of distance from it; at 0 the
      command is the paper's, one of the four directions. It keeps the ant off the borders of cells
      that it must not enter.
  """

  env: Ant
  centring: float = 1.0

  @property
  def num_features(self) -> int:
    """Length of `features`."""
    return 1 + 4 * 3 + 2 * NUM_JOINTS + 2 * 2 + len(AROUND)

  def route(self, layout: Layout) -> Int[Array, 'o cells']:
    """Returns the first move of a shortest path past no wall and no other colour; any if none."""
    distance = shortest_path.distances(layout, self.env.grid_size)
    return jnp.argmax(shortest_path.optimal_moves(distance), -1)

  def move(self, guided: Guided) -> Int[Array, '']:
    """Returns the next move of the path, a row of `STEPS`."""
    target = pinpad.next_colour(self.env.tasks, guided.state.progress)
    return guided.route[target, self.env.cell_at(guided.state.body.place)]

  def command(self, guided: Guided) -> Float[Array, ' 2']:
    """Returns the unit vector along which the ant should move, in the world's axes."""
    forward, sideways = self._path(guided)[2:]
    command = forward - self.centring * sideways
    return command / jnp.linalg.norm(command)

  def features(self, guided: Guided) -> Float[Array, ' f']:
    """Returns what the expert's networks read.

    The body from the command's point of view; then where in its cell it is, ahead and to the left;
    the direction after the next cell; and for each of the eight cells around whether it ends the
    episode, from the path's point of view.
    """
    body, command = guided.state.body, self.command(guided)
    unturn = _about_z(*command).T
    attitude = rotation(body.qpos[3:7])
    quarter = _quarter(attitude, command)
    relabel = _about_z(*jnp.asarray(QUARTERS)[quarter])
    axes = unturn @ attitude @ relabel
    return jnp.concatenate(
      [
        body.height[None],
        axes[:, 0],
        axes[:, 2],
        unturn @ body.qvel[:3],
        relabel.T @ body.qvel[3:6],
        from_legs(body.qpos[7:], quarter),
        from_legs(body.qvel[6:], quarter),
        self._surroundings(guided),
      ]
    )

  def torques(self, guided: Guided, action: Float[Array, ' 8']) -> Float[Array, ' 8']:
    """Returns the torques that an action of the expert, from the command's view, stands for."""
    return to_legs(action, self._turns(guided))

  def action(self, guided: Guided, torques: Float[Array, ' 8']) -> Float[Array, ' 8']:
    """Undoes `torques`."""
    return from_legs(torques, self._turns(guided))

  def _turns(self, guided: Guided) -> Int[Array, '']:
    return _quarter(rotation(guided.state.body.qpos[3:7]), self.command(guided))

  def _path(self, guided: Guided):
    """Returns the ant's cell, the goal's, the way on, and how far the ant is from its middle."""
    env, state = self.env, guided.state
    target = pinpad.next_colour(env.tasks, state.progress)
    cell = env.cell_at(state.body.place)
    forward = jnp.asarray(STEPS)[self.move(guided)]
    local = 2 * (state.body.place - env.centre(cell)) / env.cell_size
    return cell, state.layout.objects[target], forward, local - (local @ forward) * forward

  def _surroundings(self, guided: Guided) -> Float[Array, ' 12']:
    env, layout, place = self.env, guided.state.layout, guided.state.body.place
    cell, goal, forward, _ = self._path(guided)
    to_path = jnp.stack([forward, jnp.stack([-forward[1], forward[0]])])  # World to path.
    centre = env.centre(cell)
    around = centre[None] + env.cell_size * (AROUND @ to_path)
    cells = jax.vmap(env.cell_at)(around)
    deadly = (cells[:, None] == jnp.concatenate([layout.objects, layout.walls])[None]).any(-1)
    deadly = deadly & (cells != goal) & (cells != cell)
    if env.off_grid == 'end':
      deadly = deadly | (jnp.abs(around).max(-1) > env.half_width)
    ahead = cells[1]
    target = pinpad.next_colour(env.tasks, guided.state.progress)
    onward = jnp.asarray(STEPS)[guided.route[target, ahead]] * (ahead != goal)
    local = 2 * (place - centre) / env.cell_size
    return jnp.concatenate([to_path @ local, to_path @ onward, deadly.astype(jnp.float32)])


def from_legs(joints: Float[Array, ' 8'], quarter: Int[Array, '']) -> Float[Array, ' 8']:
  """Renumbers joints from the leg `quarter` quarter turns on; all bend as leg 1 does."""
  return jnp.roll(jnp.asarray(BENDS) * joints.reshape(NUM_LEGS, 2), -quarter, axis=0).reshape(-1)


def to_legs(joints: Float[Array, ' 8'], quarter: Int[Array, '']) -> Float[Array, ' 8']:
  """Undoes `from_legs`."""
  return (jnp.asarray(BENDS) * jnp.roll(joints.reshape(NUM_LEGS, 2), quarter, axis=0)).reshape(-1)


def _about_z(cosine: Float[Array, ''], sine: Float[Array, '']) -> Float[Array, '3 3']:
  zero, one = jnp.zeros(()), jnp.ones(())
  return jnp.stack(
    [
      jnp.stack([cosine, -sine, zero]),
      jnp.stack([sine, cosine, zero]),
      jnp.stack([zero, zero, one]),
    ]
  )


def _quarter(attitude: Float[Array, '3 3'], command: Float[Array, ' 2']) -> Int[Array, '']:
  """Returns how many quarter turns take the ant's x axis closest to the command."""
  x_axis = attitude[:2, 0]
  cosine = x_axis @ command
  sine = x_axis[0] * command[1] - x_axis[1] * command[0]
  angle = jnp.arctan2(sine, cosine)
  return jnp.round(2 * angle / jnp.pi).astype(jnp.int32) % NUM_LEGS
