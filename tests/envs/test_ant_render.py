"""A film of the ant shows it where it was, on the cells it was among, with every switch marked."""

import io
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from PIL import Image, ImageColor

from internal_rl.envs import ant_render, render
from internal_rl.envs.ant import Ant
from internal_rl.envs.canvas import CELL, INK, PALETTE, PAPER, WALL
from internal_rl.envs.film import film
from internal_rl.envs.pinpad import Layout
from internal_rl.envs.recording import RecordedState
from internal_rl.envs.tasks import FAMILIES

STEPS = 6
ENV = Ant(4, 4, 1, STEPS, FAMILIES['ant'])
LAYOUT = Layout(objects=np.array([0, 7, 10, 13]), walls=np.array([2]), start=np.array(5))
FREE = (1, 3, 4, 8, 15)
CODES = np.random.default_rng(0).normal(size=(STEPS, 8))
SWITCHES = np.array([True, False, False, True, False, False])


@pytest.fixture(scope='module')
def episode():
  """A recorded episode of random torques, from the middle of the grid."""
  state, _ = ENV.start(jax.random.key(0), jax.tree.map(jnp.asarray, LAYOUT), jnp.array(3))
  place = ENV.centre(jnp.array(5))
  state = state.replace(body=state.body.replace(qpos=state.body.qpos.at[:2].set(place)))
  data = mujoco.MjData(ENV.body.model)
  data.qpos[:] = state.body.qpos
  passed = [state.body.qpos]
  for torques in np.random.default_rng(0).uniform(-1, 1, (STEPS, 8)):
    data.ctrl[:] = torques
    mujoco.mj_step(ENV.body.model, data, ENV.body.frame_skip)
    passed.append(jnp.asarray(data.qpos))
  states = [
    state.replace(body=state.body.replace(qpos=qpos), time=jnp.array(time))
    for time, qpos in enumerate(passed)
  ]
  trail = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  return jax.device_get(RecordedState(states[-1], trail))


@pytest.fixture(scope='module')
def qpos(episode):
  """What the body went through, and where it then would be two cells further south-east."""
  qpos = np.array(episode.trail.body.qpos)
  assert np.ptp(qpos[:, 7:], axis=0).min() > 0.01  # It does move.
  away = qpos[-1] + np.array([3.5, -2.5, *[0] * 13], np.float32)
  return np.concatenate([qpos, away[None]])


def drawn(draw, qpos, switches=None):
  try:
    return draw(ENV, LAYOUT, qpos, switches)
  except ant_render.NoGraphicsError as error:
    pytest.skip(f'no OpenGL here to draw the ant with: {error}')


def in_perspective(point):
  """Where a point in metres is seen: a pinhole camera in the south, worked by hand."""
  up = np.radians(ant_render.ELEVATION)
  distance = ant_render.DISTANCE * ENV.half_width
  x, y, z = point
  y += ant_render.TOWARDS_SOUTH * ENV.half_width
  depth = distance + y * np.cos(up) - z * np.sin(up)
  focal = ant_render.HEIGHT / 2 / np.tan(np.radians(ant_render.FIELD_OF_VIEW / 2)) / depth
  row = ant_render.HEIGHT / 2 - focal * (y * np.sin(up) + z * np.cos(up))
  return ant_render.WIDTH / 2 + focal * x, row


def from_above(point):
  metre = render.SIZE / 4 / ENV.cell_size
  half = ENV.half_width + ant_render.MARGIN * ENV.cell_size
  return metre * (half + point[0]), metre * (half - point[1])


VIEWS = [(ant_render.pictures, in_perspective), (ant_render.pictures_from_above, from_above)]
both_views = pytest.mark.parametrize(('draw', 'project'), VIEWS, ids=['perspective', 'above'])


def is_like(picture, pixel, colour, tolerance=12):
  wanted = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
  seen = picture.getpixel(tuple(int(side) for side in pixel))
  return max(abs(a - b) for a, b in zip(seen, wanted, strict=True)) <= tolerance


def around(picture, pixel):
  """The median colour of a patch about as large as the ant's torso, which eyes do not change."""
  x, y = (int(side) for side in pixel)
  return np.median(picture.crop((x - 6, y - 6, x + 7, y + 7)), (0, 1))


def within(cell, height=0.0):
  """A point of a cell off its middle, where neither its number nor the ant comes."""
  x, y = np.asarray(ENV.centre(jnp.array(cell)))
  return (x + 0.6, y - 0.6, height)


@both_views
def test_every_cell_is_seen_in_its_colour_at_its_place(qpos, draw, project):
  (picture,) = drawn(draw, qpos[:1])
  for colour, cell in zip(PALETTE, LAYOUT.objects, strict=False):
    assert is_like(picture, project(within(cell)), colour)
  assert is_like(picture, project(within(LAYOUT.walls[0], 0.3)), WALL)
  assert all(is_like(picture, project(within(cell)), CELL) for cell in FREE)


@both_views
def test_the_ant_is_seen_where_it_is(qpos, draw, project):
  pictures = drawn(draw, qpos)
  for picture, now in zip(pictures, qpos, strict=True):
    assert around(picture, project(now[:3])).max() < 90
  assert around(pictures[-1], project(qpos[0, :3])).min() > 90
  legs = [np.abs(np.asarray(a, int) - b).max(-1) > 60 for a, b in itertools.pairwise(pictures)]
  assert all(moved.sum() > 30 for moved in legs)


@both_views
def test_a_switch_is_ringed_on_the_floor_where_it_happened(qpos, draw, project):
  switches = np.append(SWITCHES, True)
  plain, marked = (drawn(draw, qpos, which)[-1] for which in (np.zeros(7, bool), switches))
  places = [(*qpos[time, :2], 0.0) for time in np.flatnonzero(switches)]
  assert all(is_like(marked, project(place), PAPER) for place in (places[0], places[2]))
  assert not any(is_like(plain, project(place), PAPER) for place in (places[0], places[2]))
  rim = np.add(places[2], (ENV.cell_size / 10, 0, 0))
  assert is_like(marked, project(rim), INK, tolerance=60)


def test_a_film_shows_the_story_and_runs_as_fast_as_it_happened(episode):
  drawn(ant_render.pictures, np.asarray(episode.trail.body.qpos)[:1])
  shown = Image.open(io.BytesIO(film(ENV, episode, 'Nobody', CODES, SWITCHES)))
  steps = int(episode.time)
  assert shown.n_frames == steps // 2 + 1
  shown.seek(1)
  shown.load()
  assert (shown.info['duration'], shown.info['loop']) == (100, 0)
  # The code in force and the switches up to now are below the picture of the world.
  without = Image.open(io.BytesIO(film(ENV, episode, 'Nobody')))
  assert shown.width == without.width == ant_render.WIDTH + 28
  assert shown.height > without.height


def test_without_graphics_it_says_what_to_install_and_films_from_above(
  episode, monkeypatch, caplog
):
  monkeypatch.setenv('MUJOCO_GL', 'osmesa')
  monkeypatch.setitem(sys.modules, 'mujoco.osmesa', None)
  with caplog.at_level('WARNING'):
    shown = Image.open(io.BytesIO(film(ENV, episode, 'Nobody', CODES, SWITCHES)))
  assert 'apt install libegl1' in caplog.text
  assert shown.n_frames == int(episode.time) // 2 + 1
  assert shown.width < ant_render.WIDTH


def test_the_films_of_the_gridworld_need_no_mujoco():
  without = "import sys; sys.modules['mujoco'] = None; import experiments.figures"
  subprocess.run([sys.executable, '-c', without], check=True)
