"""Writes trajectories to disk, shard by shard, in a form that `dataset.py` reads.

No file of a finished shard is ever written again, and the manifest lists finished shards only: an
interrupted collection resumes exactly.
"""

import collections
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from internal_rl.data.dataset import MANIFEST, PyTree, checksum, named_leaves, read_manifest
from internal_rl.types import Key

# Collecting gives up when fewer are kept, once so many episodes were drawn for one shard.
MIN_KEPT, ENOUGH = 0.01, 1000
Settle = Callable[[PyTree], tuple[PyTree, dict[str, int]]]


def collect(
  directory: str | os.PathLike,
  generate: Callable[[Key], PyTree],
  num_shards: int,
  seed: int,
  config: dict[str, Any],
  settle: Settle | None = None,
  size: int = 0,
) -> None:
  """Collects `num_shards` shards, shard `i` being `generate` of a key that depends on `(seed, i)`.

  Shards that are there already are kept, so that calling again resumes an interrupted collection,
  or extends a finished one, to what an uninterrupted run would have given. One shard at a time is
  in memory. Integers are stored in the smallest signed type that holds them.

  Args:
    directory: where to; made if need be.
    generate: makes the episodes of one shard: a pytree of arrays with a leading episode axis, the
      same in structure, kinds and other axes every time.
    num_shards: shards wanted in all.
    seed: of the collection.
    config: what `generate` depends on, as JSON; recorded, and compared on resuming.
    settle: returns what is stored of generated episodes, and counts of what is worth counting,
      which the manifest sums shard by shard; `generate` then is called, with other keys, until the
      stored ones fill a shard. By default all are.
    size: episodes of a shard; with `settle` only.

  Raises:
    ValueError: if the folder holds shards of another seed or config, if shards do not match, or if
      hardly any episode is kept.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  manifest = {'seed': seed, 'config': json.loads(json.dumps(config)), 'shards': []}
  if (directory / MANIFEST).exists():
    manifest = _resume(directory, manifest)
  for index in range(len(manifest['shards']), num_shards):
    key = jax.random.fold_in(jax.random.key(seed), index)
    tree, facts = (generate(key), {}) if settle is None else _fill(generate, key, settle, size)
    leaves = {name: _narrow(np.asarray(leaf)) for name, leaf in named_leaves(jax.device_get(tree))}
    _check(leaves, manifest['shards'])
    manifest['shards'].append({**_write_shard(directory, index, leaves), **facts})
    text = json.dumps(manifest, indent=1).encode()
    _write(directory / MANIFEST, functools.partial(_write_bytes, text))


def _fill(
  generate: Callable[[Key], PyTree], key: Key, settle: Settle, size: int
) -> tuple[PyTree, dict[str, int]]:
  """Returns the first `size` episodes that are stored, and the counts until then."""
  parts: list[PyTree] = []
  counts = collections.Counter[str]()
  kept = drawn = 0
  while kept < size:
    episodes = jax.device_get(generate(jax.random.fold_in(key, len(parts))))
    stored, counted = settle(episodes)
    parts.append(stored)
    counts.update(counted)
    kept, drawn = kept + _length(stored), drawn + _length(episodes)
    if drawn >= ENOUGH and kept < MIN_KEPT * drawn:
      raise ValueError(
        f'of {drawn} episodes {kept} are successful, less than {MIN_KEPT:.0%}: too few to collect; '
        'train the expert longer'
      )
  whole = jax.tree.map(lambda *x: np.concatenate(x)[:size], *parts)
  return whole, dict(counts)


def _length(episodes: PyTree) -> int:
  return len(jax.tree.leaves(episodes)[0])


def _resume(directory: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
  manifest = read_manifest(directory)
  for name in ('seed', 'config'):
    if manifest[name] != wanted[name]:
      raise ValueError(
        f'{directory / MANIFEST}: {name}={manifest[name]!r}, but {wanted[name]!r} is being '
        'collected; choose another folder or delete this one'
      )
  return manifest


def _narrow(x: np.ndarray) -> np.ndarray:
  if not np.issubdtype(x.dtype, np.integer) or not x.size:
    return x
  types = (np.int8, np.int16, np.int32)
  fits = (t for t in types if np.iinfo(t).min <= x.min() and x.max() <= np.iinfo(t).max)
  return x.astype(next(fits, x.dtype))


def _check(leaves: dict[str, np.ndarray], shards: list[dict[str, Any]]) -> None:
  counts = {leaf.shape[:1] for leaf in leaves.values()}
  if len(counts) != 1 or counts <= {(), (0,)}:
    raise ValueError(f'generate: leading axes {counts}; every field needs the same, and not 0')
  if not shards:
    return
  kind = lambda dtype, shape: (np.dtype(dtype).kind, *shape[1:])
  stored = {name: kind(f['dtype'], f['shape']) for name, f in shards[0]['fields'].items()}
  fresh = {name: kind(leaf.dtype, leaf.shape) for name, leaf in leaves.items()}
  if stored != fresh:
    raise ValueError(f'generate: fields {fresh}, but earlier shards hold {stored}')


def _write_shard(
  directory: pathlib.Path, index: int, leaves: dict[str, np.ndarray]
) -> dict[str, Any]:
  fields = {}
  for name, leaf in leaves.items():
    path = directory / f'{index:05d}.{name}.npy'
    _write(path, functools.partial(_write_array, leaf))
    fields[name] = {
      'file': path.name,
      'dtype': leaf.dtype.str,
      'shape': list(leaf.shape),
      'sha256': checksum(path),
    }
  return {'episodes': len(next(iter(leaves.values()))), 'fields': fields}


def _write_bytes(data: bytes, stream: Any) -> None:
  stream.write(data)


def _write_array(array: np.ndarray, stream: Any) -> None:
  np.save(stream, array)


def _write(path: pathlib.Path, write: Callable[[Any], Any]) -> None:
  """Writes a file that exists whole or not at all."""
  partial = path.with_name(f'{path.name}.partial')
  with partial.open('wb') as stream:
    write(stream)
    stream.flush()
    os.fsync(stream.fileno())
  partial.replace(path)
