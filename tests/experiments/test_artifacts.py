"""What a stage's outcome depends on, and what it does not."""

import time

import pytest

from configs.gridworld import get_config
from experiments import artifacts


@pytest.mark.parametrize('stage', artifacts.SECTIONS)
def test_one_base_model_serves_metacontrollers_at_every_layer(stage):
  config, other = get_config('smoke'), get_config('smoke')
  other.model.controlled_layer = 0
  same = artifacts.fingerprint(config, stage) == artifacts.fingerprint(other, stage)
  assert same == (stage not in ('discover', 'reinforce/internal', 'evaluate'))
  other.model.width *= 2
  told = artifacts.fingerprint(config, stage) != artifacts.fingerprint(other, stage)
  assert told == (stage not in ('expert', 'collect'))


@pytest.mark.parametrize('stage', artifacts.SECTIONS)
@pytest.mark.parametrize('field', ['reinforce.time_limit', 'evaluate.episodes'])
def test_success_rates_belong_to_the_episodes_that_they_were_measured_on(stage, field, tmp_path):
  config = get_config('smoke')
  artifacts.write_result(config, str(tmp_path), stage, {}, time.time())
  assert artifacts.read_result(config, str(tmp_path), stage)['fingerprint']['seed'] == 0
  config.update_from_flattened_dict({field: 8})
  if stage in ('expert', 'collect', 'pretrain', 'probe'):
    artifacts.read_result(config, str(tmp_path), stage)
  else:
    with pytest.raises(ValueError, match=f'{field}: it has .*, config says 8'):
      artifacts.read_result(config, str(tmp_path), stage)
