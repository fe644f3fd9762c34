"""Publishes a finished run: one JSON file with its config, its curves and its final numbers.

  python -m experiments.publish --config=configs/gridworld.py:small --config.seed=1 \
    --workdir=runs/small_1 --results=results

Writes `results/WORLD/PRESET/seed_N.json`. A run that differs from its preset, forced switching for
example, takes a name, `--variant=forced`, and goes into a folder of that name. The same files give
the same bytes. `python -m experiments.figures --results=results` then draws all that is published.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging

from experiments import artifacts, common, figures, published
from internal_rl.training import metrics

_VARIANT = flags.DEFINE_string('variant', '', 'Name of a run that differs from its preset.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace the file of another run.')

MAX_POINTS = 200
DIGITS = 6
RESERVED = ('figures', 'internal', 'raw')
_COMMANDS = {'reinforce/internal': 'reinforce', 'reinforce/raw': 'reinforce --raw'}
_ONCE = ('config', 'fingerprint', 'seed')  # Said once a run, not once a stage.
# Seeds of one name may differ in these. Models kept on the way are only probed, beside the last.
_MAY_DIFFER = ('seed', 'data.directory', 'pretrain.milestones')


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Publishes a workdir whose stages belong to `config`; returns what was written."""
  root, variant = flags.FLAGS.results or 'results', _VARIANT.value
  if variant in RESERVED or not re.fullmatch(r'[a-z0-9_]*', variant):
    raise ValueError(
      f'--variant={variant}: must be of lower-case letters, digits and _, and none of {RESERVED}'
    )
  results = figures.read_results(config, workdir)
  found = record(config, results, variant, seconds_by_command(workdir))
  if 'dirty' in found['commit'] or 'unknown' in found['commit']:
    logging.warning('commit %s: nobody else has the code that made this run', found['commit'])
  path = write(root, found, _OVERWRITE.value)
  logging.info('%s: %s', path, ', '.join(found['stages']))
  return found


def record(
  config: common.Config,
  results: Mapping[str, Mapping[str, Any]],
  variant: str = '',
  seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """Returns what is published of a run.

  Args:
    config: the whole config.
    results: `result.json` by stage.
    variant: the run's name if it differs from its preset.
    seconds: by command, as logged. Of a stage that was not logged, or only in part, no more is
      known than how long its last piece took.
  """
  _require_same(config, results)
  if config.discover.labelled_steps and not variant:
    raise ValueError(
      f'discover.labelled_steps={config.discover.labelled_steps}: a metacontroller that was told '
      'the true subgoals is a ceiling; give it a name of its own, --variant=labelled'
    )
  unique = lambda name: ', '.join(sorted({str(result[name]) for result in results.values()}))
  workdir = '_'.join(filter(None, [config.preset, variant, str(config.seed)]))
  own = [flag for flag in artifacts.config_flags(config) if not flag.startswith('--config.seed=')]
  seconds = dict(seconds or {})
  # The pipeline's time is that of its stages.
  for stage, result in ({} if 'pipeline' in seconds else results).items():
    command = _COMMANDS.get(stage, stage)
    seconds[command] = max(seconds.get(command, 0.0), result['seconds'])
  stages = {
    stage: {name: value for name, value in result.items() if name not in _ONCE}
    for stage, result in results.items()
  }
  return {
    'world': config.env.kind,
    'preset': config.preset,
    'variant': variant,
    'seed': config.seed,
    'commit': unique('commit'),
    'device': unique('device'),
    'date': max(result['date'] for result in results.values()),
    'seconds': compact(seconds),
    'flags': own,  # Those of every seed.
    'command': artifacts.command(config, f'runs/{workdir}', 'pipeline'),
    'config': artifacts.mapping(config),
    'stages': compact(artifacts.plain(stages)),
  }


def _require_same(config: common.Config, results: Mapping[str, Mapping[str, Any]]) -> None:
  """Refuses a config that any stage did not have, in the sections that the stage read."""
  asked = artifacts.mapping(config)
  for stage, result in results.items():

    def read(whole, stage=stage):
      return artifacts.with_measurement(artifacts.sections_of(whole, stage), whole, stage)

    if differ := _differing(read(result['config']), read(asked)):
      raise ValueError(f'{stage} was run with another config: {"; ".join(differ)}; give that one')


def seconds_by_command(workdir: str) -> dict[str, float]:
  """Returns how long each command has run in a workdir, in all its pieces, where that is known."""
  path, total = os.path.join(workdir, common.SECONDS), dict[str, float]()
  for row in metrics.read_jsonl(path) if os.path.exists(path) else []:
    total[row['command']] = total.get(row['command'], 0.0) + row['seconds']
  return {name: seconds for name, seconds in total.items() if name not in ('figures', 'publish')}


def compact(value: Any, name: str = '') -> Any:
  """Rounds floats to `DIGITS` significant digits, and thins every `curve` to `MAX_POINTS`."""
  if isinstance(value, Mapping):
    if name == 'curve':
      value = {field: thinned(column) for field, column in value.items()}
    return {field: compact(item, field) for field, item in value.items()}
  if isinstance(value, list):
    return [compact(item) for item in (thinned(value) if name == 'curve' else value)]
  return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def thinned(points: Sequence[Any]) -> list[Any]:
  """Returns at most `MAX_POINTS` of the points, evenly spaced, first and last among them."""
  count = min(len(points), MAX_POINTS)
  return [points[i * (len(points) - 1) // max(count - 1, 1)] for i in range(count)]


def write(root: str | os.PathLike[str], found: Mapping[str, Any], overwrite: bool = False) -> str:
  """Writes a record where it belongs; returns the path.

  Raises:
    ValueError: other seeds of the same name have another config, or the file is another run's.
  """
  directory = os.path.join(root, found['world'], found['preset'], found['variant'])
  path = os.path.join(directory, f'seed_{found["seed"]}.json')
  for other in published.read_folder(directory):
    if other['seed'] == found['seed']:
      differ = [] if overwrite else _lost(other, found)
      cure = 'give --overwrite to replace it'
    else:
      differ = _differing(other['config'], found['config'])
      cure = 'give this run a name of its own with --variant'
    if differ:
      raise ValueError(
        f'{directory}/seed_{other["seed"]}.json is of another run: {"; ".join(differ)}; {cure}'
      )
  text = json.dumps(found, separators=(',', ':'), allow_nan=False, ensure_ascii=False)
  artifacts.write_bytes(path, f'{text}\n'.encode())
  return path


def _lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns what would be lost if `new` took the place of `old`; of stages to come, nothing."""
  lost = _differing(old['config'], new['config'])
  for stage, result in old['stages'].items():
    if stage not in new['stages']:
      lost.append(f'it has {stage}, this run has not')
    elif result['commit'] != new['stages'][stage]['commit']:
      commit = new['stages'][stage]['commit']
      lost.append(f'its {stage} is of commit {result["commit"]}, this one of {commit}')
    elif missing := sorted(result.keys() - new['stages'][stage].keys()):
      lost.append(f'its {stage} has {", ".join(missing)}, that of this run has not')
  return lost


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns the fields of the config in which two runs differ, save those that may."""
  old, new = artifacts.flat(old), artifacts.flat(new)
  return [
    f'{name}: it has {old.get(name)!r}, this run {new.get(name)!r}'
    for name in sorted({*old, *new})
    if old.get(name) != new.get(name) and name not in _MAY_DIFFER
  ]


if __name__ == '__main__':
  common.main(run)
