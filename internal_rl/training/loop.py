"""One training loop for every stage: jitted calls of many updates, evaluation, exact resume."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from internal_rl.training.checkpoint import Checkpoints, checksums, milestones
from internal_rl.training.metrics import MetricsWriter, ProgressLine
from internal_rl.training.state import TrainState, is_key, named_leaves, place

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again to go on.

Metrics = Mapping[str, ArrayLike]
# (state, frozen, key), and the batch where there is a `feed`.
Update = Callable[..., tuple[TrainState, Metrics]]
Feed = Callable[[int], PyTree]
# (state, frozen, key), and the episodes `held_out` where there are any.
Evaluate = Callable[..., Metrics]


class DivergedError(RuntimeError):
  """Parameters, optimiser state or loss stopped being finite; no checkpoint has them."""


class Preempted(SystemExit):
  """SIGTERM or SIGINT came and the state is saved; ends the process with `EXIT_PREEMPTED`."""

  def __init__(self):
    super().__init__(EXIT_PREEMPTED)


@dataclasses.dataclass(frozen=True)
class FitConfig:
  """How long to train and what to do on the way; all intervals are in updates.

  Attributes:
    steps: updates in all, those of earlier runs in the same workdir included.
    updates_per_call: updates scanned inside one jitted call. Every other interval is a multiple of
      it, so that one function is compiled, once.
    log_every: a row of training metrics, the means over one call; 0 for every call.
    eval_every: evaluation; it also runs before the first update and after the last. 0 for only
      those two.
    checkpoint_every: a checkpoint; there is also one after the last update. 0 for only that one.
    milestones: updates after which a checkpoint is kept for good.
    eval_seed: seed of the key that every evaluation gets, the same each time.
    best_metric: the metric of `evaluate` whose best checkpoint is kept; '' to keep none. An array,
      such as one entry a population member, counts by its mean.
    best_mode: 'min' or 'max'.
    progress_metrics: metrics of the update that the line of progress shows.
    progress_seconds: between lines of progress where there is no terminal.
  """

  steps: int
  updates_per_call: int = 1
  log_every: int = 0
  eval_every: int = 0
  checkpoint_every: int = 0
  milestones: tuple[int, ...] = ()
  eval_seed: int = 0
  best_metric: str = ''
  best_mode: str = 'min'
  progress_metrics: tuple[str, ...] = ('loss',)
  progress_seconds: float = 10.0

  def __post_init__(self):
    call = self.updates_per_call
    if call < 1:
      raise ValueError(f'updates_per_call={call}: must be at least 1')
    for name in ('steps', 'log_every', 'eval_every', 'checkpoint_every'):
      value = getattr(self, name)
      if value < 0 or value % call:
        raise ValueError(f'{name}={value}: must be a multiple of updates_per_call ({call})')
    if any(step < 1 or step % call for step in self.milestones):
      raise ValueError(
        f'milestones={self.milestones}: must be multiples of updates_per_call ({call})'
      )
    if self.best_mode not in ('min', 'max'):
      raise ValueError(f"best_mode={self.best_mode!r}: must be 'min' or 'max'")


def fit(
  update: Update,
  state: TrainState,
  config: FitConfig,
  workdir: str,
  *,
  frozen: PyTree = None,
  evaluate: Evaluate | None = None,
  feed: Feed | None = None,
  held_out: PyTree = None,
  fingerprint: Mapping[str, Any] | None = None,
) -> TrainState:
  """Trains to `config.steps`, going on from the newest good checkpoint in `workdir` if any.

  Killed at any instant and run again, it ends in the state that an undisturbed run ends in: bit for
  bit where the device computes reproducibly, as CPUs do. A finished run returns its state at once.

  SIGTERM or SIGINT let the call in progress finish, save, and raise `Preempted`, which ends the
  process with status `EXIT_PREEMPTED`; a second signal ends it at once. In a multi-host run
  signals keep their usual effect: hosts that stop after different calls would wait for each other.

  Args:
    update: pure `(state, frozen, key) -> (state, metrics)`, not jitted, one step on; see
      `apply_gradients`. Metrics are scalars or small arrays. One called `loss` must stay finite.
      It and `evaluate` must be hashable, as functions and methods are: runs that hand in the same
      ones share what is compiled of them. For a population it is the caller's
      `jax.vmap(update, in_axes=(0, None, 0))`, and gets one key for each member.
    state: where to start without a checkpoint. It is copied, so the caller's stays valid. Leaves
      keep their devices and shardings; see `training.mesh`.
    config: lengths and intervals.
    workdir: made if needed. Gets `latest/`, `best/`, `milestone/`, `tensorboard/` and
      `metrics.jsonl`, with rows of `train/*` and rows of `eval/*`.
    frozen: parameters that are read but not trained. They enter jitted calls as arguments, and are
      proven unchanged at the end.
    evaluate: pure `(state, frozen, key) -> metrics`; jitted here.
    feed: for data that stay on the host, `step -> batch`: arrays for update number `step`, counted
      from 0, as a pure function of it, so that a resumed run is fed the same. `update` then is
      `(state, frozen, key, batch)`. While the device computes one call, a thread reads the batches
      of the next, so that the host holds about two calls of them.
    held_out: data that `evaluate` reads, as its fourth argument; None for none.
    fingerprint: JSON-like config that decides the result. A checkpoint with another one, or one
      trained on other frozen parameters, is refused. None accepts any checkpoint that fits. Leave
      out what may change between runs, such as `steps`.

  Raises:
    ValueError: config, update and checkpoint do not fit together.
    DivergedError: state or loss is not finite.
    RuntimeError: the frozen parameters changed.
    CheckpointMismatchError, CheckpointError: see `training.checkpoint`.
  """
  if evaluate is None and (config.eval_every or config.best_metric):
    raise ValueError('evaluate=None: eval_every and best_metric need an evaluation')
  sums = checksums(frozen)
  if fingerprint is not None:
    fingerprint = {**fingerprint, 'frozen parameters': sums}
  os.makedirs(workdir, exist_ok=True)
  stop = _StopRequest()
  with Checkpoints(workdir, fingerprint) as checkpoints, stop:
    state = jax.tree.map(_private_copy, state)
    restored = checkpoints.restore(state)
    state, fresh = (state, True) if restored is None else (restored, False)
    step = _step(state)
    _check_start(config, step, workdir)
    if checkpoints.steps.get('latest') != config.steps:
      name = os.path.basename(os.path.abspath(workdir))
      with (
        MetricsWriter(workdir, -1 if fresh else step) as metrics,
        ProgressLine(
          name, step, config.steps, config.progress_metrics, config.progress_seconds
        ) as progress,
      ):
        run = _Run(
          config=config,
          frozen=jax.tree.map(jnp.asarray, frozen),
          evaluate=evaluate and _jit(evaluate),
          feed=feed,
          held_out=jax.tree.map(jnp.asarray, held_out),
          checkpoints=checkpoints,
          metrics=metrics,
          progress=progress,
          logged=(step, time.monotonic()),
        )
        state = run.train(update, state, fresh, stop)
  if changed := [name for name, value in checksums(frozen).items() if value != sums[name]]:
    raise RuntimeError(f'frozen parameters changed during fit: {", ".join(changed)}')
  if stop.requested:
    raise Preempted
  return state


def compile_call(
  update: Update, state: TrainState, updates: int
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Jitted `(state, frozen, batches) -> (state, metrics [updates, ...])`, which donates the state.

  `batches` are those of all updates, stacked, or None for an `update` that is fed none.
  The shardings of the state that comes out are pinned to those of `state`, so that a second call is
  the same program as the first. Runs that share `update` share it too.
  """
  leaves, structure = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
  return _compile_call(update, updates, tuple(leaves), structure)


