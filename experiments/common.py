"""What every binary shares: its flags, and the wiring from config to objects."""

import dataclasses
import functools
import importlib
import json
import math
import os
import sys
import time
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import linen as nn
from ml_collections import ConfigDict as Config
from ml_collections import config_flags

from internal_rl.data.demonstrations import Demonstrations
from internal_rl.envs.environment import Environment, Pinpad
from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.tasks import FAMILIES, TaskFamily
from internal_rl.experts.gridworld import GridworldExpert
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.models.heads import (
  BernoulliHead,
  CategoricalGridHead,
  CategoricalHead,
  GaussianHead,
)
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.policy import CodePolicy
from internal_rl.rl.rollout import InternalRollout
from internal_rl.training import loop
from internal_rl.training import state as state_lib
from internal_rl.training.checkpoint import checksums
from internal_rl.types import Key, Params

Run = Callable[[Config, str], Mapping[str, Any]]
KINDS = ('gridworld', 'ant')
STORES = {False: 'D', True: 'D_star'}
BASES = ('frozen', 'random', 'pretrained')
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
    prefer_quick_kernels(_CONFIG.value)
    started = time.time()
    try:
      run(_CONFIG.value, _WORKDIR.value)
    finally:  # Preempted ones count too.
      if _WORKDIR.value and os.path.isdir(_WORKDIR.value):
        _log_seconds(_WORKDIR.value, time.time() - started)

  app.run(start)


def prefer_quick_kernels(config: Config) -> None:
  """Tells XLA, which must not have started yet, how to compile for a CPU; nothing else changes.

  Without its fusion emitters these programs compile in half of the time, and run a fifth faster.
  Its products by YNNPACK suit small models; a model as wide as the paper's is trained a tenth
  faster with Eigen's. What XLA_FLAGS already says stays as it is. XLA ends at a flag that it does
  not know; jaxlib 0.9 to 0.11 know both.
  """
  given = os.environ.get('XLA_FLAGS', '')
  flags_to_add = {'--xla_cpu_use_fusion_emitters': 'false'}
  if config.model.width >= 256:
    flags_to_add['--xla_cpu_experimental_ynn_fusion_type'] = '-individual_dot'
  added = [f'{name}={value}' for name, value in flags_to_add.items() if name not in given]
  os.environ['XLA_FLAGS'] = ' '.join([given, *added]).strip()


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


def environment(config: Config, task_names: tuple[str, ...] = (), time_limit: int = 0) -> Pinpad:
  """Returns the world, with its pretraining tasks unless others are named."""
  if config.env.kind not in KINDS:
    raise ValueError(f'env.kind={config.env.kind!r}: must be one of {", ".join(KINDS)}')
  if config.env.kind == 'ant':
    env: Any = ant().environment(config, task_names, time_limit)
  else:
    env = Gridworld(**shared_fields(config, task_names, time_limit))
  require_solvable(env)
  return env


def shared_fields(config: Config, task_names: tuple[str, ...], time_limit: int) -> dict[str, Any]:
  """Returns the fields that all worlds have."""
  section = config.env
  return {
    'grid_size': section.grid_size,
    'num_objects': section.num_objects,
    'num_walls': section.num_walls,
    'time_limit': time_limit or section.time_limit,
    'family': family(config),
    'task_names': task_names,
  }


def ant() -> types.ModuleType:
  """Returns `experiments.ant`, whose libraries nothing but the ant needs.

  Raises:
    ModuleNotFoundError: naming the extra that brings them.
  """
  try:
    return importlib.import_module('experiments.ant')
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"env.kind='ant' needs {error.name}; run: pip install -e '.[ant]'", name=error.name
    ) from error


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


def post_training_environment(config: Config) -> Pinpad:
  """Returns the world with the one task that no demonstration solves."""
  task = family(config).post_training
  return environment(config, (task,), config.reinforce.time_limit)


def learns_expert(config: Config) -> bool:
  """Whether the world's expert is trained, and so its demonstrations collected before training."""
  return config.env.kind == 'ant'


def expert(
  config: Config, clean: bool = False, env: Pinpad | None = None, params: Params = None
) -> Any:
  """Returns the demonstrator of `D`, or, clean, of `D*`, which has no noise (App. C.1.1).

  Args:
    config: the whole config.
    clean: of `D*`, on which controllers are trained.
    env: the world, by default with the pretraining tasks.
    params: what a trained expert has learnt; without, it only renders what is stored.
  """
  env = environment(config) if env is None else env
  if isinstance(env, Gridworld):
    return GridworldExpert(env, 0.0 if clean else config.expert.epsilon)
  return ant().expert(config, env, params, noisy=not clean)


def described(source: Demonstrations) -> dict[str, Any]:
  """Returns what a store records of how it was made, as JSON."""
  record = {**source.expert.description, 'horizon': source.horizon}
  if (learnt := getattr(source.expert, 'params', None)) is not None:
    record['params'] = checksums(learnt)
  return json.loads(json.dumps(record))


