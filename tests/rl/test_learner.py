"""The policy-gradient objective by hand, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from internal_rl.models.heads import DiagonalGaussian
from internal_rl.rl import learner, objective


def test_advantages_by_hand():
  returns = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
  expected = (returns - 0.6) / (np.sqrt(0.24) + 1e-3)
  np.testing.assert_allclose(objective.advantages(jnp.array(returns)), expected, rtol=1e-5)
  np.testing.assert_array_equal(objective.advantages(jnp.zeros(4)), 0)


def test_surrogate_is_eq_10_computed_by_hand():
  old = np.array([[0.0, -1.0, -2.0], [-0.5, 0.0, 9.9]])
  new = np.array([[0.5, -1.1, -2.0], [-1.5, 0.05, -9e9]])
  mask = np.array([[True, True, True], [True, True, False]])
  advantage = np.array([2.0, -1.0])
  gains, clipped = [], 0
  for b, t in zip(*np.nonzero(mask), strict=True):
    ratio = np.exp(new[b, t] - old[b, t])
    gains.append(min(ratio * advantage[b], np.clip(ratio, 0.8, 1.2) * advantage[b]))
    clipped += abs(ratio - 1) > 0.2
  arrays = [jnp.array(x) for x in (new, old, advantage, mask)]
  loss, stats = objective.surrogate_loss(*arrays, clip=0.2)
  np.testing.assert_allclose(loss, -np.mean(gains), rtol=1e-5)
  np.testing.assert_allclose(stats.clipped, clipped / 5, rtol=1e-5)


def test_gradient_is_that_of_the_unclipped_ratio_where_it_counts_and_finite_in_padding():
  old = jnp.array([[0.0, 0.0, 0.0]])
  new = jnp.array([[0.1, 0.5, 500.0]])
  mask = jnp.array([[True, True, False]])
  gradient = jax.grad(lambda x: objective.surrogate_loss(x, old, jnp.ones(1), mask, 0.2)[0])(new)
  # The second ratio is clipped from above and its advantage is positive: no gradient.
  np.testing.assert_allclose(gradient, [[-np.exp(0.1) / 2, 0, 0]], rtol=1e-5)


@struct.dataclass
class Batch:
  z: jax.Array
  log_prob: jax.Array
  mask: jax.Array
  returns: jax.Array


def test_learning_raises_the_return_of_a_two_decision_bandit():
  """Success means that both codes point the right way: one in four at the start."""
  config = learner.LearnerConfig(epochs=2, minibatches=2)
  tx = optax.adam(0.05)
  params = {'mean': jnp.zeros((2, 1)), 'log_std': jnp.zeros((2, 1))}

  def distribution(params, size):
    shape = (size, 2, 1)
    return DiagonalGaussian(
      jnp.broadcast_to(params['mean'], shape), jnp.broadcast_to(params['log_std'], shape)
    )

  def score(params, batch):
    d = distribution(params, batch.z.shape[0])
    return d.log_prob(batch.z), d.entropy()

  @functools.partial(jax.jit, static_argnums=3)
  def train(params, opt_state, key, updates):
    def update(carry, key):
      params, opt_state = carry
      sample_key, learn_key = jax.random.split(key)
      d = distribution(params, 256)
      z = d.sample(sample_key)
      returns = ((z[:, 0, 0] > 0.5) & (z[:, 1, 0] < -0.5)).astype(jnp.float32)
      batch = Batch(z, d.log_prob(z), jnp.ones((256, 2), bool), returns)
      carry = learner.learn(config, tx, score, params, opt_state, batch, learn_key)[:2]
      return carry, returns.mean()

    return jax.lax.scan(update, (params, opt_state), jax.random.split(key, updates))[1]

  success = train(params, tx.init(params), jax.random.key(0), 60)
  assert success[0] < 0.2
  assert success[-5:].mean() > 0.9


@pytest.mark.parametrize('returns', [[0.0, 0, 0, 0], [0.0, 1, 0, 0]])
def test_an_update_is_the_plain_gradient_step_with_and_without_rewards(returns):
  """Without rewards the optimiser moves on all the same, and everything is measured."""
  config, tx = learner.LearnerConfig(), optax.adam(0.1)
  batch = Batch(
    z=jax.random.normal(jax.random.key(0), (4, 3, 1)),
    log_prob=-jnp.ones((4, 3)),
    mask=jnp.ones((4, 3), bool).at[1, 2].set(False),
    returns=jnp.array(returns),
  )

  def score(params, batch):
    d = DiagonalGaussian(params * jnp.ones_like(batch.z), jnp.zeros_like(batch.z))
    return d.log_prob(batch.z), d.entropy()

  def loss_fn(params):
    advantage = objective.advantages(batch.returns)
    log_prob, _ = score(params, batch)
    return objective.surrogate_loss(log_prob, batch.log_prob, advantage, batch.mask, config.clip)

  params = jnp.array(0.3)
  _, opt_state = tx.update(jnp.array(1.0), tx.init(params))  # It has momentum.
  gradient, stats = jax.grad(loss_fn, has_aux=True)(params)
  updates, expected_state = tx.update(gradient, opt_state)
  new, state, row = learner.learn(config, tx, score, params, opt_state, batch, jax.random.key(1))
  assert (gradient == 0) == (not any(returns))
  np.testing.assert_allclose(new, params + updates, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, expected_state)
  np.testing.assert_allclose(row['loss'], loss_fn(params)[0], atol=1e-6)
  np.testing.assert_allclose(row['approx_kl'], stats.approx_kl, rtol=1e-5)
  np.testing.assert_allclose(row['gradient_norm'], abs(gradient), rtol=1e-5)


@pytest.mark.parametrize(('coefficient', 'changes'), [(0.0, False), (0.1, True)])
def test_without_rewards_no_gradient_is_computed_but_that_of_an_entropy_bonus(coefficient, changes):
  config, tx = learner.LearnerConfig(entropy_coefficient=coefficient), optax.sgd(0.1)
  batch = Batch(jnp.ones((4, 3, 1)), -jnp.ones((4, 3)), jnp.ones((4, 3), bool), jnp.zeros(4))

  def score(params, batch):
    # The slope of a root is infinite at zero, and zero times infinity is not a number.
    log_prob = -jnp.sqrt(params['mean']) * batch.z[..., 0]
    return log_prob, jnp.broadcast_to(params['log_std'], log_prob.shape)

  params = {'mean': jnp.array(0.0), 'log_std': jnp.array(0.5)}
  new, _, row = learner.learn(config, tx, score, params, tx.init(params), batch, jax.random.key(0))
  assert (new['log_std'] != params['log_std']) == changes
  assert bool(jnp.isfinite(new['mean'])) != changes
  assert row['entropy'] == 0.5


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [({'epochs': 0}, 'epochs=0'), ({'minibatches': 0}, 'minibatches=0'), ({'clip': 0}, 'clip=0')],
)
def test_fields_out_of_range_are_refused_by_name(kwargs, message):
  with pytest.raises(ValueError, match=message):
    learner.LearnerConfig(**kwargs)