# Runs of one sweep differ in data alone: they hand in the same functions, compiled once. Two, so
# that a sweep is found again, and hardly more than that is kept alive.
_jit = functools.lru_cache(maxsize=2)(jax.jit)


@functools.lru_cache(maxsize=2)
def _compile_call(update: Update, updates: int, shardings: tuple, structure: Any):
  def call(state, frozen, batches=None):
    def one(state, batch):
      fold_in = jax.vmap(jax.random.fold_in) if state.step.ndim else jax.random.fold_in
      fed = () if batch is None else (batch,)
      return update(state, frozen, fold_in(state.key, state.step), *fed)

    return jax.lax.scan(one, state, batches, length=updates)

  shardings = jax.tree.unflatten(structure, shardings)
  return jax.jit(call, donate_argnums=0, out_shardings=(shardings, None))


@dataclasses.dataclass
class _Run:
  """A run in progress: what the parts of the loop share."""

  config: FitConfig
  frozen: PyTree
  evaluate: Evaluate | None  # Jitted.
  feed: Feed | None
  held_out: PyTree
  checkpoints: Checkpoints
  metrics: MetricsWriter
  progress: ProgressLine
  logged: tuple[int, float]  # Step and time of the last row of training metrics.

  def train(
    self, update: Update, state: TrainState, fresh: bool, stop: '_StopRequest'
  ) -> TrainState:
    step = _step(state)
    if fresh:
      self._evaluate(step, state)
    self._keep(step, state)  # A kill may have come between another checkpoint of this step and it.
    call = compile_call(update, state, self.config.updates_per_call)
    pending: collections.deque[tuple[int, Metrics]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1, 'feed') as reader:
      batches = reader.submit(self._batches, step)
      while step < self.config.steps and not stop.requested:
        state, metrics = call(state, self.frozen, batches.result())
        step += self.config.updates_per_call
        batches = reader.submit(self._batches, step)
        pending.append((step, metrics))
        evaluating = self._due(step, self.config.eval_every)
        saving = self._due(step, self.config.checkpoint_every)
        keeping = step in self.config.milestones
        # Metrics are read one call late, so that the device never waits for the host.
        while len(pending) > (0 if evaluating or saving or keeping else 1):
          self._read(*pending.popleft())
        if evaluating:
          self._evaluate(step, state)
        self._keep(step, state)
        if saving:
          self._save(step, state)
    while pending:
      self._read(*pending.popleft())
    if self.checkpoints.steps.get('latest') != step:
      self._save(step, state)
    return state

  def _batches(self, step: int) -> PyTree:
    """Reads what the call that begins at `step` is fed: the batches of its updates, stacked."""
    if self.feed is None or step == self.config.steps:
      return None
    read = [self.feed(step + i) for i in range(self.config.updates_per_call)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *read)

  def _due(self, step: int, every: int) -> bool:
    return step == self.config.steps or (every > 0 and step % every == 0)

  def _read(self, step: int, metrics: Metrics) -> None:
    """Checks, logs and shows the metrics of the call that ended at `step`."""
    values = jax.device_get(dict(metrics))
    means = {name: np.mean(value, axis=0) for name, value in values.items()}
    if self._due(step, self.config.log_every or self.config.updates_per_call):
      then_step, then = self.logged
      self.logged = step, time.monotonic()
      rate = (step - then_step) / (self.logged[1] - then)
      row = {f'train/{name}': value for name, value in means.items()}
      self.metrics.write(step, row | {'train/updates_per_second': rate})
    if 'loss' in values:
      finite = np.isfinite(values['loss']).reshape(len(values['loss']), -1).all(axis=1)
      if not finite.all():
        self._diverged(f'the loss of update {step - len(finite) + finite.argmin() + 1}')
    self.progress.update(step, means)

  def _evaluate(self, step: int, state: TrainState) -> None:
    """Logs an evaluation, and keeps the state if it is the best so far."""
    if self.evaluate is None:
      return
    key = jax.random.key(self.config.eval_seed)
    fed = () if self.held_out is None else (self.held_out,)
    values = jax.device_get(dict(self.evaluate(state, self.frozen, key, *fed)))
    self.metrics.write(step, {f'eval/{name}': value for name, value in values.items()})
    name, best = self.config.best_metric, self.checkpoints.best_value
    if not name:
      return
    if name not in values:
      raise ValueError(f'best_metric={name!r}: evaluate returns {", ".join(sorted(values))}')
    value = float(np.mean(values[name]))
    better = best is None or (value < best if self.config.best_mode == 'min' else value > best)
    if np.isfinite(value) and better:
      self._save(step, state, 'best', value)

  def _keep(self, step: int, state: TrainState) -> None:
    """Saves a milestone, unless it is none or there already."""
    if step in self.config.milestones and step not in milestones(self.checkpoints.workdir):
      self._save(step, state, 'milestone')

  def _save(
    self, step: int, state: TrainState, kind: str = 'latest', value: float | None = None
  ) -> None:
    """Checks the state, then saves it; by then the rows up to its step are on disk."""
    if _step(state) != step:
      raise ValueError(
        f'update: must return a state one step on (see apply_gradients), but after update {step} '
        f'state.step is {_step(state)}'
      )
    counts = jax.device_get(_count_not_finite(_trained(state)))
    if bad := [f'{name} ({count} values)' for name, count in counts.items() if count]:
      self._diverged(f'after update {step}: {", ".join(bad)}')
    self.metrics.flush()
    self.checkpoints.save(state, step, kind=kind, value=value)

  def _diverged(self, what: str) -> NoReturn:
    good = max(self.checkpoints.steps.values(), default=None)
    raise DivergedError(
      f'training diverged; not finite is {what}. The last good checkpoint '
      f'({"none yet" if good is None else f"step {good}"}) is kept in {self.checkpoints.workdir}. '
      'Lower the learning rate or clip gradients, with another --workdir'
    )


