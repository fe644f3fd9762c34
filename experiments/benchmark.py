"""Speed of the hot paths, compilation apart from running, at the config's own shapes.

  python -m experiments.benchmark --config=configs/gridworld.py:paper \
    --out=results/benchmark_paper.json
  python -m experiments.benchmark --rows='decode|env_.*' --batches=64,1024 --seconds=10
  python -m experiments.benchmark --config=configs/ant.py:small --batches=1,16,128,1024,4096 \
    --rows='env_steps|internal_steps' --out=results/benchmark_ant.json

Every call gets fresh inputs, made outside the clock, and is waited for. Rows of one group are timed
in turns, so that their ratio holds on a busy machine too. On the ant, `env_steps` is timed beside
its physics alone, `physics` on MJX and `mujoco_c` in C: "env_steps is 0.90 x as fast" says that the
environment keeps 90 % of that speed. `make rivals` adds rows of other libraries, see `rivals.py`.
GFLOP/s are of matrix products. A row that fails, say for want of memory, says so and the others go
on.
"""

import datetime
import functools
import json
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
from absl import app, flags, logging

from experiments import artifacts, benchmark_case, benchmark_cases, common, rivals
from experiments.benchmark_case import Case
from internal_rl.analysis import speed
from internal_rl.training.flops import matmul_flops

_BATCHES = flags.DEFINE_list('batches', ['64', '1024'], 'Batch sizes.')
_ROWS = flags.DEFINE_string('rows', '.*', 'Groups of rows: a regex that matches the whole name.')
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Time to measure each row for, compilation aside.')
_OUT = flags.DEFINE_string('out', 'runs/benchmark.json', 'Where to write.')
_RIVALS = flags.DEFINE_string('rivals', '', "Directory of the rivals' environments; '' for none.")

MIN_CALLS = 3
Row = dict[str, Any]


class Timer(Protocol):
  """Something ready to be timed: compiled, and run once."""

  facts: Row  # unit, items (units of work a call), compile_seconds, and what else is known

  def __call__(self, key: jax.Array) -> float:
    """Makes one call on fresh inputs and returns its seconds."""


class CompiledCase:
  """Times one of our own cases.

  Attributes:
    inputs: makes arguments from a key.
    compiled: what is timed.
  """

  def __init__(self, case: Case, key: jax.Array):
    self.inputs = case.inputs
    arguments = jax.block_until_ready(case.inputs(key))
    started = time.perf_counter()
    self.compiled = (
      jax.jit(case.function).lower(*arguments).compile() if case.jitted else case.function
    )
    seconds = time.perf_counter() - started
    output = jax.block_until_ready(self.compiled(*arguments))
    self.facts: Row = {'unit': case.unit, 'items': case.items, 'compile_seconds': seconds}
    self.facts |= case.details(output)
    if case.updates > 1:
      self.facts['updates'] = case.updates
    if case.jitted:
      self.facts['gflop'] = matmul_flops(case.function, *arguments) / 1e9

  def __call__(self, key: jax.Array) -> float:
    arguments = jax.block_until_ready(self.inputs(key))
    started = time.perf_counter()
    jax.block_until_ready(self.compiled(*arguments))
    return time.perf_counter() - started


class Rival:
  """Times another library, which waits for its turn in a process of its own."""

  def __init__(self, name: str, directory: str, shapes: dict[str, Any]):
    self._worker = rivals.Worker(name, directory, shapes)
    self.facts: Row = self._worker.facts

  def __call__(self, key: jax.Array) -> float:
    del key  # a rival draws its own
    return self._worker.call()


def measure(makers: dict[str, Callable[[], Timer]], seconds: float, key: jax.Array) -> list[Row]:
  """Times the rows of one group in turns.

  Args:
    makers: what compiles each row; the first is what the others are compared with.
    seconds: time for each row, exceeded only where `MIN_CALLS` calls need more.
    key: of the inputs.

  Returns:
    A row for each maker, with `error` in place of its numbers if it failed. `per_second` is of the
    median call; `behind` is how many times slower than the first row it is.
  """
  timers: dict[str, Timer] = {}
  errors: dict[str, str] = {}
  times: dict[str, list[float]] = {name: [] for name in makers}

  def attempt(name: str, function: Callable[[], Any]) -> Any:
    try:
      return function()
    except Exception as error:  # whatever it is, it must not cost the other rows
      timers.pop(name, None)
      lines = str(error).strip().splitlines() or ['']
      errors[name] = f'{type(error).__name__}: {lines[0][:300]}'
      logging.warning('%s: %s', name, errors[name])

  for name, make in makers.items():
    timer = attempt(name, make)
    if timer is not None:
      timers[name] = timer
  unfinished = lambda name: len(times[name]) < MIN_CALLS or sum(times[name]) < seconds
  while turn := [name for name in timers if unfinished(name)]:
    for name in turn:
      inputs_key = jax.random.fold_in(key, len(times[name]) + 1)
      taken = attempt(name, functools.partial(timers[name], inputs_key))
      if taken is not None:
        times[name].append(taken)

  rows: list[Row] = [
    {'row': name, 'error': errors[name]}
    if name in errors
    else {'row': name, **_summary(timers[name].facts, times[name])}
    for name in makers
  ]
  first = rows[0]
  for row in rows[1:]:
    if 'error' not in row and 'error' not in first:
      row |= {'reference': first['row'], 'behind': first['per_second'] / row['per_second']}
  return rows