def base_model(config: Config) -> SequenceModel:
  """Returns the base sequence model."""
  env, model = environment(config), config.model
  head: dict[str, Any] = {'init_scale': model.init_scale}
  observation_heads: dict[str, Callable[[], nn.Module]]
  if isinstance(env, Gridworld):
    action_head: nn.Module = CategoricalHead(env.num_actions, **head)
    cells, channels = env.grid_size**2, env.num_channels
    observation_heads = {
      'categorical': lambda: CategoricalGridHead(cells, channels, **head),
      'bernoulli': lambda: BernoulliHead(env.observation_size, **head),
    }
  else:
    head |= {'min_log_std': model.min_log_std}
    action_head = GaussianHead(env.num_actions, **head)
    observation_heads = {'gaussian': lambda: GaussianHead(env.observation_size, **head)}
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
    action_head=action_head,
    observation_head=observation_heads[model.observation_likelihood]() if predicts else None,
  )


def metacontroller(config: Config) -> Metacontroller:
  """Returns the metacontroller."""
  return Metacontroller(width=config.model.width, **config.metacontroller)


def cotrains(config: Config) -> bool:
  """Whether `discover` trains the base model along with the metacontroller (App. C.4.2)."""
  start, gate = config.discover.base, config.discover.gate
  if start not in BASES:
    raise ValueError(f'discover.base={start!r}: must be one of {BASES}')
  if start != 'frozen' and gate == 'open':
    raise ValueError(
      f"discover.gate={gate!r}: must be 'soft' or 'gumbel' with discover.base={start!r}; forced "
      'switching is a baseline of its own, on the frozen base'
    )
  return start != 'frozen'


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


def fit_config(config: Config, stage: str, evaluated: bool = True, **kwargs) -> loop.FitConfig:
  """Returns a stage's lengths and intervals; `evaluated` is False where there is no evaluation.

  Raises:
    ValueError: naming the field of the stage's section.
  """
  section = config[stage]
  try:
    return loop.FitConfig(
      steps=section.steps,
      updates_per_call=section.updates_per_call,
      eval_every=section.eval_every if evaluated else 0,
      checkpoint_every=section.checkpoint_every,
      **kwargs,
    )
  except ValueError as error:
    raise ValueError(f'{stage}.{error}') from error


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


def require_gains(name: str, gains: Sequence[float]) -> None:
  """Raises ValueError unless `gains` are different numbers above 1."""
  if len(set(gains)) < len(gains) or not all(1 < gain < math.inf for gain in gains):
    raise ValueError(f'{name}={tuple(gains)}: must be different numbers above 1')


def success_rate(
  env: Environment, run: Callable[[Key], Any], key: Key, episodes: int, batch: int
) -> dict[str, Any]:
  """Runs batches of episodes in `env` until there are `episodes`, and counts successes.

  Returns:
    What `share` does; `progress`, colours visited; `ends`, for every ending that occurred how many
    episodes came to it after 0, 1, ... colours; and where a simulation can blow up, `diverged`,
    the share of episodes that ended so.
  """
  batches = [run(k) for k in jax.random.split(key, -(-episodes // batch))]
  together = lambda *rows: np.concatenate([np.asarray(row) for row in rows])
  outcome: dict[str, Any] = share(together(*(row.returns for row in batches)))
  final = jax.tree.map(together, *(row.final for row in batches))
  stages, colours = final.progress.stage, int(env.tasks.lengths.max()) + 1
  outcome['progress'] = _mean(stages)
  ends = np.asarray(_endings_of(env, final))
  outcome['ends'] = {
    name: np.bincount(stages[ends == i], minlength=colours).tolist()
    for i, name in enumerate(env.endings)
    if (ends == i).any()
  }
  if hasattr(final, 'diverged'):
    outcome['diverged'] = _mean(final.diverged)
  return outcome


@functools.partial(jax.jit, static_argnums=0)
def _endings_of(env: Environment, final: Any) -> jax.Array:
  return jax.vmap(env.ending)(final)


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if len(values) else 0.0


def share(successes: np.ndarray) -> dict[str, Any]:
  """Returns how many of some episodes succeeded.

  Args:
    successes: 1 or 0 an episode; there may be none.

  Returns:
    `success`, the share; `low` and `high`, its 95 % Wilson interval, which does not shrink to
    nothing where none succeeds; `error`, its standard error; `episodes`.
  """
  n, z, mean = max(len(successes), 1), 1.96, _mean(successes)
  centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * np.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
  return {
    'success': mean,
    # Rounding must not take a share out of its range.
    'low': max(float(centre - half), 0.0),
    'high': min(float(centre + half), 1.0),
    'error': float(np.sqrt(mean * (1 - mean) / n)),
    'episodes': len(successes),
  }


def task_batch(env: Environment, batch: int) -> jax.Array:
  """Returns `batch` task indices, every task equally often as far as possible."""
  return jnp.arange(batch) % len(env.tasks.lengths)
