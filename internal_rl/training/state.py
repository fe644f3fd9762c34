"""What is trained, and the one optimiser that every stage trains it with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import struct
from jaxtyping import Array, Int, Key, PyTree


@struct.dataclass
class TrainState:
  """Everything that a training run carries from one update to the next.

  A population is the same dataclass with a leading axis `[P]` on every leaf, as `jax.vmap(create)`
  makes it; its members advance together.

  Attributes:
    step: int32 `[]` or `[P]`, updates done so far.
    params: the trained parameters; nested dicts of arrays.
    opt_state: the state of the optax optimiser for `params`.
    key: typed PRNG key `[]` or `[P]`. Constant through a run: update `i` uses `fold_in(key, i)`, so
      that a resumed run draws what an uninterrupted one would have drawn.
    extra: whatever else the update carries (environment states, running statistics); any pytree.
  """

  step: Int[Array, '*p']
  params: PyTree
  opt_state: PyTree
  key: Key[Array, '*p']
  extra: PyTree = ()


def create(
  params: PyTree, tx: optax.GradientTransformation, key: Array, extra: PyTree = ()
) -> TrainState:
  """A run's state before its first update.

  Args:
    params: initial parameters.
    tx: the optimiser, see `adamw`.
    key: typed key `[]`, consumed; every update's randomness derives from it.
    extra: initial value of `TrainState.extra`.

  Raises:
    ValueError: if `key` is an old-style `uint32` key.
  """
  if not is_key(key):
    raise ValueError(f'key: must be a typed key, jax.random.key(seed), but its type is {key.dtype}')
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), key, extra)


def apply_gradients(
  state: TrainState, grads: PyTree, tx: optax.GradientTransformation
) -> TrainState:
  """One optimiser update; `step` advances by one, `key` and `extra` stay."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def optimiser(
  learning_rate: float,
  *,
  kind: str = 'adamw',
  weight_decay: float = 0.0,
  betas: tuple[float, ...] = (0.9, 0.999),
  schedule: str = 'constant',
  warmup_steps: int = 0,
  total_steps: int = 0,
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """AdamW as in every table of the paper (Tables A3 to A14), or Muon where steps are dear.

  Weight decay falls on all parameters, biases and normalisation scales too. That is optax's
  default; the paper names no exception. As usual the decay is multiplied by the learning rate.

  Args:
    learning_rate: peak learning rate.
    kind: 'adamw', the paper's; or 'muon', which orthogonalises the update of every matrix (and is
      AdamW on the rest), and brings small models to their floor in fewer updates.
    weight_decay: decoupled weight decay.
    betas: decay rates of the first and second moment; of AdamW, and of what Muon leaves to it.
    schedule: 'constant' (the paper's), or 'cosine', which ends at 0 after `total_steps`.
    warmup_steps: updates of linear warm-up from 0, so that the very first update is null; 0 for
      none.
    total_steps: length of the run, warm-up included; only 'cosine' reads it.
    clip_norm: global gradient norm to clip to; None leaves gradients alone.

  Raises:
    ValueError: naming the argument that is out of range.
  """
  _require(learning_rate > 0, 'learning_rate', learning_rate, 'must be positive')
  _require(kind in ('adamw', 'muon'), 'kind', kind, "must be 'adamw' or 'muon'")
  _require(weight_decay >= 0, 'weight_decay', weight_decay, 'must not be negative')
  _require(
    len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
    'betas',
    betas,
    'must be two in [0, 1)',
  )
  _require(warmup_steps >= 0, 'warmup_steps', warmup_steps, 'must not be negative')
  _require(clip_norm is None or clip_norm > 0, 'clip_norm', clip_norm, 'must be positive, or None')
  rate = _schedule(schedule, learning_rate, warmup_steps, total_steps)
  if kind == 'adamw':
    tx = optax.adamw(rate, b1=betas[0], b2=betas[1], weight_decay=weight_decay)
  else:
    tx = optax.contrib.muon(
      rate,
      weight_decay=weight_decay,
      adam_b1=betas[0],
      adam_b2=betas[1],
      adam_weight_decay=weight_decay,
    )
  return tx if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), tx)


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """The leaves of `tree` by dotted path, such as `opt_state.0.mu.Dense_0.kernel`."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in flat}


def is_key(leaf: Any) -> bool:
  """Whether an array holds typed PRNG keys."""
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def place(leaf: Any, sharding: jax.sharding.Sharding) -> Array:
  """A copy with this sharding; unlike `jax.device_put`, keys too can go to several hosts."""
  if is_key(leaf):
    data = place(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
  return jax.device_put(leaf, sharding, may_alias=False)


def _schedule(
  schedule: str, learning_rate: float, warmup_steps: int, total_steps: int
) -> float | optax.Schedule:
  if schedule == 'constant':
    if not warmup_steps:
      return learning_rate
    return optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
  _require(schedule == 'cosine', 'schedule', schedule, "must be 'constant' or 'cosine'")
  _require(
    total_steps > warmup_steps,
    'total_steps',
    total_steps,
    f'must exceed warmup_steps ({warmup_steps}) for the cosine schedule',
  )
  return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, total_steps)


def _require(condition: bool, name: str, value: Any, fix: str) -> None:
  if not condition:
    raise ValueError(f'{name}={value!r}: {fix}')
