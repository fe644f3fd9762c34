"""What stages leave in a workdir and find there: checkpoints and results, each with its config."""

import datetime
import importlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments import common
from experiments.common import Config
from internal_rl.data.demonstrations import Demonstrations
from internal_rl.envs.environment import Pinpad
from internal_rl.rl.internal_env import Frozen
from internal_rl.training import checkpoint
from internal_rl.types import Params

_BASE = ('env', 'expert', 'data', 'model', 'pretrain')
_DISCOVERY = (*_BASE, 'metacontroller', 'discover')
# The sections of the config that decide what a stage ends in.
SECTIONS = {
  'expert': ('env', 'expert'),
  'collect': ('env', 'expert', 'data'),
  'pretrain': _BASE,
  'probe': (*_BASE, 'probe'),
  'control': (*_BASE, 'control'),
  'discover': _DISCOVERY,
  'reinforce/internal': (*_DISCOVERY, 'policy', 'reinforce'),
  'reinforce/raw': (*_BASE, 'reinforce'),
  'evaluate': (*_DISCOVERY, 'evaluate'),
}
_DEMONSTRATION = {'expert', 'collect'}
# May change between runs: how often and how closely to look, and where data are; a stage that is
# under way knows its store by the checksum.
_FREE = {
  'checkpoint_every',
  'eval_every',
  'eval_batch',
  'milestones',
  'updates_per_call',
  'tolerances',
}
_FREE_OF_DATA = {'directory', 'episodes', 'episodes_per_shard', 'collect_batch'}
# Stages with success rates.
_MEASURED = {'control', 'discover', 'reinforce/internal', 'reinforce/raw', 'evaluate'}
# One run each, or one measurement: a single run does not depend on which others there are.
_AXES = {'layers', 'gains', 'learning_rates', 'raw_learning_rates', 'seeds'}


