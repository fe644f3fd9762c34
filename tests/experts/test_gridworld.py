"""The expert walks uniformly random shortest paths, and its noise never ends an episode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.tasks import FAMILIES
from internal_rl.experts.gridworld import GridworldExpert
from tests.envs import oracle

ENV = Gridworld(7, 8, 4, 100, FAMILIES['gridworld'])
SMALL = Gridworld(4, 4, 1, 40, FAMILIES['ant'])
TASKS = {
  env: [tuple(map(int, t.split('-'))) for t in env.family.pretraining] for env in (ENV, SMALL)
}


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def rollout(expert, key, batch, horizon):
  return expert.rollout(key, batch, horizon)


@functools.cache
def demonstrations(env, epsilon, batch=300, horizon=None):
  expert = GridworldExpert(env, epsilon)
  return expert, jax.device_get(rollout(expert, jax.random.key(0), batch, horizon))


def boards(env, episodes):
  layout = episodes.layout
  rows = zip(layout.objects, layout.walls, layout.start, strict=True)
  return [oracle.board_of(env.grid_size, *row) for row in rows]


def replays(env, episodes):
  """Yields the oracle's replay of each episode: its number, then what each step saw and did."""
  for i, board in enumerate(boards(env, episodes)):
    episode = oracle.Episode(board, TASKS[env][episodes.tasks[i]], env.time_limit)
    guide = functools.cache(board.optimal)
    steps, reward = [], 0
    for action in episodes.actions[i].tolist():
      if episode.done:
        break
      colour = episode.task[episode.visited]
      optimal = guide(colour).get(episode.cell, set())
      steps.append((episode.cell, colour, optimal, action, episode.visited))
      reward = episode.step(action)
    yield i, episode, reward, steps


def test_noiseless_episodes_all_succeed_along_shortest_paths():
  env = ENV
  _, episodes = demonstrations(env, 0.0)
  for i, episode, reward, steps in replays(env, episodes):
    assert reward == 1
    assert all(action in optimal for _, _, optimal, action, _ in steps)
    cells = [episode.board.start] + [episode.board.where(colour) for colour in episode.task[:-1]]
    legs = zip(cells, episode.task, strict=True)
    shortest = sum(episode.board.distances(colour)[cell] for cell, colour in legs)
    assert len(steps) == shortest
    np.testing.assert_array_equal(episodes.mask[i], np.arange(env.time_limit) < shortest)


