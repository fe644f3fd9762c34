"""The ant's expert is trained and restored by its binary; impossible worlds are refused."""

import jax
import numpy as np
import pytest

from configs import ant
from experiments import artifacts, collect, evaluate, expert, pretrain


def test_an_expert_is_trained_judged_and_restored(tmp_path):
  config = ant.get_config('smoke')
  result = expert.run(config, str(tmp_path))
  assert result['curve']['step'] == [0, 1, 2]
  assert 0 <= result['success'] <= 1
  noisy, mean = (artifacts.expert(config, str(tmp_path), clean) for clean in (False, True))
  assert (noisy.noisy, mean.noisy) == (True, False)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(noisy.params))


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
