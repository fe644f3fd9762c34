"""Checkpoints: atomic, portable, checked on the way back. The only file that knows orbax.

A run's `workdir` holds `latest/<step>` (the last two), `best/<step>` (the best by an evaluation
metric) and `milestone/<step>` (all that were asked for). Each is one orbax directory: the leaves as
host arrays by dotted name, which any device or topology can read, and JSON with the step, the
config's fingerprint, and type, shape and CRC-32 of every leaf. Orbax writes beside the final name
and then renames, so a kill at any instant leaves whole checkpoints only.
"""

import json
import os
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import LatestN

from internal_rl.training.state import is_key, named_leaves, place

# How many of each are kept.
_KINDS: dict[str, int | None] = {'latest': 2, 'best': 1, 'milestone': None}
_MAX_NAMED = 10


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none of those that are there can be read."""


class CheckpointMismatchError(ValueError):
  """A checkpoint is sound but belongs to another config, model or optimiser."""


class Checkpoints:
  """The checkpoints of one run; use as a context manager.

  Attributes:
    workdir: the run's directory, absolute.
    steps: the newest good step of each kind, as far as there is one.
    best_value: the evaluation metric of the best checkpoint, None before there is one.
  """

  def __init__(self, workdir: str, fingerprint: Mapping[str, Any] | None = None):
    """`fingerprint`: JSON-like config that a checkpoint must share; None accepts any checkpoint."""
    self.workdir = os.path.abspath(workdir)
    self._fingerprint = None if fingerprint is None else _as_json(fingerprint)
    self._managers: dict[str, ocp.CheckpointManager] = {}
    self.steps: dict[str, int] = {}
    self.best_value: float | None = None

  def restore(self, template: PyTree) -> PyTree | None:
    """The newest good checkpoint of any kind, or None if there is none at all.

    Newer ones that cannot be read are reported and renamed to `<step>.corrupt-<time>`.

    Args:
      template: a state with the structure, dtypes and shardings wanted; its values are not read.

    Raises:
      CheckpointMismatchError: naming the fields of the config, or the leaves, that differ.
      CheckpointError: if there are checkpoints and none can be read.
    """
    found = [(step, kind) for kind in _KINDS for step in _steps(os.path.join(self.workdir, kind))]
    bad = []
    # At the same step the latest one first: the sort is stable.
    for step, kind in sorted(found, key=lambda checkpoint: -checkpoint[0]):
      path = os.path.join(self.workdir, kind, str(step))
      loaded = _try_read(path, self._fingerprint)
      if loaded is None:
        bad.append(path)
        continue
      state = _fill(template, loaded[0], loaded[1]['leaves'], path)
      for path in bad:
        _set_aside(path)
      self.steps[kind] = step
      self._read_best()
      return state
    if found:
      raise CheckpointError(
        f'none of the checkpoints in {self.workdir} can be read: {", ".join(bad)}. Restore '
        'one from a backup, or rename the directory to start again from nothing'
      )
    return None

  def save(
    self, state: PyTree, step: int, *, kind: str = 'latest', value: float | None = None
  ) -> None:
    """Writes `state`, then drops the checkpoints of this kind that it supersedes. Blocks.

    Args:
      state: pytree of arrays; in a multi-host run each must be whole on every host.
      step: must exceed the steps that were saved before.
      kind: 'latest', 'best' or 'milestone'.
      value: the evaluation metric, for 'best'.

    Raises:
      CheckpointError: if the disk is full or unwritable; earlier checkpoints stay as they were.
    """
    leaves = {name: _to_host(leaf) for name, leaf in named_leaves(state).items()}
    metadata = {
      'step': step,
      'value': value,
      'fingerprint': self._fingerprint,
      'leaves': {
        name: {'spec': spec(leaf), 'crc32': _crc32(leaves[name])}
        for name, leaf in named_leaves(state).items()
      },
      # Orbax refuses arrays without elements.
      'empty': {
        name: {'dtype': str(leaf.dtype), 'shape': leaf.shape}
        for name, leaf in leaves.items()
        if not leaf.size
      },
    }
    stored = {name: leaf for name, leaf in leaves.items() if leaf.size}
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(stored), metadata=ocp.args.JsonSave(metadata)
    )
    directory = os.path.join(self.workdir, kind)
    try:
      self._manager(kind).save(step, args=args, force=True)
    except Exception as error:  # Orbax and tensorstore report a full disk in many types.
      raise CheckpointError(
        f'could not save step {step} to {directory} ({type(error).__name__}: {error}). Earlier '
        f'checkpoints are intact: {_steps(directory) or "none yet"}. Make space or check '
        'permissions, then run the same command again to resume'
      ) from error
    self.steps[kind] = step
    if kind == 'best':
      self.best_value = value

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: Any) -> None:
    for manager in self._managers.values():
      manager.close()

  def _manager(self, kind: str) -> ocp.CheckpointManager:
    """Made on the first save, so that reading a run never writes to it."""
    if kind not in self._managers:
      options = ocp.CheckpointManagerOptions(
        preservation_policy=LatestN(_KINDS[kind]),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
      )
      directory = os.path.join(self.workdir, kind)
      self._managers[kind] = ocp.CheckpointManager(directory, options=options)
    return self._managers[kind]

  def _read_best(self) -> None:
    for step in _steps(os.path.join(self.workdir, 'best')):
      loaded = _try_read(os.path.join(self.workdir, 'best', str(step)), self._fingerprint)
      if loaded is not None:
        self.steps['best'], self.best_value = step, loaded[1]['value']
        return


def restore_params(
  directory: str,
  *,
  which: str = 'best',
  step: int | None = None,
  expect: Mapping[str, Any] | None = None,
  hint: str = '',
) -> PyTree:
  """The parameters that a run, or `save_params`, left in `directory`.

  If the checkpoint asked for cannot be read, the next older one is taken, with a warning; in place
  of a run's best one, its latest; in place of one of a given step, none.

  Args:
    directory: a run's workdir, or what `save_params` wrote.
    which: 'best' by the run's evaluation metric, 'latest', or 'milestone'.
    step: of a milestone; None for the newest.
    expect: part of the fingerprint that must agree, such as `{'model': {...}}`.
    hint: how to make the checkpoint, to end the message of a FileNotFoundError.

  Returns:
    Nested dicts of arrays on the default device.

  Raises:
    FileNotFoundError: if there is no such checkpoint.
    CheckpointMismatchError: naming the fields of `expect` that differ.
    CheckpointError: if there are checkpoints and none can be read.
  """
  leaves, _ = _load(directory, which, step, expect and _as_json(expect), hint)
  flat = {tuple(name.split('.')): leaf for name, leaf in leaves.items()}
  return jax.tree.map(jnp.asarray, unflatten_dict(flat)['params'])


def read_metadata(directory: str, *, which: str = 'best', hint: str = '') -> dict[str, Any]:
  """A checkpoint's `step`, evaluation `value` and `fingerprint`; raises as `restore_params`."""
  _, metadata = _load(directory, which, None, None, hint)
  return {name: metadata[name] for name in ('step', 'value', 'fingerprint')}


