"""Pictures of the ant, which walks on the gridworld's picture.

`pictures` shows it in perspective, drawn by MuJoCo; `pictures_from_above` needs no graphics driver.
The physical model knows neither colours nor walls, so the scene has a model of its own.
"""

import contextlib
import ctypes.util
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageColor

from internal_rl.envs import ant_body, render
from internal_rl.envs.ant import Ant
from internal_rl.envs.canvas import PAPER, WALL
from internal_rl.envs.pinpad import Layout

WIDTH, HEIGHT = 480, 352  # Of a picture in perspective, pixels.
ELEVATION = 55.0  # Of the camera in the south above the horizon, degrees.
FIELD_OF_VIEW = 30.0  # From top to bottom of the picture, degrees.
DISTANCE, TOWARDS_SOUTH = 3.75, 0.13  # Of the camera, and of where it looks, in half widths.
MARGIN = 0.5  # Of floor that is seen and drawn on around the grid, in cells.

_OVERSAMPLING = 2  # Rendered larger and averaged down: cheaper than multisampling in software.
_WALL_HEIGHT = 0.15  # Of a cell's width.
_TORSO, _LEG = '#3a3a42', '#6a6a74'
_SHADE = 0.62  # Brightness of the floor in the ant's shadow; in the light, that of its picture.


class NoGraphicsError(RuntimeError):
  """There is no OpenGL to draw with."""


def pictures(
  env: Ant,
  layout: Layout,
  qpos: Float[np.ndarray, 't_plus_1 15'],
  switches: Bool[np.ndarray, ' t'] | None = None,
  times: Sequence[int] | None = None,
) -> list[Image.Image]:
  """Draws the ant in perspective, seen from the south.

  Args:
    env: the world.
    layout: of one episode.
    qpos: the body's at `o_1 .. o_{T+1}`.
    switches: raw steps at which a new code was chosen; marked on the path where that happened.
    times: which of `o_1 .. o_{T+1}` to draw, counted from 0; all of them if left out.

  Raises:
    NoGraphicsError: if neither EGL nor OSMesa works; says what to install.
  """
  model = _scene(env, layout)
  path = _on_grid(env, qpos)
  drawn = []
  with _renderer(model) as draw:
    for time in range(len(qpos)) if times is None else times:
      ground = render.ground(layout, env.grid_size, path[: time + 1], switches, MARGIN)
      pixels = draw(qpos[time], np.asarray(ground.oversampled()))
      drawn.append(Image.fromarray(pixels).reduce(_OVERSAMPLING))
  return drawn


def pictures_from_above(
  env: Ant,
  layout: Layout,
  qpos: Float[np.ndarray, 't_plus_1 15'],
  switches: Bool[np.ndarray, ' t'] | None = None,
  times: Sequence[int] | None = None,
) -> list[Image.Image]:
  """Draws the same in two dimensions, where there are no graphics; arguments as for `pictures`."""
  model = _scene(env, layout)
  data, path = mujoco.MjData(model), _on_grid(env, qpos)
  cell = render.SIZE / env.grid_size
  drawn = []
  for time in range(len(qpos)) if times is None else times:
    canvas = render.ground(layout, env.grid_size, path[: time + 1], switches, MARGIN)
    data.qpos[:] = qpos[time]
    mujoco.mj_kinematics(model, data)
    # A capsule lies along its own z axis; a sphere is one of no length.
    half = model.geom_size[:, 1:2] * data.geom_xmat[:, 2::3]
    ends = cell * (
      MARGIN + _on_grid(env, np.stack([data.geom_xpos - half, data.geom_xpos + half], 1))
    )
    for geom in np.argsort(data.geom_xpos[:, 2] + model.geom_size[:, 0]):
      if model.geom_bodyid[geom]:
        radius = cell / env.cell_size * model.geom_size[geom, 0]
        canvas.capsule(ends[geom].tolist(), radius, _hexadecimal(model.geom_rgba[geom]))
    drawn.append(canvas.finished())
  return drawn


def _on_grid(env: Ant, places: Float[np.ndarray, '*b n']) -> Float[np.ndarray, '*b 2']:
  """Column and row of places whose first two coordinates are x and y in metres."""
  return np.asarray(env.on_grid(jnp.asarray(places[..., :2])))


def _scene(env: Ant, layout: Layout) -> mujoco.MjModel:
  """The ant with eyes, a floor to put a picture on, walls that stand on it, light and a camera."""
  spec = mujoco.MjSpec.from_file(str(ant_body.ASSET))
  sphere, box = mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_BOX
  for geom in spec.geoms:
    colour = PAPER if geom.name == 'floor' else _TORSO if geom.name == 'torso' else _LEG
    geom.rgba = _rgba(colour)
  for side in (-1, 1):
    spec.body('torso').add_geom(
      type=sphere, size=[0.08, 0, 0], pos=[0.15, 0.11 * side, 0.17], rgba=_rgba(PAPER)
    )
  _lay_floor(spec, env)
  half, height = 0.46 * env.cell_size, _WALL_HEIGHT * env.cell_size / 2
  for x, y in np.asarray(env.centre(jnp.asarray(layout.walls))):
    spec.worldbody.add_geom(
      type=box, size=[half, half, height], pos=[x, y, height], rgba=_rgba(WALL)
    )
  spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [_SHADE] * 3, [0] * 3
  spec.lights[0].diffuse, spec.lights[0].ambient = [1 - _SHADE] * 3, [0] * 3
  _set_up_camera(spec, env.half_width)
  return spec.compile()


