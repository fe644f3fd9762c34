"""What a run reports: rows in `metrics.jsonl`, the same in TensorBoard, and a line of progress."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
from absl import logging
from jaxtyping import ArrayLike
from tqdm import tqdm

FILE_NAME = 'metrics.jsonl'
_FLUSH_SECONDS = 10.0


class MetricsWriter:
  """Appends rows `{'step': int, name: number or nested list, ...}` to `workdir/metrics.jsonl`.

  TensorBoard gets the same under `workdir/tensorboard`, arrays as `name/0`, `name/1`, ... Rows
  reach the files every few seconds, on `flush` and on `close`. In a multi-host run only the first
  process writes. Use as a context manager.
  """

  def __init__(self, workdir: str, last_step: int = -1):
    """Opens the log and drops what it holds beyond `last_step` (by default everything).

    A resumed run makes those rows again, so keeping them would show them twice.
    """
    self._enabled = jax.process_index() == 0
    self._path = os.path.join(workdir, FILE_NAME)
    self._rows: list[str] = []
    self._flushed = time.monotonic()
    if self._enabled:
      os.makedirs(workdir, exist_ok=True)
      _truncate(self._path, last_step)
      self._board = tensorboardX.SummaryWriter(
        os.path.join(workdir, 'tensorboard'), purge_step=last_step + 1
      )

  def write(self, step: int, values: Mapping[str, ArrayLike]) -> None:
    """Adds one row. NaN and infinities are written as Python's json does: NaN, Infinity."""
    if not self._enabled:
      return
    arrays = {name: np.asarray(value) for name, value in values.items()}
    row = {'step': step} | {name: array.tolist() for name, array in arrays.items()}
    self._rows.append(json.dumps(row) + '\n')
    for name, array in arrays.items():
      tags = [f'{name}/{i}' for i in range(array.size)] if array.ndim else [name]
      for tag, value in zip(tags, array.ravel(), strict=True):
        self._board.add_scalar(tag, float(value), step)
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Hands every row written so far to the operating system."""
    if self._enabled:
      with open(self._path, 'a', encoding='utf-8') as file:
        file.writelines(self._rows)
      self._rows.clear()
      self._board.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the files."""
    self.flush()
    if self._enabled:
      self._board.close()

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


def read_jsonl(path: str) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl`; a last line that a kill cut short is left out.

  Raises:
    ValueError: if any other line is not JSON, naming the file and the line.
  """
  with open(path, encoding='utf-8', errors='replace') as file:
    lines = file.read().split('\n')
  rows = []
  for number, line in enumerate(lines[:-1], start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      raise ValueError(f'{path}, line {number}: is not JSON ({error}); remove that line') from error
  return rows


class ProgressLine:
  """Where a run is: step, rate, time left and chosen metrics.

  A live bar on a terminal, else one plain line every `seconds`. Use as a context manager.
  """

  def __init__(
    self, name: str, step: int, total: int, metrics: Sequence[str] = (), seconds: float = 10.0
  ):
    """`name` heads the line; the run stands at `step` of `total`; `metrics` are those to show."""
    self._name, self._total, self._metrics, self._seconds = name, total, tuple(metrics), seconds
    self._bar = None
    self._first: tuple[int, float] | None = None  # Step and time of the first update shown.
    self._printed = time.monotonic()
    self._enabled = jax.process_index() == 0
    if self._enabled and sys.stderr.isatty():
      self._bar = tqdm(desc=name, initial=step, total=total, dynamic_ncols=True)

  def update(self, step: int, values: Mapping[str, ArrayLike]) -> None:
    """Shows that `step` updates are done; arrays are shown by their mean."""
    now = time.monotonic()
    if self._first is None:  # The first call compiles, so it does not count for the rate.
      self._first = step, now
    shown = [f'{name} {np.mean(values[name]):.4g}' for name in self._metrics if name in values]
    if self._bar is not None:
      self._bar.set_postfix_str(' '.join(shown), refresh=False)
      self._bar.update(step - self._bar.n)
    elif self._enabled and (now - self._printed >= self._seconds or step >= self._total):
      line = ' '.join(
        [f'{self._name} {step}/{self._total}', *self._rate(step, now, *self._first), *shown]
      )
      print(line, file=sys.stderr, flush=True)
      self._printed = now

  def _rate(self, step: int, now: float, first_step: int, first_time: float) -> list[str]:
    """Updates per second and time left, once there is anything to tell them from."""
    if step == first_step:
      return []
    rate = (step - first_step) / max(now - first_time, 1e-9)
    return [f'{rate:.3g}/s', f'{tqdm.format_interval((self._total - step) / rate)} left']

  def __enter__(self) -> 'ProgressLine':
    return self

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.close()


def _truncate(path: str, last_step: int) -> None:
  """Drops rows beyond `last_step` from `path`, all or nothing even if killed meanwhile."""
  if not os.path.exists(path):
    return
  rows = read_jsonl(path)
  kept = [row for row in rows if row['step'] <= last_step]
  if len(kept) < len(rows):
    logging.info('%s: dropped %d rows beyond step %d', path, len(rows) - len(kept), last_step)
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(row) + '\n' for row in kept)
  os.replace(path + '.tmp', path)
