"""Demonstrates the pretraining tasks and stores the successful trajectories on disk (App. C.1).

  python -m experiments.collect --config=configs/ant.py:small --workdir=runs/ant

Writes `D`, which follows the expert with its noise, and `D_star`, without, into `data.directory`,
or into `data` in the workdir. The ant's stages read them there. The gridworld's generate
demonstrations as they train, unless `--config.data.directory=...` makes them read a store.
"""

import functools
import os
import time
from typing import Any

import jax
import numpy as np

from experiments import artifacts, common
from internal_rl.data.collect import collect
from internal_rl.data.dataset import Dataset
from internal_rl.data.demonstrations import Demonstrations

COUNTED = ('failed', 'blown_up')


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Collects both stores; goes on where an interrupted collection stopped."""
  started, section = time.time(), config.data
  shards, rest = divmod(section.episodes, section.episodes_per_shard)
  if rest or shards < 2:
    raise ValueError(
      f'data.episodes={section.episodes}: must be a multiple of data.episodes_per_shard '
      f'({section.episodes_per_shard}), twice at least, since one shard is held out'
    )
  values = {
    name: _store(config, workdir, clean, os.path.join(artifacts.data_dir(config, workdir), name))
    for clean, name in common.STORES.items()
  }
  return artifacts.write_result(config, workdir, 'collect', values, started)


def _store(config: common.Config, workdir: str, clean: bool, directory: str) -> dict[str, int]:
  section = config.data
  source = Demonstrations(artifacts.expert(config, workdir, clean), section.horizon)
  rollout = jax.jit(lambda expert, key: expert.rollout(key, section.collect_batch, section.horizon))
  collect(
    directory,
    functools.partial(rollout, source.expert),
    num_shards=section.episodes // section.episodes_per_shard,
    # Two seeds: without noise, the same one would give the same episodes twice.
    seed=2 * config.seed + clean,
    config={
      **common.described(source),
      'collect_batch': section.collect_batch,
      'episodes_per_shard': section.episodes_per_shard,
    },
    settle=_settle,
    size=section.episodes_per_shard,
  )
  store = Dataset.open(directory)
  store.verify()
  shards = store.manifest['shards']
  # Shards that were collected before something was counted say nothing of it.
  counted = [name for name in COUNTED if all(name in shard for shard in shards)]
  counts = {name: sum(shard[name] for shard in shards) for name in counted}
  return {'episodes': len(store), **counts}


def _settle(episodes: Any) -> tuple[Any, dict[str, int]]:
  """Returns the successful episodes, and how many others there were.

  Those that were not done by the horizon failed, too; so did those whose simulation blew up, which
  are counted once more by themselves.
  """
  successful = np.asarray(episodes.mask)[:, 0]
  counts = {'failed': int((~successful).sum())}
  if hasattr(episodes, 'diverged'):
    counts['blown_up'] = int(np.sum(episodes.diverged))
    episodes = episodes.replace(diverged=None)
  return jax.tree.map(lambda x: x[successful], episodes), counts


if __name__ == '__main__':
  common.main(run)
