"""What a stage's outcome depends on, and what it does not."""

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
