"""The ant's expert is trained and restored by its stage; impossible worlds are refused.

A point mass stands in for the body: `tests/experts/test_ant` has training on MuJoCo.
"""

import jax
import numpy as np
import pytest

from configs import ant
from experiments import artifacts, collect, evaluate, expert, pretrain
from internal_rl.envs.ant_body import AntBody
from internal_rl.training import checkpoint
from tests.end_to_end.test_ant_pipeline import glide
from tests.training import toy


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """The workdir of a run, and its result."""
  workdir = str(tmp_path_factory.mktemp('undisturbed'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(AntBody, 'advance', glide)
    return workdir, expert.run(ant.get_config('smoke'), workdir)


def test_an_expert_is_trained_judged_and_restored(undisturbed):
  config, (workdir, result) = ant.get_config('smoke'), undisturbed
  assert result['curve']['step'] == [0, 1, 2]
  assert 0 <= result['success'] <= 1
  noisy, mean = (artifacts.expert(config, workdir, clean) for clean in (False, True))
  assert (noisy.noisy, mean.noisy) == (True, False)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(noisy.params))


def test_training_that_stops_after_an_update_and_goes_on_ends_as_if_undisturbed(
  undisturbed, tmp_path, monkeypatch
):
  monkeypatch.setattr(AntBody, 'advance', glide)
  config, save = ant.get_config('smoke'), checkpoint.Checkpoints.save

  def save_and_stop(self, state, step, *, kind='latest', value=None):
    save(self, state, step, kind=kind, value=value)
    if (step, kind) == (1, 'latest'):
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', save_and_stop)
    with pytest.raises(KeyboardInterrupt):
      expert.run(config, str(tmp_path))
  resumed = expert.run(config, str(tmp_path))
  whole, result = undisturbed
  runs = [f'{workdir}/expert' for workdir in (whole, tmp_path)]
  assert toy.same(*(checkpoint.restore_params(run, which='latest') for run in runs))
  assert toy.rows(runs[0]) == toy.rows(runs[1])
  assert resumed['curve'] == result['curve']


def test_without_an_expert_the_command_that_trains_one_is_named(tmp_path):
  for run in (collect.run, evaluate.run):
    with pytest.raises(FileNotFoundError, match=r'run: python -m experiments\.expert --config='):
      run(ant.get_config('smoke'), str(tmp_path))


def test_without_demonstrations_the_command_that_collects_them_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'run: python -m experiments\.collect --config='):
    pretrain.run(ant.get_config('smoke'), str(tmp_path))


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('num_walls', 11, 'none lets every task be completed'),
    ('family', 'spider', r"env\.family='spider': must be one of"),
    ('kind', 'gridworld', "must be 'ant'"),
    ('kind', 'spider', 'must be one of gridworld, ant'),
  ],
)
def test_a_world_in_which_no_expert_can_be_trained_is_refused(tmp_path, field, value, message):
  config = ant.get_config('small')
  config.env[field] = value
  with pytest.raises(ValueError, match=message):
    expert.run(config, str(tmp_path))
