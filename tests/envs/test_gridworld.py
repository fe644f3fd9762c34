"""The gridworld does what an oracle written from the paper's words does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.pinpad import Layout
from internal_rl.envs.tasks import FAMILIES, TaskFamily
from tests.envs import oracle

PAPER = Gridworld(7, 8, 4, 100, FAMILIES['gridworld'])


def played(rng, env, tasks, board, steps):
  """Plays one oracle episode: moves that mix shortest paths with random ones, and what came."""
  index = int(rng.integers(len(tasks)))
  episode = oracle.Episode(board, tasks[index], env.time_limit)
  guide = functools.cache(board.optimal)
  randomness = rng.choice([0.02, 0.2, 1.0])
  moves, rows, observations = [], [], [episode.observe()]
  for draw, move in zip(rng.random(steps), rng.integers(0, 4, steps).tolist(), strict=True):
    if draw > randomness and not episode.done:
      move = min(guide(tasks[index][episode.visited]).get(episode.cell) or {move})
    reward = episode.step(move)
    row, column = episode.cell
    moves.append(move)
    rows.append((reward, episode.done, episode.visited, row * board.size + column, episode.time))
    observations.append(episode.observe())
  return index, moves, rows, observations


def to_layout(board):
  number = lambda cell: cell[0] * board.size + cell[1]
  return (
    [number(board.where(colour)) for colour in range(len(board.colours))],
    [number(cell) for cell in board.walls],
    number(board.start),
  )


def replay(env, layouts, tasks, moves):
  """Replays the oracle's moves in the environment under test."""

  def one(layout, task, moves):
    state, first = env.start(jax.random.key(0), layout, task)

    def step(state, move):
      state, timestep = env.step(state, move)
      row = (timestep.reward, timestep.done, state.progress.stage, state.position, state.time)
      return state, (jnp.stack([jnp.asarray(x, jnp.int32) for x in row]), timestep.observation)

    _, (rows, observations) = jax.lax.scan(step, state, moves)
    return rows, jnp.concatenate([first.observation[None], observations])

  return jax.jit(jax.vmap(one))(layouts, tasks, moves)


def assert_agrees(env, tasks, boards, steps, rng):
  """Asserts 0 mismatches; returns the number of transitions taken before the end."""
  games = [played(rng, env, tasks, board, steps) for board in boards]
  objects, walls, starts = zip(*(to_layout(board) for board in boards), strict=True)
  layouts = Layout(
    np.array(objects, np.int32),
    np.array(walls, np.int32).reshape(len(boards), -1),
    np.array(starts, np.int32),
  )
  index, moves, rows, observations = zip(*games, strict=True)
  got_rows, got_observations = replay(env, layouts, np.array(index), np.array(moves))
  rows = np.array(rows, np.int32)
  np.testing.assert_array_equal(got_rows, rows)
  np.testing.assert_array_equal(got_observations, np.array(observations))
  return int(rows[:, -1, -1].sum()), int(rows[..., 0].sum())


def colours_of(names):
  return [tuple(int(colour) for colour in name.split('-')) for name in names]


def test_200_000_transitions_of_the_papers_world_match_the_oracle():
  rng = np.random.default_rng(0)
  tasks = colours_of(PAPER.family.pretraining)
  live = completed = 0
  while live < 200_000:  # Transitions after the end of an episode, which is absorbing, not counted.
    boards = [oracle.random_board(rng, 7, 8, 4) for _ in range(1000)]
    taken, rewards = assert_agrees(PAPER, tasks, boards, 50, rng)
    live, completed = live + taken, completed + rewards
  assert completed > 1000


