"""Where a training stage's demonstrations come from: its expert, as it trains, or a store."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from internal_rl.data.dataset import MANIFEST, Dataset, PyTree, checksum
from internal_rl.types import Key, Trajectories


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """A source of batches for a jitted update.

  Attributes:
    expert: demonstrator, `experts.gridworld.GridworldExpert` or `experts.ant.AntExpert`.
    horizon: steps of an episode, at most.
    store: collected episodes, memory-mapped; None to generate them on the device as training goes.
  """

  expert: Any
  horizon: int
  store: Dataset | None = None

  def opened(self, directory: str, expect: dict[str, Any]) -> 'Demonstrations':
    """Returns the same demonstrations, read from a store.

    Args:
      directory: the store.
      expect: what it must have recorded of how it was made.

    Raises:
      FileNotFoundError, ValueError: there is no sound store, or it holds something else.
    """
    like = jax.eval_shape(lambda key: self.expert.rollout(key, 1, self.horizon), jax.random.key(0))
    store = Dataset.open(os.path.expanduser(directory), like)
    found = store.manifest['config']
    if differ := [name for name in expect if found.get(name) != expect[name]]:
      raise ValueError(
        f'data.directory: {directory} was collected with another {" and ".join(differ)}: '
        f'{[found.get(name) for name in differ]}, config says {[expect[name] for name in differ]}'
      )
    return dataclasses.replace(self, store=store)

  @property
  def fingerprint(self) -> dict[str, str]:
    """What tells one store from another, for the fingerprint of a run; empty without one."""
    store = self.store
    return {} if store is None else {'demonstrations': checksum(store.directory / MANIFEST)}

  def feed(self, seed: int, batch: int) -> Callable[[int], PyTree] | None:
    """Returns what `training.fit` is fed: stored episodes, or nothing if they are generated."""
    store = self.store
    return None if store is None else lambda step: store.batch(seed, step, batch)

  def batch(self, key: Key, batch: int, fed: PyTree = None) -> Trajectories:
    """Returns a batch inside an update: what it was fed, rendered, or fresh episodes.

    Args:
      key: consumed, if nothing was fed.
      batch: number of fresh episodes.
      fed: stored episodes, their integers in narrow types.
    """
    if fed is None:
      return self.expert.observations(self.expert.rollout(key, batch, self.horizon))
    integer = lambda x: jnp.issubdtype(x.dtype, jnp.integer)
    widen = lambda x: x.astype(jnp.int32) if integer(x) else x
    return self.expert.observations(jax.tree.map(widen, fed))
