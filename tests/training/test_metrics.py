"""Rows on disk are those that were written, once each, whatever happened in between."""

import io
import json
import struct
import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from internal_rl import training
from internal_rl.training import metrics


def tensorboard(workdir):
  """`{(tag, step): value}` of every event file, read by the TFRecord framing."""
  found = {}
  for path in sorted(workdir.glob('tensorboard/events*')):
    content, start = path.read_bytes(), 0
    while start < len(content):
      (length,) = struct.unpack_from('<Q', content, start)
      event = event_pb2.Event.FromString(content[start + 12 : start + 12 + length])
      found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
      start += 16 + length
  return found


def test_scalars_and_arrays_reach_both_files(tmp_path):
  with training.MetricsWriter(str(tmp_path)) as writer:
    writer.write(1, {'loss': np.float32(0.5), 'members': np.asarray([[1, 2], [3, 4]])})
    writer.write(2, {'loss': float('nan'), 'other': 7})
  first, second = training.read_jsonl(str(tmp_path / 'metrics.jsonl'))
  assert first == {'step': 1, 'loss': 0.5, 'members': [[1, 2], [3, 4]]}
  assert np.isnan(second.pop('loss'))
  assert second == {'step': 2, 'other': 7}
  board = tensorboard(tmp_path)
  assert board['loss', 1] == 0.5
  assert [board[f'members/{i}', 1] for i in range(4)] == [1, 2, 3, 4]
  assert board['other', 2] == 7


def test_rows_are_on_disk_after_a_flush_without_closing(tmp_path):
  writer = training.MetricsWriter(str(tmp_path))
  writer.write(1, {'loss': 0.5})
  writer.flush()
  assert training.read_jsonl(str(tmp_path / 'metrics.jsonl')) == [{'step': 1, 'loss': 0.5}]
  writer.close()


@pytest.mark.parametrize(('last_step', 'kept'), [(-1, []), (2, [0, 2, 2]), (4, [0, 2, 2, 4, 4])])
def test_reopening_drops_rows_beyond_the_step_and_the_line_cut_short(tmp_path, last_step, kept):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps({'step': step, 'x': 1.0}) + '\n' for step in (0, 2, 2, 4, 4)]
  path.write_text(''.join(lines) + '{"step": 4, "x')
  with training.MetricsWriter(str(tmp_path), last_step) as writer:
    writer.write(9, {'x': 2.0})
  assert [row['step'] for row in training.read_jsonl(str(path))] == [*kept, 9]


def test_a_line_that_is_not_json_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r'metrics.jsonl, line 2: is not JSON'):
    training.read_jsonl(str(path))


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
  return now


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(capsys, clock):
  with metrics.ProgressLine('run', 100, 1000, ('loss', 'absent'), seconds=10.0) as progress:
    for step in range(200, 1001, 100):
      clock[0] += 4.0
      progress.update(step, {'loss': np.asarray([0.25, 0.75]), 'other': 1.0})
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    'run 400/1000 25/s 00:24 left loss 0.5',
    'run 700/1000 25/s 00:12 left loss 0.5',
    'run 1000/1000 25/s 00:00 left loss 0.5',
  ]


def test_on_a_terminal_progress_is_a_bar_that_is_closed(monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', terminal)
  with metrics.ProgressLine('run', 0, 10, ('loss',)) as progress:
    progress.update(5, {'loss': 0.5})
    progress.update(10, {'loss': 0.25})
  assert 'run: 100%' in terminal.getvalue()
  assert 'loss 0.25' in terminal.getvalue()
  assert terminal.getvalue().endswith('\n')