def fingerprint(config: Config, stage: str, **run: Any) -> dict[str, Any]:
  """Returns what decides a stage's outcome: no checkpoint is continued with another.

  Args:
    config: the whole config.
    stage: a key of `SECTIONS`.
    **run: which of the stage's runs; without any, all of them together.
  """
  left_out = _FREE | (_AXES if run else set())

  def keep(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    free = left_out | (_FREE_OF_DATA if name == 'data' else set())
    return {field: value for field, value in section.items() if field not in free}

  sections = sections_of(mapping(config), stage)
  kept = {name: keep(name, section) for name, section in sections.items()}
  return {'seed': config.seed, **kept, **run}


def sections_of(whole: Mapping[str, Any], stage: str) -> dict[str, dict[str, Any]]:
  """Returns the sections of a config, as a mapping, that a stage reads.

  Where the metacontroller acts says nothing about stages without one: one base model serves all
  layers. Nor does the frame of observations about those of the expert, which reads none.
  """
  found = {name: dict(whole[name]) for name in SECTIONS[stage]}
  if stage in _DEMONSTRATION:
    found['env'].pop('frame', None)
  if 'metacontroller' not in found and 'model' in found:
    del found['model']['controlled_layer']
  return found


def with_measurement(
  sections: Mapping[str, Any], whole: Mapping[str, Any], stage: str
) -> dict[str, Any]:
  """Adds to a stage's sections how long and how many the episodes of its success rates are."""
  if stage not in _MEASURED:
    return dict(sections)
  unseen_task = {'time_limit': whole['reinforce']['time_limit']}
  episodes = {name: whole['evaluate'][name] for name in ('episodes', 'batch')}
  return {'reinforce': unseen_task, 'evaluate': episodes, **sections}


def stage_dir(workdir: str, *parts: str) -> str:
  """Returns where a stage, or a part of it, lives."""
  return os.path.join(workdir, *parts)


def command(config: Config, workdir: str, stage: str) -> str:
  """Returns the command that runs `stage` with this config."""
  return ' '.join([f'python -m experiments.{stage}', *config_flags(config), f'--workdir={workdir}'])


def config_flags(config: Config) -> list[str]:
  """Returns the flags that make this config: its preset, and every field that differs from it."""
  file = importlib.import_module(f'configs.{config.env.kind}')
  preset, chosen = flat(mapping(file.get_config(config.preset))), flat(mapping(config))
  return [
    f'--config=configs/{config.env.kind}.py:{config.preset}',
    *(
      shlex.quote(f'--config.{name}={_argument(value)}')
      for name, value in chosen.items()
      if value != preset[name]
    ),
  ]


def _argument(value: Any) -> str:
  """Returns a field as it stands on a command line; without spaces, which a shell splits at."""
  return str(tuple(value)).replace(' ', '') if isinstance(value, list) else str(value)


def expert(config: Config, workdir: str, clean: bool = False, env: Pinpad | None = None) -> Any:
  """Returns `common.expert`; one that is trained is restored, or says which command trains it."""
  params: Params = None
  if common.learns_expert(config):
    params = checkpoint.restore_params(
      stage_dir(workdir, 'expert'),
      expect=fingerprint(config, 'expert'),
      hint='run: ' + command(config, workdir, 'expert'),
    )
  return common.expert(config, clean, env, params)


def demonstrator(config: Config, workdir: str, data: Demonstrations) -> Any:
  """Returns the trained expert that collected `data`, or None if another workdir has it."""
  if not common.learns_expert(config) or data.store is None:
    return None
  try:
    found = expert(config, workdir)
  except (FileNotFoundError, checkpoint.CheckpointError):
    return None
  collected_by = data.store.manifest['config'].get('params')
  return found if checkpoint.checksums(found.params) == collected_by else None


def data_dir(config: Config, workdir: str) -> str:
  """Returns where collected demonstrations lie, by default in the workdir."""
  return os.path.expanduser(config.data.directory) or stage_dir(workdir, 'data')


def demonstrations(config: Config, workdir: str, clean: bool = False) -> Demonstrations:
  """Returns the source of `D`, or of `D*`.

  They are read from a store where `data.directory` names one, and where the expert is trained.

  Raises:
    FileNotFoundError: there is no store; says which command collects one.
    ValueError: it was collected otherwise.
  """
  source = Demonstrations(common.expert(config, clean), config.data.horizon)
  if not (config.data.directory or common.learns_expert(config)):
    return source
  directory = os.path.join(data_dir(config, workdir), common.STORES[clean])
  try:
    return source.opened(directory, common.described(source))
  except FileNotFoundError as error:
    again = command(config, workdir, 'collect')
    raise FileNotFoundError(f'{error}; run: {again}') from error


def base_params(config: Config, workdir: str, milestone: int | None = None) -> Params:
  """Restores the pretrained model, or says which command makes it.

  Args:
    config: the whole config.
    workdir: of the run.
    milestone: updates after which it is wanted, one of `pretrain.milestones`; None for the best.
  """
  return checkpoint.restore_params(
    stage_dir(workdir, 'pretrain'),
    which='best' if milestone is None else 'milestone',
    step=milestone,
    expect=fingerprint(config, 'pretrain'),
    hint='run: ' + command(config, workdir, 'pretrain') if milestone is None else '',
  )


def discovered(config: Config, workdir: str) -> Frozen:
  """Restores what internal RL acts with, or says which command makes it.

  Returns:
    The metacontroller that `discover` selected, and its base model: the pretrained one, or the one
    that was trained along with it (App. C.4.2).
  """
  base = None if common.cotrains(config) else base_params(config, workdir)
  selected = checkpoint.restore_params(
    stage_dir(workdir, 'discover', 'selected'),
    expect=fingerprint(config, 'discover'),
    hint='run: ' + command(config, workdir, 'discover'),
  )
  return Frozen(**selected) if base is None else Frozen(base, selected)


def read_result(config: Config, workdir: str, stage: str) -> dict[str, Any] | None:
  """Returns what a stage wrote, or None.

  Raises:
    ValueError: it was made with another config; names the fields that differ.
  """
  path = os.path.join(workdir, *stage.split('/'), 'result.json')
  if not os.path.exists(path):
    return None
  with open(path) as file:
    result = json.load(file)
  wanted = flat(_decisive(config, stage))
  # Its config knows the fields that came to the fingerprint later.
  found = {**flat(result['config']), **flat(result['fingerprint'])}
  differ = [
    f'{name}: it has {found.get(name)!r}, config says {value!r}'
    for name, value in wanted.items()
    if found.get(name) != value
  ]
  if differ:
    raise ValueError(
      f'{path} was made with another config: {"; ".join(differ)}; use another --workdir or the '
      'original config, or delete the file to measure again, for what is trained is checked too'
    )
  return result


def _decisive(config: Config, stage: str) -> dict[str, Any]:
  """Returns what decides a finished stage's numbers: how it was trained, and how measured."""
  if stage not in SECTIONS:
    return {}
  sections = mapping(config)
  found = with_measurement(fingerprint(config, stage), sections, stage)
  # How much there is to train on matters where demonstrations are collected first.
  if 'data' in found and (config.data.directory or common.learns_expert(config)):
    sizes = ('episodes', 'episodes_per_shard')
    found['data'] = found['data'] | {name: sections['data'][name] for name in sizes}
  return found


def write_result(
  config: Config, workdir: str, stage: str, values: Mapping[str, Any], started: float
) -> dict[str, Any]:
  """Writes a stage's `result.json` with everything needed to make it again.

  Args:
    config: the whole config.
    workdir: of the run.
    stage: the stage, `reinforce/raw` for example; '' for the workdir itself.
    values: numbers, arrays and curves; what is not a number becomes null.
    started: `time.time()` at the start of the stage.
  """
  result = {
    **plain(dict(values)),
    'seed': config.seed,
    'commit': commit(),
    'device': f'{jax.devices()[0].device_kind} x {jax.device_count()}',
    'jax': jax.__version__,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'seconds': round(time.time() - started, 1),
    'config': mapping(config),
    'fingerprint': _decisive(config, stage),
  }
  path = os.path.join(workdir, *stage.split('/'), 'result.json')
  write_json(path, result)
  shown = {k: v for k, v in result.items() if isinstance(v, (int, float))}
  logging.info('%s: %s', path, ' '.join(f'{k}={v:.4g}' for k, v in shown.items()))
  return result


def write_json(path: str, value: Any) -> None:
  """Writes a file that exists whole or not at all."""
  write_bytes(path, json.dumps(value, indent=1, allow_nan=False).encode())


def write_bytes(path: str, data: bytes) -> None:
  """Writes a file that exists whole or not at all."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(path + '.tmp', 'wb') as file:
    file.write(data)
  os.replace(path + '.tmp', path)


def commit() -> str:
  """Returns the commit that runs, or 'unknown' outside a checkout or without git."""
  here = os.path.dirname(os.path.abspath(__file__))
  git = ['git', '-C', here, 'describe', '--always', '--dirty', '--abbrev=12']
  try:
    done = subprocess.run(git, capture_output=True, text=True, check=False)
  except OSError:
    return 'unknown'
  return done.stdout.strip() or 'unknown'


def mapping(config: Config) -> dict[str, Any]:
  """Returns a config as it is in JSON."""
  return json.loads(config.to_json_best_effort())


def plain(value: Any) -> Any:
  """Turns arrays into lists, and what JSON has no number for into null."""
  if isinstance(value, Mapping):
    return {name: plain(item) for name, item in value.items()}
  if isinstance(value, (jax.Array, np.ndarray, np.generic)):
    return plain(np.asarray(value).tolist())
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  return None if isinstance(value, float) and not np.isfinite(value) else value


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of a nested dict by dotted name."""
  found: dict[str, Any] = {}
  for name, value in tree.items():
    nested = isinstance(value, Mapping)
    found |= flat(value, f'{prefix}{name}.') if nested else {prefix + name: value}
  return found
