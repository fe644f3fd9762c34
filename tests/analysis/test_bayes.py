"""Floors equal a literal enumeration over the tasks, and the numbers known for these worlds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.analysis import bayes
from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.tasks import FAMILIES, TaskFamily
from internal_rl.experts.gridworld import GridworldExpert
from tests.envs import oracle
from tests.experts.test_gridworld import reference_policy, rollout

PAPER = Gridworld(7, 8, 4, 72, FAMILIES['gridworld'])
WIDER = Gridworld(5, 4, 2, 40, FAMILIES['ant'])
ANT_GRID = Gridworld(4, 4, 1, 40, FAMILIES['ant'])
UNEVEN = Gridworld(
  4,
  4,
  1,
  40,
  TaskFamily(((0, 1), (2,), (3,)), ('0-1-2', '2-3', '3-0-1-3', '2-3-2', '0-1'), '2-0-1'),
)


@functools.cache
def rolled(env, epsilon, batch, seed=0):
  expert = GridworldExpert(env, epsilon)
  return expert, jax.device_get(rollout(expert, jax.random.key(seed), batch, None))


def enumerate_tasks(env, epsilon, episodes, i):
  """Yields predictive, posterior, subgoal belief and true policy at each step of episode `i`."""
  layout, size = jax.tree.map(lambda x: x[i], episodes.layout), env.grid_size
  board = oracle.board_of(size, layout.objects, layout.walls, layout.start)
  optimal = functools.cache(board.optimal)
  stages_of = lambda goals: [goal for goal in goals for _ in env.family.subgoals[goal]]
  parsed = [
    (tuple(map(int, name.split('-'))), stages_of(env.family.parse(name)))
    for name in env.family.pretraining
  ]
  weights = [1.0 / len(parsed)] * len(parsed)
  runs = [oracle.Episode(board, colours, 10**6) for colours, _ in parsed]
  for t in range(int(episodes.mask[i].sum())):
    policies, goals = [], []
    for run, (_, owners) in zip(runs, parsed, strict=True):
      dead = run.done
      policy = (
        [0.0] * 4
        if dead
        else reference_policy(board, run.task, run.visited, run.cell, epsilon, optimal)
      )
      policies.append(policy)
      goals.append(0 if dead else owners[run.visited])
    posterior = np.array(weights) / sum(weights)
    belief = np.zeros(len(env.family.subgoals))
    np.add.at(belief, goals, posterior)
    yield posterior @ np.array(policies), posterior, belief, policies[episodes.tasks[i]]

    cell = divmod(int(episodes.positions[i, t]), size)
    onto = divmod(int(episodes.positions[i, t + 1]), size)
    leading = [move for move in range(4) if board.go(cell, move) == onto]
    for n, run in enumerate(runs):
      weights[n] *= sum(policies[n][move] for move in leading)
      run.step(leading[0])
      if run.done:
        weights[n] = 0.0


@pytest.mark.parametrize(('env', 'epsilon'), [(ANT_GRID, 0.0), (ANT_GRID, 0.2), (UNEVEN, 0.2)])
def test_beliefs_equal_a_literal_enumeration_over_the_tasks(env, epsilon):
  expert, episodes = rolled(env, epsilon, 600)
  got = jax.device_get(bayes.beliefs(expert, episodes))
  compared = 0
  for i in range(40):
    for t, step in enumerate(enumerate_tasks(env, epsilon, episodes, i)):
      predictive, posterior, belief, policy = step
      np.testing.assert_allclose(got.predictive[i, t], predictive, atol=1e-5)
      np.testing.assert_allclose(got.tasks[i, t], posterior, atol=1e-5)
      np.testing.assert_allclose(got.subgoals[i, t], belief, atol=1e-5)
      action = episodes.actions[i, t]
      np.testing.assert_allclose(got.bayes_nll[i, t], -np.log(predictive[action]), atol=1e-4)
      np.testing.assert_allclose(got.goal_nll[i, t], -np.log(policy[action]), atol=1e-4)
      top = np.sort(belief)
      if top[-1] - top[-2] > 1e-4:
        assert got.correct[i, t] == (belief.argmax() == episodes.subgoals[i, t])
      compared += 1
  assert compared > 120


@pytest.mark.parametrize('env', [PAPER, ANT_GRID])
def test_an_episode_costs_the_bayes_predictor_the_tasks_entropy(env):
  expert, episodes = rolled(env, 0.0, 600)
  belief = jax.device_get(bayes.beliefs(expert, episodes))
  gap = np.where(belief.mask, belief.bayes_nll - belief.goal_nll, 0).sum(1)
  np.testing.assert_allclose(gap[belief.mask[:, 0]], math.log(16), atol=1e-4)


@pytest.mark.parametrize(
  ('env', 'rejected', 'length', 'longest', 'bayes_nll', 'goal_nll', 'accuracy'),
  [
    (PAPER, 0.21, 31.5, 71, 0.258, 0.170, 0.858),
    (ANT_GRID, 0.28, 9.0, 22, 0.444, 0.137, 0.665),
    (WIDER, 0.09, 10.9, 27, 0.425, 0.171, 0.694),
  ],
)
def test_floors_are_the_known_ones(env, rejected, length, longest, bayes_nll, goal_nll, accuracy):
  expert, episodes = rolled(env, 0.0, 600)
  got = bayes.floors(expert, episodes)
  # The known values come from 1500 episodes, so that their own errors are about half of these.
  for measured, error, known, rounding in (
    (got.rejected_fraction, got.rejected_fraction_error, rejected, 0.005),
    (got.length_mean, got.length_mean_error, length, 0.05),
    (got.bayes_nll, got.bayes_nll_error, bayes_nll, 5e-4),
    (got.goal_nll, got.goal_nll_error, goal_nll, 5e-4),
    (got.subgoal_accuracy, got.subgoal_accuracy_error, accuracy, 5e-4),
  ):
    assert abs(measured - known) < 3.5 * 1.16 * error + rounding
  assert 0.6 * longest < got.length_max < 1.3 * longest


def test_an_epsilon_expert_is_harder_to_predict_and_narrow_integers_do_not_matter():
  expert, episodes = rolled(ANT_GRID, 0.2, 600)
  noisy = bayes.floors(expert, episodes)
  assert noisy.goal_nll > 0.4
  narrow = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(np.uint8), episodes)
  assert bayes.floors(expert, narrow) == noisy


def test_means_by_stage_are_those_of_a_loop_over_steps():
  expert, episodes = rolled(PAPER, 0.0, 600)
  episodes = jax.tree.map(lambda x: x[:50], episodes)
  belief = jax.device_get(bayes.beliefs(expert, episodes))
  rows: list[list[float]] = [[] for _ in range(6)]
  for i in range(50):
    layout = jax.tree.map(lambda x: x[i], episodes.layout)  # noqa: B023
    colours = {int(cell): colour for colour, cell in enumerate(layout.objects)}
    task = PAPER.family.pretraining[episodes.tasks[i]].split('-')
    visited = 0
    for t in range(int(episodes.mask[i].sum())):
      here, before = int(episodes.positions[i, t]), int(episodes.positions[i, max(t - 1, 0)])
      if here != before and here in colours:
        assert colours[here] == int(task[visited])
        visited += 1
      rows[visited].append(float(belief.bayes_nll[i, t]))
  got = bayes.mean_by_group(*map(jnp.asarray, (belief.bayes_nll, belief.stage, belief.mask)), 6)
  np.testing.assert_allclose(got, [np.mean(row) for row in rows], rtol=1e-5)
  assert (np.diff(got)[::2] < 0).all()  # A pair's second colour follows from its first.


def test_standard_errors_are_those_of_repeated_measurement():
  runs = [bayes.floors(*rolled(ANT_GRID, 0.0, 600, seed)) for seed in range(24)]
  for name in ('bayes_nll', 'goal_nll', 'subgoal_accuracy', 'rejected_fraction', 'length_mean'):
    spread = np.std([getattr(run, name) for run in runs], ddof=1)
    claimed = np.mean([getattr(run, f'{name}_error') for run in runs])
    assert 0.6 < spread / claimed < 1.6


def test_no_success_is_reported():
  expert, episodes = rolled(ANT_GRID, 0.0, 600)
  episodes = episodes.replace(mask=np.zeros_like(episodes.mask))
  with pytest.raises(ValueError, match=r'episodes\.mask: none of 600 episodes succeeded'):
    bayes.floors(expert, episodes)
