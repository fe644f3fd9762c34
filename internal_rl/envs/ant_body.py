"""The ant's body on MuJoCo's MJX: one control step of physics, and nothing of the task."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int
from mujoco import mjx

from internal_rl.types import Key

ASSET = pathlib.Path(__file__).with_name('assets') / 'ant.xml'
NUM_LEGS = 4
NUM_JOINTS = 8  # Hip and ankle of legs 1, 2, 3, 4, in this order; a torque each.
NUM_POSITIONS, NUM_VELOCITIES = 7 + NUM_JOINTS, 6 + NUM_JOINTS
# m/s and rad/s: a simulation that is blowing up. Random torques reach 20.
MAX_VELOCITY = 1e3
CONTACTS = ('feet', 'feet_torso')


@struct.dataclass
class Body:
  """Where the ant is and how it moves: all that the simulation goes on from.

  Attributes:
    qpos: torso position (metres), its orientation (quaternion, w first), joint angles (radians).
    qvel: torso velocity in the world's frame (m/s), its angular velocity in its own (rad/s), joint
      velocities (rad/s).
    warmstart: accelerations that the contact solver starts from.
  """

  qpos: Float[Array, '*b 15']
  qvel: Float[Array, '*b 14']
  warmstart: Float[Array, '*b 14']

  @property
  def place(self) -> Float[Array, '*b 2']:
    """Where the torso is, x and y in metres."""
    return self.qpos[..., :2]

  @property
  def height(self) -> Float[Array, '*b']:
    """How high the torso is, metres."""
    return self.qpos[..., 2]


@dataclasses.dataclass(frozen=True)
class AntBody:
  """How the classic MuJoCo ant is simulated. The paper leaves all of it open (App. A.2).

  The defaults are the cheapest settings that stay finite under random and constant torques. In
  about one of a hundred substeps in contact four steps of line search end too early; with
  `ls_iterations=50` a single Newton iteration is MuJoCo's own to rounding. Damping is explicit
  (`eulerdamp` off): with MJX's implicit one the simulation blows up.

  Attributes:
    contacts: what touches the floor: 'feet', so that an ant on its back sinks and its episode ends,
      or 'feet_torso'.
    frame_skip: substeps of `timestep` in a control step.
    timestep: seconds.
    gear: newton metres at torque 1.
    iterations: of the Newton solver, a substep.
    ls_iterations: of its line search.
  """

  contacts: str = 'feet_torso'
  frame_skip: int = 5
  timestep: float = 0.01
  gear: float = 150.0
  iterations: int = 1
  ls_iterations: int = 4

  def __post_init__(self):
    if self.contacts not in CONTACTS:
      raise ValueError(f'env.body.contacts={self.contacts!r}: must be one of {CONTACTS}')
    for field in ('frame_skip', 'timestep', 'gear', 'iterations', 'ls_iterations'):
      if getattr(self, field) <= 0:
        raise ValueError(f'env.body.{field}={getattr(self, field)}: must be positive')

  @property
  def seconds(self) -> float:
    """Length of a control step."""
    return self.frame_skip * self.timestep

  @functools.cached_property
  def model(self) -> mujoco.MjModel:
    """The model that MuJoCo itself and MJX both read."""
    model = mujoco.MjModel.from_xml_path(str(ASSET))
    model.geom('torso').contype = self.contacts == 'feet_torso'
    model.actuator_gear[:, 0] = self.gear
    model.opt.timestep = self.timestep
    model.opt.iterations = self.iterations
    model.opt.ls_iterations = self.ls_iterations
    return model

  @property
  def stance(self) -> Float[np.ndarray, ' 15']:
    """The default pose: standing, at the origin, heading along x."""
    return self.model.key('stand').qpos

  def rest(self) -> Body:
    """Returns the ant at rest in its default pose."""
    still = jnp.zeros(NUM_VELOCITIES)
    return Body(jnp.asarray(self.stance, still.dtype), still, still)

  def spawn(self, key: Key, place: Float[Array, ' 2'], noise: float) -> Body:
    """Returns the ant at `place`, its heading uniform, all joints within `noise` of the default."""
    yaw_key, angle_key, speed_key = jax.random.split(key, 3)
    half_yaw = jax.random.uniform(yaw_key, (), maxval=jnp.pi)
    jitter = lambda key: jax.random.uniform(key, (NUM_JOINTS,), minval=-noise, maxval=noise)
    body = self.rest()
    heading = jnp.stack([jnp.cos(half_yaw), jnp.zeros(()), jnp.zeros(()), jnp.sin(half_yaw)])
    joints = body.qpos[7:] + jitter(angle_key)
    return body.replace(
      qpos=jnp.concatenate([place, body.qpos[2:3], heading, joints]),
      qvel=body.qvel.at[6:].set(jitter(speed_key)),
    )

  # Jitted so that MJX, whose tracing takes seconds, is traced once for all programs of a process.
  @functools.partial(jax.jit, static_argnums=0)
  def advance(self, body: Body, torques: Float[Array, ' 8']) -> Body:
    """Returns the body one control step later; torques are clipped to [-1, 1].

    Not necessarily finite: the caller decides what a simulation that blew up means.
    """
    with jax.ensure_compile_time_eval():  # The first to ask may be a function under trace.
      model = mjx.put_model(self.model, impl='jax')
      blank = mjx.make_data(self.model, impl='jax')
    control = jnp.clip(torques, -1.0, 1.0)

    def substep(body: Body, _) -> tuple[Body, None]:
      before = blank.replace(
        qpos=body.qpos, qvel=body.qvel, qacc_warmstart=body.warmstart, ctrl=control
      )
      after = mjx.step(model, before)
      return Body(after.qpos, after.qvel, after.qacc_warmstart), None

    # MJX broadcasts; and accelerators would compute its products in less than float32, of which
    # contacts and explicit damping leave nothing to spare.
    with jax.numpy_rank_promotion('allow'), jax.default_matmul_precision('highest'):
      return jax.lax.scan(substep, body, length=self.frame_skip)[0]

  def stress(
    self, key: Key, batch: int, steps: int, constant: bool | Bool[Array, '']
  ) -> Int[Array, '']:
    """Counts how often the simulation blows up under torques that nobody chose.

    Args:
      key: consumed.
      batch: bodies side by side; one that blows up begins anew.
      steps: control steps of each.
      constant: whether a body's torques stay at one corner of their range, drawn once for each, or
        are uniform at every step.
    """
    spawn = jax.vmap(lambda key: self.spawn(key, jnp.zeros(2), 0.1))
    start_key, corner_key, steps_key = jax.random.split(key, 3)
    corners = jax.random.rademacher(corner_key, (batch, NUM_JOINTS), jnp.float32)

    def step(bodies: Body, key: Key):
      torque_key, spawn_key = jax.random.split(key)
      random = jax.random.uniform(torque_key, corners.shape, minval=-1.0)
      after = jax.vmap(self.advance)(bodies, jnp.where(constant, corners, random))
      sound = jax.vmap(is_sound)(after)
      fresh = spawn(jax.random.split(spawn_key, batch))
      choose = lambda new, old: jnp.where(sound[:, None], old, new)
      return jax.tree.map(choose, fresh, after), (~sound).sum()

    start = spawn(jax.random.split(start_key, batch))
    return jax.lax.scan(step, start, jax.random.split(steps_key, steps))[1].sum()


def rotation(quaternion: Float[Array, ' 4']) -> Float[Array, '3 3']:
  """Returns the matrix of a unit quaternion, w first: from the body's axes to the world's."""
  w, x, y, z = quaternion
  return jnp.stack(
    [
      jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
      jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
      jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
    ]
  )


def is_sound(body: Body) -> Bool[Array, '']:
  """Returns whether an unbatched body is finite and no velocity beyond what a simulation holds."""
  finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(body)]).all()
  return finite & (jnp.abs(body.qvel).max() < MAX_VELOCITY)
