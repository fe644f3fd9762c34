"""What `publish` wrote, drawn over seeds: figures, and the table of claims in the results' README.

`results/WORLD/PRESET/seed_N.json` are the runs of a preset. Those of `results/WORLD/PRESET/NAME/`
differ from it in something: their internal RL is one more method beside the preset's own, if it is
of the same world, and the rest of their numbers stand below the preset's under their name.
`results/benchmark*.json` are speeds.
"""

import dataclasses
import functools
import glob
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from experiments import artifacts
from internal_rl.analysis import claims, drawings, report, speed
from internal_rl.analysis.claims import CLAIMS, Number, Run
from internal_rl.analysis.report import Picture

START, END = '<!-- claims: written by experiments.figures -->', '<!-- end of claims -->'
NOTHING = """### Nothing is published yet

With `C='--config=configs/gridworld.py:small --workdir=runs/small_0'`:"""

Record = Mapping[str, Any]
Records = list[dict[str, Any]]


def run(root: str | os.PathLike[str]) -> dict[str, Any]:
  """Draws every figure and writes the table; returns how many of each there are."""
  if not os.path.isdir(root):
    raise FileNotFoundError(f'--results={root}: no such directory')
  found = presets(root)
  count = sum(preset.draw(root) for preset in found)
  readme = os.path.join(root, 'README.md')
  with open(readme) as file:
    text = file.read()
  artifacts.write_bytes(readme, with_table(text, written(root, found)).encode())
  logging.info('%s: %d presets, %d figures', readme, len(found), count)
  return {'presets': len(found), 'figures': count}


# Reading.


def presets(root: str | os.PathLike[str]) -> list['Preset']:
  """Returns every preset of which something is published, by world and name."""
  found = []
  for folder in sorted(glob.glob(os.path.join(root, '*', '*', ''))):
    world, preset = folder.rstrip(os.sep).split(os.sep)[-2:]
    names = ['', *sorted(os.listdir(folder))]
    records = {name: read_folder(os.path.join(folder, name)) for name in names}
    if variants := {name: those for name, those in records.items() if those}:
      found.append(Preset(world, preset, variants))
  return found


def read_folder(folder: str) -> Records:
  """Returns the records of one folder in the order of their seeds."""
  records = []
  for path in glob.glob(os.path.join(folder, 'seed_*.json')):
    with open(path) as file:
      records.append(json.load(file))
  return sorted(records, key=lambda record: record['seed'])


def as_run(record: Record) -> dict[str, dict[str, Any]]:
  """Returns a record as its stages' `result.json` were, by stage."""
  own = {name: record[name] for name in ('seed', 'config')}
  return {stage: {**result, **own} for stage, result in record['stages'].items()}