class _StopRequest:
  """Notes the first SIGTERM or SIGINT while it is entered; a second one ends the process at once.

  A thread listens, because Python's own handlers wait until jax has compiled or computed.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.requested = False
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> '_StopRequest':
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and jax.process_count() == 1:  # Only the main thread may set handlers.
      reading, self._writing = os.pipe()
      os.set_blocking(self._writing, False)
      self._previous_writing = signal.set_wakeup_fd(self._writing)
      self._previous = {number: signal.signal(number, _ignore) for number in self._SIGNALS}
      threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler or signal.SIG_DFL)
    if self._previous:
      signal.set_wakeup_fd(self._previous_writing)
      os.close(self._writing)  # Ends the thread.

  def _listen(self, reading: int) -> None:
    while number := os.read(reading, 1):
      if ord(number) in self._SIGNALS:
        if self.requested:
          os._exit(128 + ord(number))
        self.requested = True
        print('\nfinishing this call, then saving; once more kills at once', file=sys.stderr)
    os.close(reading)


def _ignore(number: int, frame: Any) -> None:
  """A handler, so that the signal is not fatal; `_StopRequest` hears of it by other means."""


def _check_start(config: FitConfig, step: int, workdir: str) -> None:
  """Whole calls must lead from the state at hand to the last step."""
  left, call = config.steps - step, config.updates_per_call
  if left < 0:
    raise ValueError(f'steps={config.steps}: {workdir} is at step {step}; use another --workdir')
  if left % call:
    raise ValueError(
      f'updates_per_call={call}: must divide the {left} updates left in {workdir}, at step {step}'
    )


def _private_copy(leaf: ArrayLike) -> jax.Array:
  """A copy in the same place, of strong type, that fit may donate without harm to the caller.

  Weak types and uncommitted placement would make the second call another program than the first.
  """
  leaf = jnp.asarray(leaf)
  if not is_key(leaf):
    leaf = jax.lax.convert_element_type(leaf, leaf.dtype)
  return place(leaf, leaf.sharding)


def _step(state: TrainState) -> int:
  """Updates done; the members of a population agree."""
  return int(np.max(jax.device_get(state.step)))


def _trained(state: TrainState) -> dict[str, Array]:
  leaves = named_leaves({'params': state.params, 'opt_state': state.opt_state})
  return {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}


@jax.jit
def _count_not_finite(leaves: dict[str, Array]) -> dict[str, Array]:
  return jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), leaves)
