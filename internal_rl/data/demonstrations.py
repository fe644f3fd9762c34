"""Where a training stage's demonstrations come from: its expert, as it trains, or a store."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from internal_rl.data.dataset import Dataset
from internal_rl.experts.gridworld import Episodes, GridworldExpert
from internal_rl.types import Key, Trajectories


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """A source of batches that a jitted update can draw from.

  Attributes:
    expert: demonstrator.
    horizon: steps of an episode, at most.
  """

  expert: GridworldExpert
  horizon: int

  def load(self, directory: str, expect: dict[str, Any]) -> Episodes:
    """Reads a store onto the device: a hundred bytes an episode.

    Args:
      directory: the store.
      expect: what it must have recorded of how it was made.

    Raises:
      FileNotFoundError, ValueError: there is no sound store, or it holds other shapes.
    """
    like = jax.eval_shape(lambda key: self.expert.rollout(key, 1, self.horizon), jax.random.key(0))
    dataset = Dataset.open(os.path.expanduser(directory), like)
    found = dataset.manifest['config']
    if differ := [name for name in expect if found.get(name) != expect[name]]:
      raise ValueError(
        f'data.directory: {directory} was collected with another {" and ".join(differ)}: '
        f'{[found.get(name) for name in differ]}, config says {[expect[name] for name in differ]}'
      )
    return jax.tree.map(jnp.asarray, dataset.take(np.arange(len(dataset))))

  def sample(self, store: Any, key: Key, batch: int) -> Trajectories:
    """Returns a batch, a pure function of the key: stored ones if there are any."""
    if not isinstance(store, Episodes):
      return self.expert.sample(key, batch, self.horizon)
    rows: Int[Array, ' b'] = jax.random.randint(key, (batch,), 0, store.tasks.shape[0])
    widen = lambda x: x if x.dtype == bool else x.astype(jnp.int32)
    return self.expert.observations(jax.tree.map(lambda x: widen(x[rows]), store))