def _lay_floor(spec: mujoco.MjSpec, env: Ant) -> None:
  """Lays a picture on the floor, which stays blank until there is one."""
  half_width = env.half_width + MARGIN * env.cell_size
  side = _OVERSAMPLING * round(render.SIZE * half_width / env.half_width)
  flat, rgb = mujoco.mjtBuiltin.mjBUILTIN_FLAT, mujoco.mjtTextureRole.mjTEXROLE_RGB
  spec.add_texture(
    name='grid', type=mujoco.mjtTexture.mjTEXTURE_2D, width=side, height=side, builtin=flat
  )
  material = spec.add_material(name='grid', specular=0)
  material.textures[rgb] = 'grid'
  spec.worldbody.add_geom(
    type=mujoco.mjtGeom.mjGEOM_PLANE,
    size=[half_width, half_width, 1],
    pos=[0, 0, 0.005],  # Above the floor, so that the two do not flicker.
    material='grid',
    rgba=_rgba(PAPER),
  )


def _set_up_camera(spec: mujoco.MjSpec, half_width: float) -> None:
  """Puts a camera in the south, whose picture holds all of the grid."""
  spec.visual.global_.offwidth = _OVERSAMPLING * WIDTH
  spec.visual.global_.offheight = _OVERSAMPLING * HEIGHT
  spec.visual.quality.offsamples, spec.visual.quality.shadowsize = 0, 2048
  elevation, tilt = np.radians(ELEVATION), np.radians(90 - ELEVATION)
  south = TOWARDS_SOUTH + DISTANCE * np.cos(elevation)
  spec.worldbody.add_camera(
    name='south',
    fovy=FIELD_OF_VIEW,
    pos=[0, -south * half_width, DISTANCE * np.sin(elevation) * half_width],
    quat=[np.cos(tilt / 2), np.sin(tilt / 2), 0, 0],
  )


@contextlib.contextmanager
def _renderer(model: mujoco.MjModel) -> Iterator:
  """Provides `(qpos, picture on the floor) -> [height, width, 3]` pixels, oversampled.

  `mujoco.Renderer` keeps its context to itself, and into that the floor's picture is uploaded.
  """
  window = mujoco.MjrRect(0, 0, _OVERSAMPLING * WIDTH, _OVERSAMPLING * HEIGHT)
  data, scene = mujoco.MjData(model), mujoco.MjvScene(model, maxgeom=model.ngeom + 10)
  scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
  camera, options, nothing = mujoco.MjvCamera(), mujoco.MjvOption(), mujoco.MjvPerturb()
  camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera('south').id
  with _graphics(model) as context:

    def draw(qpos, ground: UInt8[np.ndarray, 'n n 3']) -> UInt8[np.ndarray, 'h w 3']:
      model.tex_data[:] = ground.reshape(-1)
      mujoco.mjr_uploadTexture(model, context, model.texture('grid').id)
      data.qpos[:] = qpos
      mujoco.mj_kinematics(model, data)
      mujoco.mj_camlight(model, data)
      everything = mujoco.mjtCatBit.mjCAT_ALL
      mujoco.mjv_updateScene(model, data, options, nothing, camera, everything, scene)
      mujoco.mjr_render(window, scene, context)
      pixels = np.empty((window.height, window.width, 3), np.uint8)
      mujoco.mjr_readPixels(pixels, None, window, context)
      return pixels[::-1]  # OpenGL starts at the bottom.

    yield draw


@contextlib.contextmanager
def _graphics(model: mujoco.MjModel) -> Iterator[mujoco.MjrContext]:
  """Provides OpenGL that needs no display; `MUJOCO_GL` has the last word on which."""
  name = os.environ.get('MUJOCO_GL', '').lower()
  if not name and sys.platform == 'linux':
    name = 'egl' if ctypes.util.find_library('EGL') else 'osmesa'
  module = f'mujoco.{name}' if name in ('egl', 'osmesa') else 'mujoco.gl_context'
  size = (_OVERSAMPLING * WIDTH, _OVERSAMPLING * HEIGHT)
  with contextlib.ExitStack() as stack:
    try:
      window = importlib.import_module(module).GLContext(*size)
      stack.callback(window.free)
      window.make_current()
      context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
      stack.callback(context.free)
      mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    except Exception as error:  # Whatever a driver, or PyOpenGL in its name, may raise.
      raise NoGraphicsError(
        f'MuJoCo cannot draw ({module}: {str(error) or type(error).__name__}). Install EGL '
        '(on Debian: apt install libegl1 libgl1-mesa-dri), or OSMesa (libosmesa6) and set '
        'MUJOCO_GL=osmesa'
      ) from error
    yield context


def _rgba(colour: str) -> list[float]:
  return [channel / 255 for channel in ImageColor.getrgb(colour)] + [1.0]


def _hexadecimal(rgba) -> str:
  return '#' + ''.join(f'{round(255 * channel):02x}' for channel in rgba[:3])