@pytest.mark.parametrize(('env', 'epsilon'), [(ENV, 0.0), (SMALL, 0.2)])
def test_positions_and_subgoal_labels_match_the_oracle(env, epsilon):
  _, episodes = demonstrations(env, epsilon)
  width = len(env.family.subgoals[0])
  for i, episode, _, steps in replays(env, episodes):
    cells = [cell for cell, *_ in steps] + [episode.cell]
    flat = [row * env.grid_size + column for row, column in cells]
    np.testing.assert_array_equal(episodes.positions[i, : len(flat)], flat)
    assert (episodes.positions[i, len(flat) :] == flat[-1]).all()
    labels = [colour // width for _, colour, *_ in steps]
    np.testing.assert_array_equal(episodes.subgoals[i, : len(labels)], labels)
    changes = np.diff([visited // width for *_, visited in steps], prepend=0)
    np.testing.assert_array_equal(episodes.segments[i, : len(labels)], np.cumsum(changes))


def test_noise_never_ends_an_episode_and_only_successes_are_kept():
  _, episodes = demonstrations(SMALL, 0.2)
  for i, episode, reward, steps in replays(SMALL, episodes):
    assert episode.done
    assert reward == 1 or episode.time == SMALL.time_limit
    assert episodes.mask[i].sum() == (len(steps) if reward else 0)
  assert episodes.mask[:, 0].mean() > 0.8


def test_actions_are_uniform_over_the_optimal_set():
  _, episodes = demonstrations(ENV, 0.0)
  steps = [step for *_, steps in replays(ENV, episodes) for step in steps]
  chosen = {}
  for _, _, optimal, action, _ in steps:
    counts = chosen.setdefault(tuple(sorted(optimal)), np.zeros(4))
    counts[action] += 1
  pairs = {optimal: counts for optimal, counts in chosen.items() if len(optimal) == 2}
  assert len(pairs) >= 4
  for optimal, counts in pairs.items():
    total = counts.sum()
    assert abs(counts[optimal[0]] - total / 2) < 4 * np.sqrt(total) / 2 + 1


@pytest.mark.parametrize('epsilon', [0.0, 0.2])
def test_policy_is_uniform_over_optimal_plus_noise_over_safe_moves(epsilon):
  expert, episodes = demonstrations(SMALL, epsilon)
  seen = [(i, step) for i, _, _, steps in replays(SMALL, episodes) for step in steps][:400]
  layouts = jax.tree.map(lambda x: x[[i for i, _ in seen]], episodes.layout)
  stages = np.array([step[-1] for _, step in seen])

  @jax.jit
  @jax.vmap
  def policy(layout, task, stage, position):
    state, _ = SMALL.start(jax.random.key(0), layout, task)
    state = state.replace(position=position, progress=state.progress.replace(stage=stage))
    return expert.policy(expert.plan(layout), state)

  positions = np.array([row * 4 + column for _, ((row, column), *_) in seen])
  tasks = episodes.tasks[[i for i, _ in seen]]
  got = policy(layouts, tasks, stages, positions)
  known = boards(SMALL, episodes)
  for (i, (cell, *_)), stage, row in zip(seen, stages.tolist(), got, strict=True):
    expected = reference_policy(known[i], TASKS[SMALL][episodes.tasks[i]], stage, cell, epsilon)
    np.testing.assert_allclose(row, expected, atol=1e-6)


def reference_policy(board, task, stage, cell, epsilon, optimal=None):
  """The expert of App. C.1.1, spelled out."""
  optimal = (optimal or board.optimal)(task[stage]).get(cell, set())
  safe = []
  for move in range(4):
    episode = oracle.Episode(board, task, 10**6)
    episode.cell, episode.visited = cell, stage
    episode.step(move)
    if not episode.done:
      safe.append(move)
  if not safe:
    epsilon = 0.0
  if not optimal and epsilon:
    epsilon = 1.0
  best = [(1 - epsilon) / len(optimal) if move in optimal else 0.0 for move in range(4)]
  return [p + (epsilon / len(safe) if move in safe else 0.0) for move, p in enumerate(best)]


def test_rendered_episodes_equal_stepping_the_environment():
  expert, episodes = demonstrations(ENV, 0.0)
  trajectories = jax.jit(expert.observations)(episodes)
  assert trajectories.observations.shape == (300, 101, 637)

  def step_through(layout, task, actions):
    state, first = ENV.start(jax.random.key(0), layout, task)

    def step(state, action):
      state, timestep = ENV.step(state, action)
      return state, timestep.observation

    return jnp.concatenate([first.observation[None], jax.lax.scan(step, state, actions)[1]])

  stepped = jax.jit(jax.vmap(step_through))(episodes.layout, episodes.tasks, episodes.actions)
  np.testing.assert_array_equal(trajectories.observations, stepped)
  for name in ('actions', 'mask', 'subgoals', 'segments', 'tasks'):
    np.testing.assert_array_equal(getattr(trajectories, name), getattr(episodes, name))


def test_episodes_that_the_horizon_cuts_are_masked_out_and_others_untouched():
  _, whole = demonstrations(ENV, 0.0)
  expert = GridworldExpert(ENV)
  cut = rollout(expert, jax.random.key(0), 300, 30)
  assert cut.mask.shape == (300, 30)
  lengths = np.asarray(cut.mask.sum(1))
  assert 0.2 < (lengths == 0).mean() < 0.8
  assert whole.mask.sum(1).max() > 30
  assert set(np.unique(lengths)) <= {0, *range(6, 31)}


def test_tasks_are_drawn_uniformly():
  _, episodes = demonstrations(SMALL, 0.2)
  counts = np.bincount(episodes.tasks, minlength=16)
  assert np.square(counts - 300 / 16).sum() / (300 / 16) < 45  # 15 dof: p about 1e-4


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match=r'expert\.epsilon=1\.0: must be in \[0, 1\)'):
    GridworldExpert(ENV, 1.0)
  with pytest.raises(ValueError, match=r'horizon=101: must be in \[1, time_limit=100\]'):
    GridworldExpert(ENV).rollout(jax.random.key(0), 2, 101)
