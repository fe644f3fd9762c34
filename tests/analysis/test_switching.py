"""Alignment of switches on cases worked by hand, and its matching against brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.analysis import switching

MASK = jnp.array([[True] * 6, [True] * 4 + [False] * 2])


def test_a_subgoal_begins_where_the_segment_steps_up_but_not_at_the_start_or_in_the_padding():
  segments = jnp.array([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]])
  expected = [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
  np.testing.assert_array_equal(switching.true_switches(segments, MASK), np.array(expected, bool))


def test_the_gate_is_open_from_the_threshold_on_and_its_first_step_and_padding_do_not_count():
  beta = jnp.array([[1.0, 0.5, 0.49, 0.9, 0.0, 1.0], [1.0, 0.0, 1.0, 0.2, 1.0, 1.0]])[..., None]
  expected = [[0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]
  np.testing.assert_array_equal(switching.detected_switches(beta, MASK), np.array(expected, bool))


def test_several_gates_open_by_their_mean():
  beta = jnp.array([[[1.0, 1.0], [0.9, 0.2], [0.9, 0.0]]])
  detected = switching.detected_switches(beta, jnp.ones((1, 3), bool))
  np.testing.assert_array_equal(detected, [[False, True, False]])


def steps(*rows, length=10):
  marks = np.zeros((len(rows), length), bool)
  for row, times in zip(marks, rows, strict=True):
    row[list(times)] = True
  return jnp.asarray(marks)


def test_precision_recall_and_f1_of_a_case_worked_by_hand():
  detected, true = steps((2, 5), (7,)), steps((2, 6), (7, 9))
  exact = switching.alignment(detected, true)
  assert (exact.precision, exact.recall) == (pytest.approx(2 / 3), pytest.approx(1 / 2))
  assert exact.f1 == pytest.approx(4 / 7)
  assert (exact.switches, exact.true_switches) == (1.5, 2.0)
  near = switching.alignment(detected, true, tolerance=1)
  assert (near.precision, near.recall) == (1.0, 0.75)


def test_one_switch_does_not_account_for_two_changes():
  assert switching.alignment(steps((5,)), steps((4, 6)), tolerance=1).recall == 0.5
  assert switching.alignment(steps((4, 6)), steps((5,)), tolerance=1).precision == 0.5


def test_switches_never_pair_up_across_episodes():
  assert switching.alignment(steps((3,), ()), steps((), (3,)), tolerance=2).f1 == 0


def test_no_switches_at_all_give_zero_and_not_an_error():
  nothing = switching.alignment(steps(()), steps(()))
  assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)


@pytest.mark.parametrize('tolerance', [0, 1, 3])
def test_matching_is_as_large_as_any(tolerance):
  rng = np.random.default_rng(tolerance)
  for _ in range(60):
    left, right = (np.flatnonzero(rng.random(9) < 0.4)[:4] for _ in range(2))
    short, long = sorted((left, right), key=len)
    best = max(
      sum(abs(a - b) <= tolerance for a, b in zip(short, chosen, strict=True))
      for chosen in itertools.permutations(long, len(short))
    )
    assert switching._pairs(left, right, tolerance) == best


def test_f1_inside_jit_is_the_exact_one():
  rng = np.random.default_rng(0)
  detected, true = (jnp.asarray(rng.random((5, 12)) < 0.3) for _ in range(2))
  expected = switching.alignment(detected, true).f1
  assert float(switching.exact_f1(detected, true)) == pytest.approx(expected)


def test_undecided_gates_are_those_strictly_in_between_after_the_first_step():
  beta = jnp.array([[0.5, 0.5, 0.05, 0.95, 0.5, 0.01], [0.5, 0.02, 0.3, 0.99, 0.5, 0.5]])[..., None]
  # Of 5 + 3 values that count, the two of the first row and the 0.3 of the second.
  assert float(switching.undecided_share(beta, MASK)) == pytest.approx(3 / 8)
