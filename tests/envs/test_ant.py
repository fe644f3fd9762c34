"""The ant's world: its physics is MuJoCo's, its rules are the pinpad's, and no NaN leaves it."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from internal_rl.envs.ant import ENDS, PROPRIOCEPTION, Ant
from internal_rl.envs.ant_body import AntBody, Body
from internal_rl.envs.pinpad import Layout
from internal_rl.envs.tasks import FAMILIES, TaskFamily

PAPER = Ant(4, 4, 1, 500, FAMILIES['ant'])
# Short tasks and episodes, so that every kind of end comes up.
SHORT = ('0', '1-2', '3-0', '2-1-3')
ENV = Ant(4, 4, 1, 70, TaskFamily(((0,), (1,), (2,), (3,)), SHORT, SHORT[0]))
BATCH, STEPS = 128, 80


@pytest.fixture(scope='module')
def reset():
  return jax.jit(jax.vmap(ENV.reset))


@pytest.fixture(scope='module')
def step():
  """One compiled step, which all tests of this file share."""
  return jax.jit(jax.vmap(ENV.step))


def begin(reset, seed):
  return reset(jax.random.split(jax.random.key(seed), BATCH), jnp.arange(BATCH) % len(SHORT))


def carry(rng, state):
  """Carries half of the ants, upright, roughly towards their next colour."""
  progress, body = state.progress, jax.tree.map(np.array, state.body)
  colours = np.asarray(ENV.tasks.colours)[progress.task, progress.stage.clip(0, 2)]
  row, column = np.divmod(np.asarray(state.layout.objects)[np.arange(BATCH), colours], 4)
  goal = np.stack([2.0 * column - 3, 3 - 2.0 * row], 1)
  way = goal - body.qpos[:, :2] + rng.normal(size=(BATCH, 2))
  carried = np.arange(BATCH) < BATCH // 2
  body.qpos[carried, 2:7] = (0.6, 1, 0, 0, 0)
  body.qvel[carried] = 0
  body.qvel[carried, :2] = (6 * way / np.linalg.norm(way, axis=1, keepdims=True))[carried]
  return state.replace(body=jax.tree.map(jnp.asarray, body))


@pytest.fixture(scope='module')
def record(reset, step):
  """10 240 recorded steps: the states before them, one after the last, and what they returned."""
  rng = np.random.default_rng(0)
  state, _ = begin(reset, 0)
  before, after, timesteps = [], [], []
  for torques in rng.uniform(-1, 1, (STEPS, BATCH, 8)).astype(np.float32):
    state = carry(rng, state)
    before.append(state)
    state, timestep = step(state, torques)
    after.append(state)
    timesteps.append(timestep)
  stacked = lambda rows: jax.tree.map(lambda *x: np.stack(x), *rows)
  return [stacked(rows) for rows in (before, after, timesteps)]


def cell_of(place):
  """Row and column of x and y: rows go south, columns east, both from the north-west corner."""
  column, row = (int(np.floor(x)) for x in ((place[0] + 4) / 2, (4 - place[1]) / 2))
  return min(max(row, 0), 3) * 4 + min(max(column, 0), 3)


def test_ends_visits_and_rewards_equal_a_numpy_replay_of_the_recorded_steps(record):
  before, after, timesteps = record
  count = dict.fromkeys(('complete', 'wrong', 'wall', 'height', 'time'), 0)
  for i in range(BATCH):
    layout = jax.tree.map(lambda x, i=i: x[0, i], before.layout)
    colours = {int(cell): colour for colour, cell in enumerate(layout.objects)}
    task = [int(colour) for colour in SHORT[i % len(SHORT)].split('-')]
    stage, time, done = 0, 0, False
    for t in range(STEPS):
      old, new = before.body.qpos[t, i], after.body.qpos[t, i]
      reward = 0
      if not done:
        time += 1
        onto = cell_of(new)
        if onto != cell_of(old) and onto in colours:
          right = colours[onto] == task[stage]
          stage += right
          reward = int(stage == len(task))
          done = bool(reward) or not right
          count['complete'] += reward
          count['wrong'] += not right
        for name, over in (
          ('wall', onto in layout.walls),
          ('height', not 0.2 <= new[2] <= 1.0),
          ('time', time >= 70),
        ):
          done, count[name] = done or over, count[name] + over
      got = after.progress.stage[t, i], after.time[t, i], timesteps.reward[t, i]
      assert got == (stage, time, reward)
      assert timesteps.done[t, i] == done == after.progress.done[t, i]
  assert min(count.values()) >= 3, count


def test_everything_stays_finite_under_random_and_constant_torques(record, reset, step):
  _, after, timesteps = record
  assert np.isfinite(timesteps.observation).all()
  assert not after.diverged.any()
  state, _ = begin(reset, 1)
  corners = 2 * (np.arange(BATCH)[:, None] >> np.arange(8) & 1) - 1
  for _ in range(STEPS):
    # Goes on after every end, so that the ants come into all sorts of trouble.
    state = state.replace(progress=state.progress.replace(done=jnp.zeros(BATCH, bool)))
    state, timestep = step(state, corners.astype(np.float32))
    assert np.isfinite(timestep.observation).all()
  assert not state.diverged.any()


def test_after_the_end_nothing_changes(record, step):
  last = jax.tree.map(lambda x: jnp.asarray(x[-1]), record[1])
  assert last.progress.done.all()
  state, timestep = step(last, jnp.ones((BATCH, 8)))
  jax.tree.map(np.testing.assert_array_equal, state, last)
  assert timestep.done.all()
  assert not timestep.reward.any()


def test_a_simulation_that_is_not_finite_ends_its_own_episode_only(reset, step):
  state, _ = begin(reset, 2)
  torques = np.zeros((BATCH, 8), np.float32)
  torques[0, 3], torques[1, 0] = np.nan, np.inf
  qvel = state.body.qvel.at[2, 2].set(1e30).at[3, 8].set(-1e25).at[4, 2].set(2e3)
  state = state.replace(body=state.body.replace(qvel=qvel))
  after, timestep = step(state, torques)
  assert after.diverged[np.array([0, 2, 3, 4])].all()  # The last is finite, but absurd.
  assert not after.diverged[5:].any()
  assert not after.diverged[1]  # Torques are clipped: infinity is 1.
  np.testing.assert_array_equal(timestep.done[:5], [True, False, True, True, True])
  np.testing.assert_array_equal(after.body.qpos[0], state.body.qpos[0])
  np.testing.assert_array_equal(after.body.qvel[2], state.body.qvel[2])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.body))
  assert np.isfinite(timestep.observation).all()
  again, timestep = step(after, jnp.zeros((BATCH, 8)))
  jax.tree.map(np.testing.assert_array_equal, again.body.qvel[:4:2], after.body.qvel[:4:2])
  assert np.isfinite(timestep.observation).all()


def test_observations_do_not_depend_on_the_task(reset, step):
  keys = jax.random.split(jax.random.key(3), BATCH)
  states = [reset(keys, jnp.full(BATCH, task)) for task in (0, 3)]
  np.testing.assert_array_equal(states[0][1].observation, states[1][1].observation)
  states = [state for state, _ in states]
  for torques in jax.random.uniform(jax.random.key(4), (20, BATCH, 8), minval=-1.0):
    seen = []
    for task in range(2):
      state, timestep = step(states[task], torques)
      # Goes on without the end, which alone may tell tasks apart.
      states[task] = state.replace(progress=state.progress.replace(done=jnp.zeros(BATCH, bool)))
      seen.append(timestep.observation)
    np.testing.assert_array_equal(*seen)


def test_the_observation_holds_what_the_paper_lists_in_order():
  qpos = np.concatenate([[1.5, -2.5, 0.5], [0.6, 0, 0, 0.8], np.linspace(-1, 1, 8)])
  body = Body(jnp.asarray(qpos, jnp.float32), jnp.arange(14.0) - 7, jnp.zeros(14))
  # Row 3, column 2 has its centre at (1, -3).
  layout = Layout(jnp.array([0, 3, 12, 15]), jnp.array([6]), jnp.array(14))
  observation = PAPER.observe(layout, body)
  usual = np.concatenate([qpos[2:], np.arange(14.0) - 7])
  expected = [
    np.sign(usual) * np.log(1 + np.abs(usual)),
    [1.5 / 4, -2.5 / 4],
    np.array([[-4.5, 5.5], [1.5, 5.5], [-4.5, -0.5], [1.5, -0.5], [-0.5, 3.5]]).ravel() / 4,
    [0.5, 0.5],
  ]
  assert PROPRIOCEPTION == 27
  assert PAPER.observation_size == 41
  np.testing.assert_allclose(observation, np.concatenate(expected), atol=1e-6)


def test_episodes_start_anywhere_in_the_start_cell_in_any_direction_near_the_default_pose(reset):
  seeds = [begin(reset, seed)[0] for seed in range(10, 26)]
  state = jax.tree.map(lambda *x: np.concatenate(x), *seeds)
  row, column = np.divmod(state.layout.start, 4)
  within = state.body.qpos[:, :2] - np.stack([2.0 * column - 3, 3 - 2.0 * row], 1)
  yaw = 2 * np.arctan2(state.body.qpos[:, 6], state.body.qpos[:, 3])
  joints = state.body.qpos[:, 7:] - np.array([0, 1, 0, -1, 0, -1, 0, 1])
  speeds = state.body.qvel[:, 6:]
  for values, low, high in (
    (within, -1, 1),
    (yaw, 0, 2 * np.pi),
    (joints, -0.1, 0.1),
    (speeds, -0.1, 0.1),
  ):
    assert low <= values.min() and values.max() <= high
    scaled = np.sort((values - low).ravel() / (high - low))
    gap = np.abs(scaled - (np.arange(scaled.size) + 0.5) / scaled.size).max()
    assert gap < 2 / np.sqrt(scaled.size)  # Kolmogorov and Smirnov: p about 1e-3.
  assert (state.body.qpos[:, 2] == np.float32(0.55)).all()
  assert not state.body.qvel[:, :6].any()
  np.testing.assert_allclose(np.linalg.norm(state.body.qpos[:, 3:7], axis=1), 1, atol=1e-6)


@pytest.fixture(scope='module')
def advance():
  """A substep in float64, its contacts solved to convergence.

  One Newton iteration with four steps of line search, the default, may end before that, and where
  it does the two are free to differ.
  """
  body = AntBody(frame_skip=1, iterations=20, ls_iterations=50)
  body.model.opt.tolerance = 1e-14
  return body.model, jax.jit(body.advance)


@pytest.mark.parametrize('stance', ['standing', 'tilted', 'on its back', 'sunk'])
def test_mjx_equals_mujoco_in_float64(advance, stance):
  model, advance = advance
  heights = {'standing': 0.55, 'tilted': 0.45, 'on its back': 0.3, 'sunk': 0.26}
  quaternions = {'tilted': (0.9, 0.1, -0.2, 0.3), 'on its back': (0, 1, 0, 0)}
  data = mujoco.MjData(model)
  data.qpos[:] = model.key('stand').qpos
  data.qpos[2] = heights[stance]
  data.qpos[3:7] = quaternions.get(stance, (1, 0, 0, 0))
  data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
  worst, touched = 0.0, set()
  with jax.enable_x64(True):
    ours = Body(jnp.asarray(data.qpos), jnp.asarray(data.qvel), jnp.zeros(14))
    for control in np.random.default_rng(0).uniform(-1, 1, (100, 8)):
      ours = advance(ours, jnp.asarray(control))
      data.ctrl[:] = control
      mujoco.mj_step(model, data)
      touched |= {model.geom(int(geom)).name for pair in data.contact.geom for geom in pair}
      for x, y in ((ours.qpos, data.qpos), (ours.qvel, data.qvel)):
        assert x.dtype == np.float64
        worst = max(worst, float(np.abs(np.asarray(x) - y).max()))
  assert worst < 1e-6
  assert ('torso' if stance in ('on its back', 'sunk') else 'foot_2') in touched


def test_only_feet_and_torso_touch_the_floor():
  for contacts, names in (
    ('feet', {'foot_1', 'foot_2', 'foot_3', 'foot_4'}),
    ('feet_torso', {'foot_1', 'foot_2', 'foot_3', 'foot_4', 'torso'}),
  ):
    model = AntBody(contacts=contacts).model
    touching = {model.geom(i).name for i in range(model.ngeom) if model.geom_contype[i]}
    assert touching == names


def test_the_border_belongs_to_the_nearest_cell_unless_it_ends_the_episode():
  layout = Layout(jnp.array([5, 6, 9, 10]), jnp.array([3]), jnp.array(0))
  ending = dataclasses.replace(PAPER, off_grid='end')
  wall, out = 'walked into a wall', 'left the grid'
  reached = lambda env, body: {
    name for name, met in zip(ENDS, env._ends(layout, body), strict=True) if met
  }
  for place, cell, ends, ends_if_ending in (
    ((-3.0, 3.0), 0, set(), set()),
    ((-4.5, 3.0), 0, set(), {out}),
    ((9.0, 9.0), 3, {wall}, {wall, out}),
    ((3.9, -3.9), 15, set(), set()),
    ((1e30, -1e30), 15, set(), {out}),
  ):
    body = PAPER.body.rest()
    body = body.replace(qpos=body.qpos.at[:2].set(jnp.array(place)))
    assert int(PAPER.cell_at(body.place)) == cell
    assert reached(PAPER, body) == ends
    assert reached(ending, body) == ends_if_ending


def test_the_ending_is_what_ended_the_episode():
  layout = Layout(jnp.array([5, 6, 9, 10]), jnp.array([3]), jnp.array(0))
  start, _ = PAPER.start(jax.random.key(0), layout, jnp.array(0))
  late, length = jnp.array(500), int(PAPER.tasks.lengths[0])
  within = lambda index, value: start.body.replace(qpos=start.body.qpos.at[index].set(value))
  finished = start.progress.replace(stage=jnp.array(length))
  for name, fields in {
    'success': dict(progress=finished, time=late, body=within(2, 0.1)),
    'fell': dict(body=within(2, 0.1)),
    'jumped too high': dict(body=within(2, 1.1)),
    'walked into a wall': dict(body=within(slice(0, 2), 3.0)),
    'simulation blew up': dict(diverged=jnp.array(True)),
    'time is up': dict(time=late),
    'wrong colour': dict(),
  }.items():
    assert PAPER.endings[int(PAPER.ending(start.replace(**fields)))] == name


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match=r'env\.grid_size=2: 6 objects, walls and agent for 4 cells'):
    Ant(2, 4, 1, 500, FAMILIES['ant'])
  with pytest.raises(ValueError, match=r"env\.off_grid='wrap': must be one of"):
    dataclasses.replace(PAPER, off_grid='wrap')
  with pytest.raises(ValueError, match=r'env\.cell_size=0: must be positive'):
    dataclasses.replace(PAPER, cell_size=0)
  with pytest.raises(ValueError, match=r"env\.body\.contacts='all': must be one of"):
    AntBody(contacts='all')
  with pytest.raises(ValueError, match=r'env\.body\.frame_skip=0: must be positive'):
    AntBody(frame_skip=0)
