"""What every binary shares: its flags, and the wiring from config to objects."""

import dataclasses
import functools
import json
import os
import sys
import time
import zlib
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
from internal_rl.envs.tasks import FAMILIES, TaskFamily
from internal_rl.experts.gridworld import GridworldExpert
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.models.heads import BernoulliHead, CategoricalGridHead, CategoricalHead
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.policy import CodePolicy
from internal_rl.rl.rollout import InternalRollout
from internal_rl.training import loop
from internal_rl.training import state as state_lib
from internal_rl.types import Key

Run = Callable[[Config, str], Mapping[str, Any]]
STORES = {False: 'D', True: 'D_star'}
SECONDS = 'seconds.jsonl'

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/gridworld.py:quickstart', 'FILE:PRESET, see configs/.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where this run reads and writes everything.')


def main(run: Run, instead: str = '') -> None:
  """Runs one stage as an absl binary.

  Args:
    run: the stage.
    instead: a flag that may be given in place of the workdir, which is None then.
  """
  if instead:
    flags.mark_flags_as_mutual_exclusive(['workdir', instead], required=True)
  else:
    flags.mark_flag_as_required('workdir')

  def start(argv):
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    logging.get_absl_handler().addFilter(_is_ours)
    started = time.time()
    try:
      run(_CONFIG.value, _WORKDIR.value)
    finally:  # Preempted ones count too.
      if _WORKDIR.value and os.path.isdir(_WORKDIR.value):
        _log_seconds(_WORKDIR.value, time.time() - started)

  app.run(start)


def _log_seconds(workdir: str, seconds: float) -> None:
  """Appends how long this command ran, so that a stage in many pieces has its time all the same."""
  name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
  command = ' '.join([name, *(flag for flag in sys.argv[1:] if flag == '--raw')])
  with open(os.path.join(workdir, SECONDS), 'a') as file:
    file.write(json.dumps({'command': command, 'seconds': round(seconds, 1)}) + '\n')


def _is_ours(record) -> bool:
  """Keeps what orbax says of every file it writes out of the log, but none of its warnings."""
  return record.levelno >= logging.converter.STANDARD_WARNING or 'orbax' not in record.pathname


# From config to objects.


def environment(config: Config, task_names: tuple[str, ...] = (), time_limit: int = 0) -> Gridworld:
  """Returns the world, with its pretraining tasks unless others are named."""
  if config.env.kind != 'gridworld':
    raise ValueError(f"env.kind={config.env.kind!r}: must be 'gridworld'")
  env = Gridworld(
    grid_size=config.env.grid_size,
    num_objects=config.env.num_objects,
    num_walls=config.env.num_walls,
    time_limit=time_limit or config.env.time_limit,
    family=family(config),
    task_names=task_names,
  )
  require_solvable(env)
  return env


def family(config: Config) -> TaskFamily:
  """Returns the world's subgoals and tasks."""
  if config.env.family not in FAMILIES:
    raise ValueError(f'env.family={config.env.family!r}: must be one of {sorted(FAMILIES)}')
  return FAMILIES[config.env.family]


@functools.lru_cache
def require_solvable(env: Any) -> None:
  """Refuses a world in which `reset` would look for a solvable layout for ever, or nearly so."""
  drawn, count = dataclasses.replace(env, resample=False), 1000
  with jax.ensure_compile_time_eval():  # The first to ask may be a function under trace.
    keys = jax.random.split(jax.random.key(0), count)
    _, unsolvable = jax.jit(jax.vmap(drawn.sample_layout))(keys)
    possible = not unsolvable.all()
  if not possible:
    raise ValueError(
      f'env.grid_size={env.grid_size}: of {count} layouts with {env.num_objects} objects and '
      f'{env.num_walls} walls, none lets every task be completed; use a larger grid or fewer walls'
    )


def post_training_environment(config: Config) -> Gridworld:
  """Returns the world with the one task that no demonstration solves."""
  task = family(config).post_training
  return environment(config, (task,), config.reinforce.time_limit)


