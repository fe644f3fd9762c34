"""What every binary shares: flags, wiring from config to objects, results, prerequisites."""

import datetime
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict as Config
from ml_collections import config_flags

from internal_rl.data.demonstrations import Demonstrations
from internal_rl.envs.environment import Environment
from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.tasks import FAMILIES
from internal_rl.experts.gridworld import GridworldExpert
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.models.heads import BernoulliHead, CategoricalGridHead, CategoricalHead
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.policy import CodePolicy
from internal_rl.training import checkpoint, loop, mesh
from internal_rl.training import state as state_lib
from internal_rl.types import Key, Params

Run = Callable[[Config, str], Mapping[str, Any]]
STORES = {False: 'D', True: 'D_star'}

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/gridworld.py:quickstart', 'FILE:PRESET, see configs/.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where this run reads and writes everything.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Call jax.distributed.initialize() first.')


def main(run: Run) -> None:
  """Runs one stage as an absl binary."""
  flags.mark_flag_as_required('workdir')

  def start(argv):
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    mesh.initialize_distributed(_DISTRIBUTED.value)
    logging.get_absl_handler().addFilter(_is_ours)
    run(_CONFIG.value, _WORKDIR.value)

  app.run(start)


def _is_ours(record) -> bool:
  """Keeps what orbax says of every file it writes out of the log, but none of its warnings."""
  return record.levelno >= logging.converter.STANDARD_WARNING or 'orbax' not in record.pathname


# From config to objects.


def environment(config: Config, task_names: tuple[str, ...] = (), time_limit: int = 0) -> Gridworld:
  """Returns the world, with its pretraining tasks unless others are named."""
  if config.env.kind != 'gridworld':
    raise ValueError(f"env.kind={config.env.kind!r}: must be 'gridworld'")
  if config.env.family not in FAMILIES:
    raise ValueError(f'env.family={config.env.family!r}: must be one of {sorted(FAMILIES)}')
  return Gridworld(
    grid_size=config.env.grid_size,
    num_objects=config.env.num_objects,
    num_walls=config.env.num_walls,
    time_limit=time_limit or config.env.time_limit,
    family=FAMILIES[config.env.family],
    task_names=task_names,
  )


def post_training_environment(config: Config) -> Gridworld:
  """Returns the world with the one task that no demonstration solves."""
  task = FAMILIES[config.env.family].post_training
  return environment(config, (task,), config.reinforce.time_limit)


def expert(config: Config) -> GridworldExpert:
  """Returns the demonstrator of the pretraining tasks."""
  return GridworldExpert(environment(config), config.expert.epsilon)


def clean_expert(config: Config) -> GridworldExpert:
  """Returns the demonstrator of `D*`, on which controllers are trained: no noise (App. C.1.1)."""
  return GridworldExpert(environment(config), 0.0)


def demonstrations(config: Config, clean: bool = False) -> tuple[Demonstrations, Any]:
  """Returns the source of `D`, or of `D*`, and its store (empty: generated as training goes)."""
  demonstrator = clean_expert(config) if clean else expert(config)
  source = Demonstrations(demonstrator, config.data.horizon)
  directory = config.data.directory
  return source, source.load(directory and os.path.join(directory, STORES[clean]))


def base_model(config: Config) -> SequenceModel:
  """Returns the base sequence model."""
  env, model = environment(config), config.model
  observation_heads = {
    'categorical': lambda: CategoricalGridHead(
      env.grid_size**2, env.num_channels, init_scale=model.init_scale
    ),
    'bernoulli': lambda: BernoulliHead(env.observation_size, init_scale=model.init_scale),
  }
  if model.observation_likelihood not in observation_heads:
    raise ValueError(
      f'model.observation_likelihood={model.observation_likelihood!r}: must be one of '
      f'{sorted(observation_heads)}'
    )
  predicts = config.pretrain.observation_weight > 0
  return SequenceModel(
    kind=model.kind,
    width=model.width,
    num_blocks=model.num_blocks,
    num_heads=model.num_heads,
    mlp_width=model.mlp_width,
    activation=model.activation,
    norm=model.norm,
    relative_buckets=model.relative_buckets,
    init_scale=model.init_scale,
    controlled_layer=model.controlled_layer,
    dtype=jnp.dtype(model.dtype),
    remat=model.remat,
    action_head=CategoricalHead(env.num_actions, init_scale=model.init_scale),
    observation_head=observation_heads[model.observation_likelihood]() if predicts else None,
  )


def metacontroller(config: Config) -> Metacontroller:
  """Returns the metacontroller."""
  return Metacontroller(width=config.model.width, **config.metacontroller)


def policy(config: Config) -> CodePolicy:
  """Returns the policy over codes."""
  return CodePolicy(code_size=config.metacontroller.code_size, **config.policy)


