"""All stages on the ant, in one process and without MuJoCo: a point mass stands in for its body."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import ant
from experiments import artifacts, evaluate, pipeline
from internal_rl.data.dataset import Dataset
from internal_rl.envs.ant_body import AntBody
from tests.end_to_end.test_crosses import assert_learns_and_acts

STAGES = (
  'expert',
  'collect',
  'pretrain',
  'probe',
  'control',
  'discover',
  'reinforce/internal',
  'reinforce/raw',
  'evaluate',
)


def glide(self, body, torques):
  """Torques of two joints push the torso about; nothing else moves."""
  qvel = body.qvel.at[:2].set(0.5 * body.qvel[:2] + jnp.clip(torques[:2], -1, 1))
  return body.replace(qpos=body.qpos.at[:2].add(self.seconds * qvel[:2]), qvel=qvel)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The config and workdir of one pipeline, which the tests of this file look at."""
  config, workdir = ant.get_config('smoke'), tmp_path_factory.mktemp('ant')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(AntBody, 'advance', glide)
    early = {}
    expert = pipeline.DEMONSTRATION['expert']

    def expert_then_evaluate(config, workdir):
      result = expert(config, workdir)
      early.update(evaluate.run(config, workdir))
      return result

    patch.setitem(pipeline.DEMONSTRATION, 'expert', expert_then_evaluate)
    pipeline.run(config, str(workdir))
  return config, workdir, early


def result(run, stage):
  return artifacts.read_result(run[0], str(run[1]), stage)


def test_every_stage_ends_in_a_result_and_the_run_in_a_report(run):
  results = {stage: result(run, stage) for stage in STAGES}
  assert all(results.values())
  page = (run[1] / 'report.html').read_text()
  assert 'the expert, without noise' in page
  assert 'within 10 steps' in page
  assert 'NaN' not in (run[1] / 'summary.json').read_text()


def test_there_are_no_floors_where_nobody_knows_them(run):
  for stage in STAGES:
    floors = ('bayes', 'goal_nll', 'gap')
    assert not [name for name in result(run, stage) if name.startswith(floors)]
  summary = json.loads((run[1] / 'summary.json').read_text())
  assert {'base_nll', 'probe_accuracy', 'internal_rl_success'} <= set(summary)
  assert 'bayes_nll' not in summary


def test_the_base_model_stands_beside_its_expert_who_is_told_the_way(run):
  row = result(run, 'pretrain')
  assert row['expert_nll'] < row['nll']
  assert len(row['expert_nll_by_stage']) == len(row['nll_by_stage'])
  assert 'told the way' in (run[1] / 'report.html').read_text()


def test_a_blind_guess_stands_beside_the_probes(run):
  row = result(run, 'probe')
  assert 0.5 <= row['majority'] <= 1  # Of two subgoals.
  assert len(row['accuracy']) == run[0].model.num_blocks + 1
  assert np.shape(row['accuracy_by_step']) == (3, run[0].data.horizon)


def test_success_rates_tell_how_many_simulations_blew_up(run):
  for store in ('D', 'D_star'):
    assert result(run, 'collect')[store]['blown_up'] == 0
  assert result(run, 'evaluate')['simulation'] == {
    torques: {'steps': 256, 'blown_up': 0} for torques in ('random', 'constant')
  }
  assert 'blew up in 0 of' in (run[1] / 'report.html').read_text()
  measured = [
    result(run, 'expert'),
    result(run, 'evaluate')['expert_success']['pretraining'],
    result(run, 'control')['layers'][0]['post_training'],
    result(run, 'discover')['prior_success'],
    result(run, 'reinforce/raw')['runs'][0],
    result(run, 'evaluate')['base_success']['post_training'],
  ]
  assert [row['diverged'] for row in measured] == [0] * len(measured)


def test_stores_hold_successes_only(run):
  for name in ('D', 'D_star'):
    store = Dataset.open(run[1] / 'data' / name)
    assert len(store) == run[0].data.episodes == result(run, 'collect')[name]['episodes']
    episodes = store.take(np.arange(len(store)))
    assert episodes['mask'][:, 0].all()
    assert result(run, 'collect')[name]['failed'] > 0
  assert {'env', 'noisy', 'actor', 'params', 'horizon'} <= set(store.manifest['config'])


def test_what_was_trained_on_a_store_of_another_size_is_refused(run):
  config = ant.get_config('smoke')
  config.data.episodes *= 2
  with pytest.raises(ValueError, match='data.episodes: it has'):
    artifacts.read_result(config, str(run[1]), 'pretrain')


def test_a_store_of_another_world_or_of_noisy_actions_is_refused(run, tmp_path):
  config = ant.get_config('smoke')
  config.data.directory = str(run[1] / 'data')
  artifacts.demonstrations(config, str(tmp_path))
  config.env.cell_size = 0.2
  with pytest.raises(ValueError, match='collected with another env'):
    artifacts.demonstrations(config, str(tmp_path))
  swapped = tmp_path / 'swapped'
  swapped.mkdir()
  (swapped / 'D_star').symlink_to(run[1] / 'data' / 'D')
  config = ant.get_config('smoke')
  config.data.directory = str(swapped)
  with pytest.raises(ValueError, match='collected with another noisy'):
    artifacts.demonstrations(config, str(tmp_path), clean=True)


def test_evaluation_measures_what_is_there_and_names_what_is_missing(run):
  _, _, early = run
  assert set(early['expert_success']) == {'pretraining', 'post_training'}
  assert early['expert_success']['pretraining']['episodes'] == 16
  assert early['missing'] == ['base_success', 'replay_success', 'goal_code_success', 'code_meaning']
  # The pipeline evaluates again when the other stages are finished.
  late = result(run, 'evaluate')
  assert late['missing'] == []
  assert late['expert_success'] == early['expert_success']
  assert set(late['goal_code_success']) == {'pretraining', 'post_training', 'lengthened'}
  assert late['goal_code_success']['lengthened'] == []
  assert set(late['code_meaning']) == {'subgoal', 'goal_cell'}


def test_a_transformer_learns_and_acts_on_the_ant(run, tmp_path, monkeypatch):
  monkeypatch.setattr(AntBody, 'advance', glide)
  config = ant.get_config('smoke')
  config.model.kind = 'transformer'
  config.data.directory = str(run[1] / 'data')
  assert_learns_and_acts(config, str(tmp_path), 'query_key_value')
