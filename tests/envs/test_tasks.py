"""The task tables are the paper's."""

import dataclasses
import itertools

import numpy as np
import pytest

from internal_rl.envs.tasks import FAMILIES

TABLE_A1 = """
  | 0-1-4-5-0-1 | 0-1-4-5-2-3 | 0-1-6-7-2-3 | 2-3-0-1-4-5 |
  | 2-3-6-7-2-3 | 2-3-6-7-4-5 | 4-5-0-1-4-5 | 4-5-0-1-6-7 |
  | 4-5-2-3-6-7 | 6-7-2-3-0-1 | 6-7-2-3-6-7 | 6-7-4-5-0-1 |
  | 0-1-6-7-4-5 | 2-3-0-1-6-7 | 4-5-2-3-0-1 | 6-7-4-5-2-3 |
"""
TABLE_A2 = """
  0-3-2, 1-0-3, 2-1-0, 3-2-1, 0-2-0, 0-2-1, 0-3-1, 1-0-2, 1-3-1, 1-3-2, 2-0-2, 2-0-3, 2-1-3,
  3-1-0, 3-1-3, 3-2-0.
"""
names = pytest.mark.parametrize('name', sorted(FAMILIES))


def subgoal_transitions(family, task):
  """Reads consecutive subgoals off a task by cutting it into equal runs of colours."""
  colours = [int(colour) for colour in task.split('-')]
  width = len(family.subgoals[0])
  runs = [tuple(colours[i : i + width]) for i in range(0, len(colours), width)]
  goals = [family.subgoals.index(run) for run in runs]
  return set(itertools.pairwise(goals))


@pytest.mark.parametrize(('name', 'table'), [('gridworld', TABLE_A1), ('ant', TABLE_A2)])
def test_pretraining_tasks_are_the_printed_table_in_its_order(name, table):
  printed = table.replace('|', ' ').replace(',', ' ').replace('.', ' ').split()
  assert len(printed) == 16
  assert list(FAMILIES[name].pretraining) == printed


@names
def test_pretraining_tasks_differ(name):
  tasks = FAMILIES[name].pretraining
  assert len(set(tasks)) == len(tasks)


@names
def test_no_pretraining_task_follows_a_subgoal_by_the_next(name):
  family = FAMILIES[name]
  n = len(family.subgoals)
  seen = set.union(*(subgoal_transitions(family, task) for task in family.pretraining))
  assert not seen & {(k, (k + 1) % n) for k in range(n)}


@names
def test_post_training_task_follows_each_subgoal_by_the_next(name):
  family = FAMILIES[name]
  n = len(family.subgoals)
  transitions = subgoal_transitions(family, family.post_training)
  assert transitions <= {(k, (k + 1) % n) for k in range(n)}
  assert len(transitions) >= n - 1


def test_post_training_tasks_are_the_papers():
  assert FAMILIES['gridworld'].post_training == '0-1-2-3-4-5-6-7-0-1-2-3'
  assert FAMILIES['ant'].post_training == '0-1-2-3'


def test_three_pairs_repeat_a_pair_or_go_back_one():
  family = FAMILIES['three_pairs']
  assert len(family.pretraining) == 12
  seen = set.union(*(subgoal_transitions(family, task) for task in family.pretraining))
  assert seen == {(0, 0), (0, 2), (1, 1), (1, 0), (2, 2), (2, 1)}
  assert {'0-1-0-1-0-1', '2-3-0-1-4-5', '4-5-4-5-2-3'} < set(family.pretraining)
  assert family.post_training == '0-1-2-3-4-5-0-1'


def test_arrays_pad_shorter_tasks_and_name_each_stages_subgoal():
  tasks = FAMILIES['gridworld'].arrays(('4-5', '0-1-6-7'))
  np.testing.assert_array_equal(tasks.colours, [[4, 5, -1, -1], [0, 1, 6, 7]])
  np.testing.assert_array_equal(tasks.lengths, [2, 4])
  np.testing.assert_array_equal(tasks.subgoals, [[2, 2, -1, -1], [0, 0, 3, 3]])
  np.testing.assert_array_equal(tasks.segments, [[0, 0, -1, -1], [0, 0, 1, 1]])


def test_a_task_that_cuts_a_subgoal_is_refused():
  with pytest.raises(ValueError, match=r"task '0-1-2'.*does not start with any of"):
    FAMILIES['gridworld'].parse('0-1-2')


def test_a_clone_completes_what_it_happens_to_be_doing():
  for name, count in (('gridworld', 16), ('ant', 16), ('three_pairs', 12)):
    assert len(set(FAMILIES[name].pretraining)) == count
    assert FAMILIES[name].clone_success == pytest.approx(1 / count)
  # One that does the second has done the first on the way, and not the other way round.
  family = dataclasses.replace(FAMILIES['ant'], pretraining=('0-1', '0-1-2', '3'))
  assert family.clone_success == pytest.approx(4 / 9)
