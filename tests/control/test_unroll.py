"""Unrolling with ever smaller batches against stepping every row to the end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from internal_rl.control import unroll as unroll_lib
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.models.heads import CategoricalHead
from internal_rl.rl.rollout import InternalRollout
from tests import tiny

EPISODES = 512


@struct.dataclass
class _Countdown:
  left: jax.Array
  trace: jax.Array
  done: jax.Array
  time: jax.Array


def _countdown(widths):
  def step(carry):
    widths.append(carry.done.shape[0])
    left = carry.left - ~carry.done
    return _Countdown(
      left, carry.trace.at[:, carry.time].set(left), carry.done | (left == 0), carry.time + 1
    )

  return step


def test_every_row_is_stepped_to_its_own_end_or_the_limit():
  left = jax.random.randint(jax.random.key(0), (EPISODES,), 1, 40)
  start = _Countdown(left, jnp.zeros((EPISODES, 30), int), jnp.zeros(EPISODES, bool), jnp.array(0))
  widths: list[int] = []
  end = unroll_lib.unroll(_countdown(widths), start, 30)
  np.testing.assert_array_equal(end.left, np.maximum(left - 30, 0))
  np.testing.assert_array_equal(end.done, left <= 30)
  np.testing.assert_array_equal(
    end.trace, np.maximum(np.asarray(left)[:, None] - 1 - np.arange(30), 0)
  )
  assert set(widths) == {512, 128, 32}
  assert end.time == 30


# Long enough that most episodes are over, and gone from the batch, well before the limit.
_ENV = dataclasses.replace(tiny.ENV, time_limit=60)
_TASKS = jnp.arange(EPISODES) % 16


def _model(kind):
  # Nearly random walks: an untrained model of full scale would walk into a corner and stay there.
  return tiny.model(kind).clone(action_head=CategoricalHead(4, init_scale=0.1))


def _base(steer=None):
  model = _model('transformer')
  rollout = BaseRollout(_ENV, model)
  params = tiny.frozen(model, tiny.metacontroller()).base
  if steer is None:
    return rollout(params, jax.random.key(1), _TASKS)
  state, timestep = jax.vmap(_ENV.reset)(jax.random.split(jax.random.key(2), EPISODES), _TASKS)
  shifts = jax.random.normal(jax.random.key(3), (EPISODES, tiny.WIDTH))
  return rollout.run(params, jax.random.key(1), state, timestep, steer, shifts)


def _steered():
  return _base(lambda state, e, shift: e + shift * (1 + state.position[:, None]))


def _internal(kind):
  model, module, policy = _model(kind), tiny.metacontroller(), tiny.policy()
  params = policy.init(jax.random.key(1), jnp.zeros((1, 1, tiny.WIDTH)))
  rollout = InternalRollout(_ENV, model, module, policy)
  return rollout(params, tiny.frozen(model, module), jax.random.key(3), _TASKS)


PLAYS = {
  'base': _base,
  'steered': _steered,
  'transformer': lambda: _internal('transformer'),
  'hawk': lambda: _internal('hawk'),
}


def _recorded(episodes):
  """Everything but what lies past the mask, which means nothing."""

  def recorded(x):
    if x.shape[:2] != episodes.mask.shape:
      return x
    return jnp.where(episodes.mask.reshape(*x.shape[:2], *[1] * (x.ndim - 2)), x, 0)

  return jax.tree.map(recorded, episodes)


@pytest.mark.parametrize('name', sorted(PLAYS))
def test_shrinking_the_batch_changes_no_episode(name, monkeypatch):
  shrinking = _recorded(jax.jit(lambda: PLAYS[name]())())
  lengths = np.sort(shrinking.lengths)
  for survivors in (EPISODES // 4, EPISODES // 16):
    assert lengths[-survivors] < lengths[-1] - 3, 'no step was taken by so few rows'
  monkeypatch.setattr(unroll_lib, '_SMALLEST', EPISODES)
  whole = _recorded(jax.jit(lambda: PLAYS[name]())())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), shrinking, whole
  )
