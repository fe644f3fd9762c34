"""What is published of runs, and the figures and the table drawn from it."""

import copy
import json
import pathlib
import shlex

import numpy as np
import pytest

from configs.gridworld import get_config
from experiments import artifacts, publish, published
from internal_rl.analysis import figures
from tests.analysis import synthetic

ROOT = pathlib.Path(__file__).parents[2]
README = f'# Results\n\n{published.START}\n{published.END}\n\nMore.\n'
FIGURES = {
  'pretraining',
  'probes',
  'controllers',
  'gates',
  'kl_sweep',
  'learning_curves',
  'endings',
}


def made_with(config, results):
  """What stages run with `config` would have written."""
  return {stage: {**row, 'config': artifacts.mapping(config)} for stage, row in results.items()}


def config_of(seed, **discover):
  config = get_config('small')
  config.seed = seed
  config.discover.update(discover)
  return config


def record(seed, variant='', change=lambda results: None, **discover):
  """A run that went well, whose gates are those of two made-up episodes."""
  results = synthetic.results()
  gates = {'subgoals': np.array([[0, 0, 1], [1, 1, 1]]), 'mask': np.ones((2, 3), bool)}
  gates |= {'segments': gates['subgoals'], 'beta': np.array([[1.0, 0.1, 0.9], [1.0, 0.2, 0.1]])}
  results['discover']['gates'] = gates
  results['discover']['f1_tolerance_0'] -= 0.1 * seed
  change(results)
  config = config_of(seed, **discover)
  return publish.record(config, made_with(config, results), variant)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Three seeds of the preset, and forced switching on the first of them."""
  path = tmp_path_factory.mktemp('results')
  (path / 'README.md').write_text(README)
  for seed in range(3):
    publish.write(path, record(seed))
  publish.write(path, record(0, 'forced', forced, gate='open'))
  return path


@pytest.fixture(scope='module')
def text(root):
  return published.table(published.presets(root))


def forced(results):
  results['reinforce/internal'] = synthetic.reinforced('internal', 0.03, 0.02)
  results['discover']['f1_tolerance_0'] = 0.123


def cells(text, claim):
  """Returns the cells of the one row of a table that makes this claim."""
  (row,) = [line.split(' | ') for line in text.splitlines() if f'| {claim} |' in line]
  return row


def test_the_table_in_the_repository_is_what_its_files_give():
  text = (ROOT / 'results' / 'README.md').read_text()
  presets = published.presets(ROOT / 'results')
  assert published.with_table(text, published.written(ROOT / 'results', presets)) == text
  for preset in presets:
    folder = ROOT / 'results' / preset.folder / 'figures'
    assert {path.name for path in folder.iterdir()} == set(preset.pictures)


def test_every_figure_and_the_table_are_made_again_and_are_the_same(root):
  assert published.run(root)['presets'] == 1
  folder = root / 'gridworld' / 'small' / 'figures'
  named = {f'{name}.png' for name in FIGURES} | {'forced_kl_sweep.png'}  # Open gates tell nothing.
  files = [*folder.iterdir(), root / 'README.md']
  assert {path.name for path in files} == {*named, 'README.md'}
  before = {path: path.read_bytes() for path in files}
  for path in folder.iterdir():
    path.unlink()
  (folder / 'of_a_run_that_is_gone.png').write_bytes(b'')
  published.run(root)
  assert {path: path.read_bytes() for path in [*folder.iterdir(), root / 'README.md']} == before


def test_numbers_are_medians_and_quartiles_of_the_files(root, text):
  files = [json.loads(path.read_text()) for path in (root / 'gridworld/small').glob('seed_*.json')]
  f1 = [file['stages']['discover']['f1_tolerance_0'] for file in files]
  low, median, high = np.percentile(f1, (25, 50, 75))
  row = cells(text, 'Unsupervised switches against changes of subgoal: F1, exact step')
  assert row[3] == f'{median:.3g} ({low:.3g} to {high:.3g}; 3 seeds)'
  assert row[5] == '`python -m experiments.discover $C` |'
  assert 'for S in 0 1 2' in text


def test_a_variant_is_one_more_method_and_its_other_numbers_carry_its_name(text):
  success = [0.03 * (1 - 0.05 * seed) for seed in range(3)]
  row = cells(text, 'Unseen task: forced switching after 256,000 episodes')
  assert row[3].startswith(f'{np.median(success):.3g} (')
  assert '$C_FORCED' in row[5] and 'C_FORCED="--config=' in text
  claim = 'Unsupervised switches against changes of subgoal: F1, exact step (forced)'
  assert cells(text, claim)[3] == '0.123'
  assert 'linear probe, layer 0 (forced)' not in text  # The preset's own.
  assert '--config.discover.gate=open' in text


def test_a_variants_sweep_starts_from_the_base_model_of_its_preset(root, monkeypatch):
  drawn = []
  draw = figures.kl_sweep
  monkeypatch.setattr(figures, 'kl_sweep', lambda rows, nll: drawn.append(nll) or draw(rows, nll))
  (preset,) = published.presets(root)
  assert 'forced_kl_sweep.png' in preset.pictures
  assert drawn == [0.271, 0.271]


def test_a_variant_in_another_world_is_no_method_of_the_preset(tmp_path):
  publish.write(tmp_path, record(0))
  config = config_of(0)
  config.env.family = 'ant'
  results = synthetic.results()
  results['reinforce/internal'] = synthetic.reinforced('internal', 0.03, 0.02)
  results['reinforce/raw'] = synthetic.reinforced('raw', 0.005, 0.001)
  publish.write(tmp_path, publish.record(config, made_with(config, results), 'singles'))
  (preset,) = published.presets(tmp_path)
  assert {'learning_curves.png', 'singles_learning_curves.png'} <= preset.pictures.keys()
  own, other = (
    cells(published.table([preset]), f'Unseen task: internal RL after 256,000 episodes{name}')
    for name in ('', ' (singles)')
  )
  assert own[3].startswith('0.71') and other[3].startswith('0.0285')
  assert own[5].startswith('`python -m experiments.reinforce $C`')
  assert other[5].startswith('`python -m experiments.reinforce $C_SINGLES`')
  raw = cells(
    published.table([preset]), 'Unseen task: raw-action RL after 256,000 episodes (singles)'
  )
  assert raw[5].startswith('`python -m experiments.reinforce $C_SINGLES --raw`')


def test_speeds_that_were_measured_there_stand_below(tmp_path):
  found = {
    'config': artifacts.mapping(get_config('small')),
    'commit': 'abc',
    'device': 'gpu x 1',
    'cpus': 16,
    'jax': '0.9',
    'date': '2026-01-02T03:04:05',
    'command': 'python -m experiments.benchmark --rows=env_steps',
    'rows': [
      {'row': 'env_steps', 'batch': 64, 'error': 'MemoryError: too large'},
      {
        'row': 'navix',
        'batch': 64,
        'unit': 'steps',
        'per_second': 2e6,
        'seconds': 0.005,
        'updates': 4,
        'calls': 77,
        'compile_seconds': 1.5,
        'reference': 'env_steps',
        'version': '0.7.1',
        'behind': 2.0,
      },
    ],
  }
  (tmp_path / 'benchmark_gpu.json').write_text(json.dumps(found))
  (tmp_path / 'README.md').write_text(README)
  published.run(tmp_path)
  text = (tmp_path / 'README.md').read_text()
  assert '### Speed: gridworld, small, benchmark_gpu.json\n\n4 × 4 cells, 6 colours' in text
  assert 'commit abc, gpu x 1, 16 CPU cores, jax 0.9, navix 0.7.1, 2026-01-02' in text
  assert 'failed: MemoryError: too large' in text
  assert 'python -m experiments.benchmark --rows=env_steps' in text
  line = next(line for line in text.splitlines() if line.startswith('navix'))
  assert line.split()[2:6] == ['2,000,000', 'steps', '1.25', '77']
  assert 'env_steps is 2.00 x as fast' in line


@pytest.mark.parametrize('retrained', [False, True])
def test_of_its_base_model_a_variant_says_only_what_the_preset_does_not(tmp_path, retrained):
  def change(results):
    forced(results)
    results['evaluate'] = {**results['evaluate'], 'missing': ['another episode']}
    if retrained:
      results['pretrain'] = {**results['pretrain'], 'nll': 0.5}

  publish.write(tmp_path, record(0))
  publish.write(tmp_path, record(0, 'forced', change, gate='open'))
  text = published.table(published.presets(tmp_path))
  assert text.count('codes of a demonstration replayed') == 2
  assert text.count('actions sampled from the base model') == 1 + retrained


def test_what_nobody_measured_is_said(text):
  assert cells(text, 'Unseen task: co-training, in the end')[3] == 'not measured'
  nothing = published.table([])
  assert nothing.count('not measured') == nothing.count('| C') > 8
  assert '###' in nothing
  assert 'gridworld, ' not in nothing


def test_a_readme_without_markers_is_refused():
  with pytest.raises(ValueError, match='must have the lines <!-- claims'):
    published.with_table('# Results\n', 'a table')


def test_a_record_says_how_to_make_the_run_again():
  found = record(2, 'forced', gate='open', alphas=(0.1, 0.25))
  again = get_config('small')
  flags = dict(flag.removeprefix('--').split('=', 1) for flag in shlex.split(found['command'])[3:])
  assert flags.pop('workdir') == 'runs/small_forced_2'
  assert flags.pop('config') == 'configs/gridworld.py:small'
  for name, value in flags.items():
    section, _, field = name.removeprefix('config.').rpartition('.')
    part = again[section] if section else again
    part[field] = type(part[field])(eval(value) if field == 'alphas' else value)
  assert artifacts.mapping(again) == found['config']


def test_numbers_keep_six_digits_and_curves_their_ends():
  rows = [{'episodes': i, 'success': i / 3} for i in range(1001)]
  found = publish.compact({'curve': rows, 'runs': [{'curve': rows[:3]}], 'x': [1 / 3], 'n': 7})
  assert len(found['curve']) == publish.MAX_POINTS
  assert found['curve'][-1] == {'episodes': 1000, 'success': 333.333}
  assert found['curve'][0]['episodes'] == 0
  assert [row['episodes'] for row in found['runs'][0]['curve']] == [0, 1, 2]
  assert (found['x'], found['n']) == ([0.333333], 7)
  columns = publish.compact({'curve': {'step': list(range(1001))}})
  assert columns['curve']['step'][-1] == 1000
  assert len(columns['curve']['step']) == publish.MAX_POINTS


def test_the_same_run_gives_the_same_bytes_and_may_grow(tmp_path):
  path = pathlib.Path(publish.write(tmp_path, record(0, change=lambda r: r.pop('evaluate'))))
  before = path.read_bytes()
  publish.write(tmp_path, record(0, change=lambda r: r.pop('evaluate')))
  assert path.read_bytes() == before
  publish.write(tmp_path, record(0))
  assert 'evaluate' in json.loads(path.read_text())['stages']


def test_another_run_is_not_overwritten_unless_told(tmp_path):
  publish.write(tmp_path, record(0))
  later = record(0, change=lambda results: results['probe'].update(commit='fedcba987654'))
  for new, message in (
    (later, 'its probe is of commit 0123456789ab, this one of fedcba987654'),
    (record(0, change=lambda r: r.pop('control')), 'it has control, this run has not'),
    (
      record(0, change=lambda r: r['probe'].pop('accuracy_by_step')),
      'its probe has accuracy_by_step, that of this run has not',
    ),
    (record(0, seeds=9), 'discover.seeds: it has 3, this run 9; give --overwrite'),
  ):
    with pytest.raises(ValueError, match=message):
      publish.write(tmp_path, copy.deepcopy(new))
    path = publish.write(tmp_path, new, overwrite=True)
    assert json.loads(pathlib.Path(path).read_text()) == new
    publish.write(tmp_path, record(0), overwrite=True)


def test_seeds_of_one_name_share_their_config(tmp_path):
  publish.write(tmp_path, record(0))
  with pytest.raises(ValueError, match=r'seed_0.json .* discover.seeds: .* --variant'):
    publish.write(tmp_path, record(1, seeds=9), overwrite=True)
  publish.write(tmp_path, record(1, 'nine_seeds', seeds=9))
  fewer_kept = record(1)
  fewer_kept['config']['pretrain']['milestones'] = []
  publish.write(tmp_path, fewer_kept)


def test_time_is_that_of_every_piece_of_a_stage_as_far_as_it_was_logged(tmp_path):
  pieces = [('probe', 570.0), ('pretrain', 570.0), ('probe', 400.5), ('publish', 9.0)]
  rows = [json.dumps({'command': name, 'seconds': seconds}) + '\n' for name, seconds in pieces]
  (tmp_path / 'seconds.jsonl').write_text(''.join(rows))
  logged = publish.seconds_by_command(str(tmp_path))
  assert logged == {'probe': 970.5, 'pretrain': 570.0}
  assert publish.seconds_by_command(str(tmp_path / 'elsewhere')) == {}
  results = made_with(config_of(0), synthetic.results())  # 90 seconds a stage.
  seconds = lambda logged: publish.record(config_of(0), results, '', logged)['seconds']
  unlogged = {
    'reinforce': 90.0,
    'reinforce --raw': 90.0,
    **{stage: 90.0 for stage in results if '/' not in stage},
  }
  assert seconds(None) == unlogged
  assert seconds(logged) == unlogged | logged
  # What began before there was a log: at least as long as its last piece.
  assert seconds({'probe': 80.0}) == unlogged
  # The pipeline's time has that of all stages in it.
  assert seconds({'pipeline': 700.0}) == {'pipeline': 700.0}


def test_a_config_that_no_stage_had_is_not_published():
  config = config_of(0)
  results = made_with(config, synthetic.results())
  config.evaluate.episodes = 7
  with pytest.raises(ValueError, match=r'evaluate.episodes: it has \d+, this run 7'):
    publish.record(config, results)


def test_a_ceiling_is_not_published_as_the_method():
  with pytest.raises(ValueError, match=r'labelled_steps=100: .* ceiling.* --variant=labelled'):
    record(0, labelled_steps=100)
  assert record(0, 'labelled', labelled_steps=100)['variant'] == 'labelled'