@st.composite
def worlds(draw):
  size = draw(st.integers(2, 6))
  num_objects = draw(st.integers(1, min(5, size**2 - 1)))
  num_walls = draw(st.integers(0, min(5, size**2 - 1 - num_objects)))
  colour = st.integers(0, num_objects - 1)
  task = st.lists(colour, min_size=1, max_size=4).map(tuple)
  tasks = draw(st.lists(task, min_size=1, max_size=4))
  names = tuple('-'.join(map(str, task)) for task in tasks)
  family = TaskFamily(
    subgoals=tuple((k,) for k in range(num_objects)), pretraining=names, post_training=names[0]
  )
  return Gridworld(size, num_objects, num_walls, draw(st.integers(1, 30)), family)


@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(worlds(), st.integers(0, 2**31))
def test_any_world_matches_the_oracle(env, seed):
  rng = np.random.default_rng(seed)
  tasks = colours_of(env.family.pretraining)
  boards = [
    oracle.random_board(rng, env.grid_size, env.num_objects, env.num_walls) for _ in range(40)
  ]
  assert_agrees(env, tasks, boards, 35, rng)


def corridor(task, time_limit=100):
  """A row of five cells, the rest walled off: 0 at the left end, 1 at the right, start between."""
  family = TaskFamily(subgoals=((0,), (1,)), pretraining=(task,), post_training=task)
  env = Gridworld(5, 2, 5, time_limit, family)
  layout = Layout(jnp.array([0, 4]), jnp.arange(5, 10), jnp.array(2))
  return env, layout


def play(env, layout, moves):
  state, timestep = env.start(jax.random.key(0), layout, jnp.array(0))
  rewards = []
  for move in moves:
    state, timestep = env.step(state, jnp.array(move))
    rewards.append(float(timestep.reward))
  return state, timestep, rewards


def test_bumping_on_a_coloured_cell_is_not_a_visit():
  env, layout = corridor('0-1')
  state, timestep, rewards = play(env, layout, [2, 2, 2, 0, 1, 3, 3, 3, 3])
  assert rewards == [0] * 8 + [1]
  assert bool(timestep.done)
  assert int(state.progress.stage) == 2


def test_a_colour_is_visited_again_only_after_leaving_it():
  env, layout = corridor('0-0-1')
  state, timestep, _ = play(env, layout, [2, 2, 2])
  assert (int(state.progress.stage), bool(timestep.done)) == (1, False)
  state, timestep, _ = play(env, layout, [2, 2, 3, 2])
  assert (int(state.progress.stage), bool(timestep.done)) == (2, False)


def test_a_wrong_colour_ends_the_episode_without_reward():
  env, layout = corridor('0-1')
  _, timestep, rewards = play(env, layout, [3, 3])
  assert bool(timestep.done)
  assert rewards == [0, 0]


def test_completing_on_the_last_step_is_rewarded_and_one_step_later_is_too_late():
  env, layout = corridor('0-1', time_limit=6)
  assert play(env, layout, [2, 2, 3, 3, 3, 3])[2] == [0, 0, 0, 0, 0, 1]
  env, layout = corridor('0-1', time_limit=5)
  _, timestep, rewards = play(env, layout, [2, 2, 3, 3, 3, 3])
  assert bool(timestep.done)
  assert rewards == [0] * 6


def test_after_the_end_nothing_changes():
  env, layout = corridor('0-1')
  ended, _, _ = play(env, layout, [3, 3])
  for move in range(4):
    state, timestep = env.step(ended, jnp.array(move))
    jax.tree.map(np.testing.assert_array_equal, state, ended)
    assert bool(timestep.done)
    assert float(timestep.reward) == 0


def test_the_papers_observation_has_637_numbers():
  cells = jnp.arange(13)
  _, timestep = PAPER.start(
    jax.random.key(0), Layout(cells[:8], cells[8:12], cells[12]), jnp.array(0)
  )
  assert PAPER.observation_size == 637
  assert timestep.observation.shape == (637,)
  assert int(timestep.observation.sum()) == 13


