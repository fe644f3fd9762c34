"""The wiring from config to objects."""

import jax
import pytest

from configs.gridworld import get_config
from experiments import common


def test_a_world_can_be_built_under_trace():
  config = get_config('smoke')
  common.require_solvable.cache_clear()
  jax.jit(lambda: (common.environment(config), 0)[1])()


def test_a_world_without_solvable_layouts_is_refused():
  config = get_config('smoke')
  config.env.update(family='three_pairs', grid_size=3, num_objects=6, num_walls=2)
  with pytest.raises(ValueError, match='none lets every task be completed'):
    common.environment(config)
