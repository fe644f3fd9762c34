"""Ant-pinpad (App. A.2): the same rules, walked by the MuJoCo ant."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.envs import ant_body, pinpad, shortest_path
from internal_rl.envs.ant_body import AntBody, Body
from internal_rl.envs.pinpad import Layout, Progress
from internal_rl.envs.tasks import TaskFamily, Tasks
from internal_rl.types import Key, TimeStep

OFF_GRID = ('clamp', 'end')
FRAMES = ('world', 'heading')
_LEAST_HEADING = 1e-6  # Of an ant that stands on end, none.
# Where no episode goes on, whatever the task.
ENDS = ('fell', 'jumped too high', 'walked into a wall', 'left the grid')
# Height, orientation as a quaternion, joints, velocities.
PROPRIOCEPTION = ant_body.NUM_POSITIONS - 2 + ant_body.NUM_VELOCITIES


@struct.dataclass
class State:
  """An episode under way.

  Attributes:
    layout: where everything is.
    body: where the ant is and how it moves; always finite.
    progress: the task and how far it has come.
    time: control steps taken.
    rejected: layouts drawn before this one that were unsolvable; with `resample=False`, 1 if this
      very layout is unsolvable.
    diverged: True if the episode ended because the simulation blew up.
    subgoal: ground-truth subgoal in force. Analysis only.
  """

  layout: Layout
  body: Body
  progress: Progress
  time: Int[Array, '*b']
  rejected: Int[Array, '*b']
  diverged: Bool[Array, '*b']
  subgoal: Int[Array, '*b']


@dataclasses.dataclass(frozen=True)
class Ant:
  """A pinpad grid on the floor, centred on the origin, for an ant with eight torques.

  Row 0 lies in the north (+y) and column 0 in the west (-x), so that a cell has the number that it
  has in the gridworld. The paper's world is `grid_size=4, num_objects=4, num_walls=1,
  time_limit=500` (App. A.2). An episode ends when the ant's centre enters a wall cell, when its
  height leaves `healthy`, on a wrong colour, on completing the task, after `time_limit` steps, or
  when the simulation blows up. Completing the task in the very step in which the
  height leaves its range still counts.

  Attributes:
    grid_size: side of the grid, `G`.
    num_objects: coloured cells, `O`.
    num_walls: wall cells, `W`; nothing stands there, so that one physical model serves all layouts.
    time_limit: control steps after which an episode ends, `T`.
    family: subgoals and tasks.
    task_names: the tasks of `family` notation that `reset` accepts, by index; `()` stands for all
      of the family's pretraining tasks.
    resample: draw layouts again until every one of the tasks can be completed.
    cell_size: metres; the paper leaves it open.
    off_grid: what happens beyond the border, which the paper leaves open. Its list of ends does
      not name it, so by default ('clamp') the ant counts as inside the nearest border cell; with
      'end' it ends the episode as a wall does.
    frame: how orientation, velocities and ways are told, which the paper leaves open; see
      `observe`. 'world' is MuJoCo's state as it is; 'heading' turns it as the ant is turned.
    healthy: heights of the torso between which an episode goes on, metres.
    noise: joint angles (radians) and velocities (rad/s) start this close to the default pose.
    body: the physics.
  """

  grid_size: int
  num_objects: int
  num_walls: int
  time_limit: int
  family: TaskFamily
  task_names: tuple[str, ...] = ()
  resample: bool = True
  cell_size: float = 2.0
  off_grid: str = 'clamp'
  frame: str = 'world'
  healthy: tuple[float, float] = (0.2, 1.0)
  noise: float = 0.1
  body: AntBody = dataclasses.field(default_factory=AntBody)

  def __post_init__(self):
    pinpad.check_world(
      self.grid_size, self.num_objects, self.num_walls, self.time_limit, self.family
    )
    if self.off_grid not in OFF_GRID:
      raise ValueError(f'env.off_grid={self.off_grid!r}: must be one of {OFF_GRID}')
    if self.frame not in FRAMES:
      raise ValueError(f'env.frame={self.frame!r}: must be one of {FRAMES}')
    if self.cell_size <= 0:
      raise ValueError(f'env.cell_size={self.cell_size}: must be positive')

  @property
  def tasks(self) -> Tasks:
    return self.family.arrays(self.task_names or self.family.pretraining)

  @property
  def observation_size(self) -> int:
    ways = 2 * (self.num_objects + self.num_walls)
    return PROPRIOCEPTION + 2 + ways + 2 + (self.frame == 'heading') * (1 + ways)

  @property
  def num_actions(self) -> int:
    return ant_body.NUM_JOINTS

  @property
  def half_width(self) -> float:
    """From the centre of the grid to its border, metres."""
    return self.grid_size * self.cell_size / 2

  def centre(self, cell: Int[Array, '*b']) -> Float[Array, '*b 2']:
    """Returns x and y of a cell's centre, metres."""
    row, column = jnp.divmod(cell, self.grid_size)
    middle = (self.grid_size - 1) / 2
    return self.cell_size * jnp.stack([column - middle, middle - row], -1)

  def cell_at(self, place: Float[Array, ' 2']) -> Int[Array, '']:
    """Returns the cell that x and y lie in; beyond the border, the nearest one."""
    # Clipped before it becomes an integer: an ant can be further out than integers reach.
    inside = jnp.clip(jnp.floor(self.on_grid(place)), 0, self.grid_size - 1)
    column, row = inside.astype(jnp.int32)
    return row * self.grid_size + column

  def on_grid(self, place: Float[Array, '*b 2']) -> Float[Array, '*b 2']:
    """Returns column and row of x and y, fractional, in cells from the north-west corner."""
    east, south = place[..., 0], -place[..., 1]
    return (jnp.stack([east, south], -1) + self.half_width) / self.cell_size

  def observe(self, layout: Layout, body: Body) -> Float[Array, ' o']:
    """Returns what is observed; with half the grid's width as the unit of length, in this order.

    Symlog of the height, orientation, joint angles and all velocities; global x, y in [-1, 1] on
    the grid; for every object, then every wall, the way from the ant to its centre; x, y within the
    current cell, in [-1, 1]. In the frame 'world' orientation is a quaternion and all axes are the
    world's, but for those of the angular velocity, which MuJoCo counts about the ant's own. In the
    frame 'heading' orientation is the world's upward axis in the ant's own and the cosine and sine
    of the ant's heading, velocities are along its own axes, and at the end the ways come once more,
    ahead and to the left.
    """
    entities = jnp.concatenate([layout.objects, layout.walls])
    ways = (self.centre(entities) - body.place[None]) / self.half_width
    local = 2 * (body.place - self.centre(self.cell_at(body.place))) / self.cell_size
    orientation, velocity, ahead = body.qpos[3:7], body.qvel[:3], jnp.zeros(0)
    if self.frame == 'heading':
      attitude = ant_body.rotation(orientation)
      heading = attitude[:2, 0] / jnp.maximum(jnp.linalg.norm(attitude[:2, 0]), _LEAST_HEADING)
      turn = jnp.stack([heading, jnp.stack([-heading[1], heading[0]])], -1)
      with jax.default_matmul_precision('highest'):
        velocity, ahead = velocity @ attitude, (ways @ turn).reshape(-1)
      orientation = jnp.concatenate([attitude[2], heading])
    proprioception = [body.qpos[2:3], orientation, body.qpos[7:], velocity, body.qvel[3:]]
    return jnp.concatenate(
      [
        symlog(jnp.concatenate(proprioception)),
        body.place / self.half_width,
        ways.reshape(-1),
        local,
        ahead,
      ]
    )

  def sample_layout(self, key: Key) -> tuple[Layout, Int[Array, '']]:
    """Returns a layout and the number of unsolvable ones that were rejected on the way to it.

    Searches, so it costs as much as dozens of steps. What resets often draws many at a time, under
    vmap, and starts episodes from them.
    """
    return shortest_path.sample_layout(
      key, self.grid_size, self.num_objects, self.num_walls, self.tasks, self.resample
    )

  def reset(self, key: Key, task: Int[Array, '']) -> tuple[State, TimeStep]:
    """Starts an episode of task `task` on a fresh layout."""
    layout_key, start_key = jax.random.split(key)
    layout, rejected = self.sample_layout(layout_key)
    return self.start(start_key, layout, task, rejected)

  def start(
    self, key: Key, layout: Layout, task: Int[Array, ''], rejected: Int[Array, ''] | int = 0
  ) -> tuple[State, TimeStep]:
    """Starts an episode of task `task` on a given layout, in a random pose in its start cell."""
    place_key, pose_key = jax.random.split(key)
    within = jax.random.uniform(place_key, (2,), minval=-0.5, maxval=0.5)
    place = self.centre(layout.start) + self.cell_size * within
    progress = pinpad.begin(task)
    state = State(
      layout=layout,
      body=self.body.spawn(pose_key, place, self.noise),
      progress=progress,
      time=jnp.zeros((), jnp.int32),
      rejected=jnp.asarray(rejected, jnp.int32),
      diverged=jnp.array(False),
      subgoal=pinpad.subgoal(self.tasks, progress),
    )
    return state, TimeStep(self.observe(layout, state.body), jnp.zeros(()), jnp.array(False))

  def step(self, state: State, action: Float[Array, ' 8']) -> tuple[State, TimeStep]:
    """Applies torques for one control step; absorbing after the end."""
    layout, was_done = state.layout, state.progress.done
    body = self.body.advance(state.body, action)
    diverged = ~was_done & ~ant_body.is_sound(body)
    held = was_done | diverged
    body = jax.tree.map(lambda old, new: jnp.where(held, old, new), state.body, body)
    progress, reward = pinpad.visit(
      self.tasks, layout, state.progress, self.cell_at(state.body.place), self.cell_at(body.place)
    )
    time = state.time + ~was_done
    over = self._ends(layout, body).any()
    done = progress.done | over | diverged | (time >= self.time_limit)
    progress = progress.replace(done=done)
    state = state.replace(
      body=body,
      progress=progress,
      time=time,
      diverged=state.diverged | diverged,
      subgoal=pinpad.subgoal(self.tasks, progress),
    )
    return state, TimeStep(self.observe(layout, body), reward, done)

  @property
  def endings(self) -> tuple[str, ...]:
    return ('success', 'simulation blew up', *ENDS, 'time is up', 'wrong colour')

  def ending(self, state: State) -> Int[Array, '']:
    first = jnp.stack([pinpad.is_complete(self.tasks, state.progress), state.diverged])
    last = jnp.stack([state.time >= self.time_limit, jnp.array(True)])
    return jnp.argmax(jnp.concatenate([first, self._ends(state.layout, state.body), last]))

  def _ends(self, layout: Layout, body: Body) -> Bool[Array, ' 4']:
    """Which of `ENDS` is true of the ant."""
    low, high = self.healthy
    outside = jnp.abs(body.place).max() > self.half_width
    into_wall = (layout.walls == self.cell_at(body.place)).any()
    return jnp.stack(
      [body.height < low, body.height > high, into_wall, (self.off_grid == 'end') & outside]
    )


def symlog(x: Float[Array, '*b']) -> Float[Array, '*b']:
  """Returns `sign(x) log(1 + |x|)`."""
  return jnp.sign(x) * jnp.log1p(jnp.abs(x))
