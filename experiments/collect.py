"""Demonstrates the pretraining tasks and stores the trajectories on disk (App. C.1).

  python -m experiments.collect --config=configs/gridworld.py:quickstart --workdir=data/quickstart

The gridworld's stages generate demonstrations as they train, unless
`--config.data.directory=data/quickstart` makes them read these. `D` follows the
expert with its noise, and `D_star` without.
"""

import functools
import os
import time
from typing import Any

import jax

from experiments import artifacts, common
from internal_rl.data.collect import collect
from internal_rl.data.dataset import Dataset


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Collects both stores; goes on where an interrupted collection stopped."""
  started, section = time.time(), config.data
  if section.episodes % section.episodes_per_shard:
    raise ValueError(
      f'data.episodes={section.episodes}: must be a multiple of data.episodes_per_shard '
      f'({section.episodes_per_shard})'
    )
  values: dict[str, Any] = {}
  for clean, name in common.STORES.items():
    source = common.demonstrator(config, clean)
    rollout = functools.partial(
      source.expert.rollout, batch=section.episodes_per_shard, horizon=source.horizon
    )
    directory = os.path.join(workdir, name)
    num_shards = section.episodes // section.episodes_per_shard
    # Two seeds: without noise, the same one would give the same episodes twice.
    seed = 2 * config.seed + clean
    collect(directory, jax.jit(rollout), num_shards, seed, common.described(source))
    dataset = Dataset.open(directory)
    dataset.verify()
    values[name] = {'episodes': len(dataset)}
  return artifacts.write_result(config, workdir, '', values, started)


if __name__ == '__main__':
  common.main(run)
