"""What codes mean: steps picked by hand, and classifiers on data whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.analysis import codes

SEGMENTS = jnp.array([[0, 0, 1, 1, 2], [0, 1, 1, 2, 2]])
MASK = jnp.array([[True] * 5, [True, True, True, False, False]])


def test_first_steps_include_that_of_the_episode_and_exclude_padding():
  expected = [[1, 0, 1, 0, 1], [1, 1, 0, 0, 0]]
  np.testing.assert_array_equal(codes.first_steps(SEGMENTS, MASK), np.array(expected, bool))


def test_by_segment_takes_the_value_at_each_subgoals_first_step():
  values = jnp.arange(20.0).reshape(2, 5, 2)
  expected = [[[0, 1], [4, 5], [8, 9]], [[10, 11], [12, 13], [0, 0]]]
  np.testing.assert_array_equal(codes.by_segment(values, SEGMENTS, MASK, 3), expected)


def test_by_label_averages_the_steps_of_each_label():
  values = jnp.array([[[1.0], [3.0], [99.0]], [[5.0], [7.0], [99.0]]])
  labels = jnp.array([[0, 0, 0], [0, 2, 1]])
  mask = jnp.array([[True, True, False], [True, True, False]])
  np.testing.assert_array_equal(codes.by_label(values, labels, mask, 3), [[3.0], [0.0], [7.0]])


def labelled(rows=400, seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  labels = jax.random.randint(keys[0], (rows,), 0, 3)
  return labels, jax.random.normal(keys[1], (rows, 4))


def test_a_label_that_is_in_the_codes_is_read_off_them():
  labels, noise = labelled()
  z = noise.at[:, :3].add(6 * jax.nn.one_hot(labels, 3))
  accuracy, _ = codes.decodability(z, labels, jnp.ones(len(labels)), 3)
  assert accuracy > 0.97


def test_a_label_that_is_not_in_the_codes_is_guessed():
  labels, noise = labelled()
  accuracy, majority = codes.decodability(noise, labels, jnp.ones(len(labels)), 3)
  assert abs(float(accuracy) - 1 / 3) < 0.1
  assert majority == pytest.approx(np.bincount(labels[200:]).max() / 200)


def test_scored_on_rows_that_it_was_not_trained_on():
  labels, noise = labelled()
  z = noise.at[:, :3].add(6 * jax.nn.one_hot(labels, 3))
  shifted = jnp.concatenate([labels[:200], (labels[200:] + 1) % 3])
  accuracy, _ = codes.decodability(z, shifted, jnp.ones(len(labels)), 3)
  assert accuracy < 0.05


def test_rows_without_weight_do_not_count():
  labels, noise = labelled()
  z = noise.at[:, :3].add(6 * jax.nn.one_hot(labels, 3))
  weights = (jnp.arange(400) % 2).astype(jnp.float32)
  spoiled = jnp.where(weights > 0, labels, (labels + 1) % 3)
  accuracy, majority = codes.decodability(z, spoiled, weights, 3)
  assert accuracy > 0.95
  assert majority == pytest.approx(np.bincount(labels[201::2]).max() / 100)