class Preset:
  """The published runs of one preset of one world.

  Attributes:
    folder: where they lie below the root.
    first: the first record, whose world is the preset's.
    variants: records by variant, '' for the preset itself.
    runs: of the preset itself, and of each variant of its world its reinforcement as a method of
      its own.
    others: of each variant, what is neither that nor the preset's own: often nothing.
  """

  def __init__(self, world: str, preset: str, variants: dict[str, Records]):
    self.title, self.folder, self.variants = f'{world}, {preset}', f'{world}/{preset}', variants
    self.runs: list[Run] = [as_run(record) for record in variants.get('', [])]
    self.others: dict[str, list[Run]] = {}
    shared = {record['seed']: as_run(record) for record in variants.get('', [])}
    self.first = next(iter(variants.values()))[0]
    for name, records in variants.items():
      if not name:
        continue
      for record in records:
        known, run = shared.get(record['seed'], {}), as_run(record)
        new = {stage: result for stage, result in run.items() if _differs(result, known.get(stage))}
        if 'pretrain' not in new:  # The preset has said all of its base model.
          new = {stage: _of_metacontroller(result) for stage, result in new.items()}
        # In another world the unseen task is another one.
        same = record['config']['env'] == self.first['config']['env']
        methods = {s: r for s, r in new.items() if same and s.startswith('reinforce/')}
        if methods:
          self.runs.append({_method(name, s): _renamed(name, s, r) for s, r in methods.items()})
        rest = {stage: result for stage, result in new.items() if stage not in methods}
        self.others.setdefault(name, []).append(rest)

  @functools.cached_property
  def pictures(self) -> dict[str, Picture]:
    """Every figure by its file name."""
    return dict(self._pictures())

  def _pictures(self) -> Iterator[tuple[str, Picture]]:
    base_nll = [run['pretrain']['nll'] for run in self.runs if 'pretrain' in run]
    for name, runs in {'': self.runs, **self.others}.items():
      for figure, picture in drawings.draw(runs, base_nll):
        if name:
          caption = f'{name}: {picture.caption}'
          picture = dataclasses.replace(picture, caption=caption)
        yield f'{name}_{figure}.png'.lstrip('_'), picture

  def draw(self, root: str | os.PathLike[str]) -> int:
    """Writes the figures, and removes those of runs that are no longer there."""
    directory, drawn = os.path.join(root, self.folder, 'figures'), set()
    for name, picture in self.pictures.items():
      artifacts.write_bytes(os.path.join(directory, name), picture.data)
      drawn.add(name)
    for path in glob.glob(os.path.join(directory, '*.png')):
      if os.path.basename(path) not in drawn:
        os.remove(path)
    return len(drawn)

  def section(self) -> str:
    """Returns what the README says of the preset."""
    of_world = functools.partial(claims.of_world, world=self.first['world'])
    own = of_world(_ordered(claims.numbers(self.runs)))
    rows = [(row, _shell(row, self.variants)) for row in own]
    for name, runs in self.others.items():
      for row in of_world(claims.numbers(runs)):
        named = dataclasses.replace(row, claim=f'{row.claim} ({name})')
        rows.append((named, _shell(row, self.variants, name)))
    figures = [
      f'![{picture.title}]({self.folder}/figures/{name})\n\n{picture.caption}'
      for name, picture in self.pictures.items()
    ]
    files = [
      self._file(name, record) for name, records in self.variants.items() for record in records
    ]
    commands = '\n'.join(_variable(name, records) for name, records in self.variants.items())
    return '\n\n'.join(
      [
        f'### {self.title}',
        report.scale(self.first['config']),
        '\n'.join(files),
        f'```\n{commands}\n```',
        markdown(rows),
        *figures,
      ]
    )

  def _file(self, variant: str, record: Record) -> str:
    path = '/'.join(filter(None, [self.folder, variant, f'seed_{record["seed"]}.json']))
    minutes = ', '.join(f'{name} {seconds / 60:.1f}' for name, seconds in record['seconds'].items())
    return (
      f'- [{path}]({path}): commit {record["commit"]}, {record["device"]}, {record["date"][:10]}; '
      f'minutes: {minutes}'
    )


def _differs(result: Record, other: Record | None) -> bool:
  """Whether two results of one stage differ in more than their config."""
  return other is None or {**result, 'config': other['config']} != other


def _of_metacontroller(result: Record) -> dict[str, Any]:
  """Returns a result without what it says of the base model alone."""
  alone = ('floors', 'expert_success', 'base_success')
  return {name: value for name, value in result.items() if name not in alone}


def _method(variant: str, stage: str) -> str:
  """Returns the name of a variant's reinforcement among the preset's."""
  method = stage.split('/')[1]
  return f'reinforce/{variant}' if method == 'internal' else f'reinforce/{variant}_{method}'


def _renamed(variant: str, stage: str, result: dict[str, Any]) -> dict[str, Any]:
  return {**result, 'method': _method(variant, stage).split('/')[1]}


# The table.


def table(found: Sequence[Preset]) -> str:
  """Returns the sections of all presets, or that there are none."""
  if not found:
    rows = [(row, _shell(row, {})) for row in _ordered([])]
    return f'{NOTHING}\n\n{markdown(rows)}'
  return '\n\n'.join(preset.section() for preset in found)


def written(root: str | os.PathLike[str], found: Sequence[Preset]) -> str:
  """Returns all that stands in the README between the markers; `found` are `root`'s presets."""
  return '\n\n'.join([table(found), *speeds(root)])


