"""Trajectories on disk, read memory-mapped and sampled by index.

A store is a folder with a `manifest.json` and one `.npy` per field and shard; `collect.py` writes
it. It holds any pytree of arrays with a leading episode axis, and need not fit memory. A batch is a
pure function of `(seed, step)`, so that a training run resumes without iterator state.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

MANIFEST = 'manifest.json'
CURE = 'delete the folder and collect the data again'
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A store, opened for reading; `open` makes one.

  Attributes:
    directory: where it lies.
    manifest: its seed, config and shards.
    shards: for each shard, its memory-mapped arrays, in the order of the leaves.
    treedef: structure of the episodes.
  """

  directory: pathlib.Path
  manifest: dict[str, Any]
  shards: tuple[tuple[np.ndarray, ...], ...]
  treedef: jax.tree_util.PyTreeDef

  @classmethod
  def open(cls, directory: str | os.PathLike, like: PyTree = None) -> 'Dataset':
    """Opens a store without reading its arrays.

    Args:
      directory: of the store.
      like: a pytree of the structure that was stored, its leaves arbitrary: for instance
        `jax.eval_shape` of what made the episodes. By default episodes come as a flat dictionary
        from names (`layout.walls`) to arrays.

    Raises:
      FileNotFoundError: if there is no store or a file of it is missing.
      ValueError: if a file is truncated or damaged, or the fields are not those of `like`.
    """
    directory = pathlib.Path(directory)
    manifest = read_manifest(directory)
    if not manifest['shards']:
      raise ValueError(f'{directory / MANIFEST}: no shards; collect the data again')
    stored = list(manifest['shards'][0]['fields'])
    like = dict.fromkeys(stored, 0) if like is None else like
    names = [name for name, _ in named_leaves(like)]
    if sorted(names) != sorted(stored):
      raise ValueError(f'{directory / MANIFEST}: holds fields {stored}, expected {names}')
    shards = tuple(
      tuple(
        _open_array(directory / field['file'], field) for field in map(shard['fields'].get, names)
      )
      for shard in manifest['shards']
    )
    return cls(directory, manifest, shards, jax.tree.structure(like))

  def __len__(self) -> int:
    return sum(shard['episodes'] for shard in self.manifest['shards'])

  def split(self) -> tuple['Dataset', 'Dataset']:
    """Returns the first shard, to be held out, and the others, to train on.

    A store that is extended later keeps what it holds out.

    Raises:
      ValueError: if there are no others.
    """
    if len(self.shards) < 2:
      raise ValueError(
        f'{self.directory / MANIFEST}: one shard, which is held out from training; collect more, '
        'with data.episodes at least twice data.episodes_per_shard'
      )
    return self._part(slice(0, 1)), self._part(slice(1, None))

  def _part(self, part: slice) -> 'Dataset':
    manifest = {**self.manifest, 'shards': self.manifest['shards'][part]}
    return dataclasses.replace(self, manifest=manifest, shards=self.shards[part])

  def batch(self, seed: int, step: int, size: int) -> PyTree:
    """Returns batch `step` of a run with seed `seed`: a pure function of its arguments.

    Episodes are drawn without replacement within an epoch, every epoch in an order of its own; a
    batch may straddle two epochs. Only the episodes asked for are read from disk.
    """
    if size < 1:
      raise ValueError(f'batch size={size}: must be at least 1')
    return self.take(indices(seed, step, size, len(self)))

  def take(self, episodes: np.ndarray) -> PyTree:
    """Returns the episodes of these indices, as NumPy arrays.

    Integers come in the smallest type that holds them in every shard.
    """
    episodes = np.asarray(episodes)
    if episodes.size and not 0 <= episodes.min() <= episodes.max() < len(self):
      raise IndexError(f'episodes must be in [0, {len(self)}) in {self.directory}')
    ends = np.cumsum([shard['episodes'] for shard in self.manifest['shards']])
    owners = np.searchsorted(ends, episodes, side='right')
    leaves = [
      np.empty((len(episodes), *parts[0].shape[1:]), np.result_type(*parts))
      for parts in zip(*self.shards, strict=True)
    ]
    for owner in np.unique(owners):
      rows = np.flatnonzero(owners == owner)
      local = episodes[rows] - (ends[owner] - len(self.shards[owner][0]))
      for leaf, source in zip(leaves, self.shards[owner], strict=True):
        leaf[rows] = source[local]
    return jax.tree.unflatten(self.treedef, leaves)

  def verify(self) -> None:
    """Reads everything and compares checksums.

    Raises:
      ValueError: naming the first damaged file.
    """
    for shard in self.manifest['shards']:
      for field in shard['fields'].values():
        path = self.directory / field['file']
        if checksum(path) != field['sha256']:
          raise ValueError(f'{path}: checksum differs, the file is damaged; {CURE}')


def indices(seed: int, step: int, size: int, total: int) -> np.ndarray:
  """Returns the `size` episodes, of `total`, that batch `step` of seed `seed` consists of."""
  position = np.arange(step * size, (step + 1) * size, dtype=np.int64)
  epoch, within = np.divmod(position, total)
  chosen = np.empty(size, np.int64)
  for turn in np.unique(epoch):
    here = epoch == turn
    chosen[here] = _permute(within[here], total, (seed, int(turn)))
  return chosen


def _permute(values: np.ndarray, total: int, key: tuple[int, ...]) -> np.ndarray:
  """Applies a pseudorandom permutation of `range(total)` without building it.

  A Feistel network permutes the next even power of two; values that land beyond `total` are sent
  through again until they land inside, which keeps it a permutation.
  """
  half = max(1, (int(total - 1).bit_length() + 1) // 2)
  low = np.uint64(2**half - 1)
  round_keys = np.random.SeedSequence(key).generate_state(6, np.uint64)

  def network(x: np.ndarray) -> np.ndarray:
    left, right = x >> np.uint64(half), x & low
    for round_key in round_keys:
      mixed = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)
      mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
      left, right = right, left ^ ((mixed >> np.uint64(32)) & low)
    return (left << np.uint64(half)) | right

  values = network(values.astype(np.uint64))
  while (outside := values >= total).any():
    values[outside] = network(values[outside])
  return values.astype(np.int64)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
  """Returns the leaves of `tree` with names such as `layout.walls`, in their order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path, simple=True, separator='.'), leaf) for path, leaf in leaves]


def checksum(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file."""
  with path.open('rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest: `seed`, `config` and `shards`."""
  path = directory / MANIFEST
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such store; collect the data first')
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: not JSON ({error}); {CURE}') from error


def _open_array(path: pathlib.Path, field: dict[str, Any]) -> np.ndarray:
  if not path.exists():
    raise FileNotFoundError(f'{path}: the manifest lists it, but it is missing; {CURE}')
  try:
    array = np.load(path, mmap_mode='r')
  except (ValueError, EOFError, OSError) as error:
    raise ValueError(f'{path}: truncated or damaged ({error}); {CURE}') from error
  if (array.dtype.str, list(array.shape)) != (field['dtype'], field['shape']):
    raise ValueError(
      f'{path}: {array.dtype.str}{list(array.shape)}, but the manifest says '
      f'{field["dtype"]}{field["shape"]}; {CURE}'
    )
  return array
