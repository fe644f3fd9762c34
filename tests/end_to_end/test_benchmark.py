"""The benchmark: its binary on the smoke config, its arithmetic on clocks that are known."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import ant
from configs.gridworld import get_config
from experiments import benchmark, benchmark_rl, rivals
from internal_rl.envs.ant_body import AntBody
from tests.end_to_end.test_ant_pipeline import glide

ROOT = pathlib.Path(__file__).parents[2]

WITHOUT_ANT = """
import sys
sys.modules['mujoco'] = None
from absl import app
from experiments import benchmark
app.run(benchmark.main, ['benchmark', '--config=configs/ant.py:smoke'])
"""


def launch(out, *flags):
  command = [sys.executable, '-m', 'experiments.benchmark', '--config=configs/gridworld.py:smoke']
  command += [f'--out={out}', '--seconds=0.05', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """Two cheap rows at batch 8, and at 7, which two minibatches cannot share."""
  out = tmp_path_factory.mktemp('benchmark') / 'results' / 'benchmark.json'
  done = launch(out, '--batches=8,7', '--rows=env_.*|policy_update')
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(out.read_text()), done.stdout


def test_every_row_says_its_speed_and_how_it_was_measured(measured):
  result, table = measured
  names = {(row['row'], row['batch']) for row in result['rows']}
  assert names == {(r, b) for r in ('env_steps', 'env_reset', 'policy_update') for b in (8, 7)}
  for row in result['rows']:
    assert row['row'] in table
    if 'error' not in row:
      assert row['calls'] >= benchmark.MIN_CALLS
      assert min(row['per_second'], row['compile_seconds']) > 0
      fastest, slowest = row['seconds_range']
      assert 0 < fastest <= row['seconds'] <= slowest
  steps = next(row for row in result['rows'] if row['row'] == 'env_steps' and row['batch'] == 8)
  time_limit = result['config']['env']['time_limit']
  assert steps['per_second'] * steps['seconds'] == pytest.approx(8 * time_limit)


def test_the_file_says_where_and_with_what_it_was_made(measured):
  result, _ = measured
  assert {'device', 'jax', 'commit', 'date', 'config'} <= set(result)
  assert result['config']['preset'] == 'smoke'


def test_a_row_that_fails_is_recorded_and_the_others_go_on(measured):
  result, table = measured
  failed = [row for row in result['rows'] if 'error' in row]
  assert [(row['row'], row['batch']) for row in failed] == [('policy_update', 7)]
  assert 'reinforce.minibatches=2' in failed[0]['error']
  assert 'failed: ValueError: reinforce.minibatches=2' in table


def test_rows_that_do_not_exist_are_refused_by_name(tmp_path):
  done = launch(tmp_path / 'out.json', '--rows=env')
  assert done.returncode != 0
  assert '--rows=env: must match one of env_steps, ' in done.stderr


class Clock:
  """A row that takes so many seconds, and counts its calls in a log that all share."""

  def __init__(self, name, seconds, log, items=10):
    self.facts = {'unit': 'steps', 'items': items, 'compile_seconds': 1.0}
    self.call = name, seconds, log

  def __call__(self, key):
    name, seconds, log = self.call
    log.append((name, int(jax.random.bits(key))))
    if seconds is None:
      raise MemoryError('out of memory\nand a long story')
    return seconds


def measure_clocks(log, seconds=0.0, **clocks):
  makers = {name: lambda n=name, t=t: Clock(n, t, log) for name, t in clocks.items()}
  return {row['row']: row for row in benchmark.measure(makers, seconds, jax.random.key(0))}


def test_rows_of_a_group_take_turns_on_fresh_inputs_and_are_compared_with_the_first():
  log = []
  rows = measure_clocks(log, ours=0.5, theirs=1.5)
  assert [name for name, _ in log] == ['ours', 'theirs'] * benchmark.MIN_CALLS
  assert len({inputs for name, inputs in log if name == 'ours'}) == benchmark.MIN_CALLS
  assert rows['ours']['per_second'] == pytest.approx(20)
  assert rows['theirs']['reference'] == 'ours'
  assert rows['theirs']['behind'] == pytest.approx(3)


def test_calls_go_on_until_the_time_is_used():
  log = []
  rows = measure_clocks(log, seconds=5.0, quick=0.5, slow=4.0)
  assert rows['quick']['calls'] == 10
  assert rows['slow']['calls'] == benchmark.MIN_CALLS


def test_a_row_that_fails_midway_costs_the_others_nothing():
  log = []
  rows = measure_clocks(log, first=None, second=0.5)
  assert rows['first'] == {'row': 'first', 'error': 'MemoryError: out of memory'}
  assert rows['second']['calls'] == benchmark.MIN_CALLS
  assert 'behind' not in rows['second']


def test_decoding_with_a_cache_and_from_the_whole_past_is_the_same_work():
  cases = benchmark_rl.decode(get_config('smoke'), 3)
  cached, recompute = cases['decode_cached'], cases['decode_recompute']
  arguments = cached.inputs(jax.random.key(0))
  fast, slow = (jax.jit(case.function)(*arguments).logits for case in (cached, recompute))
  assert fast.shape == slow.shape
  assert np.ptp(fast) > 0
  np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)


def test_a_rollout_that_reads_the_whole_past_again_takes_the_same_steps():
  cases = benchmark_rl.internal_recompute(get_config('smoke'), 8)
  carried, again = (
    jax.jit(case.function)(*case.inputs(jax.random.key(0))) for case in cases.values()
  )
  assert np.unique(carried.env.position).size > 1
  np.testing.assert_array_equal(carried.env.position, again.env.position)
  np.testing.assert_array_equal(carried.count, again.count)
  np.testing.assert_allclose(carried.out.e, again.out.e, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(carried.out.z, again.out.z, rtol=1e-3, atol=1e-4)


def test_the_ants_physics_rows_simulate_what_its_environment_does():
  config, key = ant.get_config('small'), jax.random.key(0)
  config.env.time_limit = 3
  makers = benchmark.makers_of(config, 'env_steps', 4, key, '')
  timers = {name: make() for name, make in makers.items()}
  rows = benchmark.measure({name: lambda n=name: timers[n] for name in timers}, 0.0, key)
  assert [row['row'] for row in rows] == ['env_steps', 'physics', 'mujoco_c']
  for row in rows:
    assert row['per_second'] * row['seconds'] == pytest.approx(3 * 4)
  assert rows[1]['behind'] == pytest.approx(rows[0]['per_second'] / rows[1]['per_second'])
  outputs = {name: timer.compiled(*timer.inputs(key)) for name, timer in timers.items()}
  state, _ = outputs['env_steps']
  whole = np.asarray(state.time) == 3
  assert whole.any()
  for name, tolerance in (('physics', 1e-5), ('mujoco_c', 1e-2)):  # C has float64.
    qpos, qvel = (np.asarray(x)[whole] for x in outputs[name])
    np.testing.assert_allclose(qpos, state.body.qpos[whole], atol=tolerance, err_msg=name)
    np.testing.assert_allclose(qvel, state.body.qvel[whole], atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
  ('group', 'items'),
  [
    ('expert', 2),
    ('pretrain', 128),
    ('discover', 64),
    ('internal_steps', 32),
    ('raw_update', 2),
    ('decode', 32),
  ],
)
def test_the_ant_has_the_gridworlds_rows(group, items, monkeypatch):
  monkeypatch.setattr(AntBody, 'advance', glide)
  config, key = ant.get_config('smoke'), jax.random.key(0)  # Two members, episodes of 16 steps.
  for row in benchmark.measure(benchmark.makers_of(config, group, 2, key, 'nowhere'), 0.0, key):
    assert row.get('error') is None
    assert row['per_second'] * row['seconds'] == pytest.approx(items)


def test_without_the_extra_one_line_says_that_the_ants_rows_are_left_out():
  command = [sys.executable, '-c', WITHOUT_ANT]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode != 0
  assert done.stderr.strip().splitlines()[-1] == (
    "All rows are left out: env.kind='ant' needs mujoco; run: pip install -e '.[ant]'"
  )


def test_a_rival_that_is_not_installed_says_how_to_install_it(tmp_path):
  with pytest.raises(FileNotFoundError, match='run: make rivals'):
    rivals.Worker('navix', str(tmp_path), {})
  python = tmp_path / 'navix' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  # Away from its pyvenv.cfg, the interpreter has its standard library and nothing else of ours.
  python.symlink_to(os.path.realpath(sys.executable))
  with pytest.raises(RuntimeError, match="-m pip install 'navix>=0.7'"):
    rivals.Worker('navix', str(tmp_path), {})