def _summary(facts: Row, times: list[float]) -> Row:
  median = statistics.median(times)
  facts = dict(facts)
  row = {
    'unit': facts.pop('unit'),
    'per_second': facts.pop('items') / median,
    'seconds': median,
    'seconds_range': [min(times), max(times)],
    'calls': len(times),
    'compile_seconds': facts.pop('compile_seconds'),
  }
  gflop = facts.pop('gflop', 0.0)
  if gflop > 0:  # Unknown where a loop has no fixed length.
    row['gflop_per_second'] = gflop / median
  return row | facts


def makers_of(
  config: common.Config, group: str, batch: int, key: jax.Array, rivals_dir: str
) -> dict[str, Callable[[], Timer]]:
  """Returns what compiles the rows of a group, our own first."""
  cases = benchmark_cases.GROUPS[group](config, batch)
  makers: dict[str, Callable[[], Timer]] = {
    name: functools.partial(CompiledCase, case, key) for name, case in cases.items()
  }
  if rivals_dir and config.env.kind == 'gridworld':
    shapes = benchmark_cases.shapes(config, batch)
    for rival in rivals.BY_GROUP.get(group, ()):
      makers[rival] = functools.partial(Rival, rival, rivals_dir, shapes)
  return makers


def run(config: common.Config, batches: list[int], pattern: str) -> list[Row]:
  """Measures every group that `pattern` matches at every batch size, writing after each."""
  groups = [name for name in benchmark_cases.GROUPS if re.fullmatch(pattern, name)]
  if not groups:
    names = ', '.join(benchmark_cases.GROUPS)
    raise ValueError(f'--rows={pattern}: must match one of {names}')
  rows: list[Row] = []
  key = common.key_for(config, 'benchmark')
  for group in groups:
    for batch in batches:
      logging.info('%s, batch %d', group, batch)
      try:
        makers = makers_of(config, group, batch, key, _RIVALS.value)
      except Exception as error:  # a model that does not even fit is a row that failed
        makers = {group: functools.partial(_raise, error)}
      measured = measure(makers, _SECONDS.value, key)
      rows += [{'group': group, 'batch': batch, **row} for row in measured]
      del makers
      jax.clear_caches()
      write(config, rows)
  return rows


def _raise(error: Exception) -> Any:
  raise error


def write(config: common.Config, rows: list[Row]) -> None:
  """Writes what has been measured, with everything needed to measure it again."""
  result = {
    'device': f'{jax.devices()[0].device_kind} x {jax.device_count()}',
    'cpus': benchmark_case.cores(),
    'jax': jax.__version__,
    'commit': artifacts.commit(),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': f'python -m experiments.benchmark {shlex.join(sys.argv[1:])}',
    'rows': rows,
    'config': json.loads(config.to_json_best_effort()),
  }
  artifacts.write_json(os.path.abspath(_OUT.value), result)


def main(argv: list[str]) -> None:
  """Measures, writes and prints."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  if not all(batch.isdecimal() and int(batch) for batch in _BATCHES.value):
    raise app.UsageError(f'--batches={",".join(_BATCHES.value)}: must be positive integers')
  if flags.FLAGS.config.env.kind == 'ant':
    try:
      common.ant()
    except ModuleNotFoundError as error:
      sys.exit(f'All rows are left out: {error}')
  rivals.keep_memory()
  common.prefer_quick_kernels(flags.FLAGS.config)
  # Otherwise a second run would read its programs from disk and call that compiling.
  jax.config.update('jax_enable_compilation_cache', False)
  rows = run(flags.FLAGS.config, [int(batch) for batch in _BATCHES.value], _ROWS.value)
  print(speed.table(rows))
  if all('error' in row for row in rows):
    sys.exit(1)


if __name__ == '__main__':
  app.run(main)
