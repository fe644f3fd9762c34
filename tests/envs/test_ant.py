"""The ant's world: its physics is MuJoCo's, its rules are the pinpad's, and no NaN leaves it."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from internal_rl.envs.ant import ENDS, PROPRIOCEPTION, Ant
from internal_rl.envs.ant_body import AntBody, Body, rotation
from internal_rl.envs.pinpad import Layout
from internal_rl.envs.tasks import FAMILIES
from tests.training import toy

PAPER = Ant(4, 4, 1, 500, FAMILIES['ant'])
# Its tasks, those of Table A2, in episodes so short that every kind of end comes up.
ENV = dataclasses.replace(PAPER, time_limit=60)
TASKS = [[int(colour) for colour in name.split('-')] for name in ENV.family.pretraining]
BATCH, STEPS = 128, 90


@pytest.fixture(scope='module')
def reset():
  return jax.jit(jax.vmap(ENV.reset))


@pytest.fixture(scope='module')
def step():
  """One compiled step, which all tests of this file share."""
  return jax.jit(jax.vmap(ENV.step))


def begin(reset, seed):
  return reset(jax.random.split(jax.random.key(seed), BATCH), jnp.arange(BATCH) % len(TASKS))


def carry(rng, state):
  """Carries half of the ants, upright, roughly towards their next colour."""
  progress, body = state.progress, jax.tree.map(np.array, state.body)
  colours = np.asarray(ENV.tasks.colours)[progress.task, np.clip(progress.stage, 0, 2)]
  row, column = np.divmod(np.asarray(state.layout.objects)[np.arange(BATCH), colours], 4)
  goal = np.stack([2.0 * column - 3, 3 - 2.0 * row], 1)
  way = goal - body.qpos[:, :2] + rng.normal(size=(BATCH, 2))
  carried = np.arange(BATCH) < BATCH // 2
  body.qpos[carried, 2:7] = (0.6, 1, 0, 0, 0)
  body.qvel[carried] = 0
  body.qvel[carried, :2] = (6 * way / np.linalg.norm(way, axis=1, keepdims=True))[carried]
  return state.replace(body=jax.tree.map(jnp.asarray, body))


def recorded(reset, step):
  """Returns, for every step of every row, whether it began an episode, the states, what it gave.

  An episode that has ended is stepped once more, and then another one begun in its row.
  """
  rng, rows = np.random.default_rng(0), []
  state, _ = begin(reset, 0)
  begun = np.ones(BATCH, bool)
  for torques in rng.uniform(-1, 1, (STEPS, BATCH, 8)).astype(np.float32):
    before = carry(rng, state)
    after, timestep = step(before, torques)
    rows.append((begun, before, after, timestep))
    begun = np.asarray(before.progress.done)
    choose = lambda new, old, rows=begun: np.where(
      rows.reshape(-1, *[1] * (new.ndim - 1)), new, old
    )
    state = jax.tree.map(choose, begin(reset, len(rows))[0], after)
  return jax.tree.map(lambda *x: np.stack(x), *rows)


@pytest.fixture(scope='module')
def record(reset, step):
  return recorded(reset, step)


def cell_of(place):
  """Row and column of x and y: rows go south, columns east, both from the north-west corner."""
  column, row = (int(np.floor(x)) for x in ((place[0] + 4) / 2, (4 - place[1]) / 2))
  return min(max(row, 0), 3) * 4 + min(max(column, 0), 3)


def replay(record, leaving_ends):
  """Compares a record with the rules; returns how often each end came up, and steps before ends."""
  begun, before, after, timesteps = record
  ends, live = collections.Counter(), 0
  for i in range(BATCH):
    task = TASKS[i % len(TASKS)]
    for t in range(STEPS):
      if begun[t, i]:
        colours = {int(cell): colour for colour, cell in enumerate(before.layout.objects[t, i])}
        walls, stage, time, done = set(before.layout.walls[t, i]), 0, 0, False
      old, new = before.body.qpos[t, i], after.body.qpos[t, i]
      reward = 0
      if not done:
        live, time = live + 1, time + 1
        onto = cell_of(new)
        visits = onto != cell_of(old) and onto in colours
        right = visits and colours[onto] == task[stage]
        stage += right
        reward = int(stage == len(task))
        met = {
          'complete': bool(reward),
          'wrong': visits and not right,
          'wall': onto in walls,
          'height': not 0.2 <= new[2] <= 1.0,
          'time': time >= 60,
          'grid': leaving_ends and np.abs(new[:2]).max() > 4,
        }
        ends.update(name for name in met if met[name])
        done = any(met.values())
      got = after.progress.stage[t, i], after.time[t, i], timesteps.reward[t, i]
      assert got == (stage, time, reward)
      assert timesteps.done[t, i] == done == after.progress.done[t, i]
  return ends, live


def test_ends_visits_and_rewards_equal_a_numpy_replay_of_the_recorded_steps(record):
  ends, live = replay(record, leaving_ends=False)
  assert live >= 10_000
  assert all(ends[name] >= 3 for name in ('complete', 'wrong', 'wall', 'height', 'time')), ends


class Drifting(AntBody):
  """Rules alone need no physics: goes on as it went, and about and up and down with its torques."""

  def advance(self, body, torques):
    way = self.seconds * body.qvel[:2] + 0.5 * torques[:2]
    qpos = body.qpos.at[:2].add(way).at[2].set(0.6 + 0.403 * torques[2])
    return body.replace(qpos=qpos)


def test_the_replay_holds_too_where_leaving_the_grid_ends_an_episode(reset):
  env = dataclasses.replace(ENV, off_grid='end', body=Drifting())
  ends, live = replay(recorded(reset, jax.jit(jax.vmap(env.step))), leaving_ends=True)
  assert live >= 10_000
  assert len(ends) == 6 and min(ends.values()) >= 3, ends


@pytest.mark.parametrize('kind', ['random', 'constant'])
def test_everything_stays_finite_under_torques_that_no_end_stops(record, reset, step, kind):
  _, _, after, timesteps = record
  assert np.isfinite(timesteps.observation).all()
  assert not after.diverged.any()
  rng, live = np.random.default_rng(1), 0
  state, _ = begin(reset, 1)
  corners = (2.0 * (np.arange(BATCH)[:, None] >> np.arange(8) & 1) - 1).astype(np.float32)
  for t in range(STEPS):
    # Goes on after every end, so that the ants come into all sorts of trouble.
    state = state.replace(progress=state.progress.replace(done=jnp.zeros(BATCH, bool)))
    # Half of the corners, then, opposite to them, the other half.
    constant = corners if t < STEPS / 2 else -corners
    random = rng.uniform(-1, 1, (BATCH, 8)).astype(np.float32)
    state, timestep = step(state, constant if kind == 'constant' else random)
    assert all(np.isfinite(x).all() for x in (timestep.observation, *jax.tree.leaves(state.body)))
    live += BATCH - int(state.diverged.sum())
  assert live == BATCH * STEPS >= 10_000


def test_after_the_end_nothing_changes(record, step):
  _, _, after, _ = record
  ended = np.nonzero(after.progress.done)
  last = jax.tree.map(lambda x: jnp.asarray(x[ended][:BATCH]), after)
  state, timestep = step(last, jnp.ones((BATCH, 8)))
  jax.tree.map(np.testing.assert_array_equal, state, last)
  assert timestep.done.all()
  assert not timestep.reward.any()


def test_a_simulation_that_is_not_finite_ends_its_own_episode_only(reset, step):
  state, _ = begin(reset, 2)
  still = np.zeros((BATCH, 8), np.float32)
  untouched = step(state, still)
  torques = still.copy()
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
  neighbours = lambda stepped: jax.tree.map(lambda x: x[5:], stepped)
  assert toy.same(neighbours((after, timestep)), neighbours(untouched))
  again, timestep = step(after, still)
  assert toy.same(neighbours((again, timestep)), neighbours(step(untouched[0], still)))
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


@pytest.mark.parametrize(
  'quaternion',
  [(1, 0, 0, 0), (0.6, 0, 0, 0.8), (0.5, -0.1, 0.7, 0.2), (0.1, 0.9, -0.3, 0.2)],
  ids=['as the world', 'turned', 'tilted', 'on its back'],
)
def test_from_its_heading_an_ant_observes_itself_and_ways_along_its_own_axes(quaternion):
  env, matrix = dataclasses.replace(PAPER, frame='heading'), np.zeros(9)
  quaternion = np.array(quaternion) / np.linalg.norm(quaternion)
  mujoco.mju_quat2Mat(matrix, quaternion)
  to_world = matrix.reshape(3, 3)
  joints, velocities = np.linspace(-1, 1, 8), np.arange(14.0) - 7
  qpos = np.concatenate([[1.5, -2.5, 0.5], quaternion, joints])
  body = Body(jnp.asarray(qpos, jnp.float32), jnp.asarray(velocities, jnp.float32), jnp.zeros(14))
  layout = Layout(jnp.array([0, 3, 12, 15]), jnp.array([6]), jnp.array(14))
  nose = to_world @ [1, 0, 0]
  yaw = np.arctan2(nose[1], nose[0])
  ways = np.array([[-4.5, 5.5], [1.5, 5.5], [-4.5, -0.5], [1.5, -0.5], [-0.5, 3.5]]) / 4
  ahead = [[np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x] for x, y in ways]
  up, own = to_world.T @ [0, 0, 1], to_world.T @ velocities[:3]
  usual = np.concatenate([[0.5], up, [np.cos(yaw), np.sin(yaw)], joints, own, velocities[3:]])
  symlog = np.sign(usual) * np.log(1 + np.abs(usual))
  expected = [symlog, [1.5 / 4, -2.5 / 4], ways.ravel(), [0.5, 0.5], np.ravel(ahead)]
  assert env.observation_size == 52
  np.testing.assert_allclose(env.observe(layout, body), np.concatenate(expected), atol=1e-6)


def test_an_ant_that_stands_on_end_has_no_heading_and_finite_observations():
  env, body = dataclasses.replace(PAPER, frame='heading'), PAPER.body.rest()
  half = np.sqrt(np.float32(0.5))
  body = body.replace(qpos=body.qpos.at[3:7].set(jnp.array([half, 0, -half, 0])))
  layout = Layout(jnp.array([0, 3, 12, 15]), jnp.array([6]), jnp.array(14))
  observation = np.asarray(env.observe(layout, body))
  assert np.isfinite(observation).all()
  np.testing.assert_allclose(np.abs(observation[4:6]), 0, atol=0.2)
  assert np.abs(observation[-10:]).max() < 0.5


def test_rotation_is_mujocos():
  quaternion = np.array([0.5, -0.1, 0.7, 0.2])
  quaternion /= np.linalg.norm(quaternion)
  matrix = np.zeros(9)
  mujoco.mju_quat2Mat(matrix, quaternion)
  np.testing.assert_allclose(rotation(jnp.asarray(quaternion)).ravel(), matrix, atol=1e-6)


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


SOLVERS = {
  'converged': dict(iterations=20, ls_iterations=50),
  'one iteration': dict(ls_iterations=50),
  'shipped': {},
}
# Substeps that the two paths have in common, of a hundred, with the solver as it is shipped.
COMMON = {'standing': 80, 'tilted': 100, 'on its back': 100, 'sunk': 0}


@pytest.fixture(scope='module', params=SOLVERS)
def solver(request):
  """A substep, how its contacts are solved, and the model."""
  body = AntBody(frame_skip=1, **SOLVERS[request.param])
  if request.param == 'converged':
    body.model.opt.tolerance = 1e-14
  return request.param, body.model, jax.jit(body.advance)


@pytest.mark.parametrize('stance', COMMON)
def test_mjx_equals_mujoco_in_float64(solver, stance):
  """Over a hundred substeps, and in each of them from where MuJoCo is.

  To rounding, where contacts are solved, and also where Newton is stopped after one iteration. The
  shipped solver stops its line search, too, after four steps. One substep in a hundred of the ants
  that stand or sink needs more, and there the two end elsewhere: a path is MuJoCo's up to the first
  of these, which comes late for one that stands and at once for one that is deep in the floor.
  """
  name, model, advance = solver
  heights = {'standing': 0.55, 'tilted': 0.45, 'on its back': 0.3, 'sunk': 0.26}
  quaternions = {'tilted': (0.9, 0.1, -0.2, 0.3), 'on its back': (0, 1, 0, 0)}
  data = mujoco.MjData(model)
  data.qpos[:] = model.key('stand').qpos
  data.qpos[2] = heights[stance]
  data.qpos[3:7] = quaternions.get(stance, (1, 0, 0, 0))
  data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
  paths, substeps, touched = [], [], set()
  theirs = lambda: Body(*(jnp.array(x) for x in (data.qpos, data.qvel, data.qacc_warmstart)))
  gap = lambda body: max(np.abs(body.qpos - data.qpos).max(), np.abs(body.qvel - data.qvel).max())
  with jax.enable_x64(True):
    ours = theirs()
    for control in np.random.default_rng(0).uniform(-1, 1, (100, 8)):
      ours, restarted = (advance(body, jnp.asarray(control)) for body in (ours, theirs()))
      data.ctrl[:] = control
      mujoco.mj_step(model, data)
      touched |= {model.geom(int(geom)).name for pair in data.contact.geom for geom in pair}
      assert {ours.qpos.dtype, ours.qvel.dtype} == {np.dtype(np.float64)}
      paths.append(gap(ours))
      substeps.append(gap(restarted))
  shipped = name == 'shipped'
  assert max(paths[: COMMON[stance] if shipped else 100], default=0) < 1e-6
  assert np.sum(np.array(substeps) > 1e-6) <= (2 if shipped else 0)
  assert max(substeps) < 0.1
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
  with pytest.raises(ValueError, match=r"env\.frame='north': must be one of \('world', 'heading'"):
    dataclasses.replace(PAPER, frame='north')
  with pytest.raises(ValueError, match=r'env\.cell_size=0: must be positive'):
    dataclasses.replace(PAPER, cell_size=0)
  with pytest.raises(ValueError, match=r"env\.body\.contacts='all': must be one of"):
    AntBody(contacts='all')
  with pytest.raises(ValueError, match=r'env\.body\.frame_skip=0: must be positive'):
    AntBody(frame_skip=0)
