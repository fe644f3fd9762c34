"""Likelihoods against scipy, enumeration and arithmetic by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from internal_rl.models import (
  Bernoulli,
  BernoulliHead,
  Categorical,
  CategoricalGrid,
  CategoricalGridHead,
  CategoricalHead,
  DiagonalGaussian,
  GaussianHead,
)


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _grid_events(cells, channels):
  """All flat observations that put every channel in exactly one cell, cells major."""
  for assignment in itertools.product(range(cells), repeat=channels):
    event = np.zeros((cells, channels), np.float32)
    event[list(assignment), range(channels)] = 1
    yield jnp.array(event.ravel())


def _bit_events(n):
  return [jnp.array(bits, jnp.float32) for bits in itertools.product((0, 1), repeat=n)]


# Distributions of few enough outcomes to list them all.
ENUMERABLE = {
  'categorical': (lambda: Categorical(_normal(0, 5)), [jnp.array(i) for i in range(5)]),
  'grid': (lambda: CategoricalGrid(_normal(0, 3, 2)), list(_grid_events(3, 2))),
  'bernoulli': (lambda: Bernoulli(_normal(0, 4)), _bit_events(4)),
}


@pytest.mark.parametrize('name', ENUMERABLE)
def test_probabilities_of_all_outcomes_sum_to_one(name):
  make, events = ENUMERABLE[name]
  log_probs = jax.vmap(make().log_prob)(jnp.stack(events))
  np.testing.assert_allclose(jnp.exp(log_probs).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize('name', ENUMERABLE)
def test_entropy_and_mode_agree_with_enumeration(name):
  make, events = ENUMERABLE[name]
  log_probs = np.asarray(jax.vmap(make().log_prob)(jnp.stack(events)))
  np.testing.assert_allclose(make().entropy(), -np.sum(np.exp(log_probs) * log_probs), rtol=1e-5)
  np.testing.assert_array_equal(make().mode(), events[log_probs.argmax()])


@pytest.mark.parametrize('name', ENUMERABLE)
def test_sample_frequencies_match_probabilities(name):
  make, events = ENUMERABLE[name]
  count = 20_000
  keys = jax.random.split(jax.random.key(1), count)
  samples = np.asarray(jax.vmap(make().sample)(keys)).reshape(count, -1)
  for event in events:
    frequency = np.mean(np.all(samples == np.asarray(event).ravel(), axis=-1))
    expected = np.exp(make().log_prob(event))
    assert abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / count)


def test_categorical_log_prob_is_the_log_softmax_at_the_index():
  logits = _normal(0, 2, 3, 5)
  x = jnp.array([[0, 4, 2], [1, 1, 3]])
  expected = np.take_along_axis(scipy.special.log_softmax(logits, axis=-1), x[..., None], axis=-1)
  np.testing.assert_allclose(Categorical(logits).log_prob(x), expected[..., 0], rtol=1e-5)


def test_gaussian_log_prob_and_entropy_match_scipy():
  mean, log_std, x = _normal(0, 2, 3), 0.5 * _normal(1, 2, 3), _normal(2, 2, 3)
  dist = DiagonalGaussian(mean, log_std)
  reference = scipy.stats.norm(mean, np.exp(log_std))
  np.testing.assert_allclose(dist.log_prob(x), reference.logpdf(x).sum(-1), rtol=1e-5)
  np.testing.assert_allclose(dist.entropy(), reference.entropy().sum(-1), rtol=1e-5)
  np.testing.assert_array_equal(dist.mode(), mean)


def test_gaussian_samples_have_its_mean_and_spread():
  dist = DiagonalGaussian(jnp.array([1.0, -2.0]), jnp.log(jnp.array([0.5, 3.0])))
  samples = jax.vmap(dist.sample)(jax.random.split(jax.random.key(0), 20_000))
  np.testing.assert_allclose(samples.mean(0), [1, -2], atol=0.1)
  np.testing.assert_allclose(samples.std(0), [0.5, 3], rtol=0.03)


def test_kl_to_the_standard_normal_is_zero_there_and_matches_quadrature_elsewhere():
  zeros = jnp.zeros(3)
  np.testing.assert_array_equal(DiagonalGaussian(zeros, zeros).kl_to_standard_normal(), 0)
  dist = DiagonalGaussian(jnp.array([0.7]), jnp.log(jnp.array([0.4])))
  x = np.linspace(-6, 6, 20_001)
  p, q = scipy.stats.norm(0.7, 0.4), scipy.stats.norm()
  expected = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
  np.testing.assert_allclose(dist.kl_to_standard_normal(), expected, rtol=1e-5)


def test_grid_log_prob_sums_a_categorical_over_cells_for_every_channel():
  cells, channels = 4, 3
  logits = _normal(0, 2, cells, channels)
  where = np.array([[0, 3, 3], [2, 1, 0]])
  event = np.zeros((2, cells, channels), np.uint8)
  expected = np.zeros(2)
  for b, c in itertools.product(range(2), range(channels)):
    event[b, where[b, c], c] = 1
    expected[b] += scipy.special.log_softmax(logits[b, :, c])[where[b, c]]
  actual = CategoricalGrid(logits).log_prob(jnp.array(event.reshape(2, -1)))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bernoulli_log_prob_matches_scipy_and_stays_finite_far_out():
  logits, x = _normal(0, 2, 5), jnp.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
  expected = scipy.stats.bernoulli(scipy.special.expit(logits)).logpmf(x).sum(-1)
  np.testing.assert_allclose(Bernoulli(logits).log_prob(x), expected, rtol=1e-5)
  np.testing.assert_allclose(Bernoulli(jnp.array([-200.0])).log_prob(jnp.array([1])), -200)


def _init_and_apply(head, x):
  params = jax.jit(head.init)(jax.random.key(0), x)
  return params['params'], jax.jit(head.apply)(params, x)


def test_heads_give_float32_distributions_of_their_size_whatever_the_input_precision():
  x = _normal(0, 2, 3, 8).astype(jnp.bfloat16)
  _, categorical = _init_and_apply(CategoricalHead(4), x)
  _, bernoulli = _init_and_apply(BernoulliHead(6), x)
  _, grid = _init_and_apply(CategoricalGridHead(cells=5, channels=2), x)
  assert categorical.logits.shape == (2, 3, 4)
  assert bernoulli.logits.shape == (2, 3, 6)
  assert grid.logits.shape == (2, 3, 5, 2)
  for dist in (categorical, bernoulli, grid):
    assert dist.logits.dtype == jnp.float32


def test_gaussian_head_learns_one_spread_for_all_inputs():
  x = _normal(0, 5, 8)
  head = GaussianHead(3, initial_log_std=-0.7, min_log_std=-20)
  params, dist = _init_and_apply(head, x)
  assert params['log_std'].shape == (3,)
  np.testing.assert_allclose(dist.log_std, np.full((5, 3), -0.7), rtol=1e-6)
  grad = jax.grad(lambda p: head.apply({'params': p}, x).log_prob(jnp.zeros((5, 3))).sum())(params)
  # d log p / d log std = standardised square - 1 for every row and dimension
  expected = np.sum(np.square(dist.mean / np.exp(-0.7)) - 1, axis=0)
  np.testing.assert_allclose(grad['log_std'], expected, rtol=1e-4)


def test_gaussian_head_never_goes_below_its_smallest_spread():
  head = GaussianHead(2, initial_log_std=-50.0, min_log_std=-3.0)
  _, dist = _init_and_apply(head, _normal(0, 4, 8))
  np.testing.assert_allclose(dist.log_std, np.full((4, 2), -3.0), atol=1e-6)
