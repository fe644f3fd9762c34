"""Demonstrates the pretraining tasks and stores the trajectories on disk (App. C.1).

  python -m experiments.collect --config=configs/gridworld.py:quickstart --workdir=data/quickstart

The gridworld's stages generate demonstrations as they train, unless
`--config.data.directory=data/quickstart` makes them read these. `D` follows the
expert with its noise, and `D_star` without.
"""

import functools
import json
import os
import time
from typing import Any

import jax

from experiments import common
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
  plain = json.loads(config.to_json_best_effort())
  values = {}
  for name, demonstrator in (('D', common.expert(config)), ('D_star', common.clean_expert(config))):
    rollout = functools.partial(
      demonstrator.rollout, batch=section.episodes_per_shard, horizon=section.horizon
    )
    directory = os.path.join(workdir, name)
    described = {key: plain[key] for key in ('env', 'data')} | {'epsilon': demonstrator.epsilon}
    described['data'].pop('directory'), described['data'].pop('episodes')
    num_shards = section.episodes // section.episodes_per_shard
    collect(directory, jax.jit(rollout), num_shards, config.seed, described)
    dataset = Dataset.open(directory)
    dataset.verify()
    values[name] = {'episodes': len(dataset)}
  return common.write_result(config, workdir, values, started)


if __name__ == '__main__':
  common.main(run)