def milestones(directory: str) -> list[int]:
  """The steps of the milestones that a run left in `directory`, in order."""
  return _steps(os.path.join(os.path.abspath(directory), 'milestone'))[::-1]


def save_params(directory: str, params: PyTree, metadata: Mapping[str, Any]) -> None:
  """Writes parameters alone, small enough to ship; `restore_params(directory)` reads them back.

  Args:
    directory: replaced in one step if it has parameters already.
    params: nested dicts of arrays.
    metadata: JSON-like; comes back as the `fingerprint` of `read_metadata`.

  Raises:
    CheckpointError: if it cannot be written.
  """
  best = os.path.join(os.path.abspath(directory), 'best')
  step = max(_steps(best), default=-1) + 1
  with Checkpoints(directory, metadata) as checkpoints:
    checkpoints.save({'params': params}, step, kind='best')
  for folder, _, files in os.walk(best):
    if 'commit_success.txt' in files:  # Not needed to read, and names this machine's path.
      os.remove(os.path.join(folder, 'commit_success.txt'))


def checksums(tree: PyTree) -> dict[str, str]:
  """CRC-32 of every leaf by dotted name."""
  return {name: f'{_crc32(_to_host(leaf)):08x}' for name, leaf in named_leaves(tree).items()}


def spec(leaf: Any) -> str:
  """Type and shape of an array, such as `float32[3,4]` or `key<fry>[]`."""
  return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'


