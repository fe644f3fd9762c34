"""The optimiser against arithmetic by hand, and the state's bookkeeping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl import training
from internal_rl.training import state as state_lib


def adamw_by_hand(gradients, rates, betas, weight_decay):
  """Decoupled weight decay (Loshchilov and Hutter, 2019, Algorithm 2) from the parameter 1."""
  parameter, mean, square = np.ones(3), np.zeros(3), np.zeros(3)
  for i, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
    mean = betas[0] * mean + (1 - betas[0]) * gradient
    square = betas[1] * square + (1 - betas[1]) * gradient**2
    step = (mean / (1 - betas[0] ** i)) / (np.sqrt(square / (1 - betas[1] ** i)) + 1e-8)
    parameter = parameter - rate * (step + weight_decay * parameter)
  return parameter


def train(tx, gradients):
  state = training.create({'bias': jnp.ones(3)}, tx, jax.random.key(0))
  for gradient in gradients:
    state = training.apply_gradients(state, {'bias': jnp.asarray(gradient)}, tx)
  return state


GRADIENTS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.mark.parametrize(
  ('options', 'rates'),
  [
    ({}, [0.1] * 8),
    ({'warmup_steps': 4}, [0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1]),
    (
      {'schedule': 'cosine', 'total_steps': 8},
      [0.05 * (1 + np.cos(np.pi * i / 8)) for i in range(8)],
    ),
    (
      {'schedule': 'cosine', 'total_steps': 8, 'warmup_steps': 2},
      [0, 0.05, *(0.05 * (1 + np.cos(np.pi * i / 6)) for i in range(6))],
    ),
  ],
)
def test_adamw_is_the_published_algorithm_and_decays_biases_too(options, rates):
  tx = training.optimiser(0.1, weight_decay=0.3, betas=(0.8, 0.95), **options)
  expected = adamw_by_hand(GRADIENTS, rates, (0.8, 0.95), 0.3)
  state = train(tx, GRADIENTS)
  np.testing.assert_allclose(state.params['bias'], expected, rtol=1e-5)
  assert state.step == 8


def test_gradients_are_clipped_by_their_global_norm():
  norms = np.linalg.norm(GRADIENTS, axis=1, keepdims=True)
  clipped = GRADIENTS * np.minimum(1.0, 0.5 / norms)
  state = train(training.optimiser(0.1, clip_norm=0.5), GRADIENTS)
  expected = adamw_by_hand(clipped, [0.1] * 8, (0.9, 0.999), 0.0)
  np.testing.assert_allclose(state.params['bias'], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'learning_rate': 0.0}, r'learning_rate=0.0: must be positive'),
    ({'learning_rate': float('nan')}, r'learning_rate=nan: must be positive'),
    ({'weight_decay': -0.1}, r'weight_decay=-0.1: must not be negative'),
    ({'betas': (0.9, 1.0)}, r'betas=\(0.9, 1.0\)'),
    ({'betas': (0.9,)}, r'betas=\(0.9,\): must be two'),
    ({'schedule': 'linear'}, r"schedule='linear': must be 'constant' or 'cosine'"),
    ({'schedule': 'cosine'}, r'total_steps=0: must exceed warmup_steps \(0\)'),
    ({'warmup_steps': -1}, r'warmup_steps=-1'),
    ({'clip_norm': 0.0}, r'clip_norm=0.0: must be positive, or None'),
    ({'kind': 'sgd'}, "kind='sgd': must be 'adamw' or 'muon'"),
  ],
)
def test_arguments_out_of_range_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    training.optimiser(**{'learning_rate': 0.1, **options})


def test_an_old_style_key_is_refused():
  with pytest.raises(ValueError, match=r'key: must be a typed key, jax\.random\.key'):
    training.create({}, training.optimiser(0.1), jax.random.PRNGKey(0))


def test_leaves_are_named_by_dotted_path():
  state = training.create({'a': {'b': jnp.ones(1)}}, training.optimiser(0.1), jax.random.key(0))
  names = set(state_lib.named_leaves(state))
  assert {'step', 'key', 'params.a.b', 'opt_state.0.mu.a.b', 'opt_state.0.count'} <= names
