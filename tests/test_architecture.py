"""The tree reads one way: who imports whom, who wraps which library, how long a file may get."""

import ast
import pathlib
import posixpath

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MAX_LINES = 450

_STORY = ['types', 'models', 'control', 'metacontroller', 'rl', 'baselines']
_PROTOCOL = 'envs.environment'

# What each part of internal_rl may import beside itself: whole packages, or one module of them.
ALLOWED = {
  '__init__': [],
  'types': [],
  'envs': ['types'],
  'experts': ['types', 'envs'],
  'data': ['types', 'envs', 'experts'],
  'models': _STORY[:1],
  'control': [*_STORY[:2], _PROTOCOL],
  'metacontroller': _STORY[:3],
  'rl': [*_STORY[:4], _PROTOCOL],
  'baselines': [*_STORY[:5], _PROTOCOL],
  'analysis': [*_STORY, 'envs', 'experts', 'data'],
  'training': ['types'],
}

# Libraries behind one file, so that replacing one touches nothing else.
WRAPPED = {
  'orbax': 'internal_rl/training/checkpoint.py',
  'tensorboardX': 'internal_rl/training/metrics.py',
}


def imports(source: str, path: str):
  """Yields `(line, dotted name)` of every import in `source`; relative ones start from `path`."""
  package = list(pathlib.PurePosixPath(path).parent.parts)
  for node in ast.walk(ast.parse(source, path)):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) + 1 - node.level] if node.level else []
      base = [*base, *([node.module] if node.module else [])]
      yield from ((node.lineno, '.'.join([*base, alias.name])) for alias in node.names)


def violations(source: str, path: str) -> list[str]:
  """Returns `path:line: ...` for every import in `source` that the file at `path` may not make."""
  found = []
  top, *rest = pathlib.PurePosixPath(path).with_suffix('').parts
  for line, name in imports(source, path):
    library = name.split('.')[0]
    if path != WRAPPED.get(library, path):
      found.append(f'{path}:{line}: imports {name}; only {WRAPPED[library]} may')
    if top != 'internal_rl':
      continue
    if library in ('configs', 'experiments', 'tests'):
      found.append(f'{path}:{line}: imports {name}; the library knows nothing of {library}')
    elif library == 'internal_rl':
      part = rest[0]
      allowed = ALLOWED.get(part, [])
      inside = ''.join(f'{piece}.' for piece in name.split('.')[1:])
      if not any(inside.startswith(f'{other}.') for other in [part, *allowed]):
        others = ', '.join(allowed) or 'nothing'
        found.append(f'{path}:{line}: imports {name}; internal_rl/{part} may import only {others}')
  return found


def sources() -> dict[str, str]:
  folders = ['internal_rl', 'experiments', 'configs', 'tests']
  files = sorted(file for folder in folders for file in (ROOT / folder).rglob('*.py'))
  return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def test_dependencies_point_one_way_and_libraries_stay_wrapped():
  found = [
    violation
    for path, source in sources().items()
    if not path.startswith('tests/')
    for violation in violations(source, path)
  ]
  assert not found, '\n'.join(found)


def test_every_part_of_the_package_has_its_place_in_the_order():
  parts = {
    entry.stem
    for entry in (ROOT / 'internal_rl').iterdir()
    if entry.suffix == '.py' or (entry / '__init__.py').exists()
  }
  assert parts == set(ALLOWED)


def test_no_file_is_longer_than_a_reader_can_hold():
  lengths = {path: source.count('\n') for path, source in sources().items()}
  assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


@pytest.mark.parametrize(
  ('path', 'source', 'expected'),
  [
    ('types.py', 'import internal_rl.envs', '1: imports internal_rl.envs;'),
    ('models/hawk.py', 'x = 1\nfrom internal_rl.rl import f', '2: imports internal_rl.rl.f;'),
    ('models/hawk.py', 'def f():\n  from internal_rl import rl', '2: imports internal_rl.rl;'),
    ('models/hawk.py', 'from ..rl.policy import f', '1: imports internal_rl.rl.policy.f;'),
    ('models/hawk.py', 'from .. import envs', '1: imports internal_rl.envs;'),
    ('models/hawk.py', 'import internal_rl', '1: imports internal_rl;'),
    ('models/hawk.py', 'import internal_rl.models_old', '1: imports internal_rl.models_old;'),
    ('rl/rollout.py', 'from internal_rl.envs import ant', '1: imports internal_rl.envs.ant;'),
    ('training/loop.py', 'from internal_rl import models', '1: imports internal_rl.models;'),
    ('training/loop.py', 'import orbax.checkpoint as ocp', '1: imports orbax.checkpoint;'),
    ('analysis/report.py', 'import experiments.pipeline', '1: imports experiments.pipeline;'),
    ('analysis/report.py', 'from configs import gridworld', '1: imports configs.gridworld;'),
    ('analysis/report.py', 'from internal_rl import training', '1: imports internal_rl.training;'),
    ('unplaced/new.py', 'import internal_rl.types', '1: imports internal_rl.types;'),
    ('../experiments/collect.py', 'from orbax import checkpoint', '1: imports orbax.checkpoint;'),
    ('../experiments/collect.py', 'import tensorboardX', '1: imports tensorboardX;'),
  ],
)
def test_a_forbidden_import_is_reported_by_file_line_and_name(path, source, expected):
  path = posixpath.normpath(f'internal_rl/{path}')
  (violation,) = violations(source, path)
  assert violation.startswith(f'{path}:{expected}')


@pytest.mark.parametrize(
  ('path', 'source'),
  [
    ('rl/rollout.py', 'from internal_rl.envs.environment import Environment'),
    ('rl/rollout.py', 'from internal_rl.envs import environment'),
    ('rl/__init__.py', 'from .policy import f\nfrom . import learner'),
    ('analysis/codes.py', 'import jax\nfrom internal_rl import rl, envs\nimport internal_rl.types'),
    ('training/checkpoint.py', 'import orbax.checkpoint'),
    ('../experiments/pretrain.py', 'from internal_rl import training, models, envs'),
  ],
)
def test_an_import_along_the_order_is_allowed(path, source):
  assert violations(source, posixpath.normpath(f'internal_rl/{path}')) == []
