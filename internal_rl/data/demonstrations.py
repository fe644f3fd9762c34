"""Where a training stage's demonstrations come from: its expert, as it trains, or a store."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internal_rl.data.dataset import MANIFEST, Dataset, PyTree, checksum
from internal_rl.types import Key, Trajectories


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """A source of batches for a jitted update.

  Attributes:
    expert: demonstrator, `experts.gridworld.GridworldExpert` or `experts.ant.AntExpert`.
    horizon: steps of an episode, at most.
    store: collected episodes, memory-mapped; None to generate them on the device as training goes.
      The first shard is never trained on.
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
    store = Dataset.open(os.path.expanduser(directory), self.expert.template())
    found = store.manifest['config']
    if differ := [name for name in expect if found.get(name) != expect[name]]:
      raise ValueError(
        f'{directory} was collected with another {" and ".join(differ)}: '
        f'{[found.get(name) for name in differ]}, config says {[expect[name] for name in differ]}; '
        'collect into another --config.data.directory, or give the config it was made with'
      )
    return dataclasses.replace(self, store=store)

  @property
  def fingerprint(self) -> dict[str, str]:
    """What tells one store from another, for the fingerprint of a run; empty without one."""
    store = self.store
    return {} if store is None else {'demonstrations': checksum(store.directory / MANIFEST)}

  def feed(self, seed: int, batch: int) -> Callable[[int], PyTree] | None:
    """Returns what `training.fit` is fed: stored episodes, or nothing if they are generated."""
    if self.store is None:
      return None
    _, training = self.store.split()
    return lambda step: training.batch(seed, step, batch)

  def held_out(self, count: int, skip: int = 0) -> PyTree:
    """Returns `count` stored episodes, which no `feed` has; None if all are fresh.

    Args:
      count: how many.
      skip: episodes to leave out before them, which have chosen among checkpoints for example.

    Raises:
      ValueError: there are not as many in the shard that is held out.
    """
    if self.store is None:
      return None
    held, _ = self.store.split()
    if skip + count > len(held):
      raise ValueError(
        f'data.episodes_per_shard: {self.store.directory} holds out one shard of {len(held)} '
        f'episodes, but {skip + count} are to be measured on'
        + (f', {skip} of them to choose a checkpoint' if skip else '')
        + '; lower eval_batch or evaluate.batch, or collect larger shards'
      )
    return held.take(np.arange(skip, skip + count))

  def episodes(self, key: Key, batch: int, fed: PyTree = None) -> Any:
    """Returns compact episodes inside a jitted function: what it was fed, or fresh ones.

    Args:
      key: consumed, if nothing was fed.
      batch: number of fresh episodes.
      fed: stored episodes, their integers in narrow types.
    """
    if fed is None:
      return self.expert.rollout(key, batch, self.horizon)
    integer = lambda x: jnp.issubdtype(x.dtype, jnp.integer)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32 if integer(x) else x.dtype), fed)

  def batch(self, key: Key, batch: int, fed: PyTree = None) -> Trajectories:
    """Returns the same, rendered into what models read."""
    return self.expert.observations(self.episodes(key, batch, fed))

  def example(self) -> Trajectories:
    """Returns a batch of one, the same every time, for its shapes."""
    return self.batch(jax.random.key(0), 1, self.held_out(1))