def test_observations_do_not_depend_on_the_task():
  moves = jax.random.randint(jax.random.key(1), (100,), 0, 4)

  def observations(task):
    state, first = PAPER.reset(jax.random.key(2), task)

    def step(state, move):
      state, timestep = PAPER.step(state, move)
      # Rendered where the agent would be without the end, which alone may tell tasks apart.
      state = state.replace(progress=state.progress.replace(done=jnp.array(False)))
      return state, timestep.observation

    return first.observation, jax.lax.scan(step, state, moves)[1]

  first, rest = jax.jit(jax.vmap(observations))(jnp.arange(16))
  for observed in (np.asarray(first), np.asarray(rest)):
    assert (observed == observed[:1]).all()
  assert len(np.unique(rest[0], axis=0)) > 10


def test_layouts_place_everything_on_distinct_cells_uniformly():
  env = Gridworld(4, 4, 1, 20, FAMILIES['ant'], resample=False)
  layout, _ = jax.jit(jax.vmap(env.sample_layout))(jax.random.split(jax.random.key(0), 16_000))
  cells = np.concatenate([layout.objects, layout.walls, layout.start[:, None]], 1)
  assert (np.diff(np.sort(cells, 1), axis=1) > 0).all()
  for entity in cells.T:
    counts = np.bincount(entity, minlength=16)
    assert np.square((counts - 1000) / 1000**0.5).sum() < 45  # chi-squared, 15 dof: p about 1e-4
  pairs = np.bincount(cells[:, 0] * 16 + cells[:, 5], minlength=256).reshape(16, 16)
  expected = 16_000 / 240
  off_diagonal = pairs[~np.eye(16, dtype=bool)]
  assert np.square(off_diagonal - expected).sum() / expected < 330  # 239 dof: p about 1e-4


@pytest.mark.parametrize('env', [PAPER, Gridworld(4, 4, 1, 20, FAMILIES['ant'])])
def test_reset_draws_until_every_task_is_solvable_and_counts_the_rejected(env):
  keys = jax.random.split(jax.random.key(3), 500)
  tasks = colours_of(env.family.pretraining)
  raw = Gridworld(env.grid_size, env.num_objects, env.num_walls, 20, env.family, resample=False)

  def solvable(layout):
    board = oracle.board_of(env.grid_size, layout.objects, layout.walls, layout.start)
    return board.solves(tasks)

  state, _ = jax.device_get(jax.jit(jax.vmap(env.reset, (0, None)))(keys, jnp.array(0)))
  assert all(solvable(jax.tree.map(lambda x, i=i: x[i], state.layout)) for i in range(500))
  single, _ = jax.device_get(jax.jit(jax.vmap(raw.reset, (0, None)))(keys, jnp.array(0)))
  verdicts = [solvable(jax.tree.map(lambda x, i=i: x[i], single.layout)) for i in range(500)]
  np.testing.assert_array_equal(single.rejected, ~np.array(verdicts))
  fraction = state.rejected.sum() / (state.rejected.sum() + 500)
  assert abs(fraction - single.rejected.mean()) < 0.08  # 3 standard errors of the difference


def test_the_ending_is_what_ended_the_episode():
  state, _ = PAPER.reset(jax.random.key(0), jnp.array(0))
  finished = state.progress.replace(stage=jnp.array(int(PAPER.tasks.lengths[0])))
  for name, fields in {
    'success': dict(progress=finished, time=jnp.array(100)),
    'time is up': dict(time=jnp.array(100)),
    'wrong colour': dict(),
  }.items():
    assert PAPER.endings[int(PAPER.ending(state.replace(**fields)))] == name


def test_impossible_worlds_are_refused():
  with pytest.raises(ValueError, match=r'env\.grid_size=3: 13 objects, walls and agent'):
    Gridworld(3, 8, 4, 100, FAMILIES['gridworld'])
  with pytest.raises(ValueError, match=r'env\.num_objects=3: the tasks name 8 colours'):
    Gridworld(7, 3, 4, 100, FAMILIES['gridworld'])
  with pytest.raises(ValueError, match=r'env\.time_limit=0'):
    Gridworld(7, 8, 4, 0, FAMILIES['gridworld'])