def optimiser(section: Config, learning_rate: float | None = None):
  """Returns a stage's optimiser."""
  return state_lib.optimiser(
    section.learning_rate if learning_rate is None else learning_rate,
    kind=section.optimiser,
    weight_decay=section.weight_decay,
    schedule=section.schedule,
    warmup_steps=section.warmup_steps,
    total_steps=section.steps,
    clip_norm=section.clip_norm or None,
  )


def fit_config(section: Config, evaluated: bool = True, **kwargs) -> loop.FitConfig:
  """Returns a stage's lengths and intervals; `evaluated` is False where there is no evaluation."""
  return loop.FitConfig(
    steps=section.steps,
    updates_per_call=section.updates_per_call,
    eval_every=section.eval_every if evaluated else 0,
    checkpoint_every=section.checkpoint_every,
    **kwargs,
  )


def key_for(config: Config, stage: str, *index: int) -> Key:
  """Returns the key of a stage (and of its run `index`), a function of the config's seed alone."""
  stream = int.from_bytes(stage.encode()[:4], 'little') % 2**31
  return functools.reduce(jax.random.fold_in, (stream, *index), jax.random.key(config.seed))


def fingerprint(config: Config, *sections: str) -> dict[str, Any]:
  """Returns what decides a stage's outcome: no checkpoint is continued with another."""
  plain = json.loads(config.to_json_best_effort())
  free = ('checkpoint_every', 'eval_every', 'eval_batch', 'updates_per_call')
  return {
    'seed': config.seed,
    **{
      name: {k: v for k, v in plain[name].items() if k not in free}
      for name in ('env', 'expert', 'model', *sections)
    },
  }


# Prerequisites and results.


def stage_dir(workdir: str, *parts: str) -> str:
  """Returns where a stage, or a part of it, lives."""
  return os.path.join(workdir, *parts)


def command(config: Config, workdir: str, stage: str) -> str:
  """Returns the command that runs `stage`."""
  return (
    f'python -m experiments.{stage} --config=configs/{config.env.kind}.py:{config.preset} '
    f'--workdir={workdir}'
  )


def base_params(config: Config, workdir: str) -> Params:
  """Restores the pretrained model, or says which command makes it."""
  return checkpoint.restore_params(
    stage_dir(workdir, 'pretrain'),
    expect=fingerprint(config, 'pretrain'),
    hint='run: ' + command(config, workdir, 'pretrain'),
  )


def metacontroller_params(config: Config, workdir: str) -> Params:
  """Restores the metacontroller that `discover` selected, or says which command makes it."""
  return checkpoint.restore_params(
    stage_dir(workdir, 'discover', 'selected'),
    hint='run: ' + command(config, workdir, 'discover'),
  )


def read_result(workdir: str, *parts: str) -> dict[str, Any] | None:
  """Returns what a stage wrote, or None."""
  path = os.path.join(workdir, *parts, 'result.json')
  if not os.path.exists(path):
    return None
  with open(path) as file:
    return json.load(file)


def write_result(
  config: Config, directory: str, values: Mapping[str, Any], started: float
) -> dict[str, Any]:
  """Writes a stage's `result.json` with everything needed to make it again; replaces it at once.

  Args:
    config: the whole config.
    directory: the stage's.
    values: numbers, arrays and curves.
    started: `time.time()` at the start of the stage.
  """
  result = {
    **jax.tree.map(_plain, dict(values)),
    'seed': config.seed,
    'commit': _commit(),
    'device': f'{jax.devices()[0].device_kind} x {jax.device_count()}',
    'jax': jax.__version__,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'seconds': round(time.time() - started, 1),
    'config': json.loads(config.to_json_best_effort()),
  }
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, 'result.json')
  with open(path + '.tmp', 'w') as file:
    json.dump(result, file, indent=1)
  os.replace(path + '.tmp', path)
  shown = {k: v for k, v in result.items() if isinstance(v, (int, float))}
  logging.info('%s: %s', path, ' '.join(f'{k}={v:.4g}' for k, v in shown.items()))
  return result


def _plain(value: Any) -> Any:
  if isinstance(value, (jax.Array, np.ndarray, np.generic)):
    return np.asarray(value).tolist()
  return value


def _commit() -> str:
  here = os.path.dirname(os.path.abspath(__file__))
  git = ['git', '-C', here, 'describe', '--always', '--dirty', '--abbrev=12']
  done = subprocess.run(git, capture_output=True, text=True, check=False)
  return done.stdout.strip() or 'unknown'


def success_rate(
  run: Callable[[Key], Any], key: Key, episodes: int, batch: int
) -> dict[str, float]:
  """Runs batches of episodes until there are `episodes`; returns success and its standard error."""
  returns = np.concatenate(
    [np.asarray(run(k).returns) for k in jax.random.split(key, -(-episodes // batch))]
  )
  error = float(returns.std() / np.sqrt(len(returns)))
  return {'success': float(returns.mean()), 'error': error, 'episodes': len(returns)}


def task_batch(env: Environment, batch: int) -> jax.Array:
  """Returns `batch` task indices, every task equally often as far as possible."""
  return jnp.arange(batch) % len(env.tasks.lengths)
