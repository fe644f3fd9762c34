"""Whether the metacontroller switches where the subgoal changes (Figs. 6 and A3).

The first step of an episode is left out throughout: nothing can change there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

UNDECIDED = (0.1, 0.9)  # A quasi-binary gate has few values in between.


@dataclasses.dataclass(frozen=True)
class Alignment:
  """Detected against true switches, over a batch.

  Attributes:
    precision: share of detected switches that pair up with a true one; 0 if there are none.
    recall: share of true switches that pair up with a detected one; 0 if there are none.
    f1: harmonic mean of the two.
    switches: detected switches an episode.
    true_switches: true switches an episode.
  """

  precision: float
  recall: float
  f1: float
  switches: float
  true_switches: float


def true_switches(segments: Int[Array, 'b t'], mask: Bool[Array, 'b t']) -> Bool[Array, 'b t']:
  """Marks the first step of every subgoal but the first of an episode."""
  changed = segments[:, 1:] != segments[:, :-1]
  return jnp.pad(changed, ((0, 0), (1, 0))) & mask


def detected_switches(
  beta: Float[Array, 'b t gates'], mask: Bool[Array, 'b t'], threshold: float = 0.5
) -> Bool[Array, 'b t']:
  """Marks the steps at which the gate opens, with the rule of internal RL (App. C.5)."""
  return (beta.mean(-1) >= threshold) & _later(mask)


def _later(mask: Bool[Array, 'b t']) -> Bool[Array, 'b t']:
  """Leaves out the first step of each episode."""
  return mask.at[:, 0].set(False)


def alignment(
  detected: Bool[Array | np.ndarray, 'b t'],
  true: Bool[Array | np.ndarray, 'b t'],
  tolerance: int = 0,
) -> Alignment:
  """Pairs detected with true switches, one to one and at most `tolerance` steps apart."""
  episodes = zip(np.asarray(detected), np.asarray(true), strict=True)
  pairs = sum(_pairs(np.flatnonzero(a), np.flatnonzero(b), tolerance) for a, b in episodes)
  precision = pairs / max(int(detected.sum()), 1)
  recall = pairs / max(int(true.sum()), 1)
  return Alignment(
    precision=float(precision),
    recall=float(recall),
    f1=float(2 * precision * recall / max(precision + recall, 1e-9)),
    switches=float(detected.sum(1).mean()),
    true_switches=float(true.sum(1).mean()),
  )


def widest(row: Mapping[str, Any]) -> tuple[str, str]:
  """Returns the field of a result that holds F1 at its widest tolerance, and that in words."""
  found = (name.rpartition('_tolerance_') for name in row)
  steps = max(int(steps) for name, _, steps in found if name == 'f1')
  return f'f1_tolerance_{steps}', 'one step' if steps == 1 else f'{steps} steps'


def _pairs(left: np.ndarray, right: np.ndarray, tolerance: int) -> int:
  """Size of the largest one-to-one matching; earliest first is optimal on a line."""
  i = j = pairs = 0
  while i < len(left) and j < len(right):
    if abs(left[i] - right[j]) <= tolerance:
      i, j, pairs = i + 1, j + 1, pairs + 1
    elif left[i] < right[j]:
      i += 1
    else:
      j += 1
  return pairs


def exact_f1(detected: Bool[Array, 'b t'], true: Bool[Array, 'b t']) -> Float[Array, '']:
  """`alignment(...).f1` at tolerance 0, for use inside jit."""
  return 2 * (detected & true).sum() / jnp.maximum(detected.sum() + true.sum(), 1)


def undecided_share(beta: Float[Array, 'b t gates'], mask: Bool[Array, 'b t']) -> Float[Array, '']:
  """Returns the share of gate values strictly between 0.1 and 0.9, first steps left out."""
  low, high = UNDECIDED
  count = _later(mask)[..., None]
  between = (beta > low) & (beta < high) & count
  return between.sum() / jnp.maximum(count.sum() * beta.shape[-1], 1)