_RIVALRY = (
  '; the other grids are empty rooms of 8 x 8 cells whose ended episodes begin anew, and PyTorch '
  'compiles nothing'
)


def speeds(root: str | os.PathLike[str]) -> list[str]:
  """Returns a section for every file that `benchmark` left there."""
  sections = []
  for path in sorted(glob.glob(os.path.join(root, 'benchmark*.json'))):
    with open(path) as file:
      found = json.load(file)
    name, config = os.path.basename(path), found['config']
    cores = f'{found["cpus"]} CPU {"core" if found["cpus"] == 1 else "cores"}'
    command = f'{found["command"].strip()}\n\n' if 'command' in found else ''
    versions = {'jax': found['jax']}
    versions |= {row['row']: row['version'] for row in found['rows'] if 'version' in row}
    sections.append(
      f'### Speed: {config["env"]["kind"]}, {config["preset"]}, {name}\n\n'
      f'{report.sizes(config)}. [{name}]({name}): commit {found["commit"]}, {found["device"]}, '
      f'{cores}, {", ".join(map(" ".join, versions.items()))}, {found["date"][:10]}. Rows of one '
      f'group took turns{_RIVALRY if len(versions) > 1 else ""}.'
      f'\n\n```\n{command}{speed.table(found["rows"])}\n```'
    )
  return sections


def with_table(text: str, found: str) -> str:
  """Returns a README with `found` between its markers.

  Raises:
    ValueError: it has not one pair of them.
  """
  pattern = f'{re.escape(START)}\n.*{re.escape(END)}'
  text, count = re.subn(pattern, lambda _: f'{START}\n\n{found}\n\n{END}', text, flags=re.DOTALL)
  if count != 1:
    raise ValueError(f'README.md: must have the lines {START} and {END}, once each')
  return text


def markdown(rows: Sequence[tuple[Number, str]]) -> str:
  """Returns rows and their commands as a table."""
  lines = ['| | claim | paper | ours | floor or bound | command |', '|---|---|---|---|---|---|']
  for row, command in rows:
    cells = (row.name, row.claim, row.paper, row.measured, row.bound, command and f'`{command}`')
    lines.append(f'| {" | ".join(cell or "–" for cell in cells)} |')
  return '\n'.join(lines)


def _ordered(rows: list[Number]) -> list[Number]:
  """Returns the rows by claim with those that are not measured, then those of no claim."""
  every = [*rows, *claims.unmeasured(rows)]
  place = lambda row: CLAIMS[row.name].stages
  order = lambda row: place(row).index(row.stage) if row.stage in place(row) else len(place(row))
  claimed = [
    row for name in CLAIMS for row in sorted((r for r in every if r.name == name), key=order)
  ]
  return [*claimed, *(row for row in rows if not row.name)]


def _shell(row: Number, variants: Mapping[str, Any], variant: str = '') -> str:
  """Returns the command that measures a row of a variant, '' where there is none."""
  stage, _, method = row.stage.partition('/')
  if method and method in variants:
    variant, method = method, ''
  flags = {'': '', 'internal': '', 'raw': ' --raw'}.get(method)
  return '' if flags is None else f'python -m experiments.{stage} ${_shell_name(variant)}{flags}'


def _shell_name(variant: str) -> str:
  """Returns the name of the shell's variable for a variant: C of the preset, else C_NAME."""
  return '_'.join(filter(None, ['C', variant.upper()]))


def _variable(variant: str, records: Records) -> str:
  """Returns the line of shell that the commands of a variant start from."""
  name, first = _shell_name(variant), records[0]
  seeds = ' '.join(str(record['seed']) for record in records)
  workdir = '_'.join(filter(None, [first['preset'], variant, '$S']))
  # A shell does not read quotes that come out of a variable.
  flags = [part for flag in first['flags'] for part in shlex.split(flag)]
  arguments = ' '.join([*flags, '--config.seed=$S', f'--workdir=runs/{workdir}'])
  return f'{name}="{arguments}"  # for S in {seeds}'