def _load(
  directory: str, which: str, step: int | None, expect: Mapping[str, Any] | None, hint: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Leaves and metadata of the newest good checkpoint of one kind, or of what may replace it."""
  if which not in _KINDS:
    raise ValueError(f'which={which!r}: must be one of {", ".join(_KINDS)}')
  folders = [os.path.join(os.path.abspath(directory), which)]
  if which == 'best':  # Of a finished run it cannot be made again; its last state is next best.
    folders.append(os.path.join(os.path.abspath(directory), 'latest'))
  paths = [
    os.path.join(folder, str(found))
    for folder in folders
    for found in _steps(folder)
    if step in (None, found)
  ]
  if not paths:
    which_step = '' if step is None else f' of step {step}'
    raise FileNotFoundError(f'no checkpoint{which_step} in {folders[0]}; {hint}'.removesuffix('; '))
  for path in paths:
    loaded = _try_read(path, expect, partial=True)
    if loaded is not None:
      if os.path.dirname(path) != folders[0]:
        logging.warning('no checkpoint in %s can be read: taking %s in its place', folders[0], path)
      return loaded
  raise CheckpointError(
    f'no checkpoint in {folders[0]} can be read (tried {", ".join(paths)}); '
    f'{hint or "make it again"}'
  )


def _try_read(
  path: str, fingerprint: Mapping[str, Any] | None, partial: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
  """Leaves and metadata of one checkpoint; None, with a warning, if any of it is damaged."""
  handler = ocp.CompositeCheckpointHandler(
    state=ocp.PyTreeCheckpointHandler(), metadata=ocp.JsonCheckpointHandler()
  )
  try:
    with ocp.Checkpointer(handler) as reader:
      args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
      metadata = reader.restore(path, args=args).metadata
      if fingerprint is not None:
        _refuse_other_config(path, metadata['fingerprint'], fingerprint, partial)
      args = ocp.args.Composite(state=ocp.args.PyTreeRestore())
      leaves = reader.restore(path, args=args).state
    for name, empty in metadata.get('empty', {}).items():
      leaves[name] = np.zeros(**empty)
    expected = {name: leaf['crc32'] for name, leaf in metadata['leaves'].items()}
    actual = {name: _crc32(leaf) for name, leaf in leaves.items()}
    if damaged := [name for name in expected if actual.get(name) != expected[name]]:
      raise ValueError(f'checksum differs: {", ".join(damaged[:_MAX_NAMED])}')
  except CheckpointMismatchError:
    raise
  except Exception as error:  # Whatever damage makes orbax raise; there is no common type.
    logging.warning('CANNOT READ CHECKPOINT %s (%s: %s)', path, type(error).__name__, error)
    return None
  return leaves, metadata


def _refuse_other_config(
  path: str, stored: Mapping[str, Any] | None, given: Mapping[str, Any], partial: bool
) -> None:
  """Compares fingerprints field by field; `partial` looks at the fields of `given` only."""
  old_fields: dict[str, Any] = flatten_dict(dict(stored or {}), sep='.')
  new_fields: dict[str, Any] = flatten_dict(dict(given), sep='.')
  nothing = object()
  show = lambda value: 'nothing' if value is nothing else repr(value)
  different = []
  for name in sorted(new_fields if partial else new_fields | old_fields):
    old, new = old_fields.get(name, nothing), new_fields.get(name, nothing)
    if old != new and repr(old) != repr(new):  # NaN equals NaN here, and 1 equals 1.0.
      different.append(f'{name}: checkpoint has {show(old)}, config says {show(new)}')
  _refuse(path, different)


def _fill(
  template: PyTree, leaves: Mapping[str, np.ndarray], stored: Mapping[str, Any], path: str
) -> PyTree:
  """`template` with the checkpoint's values, placed as the template is."""
  wanted = named_leaves(template)
  if {name.split('.')[0] for name in stored} == {'params'} and stored.keys() < wanted.keys():
    raise CheckpointMismatchError(
      f'{path} holds parameters alone, as `save_params` ships them, and no training goes on from '
      'those. Run the next stage on them, or train in another --workdir'
    )
  different = []
  for name in sorted(wanted.keys() | stored.keys()):
    old = stored[name]['spec'] if name in stored else 'nothing'
    new = spec(wanted[name]) if name in wanted else 'nothing'
    if old != new:
      different.append(f'{name}: checkpoint has {old}, this run needs {new}')
  _refuse(path, different)
  values = [_to_device(leaves[name], leaf) for name, leaf in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(template), values)


def _refuse(path: str, different: list[str]) -> None:
  if different:
    more = f'; and {len(different) - _MAX_NAMED} more' if len(different) > _MAX_NAMED else ''
    raise CheckpointMismatchError(
      f'{path} belongs to another run. {"; ".join(different[:_MAX_NAMED])}{more}. Use another '
      '--workdir or the original config'
    )


def _set_aside(path: str) -> None:
  """Frees the step's name for the run to write again, without destroying evidence."""
  if jax.process_index() == 0:
    aside = f'{path}.corrupt-{time.time_ns()}'
    os.rename(path, aside)
    logging.warning('FALLING BACK to an earlier checkpoint; the damaged one is now %s', aside)


def _steps(folder: str) -> list[int]:
  """Steps of the checkpoints in a folder, newest first."""
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _to_host(leaf: Any) -> np.ndarray:
  return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _to_device(value: np.ndarray, like: jax.Array) -> jax.Array:
  if is_key(like):
    wrapped = jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like))
    return place(wrapped, like.sharding)
  return place(value, like.sharding)


def _crc32(value: np.ndarray) -> int:
  return zlib.crc32(value.tobytes())


def _as_json(tree: Mapping[str, Any]) -> dict[str, Any]:
  """What JSON gives back: tuples are lists, keys are strings."""
  return json.loads(json.dumps(tree))
