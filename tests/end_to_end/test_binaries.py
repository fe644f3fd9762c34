"""Every stage's smoke config through its binary, as a user runs them."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments import published
from internal_rl.training import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = '--config=configs/gridworld.py:smoke'


def launch(stage, workdir, *flags):
  command = [sys.executable, '-m', f'experiments.{stage}', CONFIG, f'--workdir={workdir}', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def result(workdir, *stage):
  return json.loads(pathlib.Path(workdir, *stage, 'result.json').read_text())


BINARIES = ('pretrain', 'probe', 'control', 'discover', 'reinforce', 'reinforce --raw', 'evaluate')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Every stage by its own binary, then the pipeline.

  Returns the workdir, what the pipeline says, and what `discover` had written before it.
  """
  path = tmp_path_factory.mktemp('smoke')
  for command in (*BINARIES, 'pipeline'):
    before = result(path, 'discover') if command == 'pipeline' else None
    stage, *flags = command.split()
    done = launch(stage, path, *flags)
    assert done.returncode == 0, done.stderr[-4000:]
  return path, done.stderr, before


@pytest.fixture(scope='module')
def workdir(run):
  return run[0]


def test_pipeline_ends_in_a_summary_and_a_report(workdir):
  summary = json.loads((workdir / 'summary.json').read_text())
  wanted = {
    'base_nll',
    'bayes_nll',
    'switch_f1',
    'prior_success',
    'internal_rl_success',
    'raw_rl_success',
    'episodes',
    'seconds',
  }
  assert wanted <= set(summary)
  assert summary['base_nll'] > summary['bayes_nll'] > 0
  assert (workdir / 'report.html').stat().st_size > 10_000


def test_results_say_how_to_make_them_again(workdir):
  for stage in ('pretrain', 'probe', 'control', 'discover', 'reinforce/internal', 'evaluate'):
    row = result(workdir, stage)
    assert row['config']['preset'] == 'smoke'
    assert {'seed', 'commit', 'device', 'date', 'seconds'} <= set(row)


def test_layers_are_probed_on_the_way_through_pretraining(workdir):
  row = result(workdir, 'probe')
  assert row['milestones']['steps'][0] == 2
  first, last = row['milestones']['accuracy']
  assert len(first) == len(last)
  assert last == row['accuracy']


def test_the_pipeline_skips_stages_that_are_finished(run):
  path, said, before = run
  assert said.count('finished before, skipped') == len(BINARIES) == 7
  assert result(path, 'discover') == before


def test_a_finished_run_is_published_and_drawn(workdir, tmp_path):
  (tmp_path / 'README.md').write_text(f'{published.START}\n{published.END}\n')
  done = launch('publish', workdir, f'--results={tmp_path}')
  assert done.returncode == 0, done.stderr[-4000:]
  (path,) = (tmp_path / 'gridworld' / 'smoke').iterdir()
  found = json.loads(path.read_text())
  assert 'pipeline' in found['seconds']
  for stage in ('probe', 'reinforce/internal', 'reinforce/raw'):
    assert found['stages'][stage]['commit'] == result(workdir, stage)['commit']
  command = [sys.executable, '-m', 'experiments.figures', f'--results={tmp_path}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-4000:]
  assert 'Unseen task: raw-action RL after 32 episodes' in (tmp_path / 'README.md').read_text()
  assert len(list((path.parent / 'figures').iterdir())) == 7


def test_internal_rl_acts_with_the_base_that_was_trained_along(tmp_path):
  # From random initialisation, so from an empty workdir.
  fields = ('discover.base=random', 'discover.alphas=(0.1,)', 'reinforce.learning_rates=(3e-3,)')
  flags = [f'--config.{field}' for field in fields]
  for stage in ('discover', 'reinforce'):
    done = launch(stage, tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-4000:]
  population = checkpoint.restore_params(str(tmp_path / 'discover'), which='latest')
  trained = jax.tree.map(lambda x: x[0], population)
  assert set(trained) == {'base', 'metacontroller'}
  # Checkpoints remember what was frozen.
  checkpoint.restore_params(
    str(tmp_path / 'reinforce' / 'internal' / 'lr_0.003_seed_0'),
    which='latest',
    expect={'frozen parameters': checkpoint.checksums(trained)},
  )


def test_a_missing_prerequisite_names_the_command_that_makes_it(tmp_path):
  done = launch('probe', tmp_path / 'empty')
  assert done.returncode != 0
  assert 'run: python -m experiments.pretrain --config=configs/gridworld.py:smoke' in done.stderr


def test_another_config_is_refused_by_the_fields_that_differ(workdir):
  done = launch('probe', workdir, '--config.model.width=32')
  assert done.returncode != 0
  assert 'model.width' in done.stderr


def test_an_unknown_field_is_refused(tmp_path):
  done = launch('pretrain', tmp_path, '--config.pretrain.learning_rat=1')
  assert done.returncode != 0
  assert 'learning_rat' in done.stderr


def test_a_world_without_solvable_layouts_is_refused(tmp_path):
  world = {'family': 'three_pairs', 'grid_size': 3, 'num_objects': 6, 'num_walls': 2}
  done = launch('pretrain', tmp_path, *[f'--config.env.{k}={v}' for k, v in world.items()])
  assert done.returncode != 0
  assert 'none lets every task be completed' in done.stderr


def test_collected_demonstrations_can_be_trained_on(tmp_path):
  flags = f'--config.data.directory={tmp_path / "data"}'
  done = launch('collect', tmp_path / 'run', flags)
  assert done.returncode == 0, done.stderr[-4000:]
  done = launch('pretrain', tmp_path / 'run', flags)
  assert done.returncode == 0, done.stderr[-4000:]
  assert result(tmp_path / 'run', 'pretrain')['nll'] > 0
