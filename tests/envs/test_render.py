"""Frames show what happened, when it happened, and nothing that had not happened yet."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from PIL import Image, ImageColor

from internal_rl.envs import canvas, render
from internal_rl.envs.pinpad import Layout
from internal_rl.envs.recording import RecordingEnvironment
from internal_rl.types import TimeStep

LAYOUT = Layout(objects=np.array([0, 5, 10, 15]), walls=np.array([3]), start=np.array(4))
POSITIONS = np.array([4, 0, 1, 5, 6, 10])
SWITCHES = np.array([True, False, False, True, False])
STORY = render.Story(
  title='Somebody',
  task=(0, 1, 2),
  stages=np.array([0, 1, 1, 2, 2, 3]),
  outcome='success',
  codes=np.random.default_rng(0).normal(size=(5, 8)),
  switches=SWITCHES,
  begins=SWITCHES,
)


def pictures(positions=POSITIONS, switches=SWITCHES):
  return render.gridworld_pictures(LAYOUT, 4, positions, switches)


def frames(positions=POSITIONS, switches=SWITCHES, **kwargs):
  story = dataclasses.replace(STORY, **{'switches': switches, **kwargs})
  return render.frames(pictures(positions, switches), story)


def colour_of(picture, cell, across=0.85, down=0.85):
  """The pixel at a place within a cell; by default where neither number, agent nor path comes."""
  side = render.SIZE / 4
  return picture.getpixel((int((cell % 4 + across) * side), int((cell // 4 + down) * side)))


def same(left, right):
  return np.array_equal(np.asarray(left), np.asarray(right))


def test_every_object_has_its_colour_and_lies_in_its_cell():
  seen = [colour_of(pictures()[0], cell) for cell in LAYOUT.objects]
  assert seen == [ImageColor.getrgb(colour) for colour in canvas.PALETTE[:4]]


def test_walls_and_free_cells_look_different_from_each_other_and_from_objects():
  picture = pictures()[0]
  kinds = {colour_of(picture, cell) for cell in (3, 7, *LAYOUT.objects)}
  assert len(kinds) == 6


def test_the_agent_is_where_the_episode_says():
  black = (27, 27, 31)
  for picture, position in zip(pictures(), POSITIONS, strict=True):
    dark = [cell for cell in range(16) if colour_of(picture, cell, 0.5, 0.67) == black]
    assert position in dark


def test_a_frame_does_not_depend_on_what_comes_after_it():
  codes = STORY.codes.copy()
  codes[3:] += 1
  later = frames(
    positions=np.array([4, 0, 1, 5, 9, 8]),
    switches=np.array([True, False, False, False, True]),
    codes=codes,
  )
  unlike = [not same(a, b) for a, b in zip(frames(), later, strict=True)]
  assert unlike == [False, False, False, True, True, True]


def test_a_switch_is_marked_from_the_step_on_at_which_it_happened():
  fewer = np.array([True, False, False, False, False])
  unlike = [not same(a, b) for a, b in zip(frames(), frames(switches=fewer), strict=True)]
  assert unlike == [False] * 3 + [True] * 3
  # On the path the ring lies under the agent until it moves on.
  unlike = [not same(a, b) for a, b in zip(pictures(), pictures(switches=fewer), strict=True)]
  assert unlike == [False] * 4 + [True] * 2


def test_there_is_a_frame_for_every_observation_all_of_one_size():
  made = frames()
  assert len(made) == len(POSITIONS)
  assert len({frame.size for frame in made}) == 1


def test_without_codes_there_is_no_strip():
  bare = frames(codes=None, switches=None)
  assert bare[0].width == frames()[0].width
  assert bare[0].height < frames()[0].height


def test_pictures_of_any_world_will_do():
  world = [Image.new('RGB', (200, 120), 'white')] * len(POSITIONS)
  assert render.frames(world, STORY)[0].width > 200


def test_the_strip_shows_the_colour_to_go_to_and_where_a_true_subgoal_begins():
  made = frames(begins=np.array([True, False, True, False, False]))
  strip_left, column = 14 + 44, (render.SIZE - 44) / 5
  middle = lambda step: int(strip_left + (step + 0.5) * column)
  rows = range(made[-1].height)
  going = (0, 1, 1, 2, 2)
  for step, colour in enumerate(going):
    seen = [made[-1].getpixel((middle(step), row)) for row in rows]
    band = ImageColor.getrgb(canvas.PALETTE[colour])
    assert band in seen[-60:]
  other = frames(begins=np.array([True, False, False, False, False]))
  unlike = [not same(a, b) for a, b in zip(made, other, strict=True)]
  assert unlike == [False] * 2 + [True] * 4


def test_frames_of_some_times_are_those_of_all():
  times = render.sampled(5, 2)
  assert times == [0, 2, 4, 5]
  some = render.frames([pictures()[time] for time in times], STORY, times)
  assert all(same(frames()[time], frame) for time, frame in zip(times, some, strict=True))


@pytest.mark.parametrize('name', ['stages', 'codes', 'switches', 'begins'])
def test_records_of_another_length_are_refused_by_name(name):
  with pytest.raises(ValueError, match=f'story.{name}: '):
    render.frames(pictures(), dataclasses.replace(STORY, **{name: getattr(STORY, name)[:-1]}))


def test_pictures_of_other_times_than_those_named_are_refused():
  with pytest.raises(ValueError, match='6 pictures'):
    render.frames(pictures(), STORY, [0, 1])


def test_a_code_is_white_at_zero_and_saturates_with_its_sign():
  white, red, blue, also_red = render._diverging(np.array([0.0, 9.0, -9.0, 2.5])).tolist()
  assert white == [255, 255, 255]
  assert red[0] > red[2]
  assert blue[0] < blue[2]
  assert red == also_red


def test_an_animation_keeps_every_frame_and_its_colours():
  made = frames()
  film = Image.open(io.BytesIO(render.gif(made, seconds=0.2, hold=1.0)))
  assert film.n_frames == len(made)
  assert film.info['loop'] == 0
  durations = []
  for index, frame in enumerate(made):
    film.seek(index)
    durations.append(film.info['duration'])
    error = np.asarray(film.convert('RGB'), float) - np.asarray(frame, float)
    assert np.abs(error).mean() < 1.5
  assert durations == [200] * (len(made) - 1) + [1000]


def test_a_picture_survives_being_written():
  assert same(Image.open(io.BytesIO(render.png(frames()[2]))), frames()[2])


@struct.dataclass
class Sum:
  total: jax.Array
  time: jax.Array
  progress: jax.Array
  subgoal: jax.Array


class Adding:
  """Actions add up; the episode ends at five, or after six steps."""

  time_limit = 6

  def reset(self, key, task):
    zero = jnp.zeros((), jnp.int32)
    return Sum(task, zero, zero, zero), TimeStep(task[None], jnp.zeros(()), task >= 5)

  def step(self, state, action):
    done = (state.total >= 5) | (state.time >= self.time_limit)
    total = jnp.where(done, state.total, state.total + action)
    time = state.time + ~done
    over = (total >= 5) | (time >= self.time_limit)
    state = state.replace(total=total, time=time, progress=total)
    return state, TimeStep(total[None], (over & ~done).astype(float), over)


def test_a_recorded_episode_is_the_same_episode_with_every_state_in_it():
  def play(env):
    state, first = jax.vmap(env.reset)(jnp.zeros((3, 2), jnp.uint32), jnp.arange(3))
    seen = [first]
    for _ in range(8):  # Beyond the end, where nothing may change.
      state, timestep = jax.vmap(env.step)(state, jnp.array([0, 1, 2]))
      seen.append(timestep)
    return state, seen

  plain, seen = play(Adding())
  recorded, also_seen = play(RecordingEnvironment(Adding()))
  jax.tree.map(np.testing.assert_array_equal, seen, also_seen)
  jax.tree.map(np.testing.assert_array_equal, plain, recorded.state)
  np.testing.assert_array_equal(recorded.time, [6, 4, 2])
  totals = [[0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 0, 0], [2, 4, 6, 0, 0, 0, 0]]
  np.testing.assert_array_equal(recorded.trail.total, totals)
