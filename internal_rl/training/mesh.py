"""Scaling with JAX's own SPMD: a mesh, two placements and nothing else.

`training.fit` keeps a state where it finds it. So data parallelism is: put state and frozen
parameters on the mesh with `replicate`, and let the update pass its batch through `shard_batch`;
XLA then adds the gradient's all-reduce.
"""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from internal_rl.training.state import place


def make_mesh(seeds: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with axes `('seed', 'data')`.

  Args:
    seeds: devices along 'seed', over which a population's leading axis can be split.
    devices: devices to use; all of them by default. The rest of them lie along 'data'.

  Raises:
    ValueError: if `seeds` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  if seeds < 1 or len(devices) % seeds:
    raise ValueError(f'seeds={seeds}: must divide the number of devices ({len(devices)})')
  shape = (seeds, len(devices) // seeds)
  return jax.make_mesh(shape, ('seed', 'data'), (AxisType.Auto,) * 2, devices=devices)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts the whole of every leaf on every device of the mesh."""
  return jax.tree.map(lambda leaf: place(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard_population(tree: PyTree, mesh: Mesh) -> PyTree:
  """Splits the leading axis of every leaf over 'seed'; its size must be a multiple of that axis."""
  return jax.tree.map(lambda leaf: place(leaf, NamedSharding(mesh, PartitionSpec('seed'))), tree)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Inside jit: splits the leading axis of every leaf over 'data'; the size must be a multiple."""
  return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec('data')))


def initialize_distributed(enabled: bool) -> None:
  """Joins this process to a multi-host run if `enabled`; call before any other use of JAX.

  Address and rank come from the cluster's environment, as `jax.distributed.initialize` finds them.
  """
  if enabled:
    jax.distributed.initialize()
