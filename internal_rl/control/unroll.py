"""Steps a batch of episodes to their ends, whatever their lengths."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# While more than 1 in `_SHRINK` episodes of a batch still run, all of its rows are stepped; then
# those that do are gathered, down to `_SMALLEST` rows. Failures are short and successes long: early
# in training most of a batch ends within a tenth of the time limit.
_SHRINK = 4
_SMALLEST = 32


def unroll(step: Callable[[Any], Any], carry: Any, time_limit: int) -> Any:
  """Applies `step` until every episode is done or `time_limit` steps are taken.

  Args:
    step: one step of a batch of any size. What it gives an episode must depend on that episode's
      row alone.
    carry: a dataclass of arrays, all with the leading axis `b`, among them `done`, and of scalars
      that all episodes share, among them `time`.
    time_limit: of the episodes, in steps.
  """
  part = carry.done.shape[0] // _SHRINK
  if part < _SMALLEST:
    part = 0
  unfinished = lambda carry: (carry.time < time_limit) & (jnp.sum(~carry.done) > part)
  carry = jax.lax.while_loop(unfinished, step, carry)
  if not part:
    return carry
  rows = jnp.argsort(carry.done)[:part]
  some = unroll(step, jax.tree.map(lambda x: x[rows] if x.ndim else x, carry), time_limit)
  put_back = lambda all_, some: all_.at[rows].set(some) if all_.ndim else some
  return jax.tree.map(put_back, carry, some)