def expert(config: Config) -> GridworldExpert:
  """Returns the demonstrator of the pretraining tasks."""
  return GridworldExpert(environment(config), config.expert.epsilon)


def clean_expert(config: Config) -> GridworldExpert:
  """Returns the demonstrator of `D*`, on which controllers are trained: no noise (App. C.1.1)."""
  return GridworldExpert(environment(config), 0.0)


def demonstrator(config: Config, clean: bool = False) -> Demonstrations:
  """Returns what generates `D`, or `D*`."""
  return Demonstrations(clean_expert(config) if clean else expert(config), config.data.horizon)


def demonstrations(config: Config, clean: bool = False) -> Demonstrations:
  """Returns the source of `D`, or of `D*`: the store in `data.directory` if one is named."""
  source, directory = demonstrator(config, clean), config.data.directory
  if not directory:
    return source
  return source.opened(os.path.join(directory, STORES[clean]), described(source))


def described(source: Demonstrations) -> dict[str, Any]:
  """Returns what a store records of how it was made."""
  env = dataclasses.asdict(source.expert.env)
  return json.loads(
    json.dumps({'env': env, 'epsilon': source.expert.epsilon, 'horizon': source.horizon})
  )


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
    embedding_scale=model.embedding_scale,
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


def optimiser(section: Config, learning_rate: float | None = None, gradient_steps: int = 1):
  """Returns a stage's optimiser; `gradient_steps` is how many of its steps make up one update."""
  return state_lib.optimiser(
    section.learning_rate if learning_rate is None else learning_rate,
    kind=section.optimiser,
    weight_decay=section.weight_decay,
    schedule=section.schedule,
    warmup_steps=section.warmup_steps * gradient_steps,
    total_steps=section.steps * gradient_steps,
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


def key_for(config: Config, *stream: str | int) -> Key:
  """Returns the key of a stream such as ('control', layer, 'final').

  A function of the config's seed and the stream's name alone. Streams are independent: no key of
  one can be folded or split into a key of another.
  """
  numbers = (zlib.crc32(repr(part).encode()) for part in stream)
  return functools.reduce(jax.random.fold_in, numbers, jax.random.key(config.seed))


def internal_rollout(
  config: Config, env: Environment, policy: CodePolicy, max_decisions: int | None = None
) -> InternalRollout:
  """Returns internal RL's rollout; with open gates (App. C.4.1) it decides at every raw step."""
  forced = config.discover.gate == 'open'
  return InternalRollout(
    env,
    base_model(config),
    metacontroller(config),
    policy,
    config.metacontroller.threshold,
    # Every raw step is a decision then, and all of them have to be learnt from.
    max_decisions=None if forced else max_decisions,
    forced=forced,
  )


def success_rate(
  run: Callable[[Key], Any], key: Key, episodes: int, batch: int
) -> dict[str, float]:
  """Runs batches of episodes until there are `episodes`, and counts successes.

  Returns:
    `success`, the share; `low` and `high`, its 95 % Wilson interval, which does not shrink to
    nothing where none succeeds; `error`, its standard error; `progress`, colours visited.
  """
  batches = [run(k) for k in jax.random.split(key, -(-episodes // batch))]
  returns = np.concatenate([np.asarray(found.returns) for found in batches])
  progress = np.mean([np.mean(found.final.progress.stage) for found in batches])
  n, share, z = len(returns), float(returns.mean()), 1.96
  centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  return {
    'success': share,
    'low': float(centre - half),
    'high': float(centre + half),
    'error': float(np.sqrt(share * (1 - share) / n)),
    'progress': float(progress),
    'episodes': n,
  }


def task_batch(env: Environment, batch: int) -> jax.Array:
  """Returns `batch` task indices, every task equally often as far as possible."""
  return jnp.arange(batch) % len(env.tasks.lengths)
