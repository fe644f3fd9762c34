"""How every stage trains: one loop, one optimiser, checkpoints, metrics and a mesh.

Nothing here knows the method: `fit` runs whatever pure update it is given.
"""

from internal_rl.training.checkpoint import (
  CheckpointError,
  CheckpointMismatchError,
  Checkpoints,
  milestones,
  read_metadata,
  restore_params,
  save_params,
)
from internal_rl.training.loop import EXIT_PREEMPTED, DivergedError, FitConfig, Preempted, fit
from internal_rl.training.mesh import (
  initialize_distributed,
  make_mesh,
  replicate,
  shard_batch,
  shard_population,
)
from internal_rl.training.metrics import MetricsWriter, read_jsonl
from internal_rl.training.state import TrainState, apply_gradients, create, optimiser

__all__ = [
  'EXIT_PREEMPTED',
  'CheckpointError',
  'CheckpointMismatchError',
  'Checkpoints',
  'DivergedError',
  'FitConfig',
  'MetricsWriter',
  'Preempted',
  'TrainState',
  'apply_gradients',
  'create',
  'fit',
  'initialize_distributed',
  'make_mesh',
  'milestones',
  'optimiser',
  'read_jsonl',
  'read_metadata',
  'replicate',
  'restore_params',
  'save_params',
  'shard_batch',
  'shard_population',
]
