"""Unrolling with ever smaller batches against stepping every row to the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from internal_rl.control import unroll as unroll_lib
from internal_rl.control.closed_loop import BaseRollout
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


def _base():
  model = tiny.model()
  rollout = BaseRollout(tiny.ENV, model)
  params = tiny.frozen(model, tiny.metacontroller()).base
  return rollout(params, jax.random.key(1), jnp.arange(EPISODES) % 16)


def _internal(kind):
  model, module, policy = tiny.model(kind), tiny.metacontroller(), tiny.policy()
  params = policy.init(jax.random.key(1), jnp.zeros((1, 1, tiny.WIDTH)))
  rollout = InternalRollout(tiny.ENV, model, module, policy)
  tasks = jnp.arange(EPISODES) % 16
  return rollout(params, tiny.frozen(model, module), jax.random.key(3), tasks)


@pytest.mark.parametrize(
  'play', [_base, lambda: _internal('transformer'), lambda: _internal('hawk')]
)
def test_shrinking_the_batch_changes_no_episode(play, monkeypatch):
  shrinking = jax.jit(lambda: play())()
  monkeypatch.setattr(unroll_lib, '_SMALLEST', EPISODES)
  whole = jax.jit(lambda: play())()
  assert whole.lengths.max() > 1.5 * whole.lengths.mean()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), shrinking, whole
  )
