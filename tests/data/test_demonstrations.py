"""Stored demonstrations are those that were collected, in an order that the step decides."""

import jax
import numpy as np
import pytest

from internal_rl.data.collect import collect
from internal_rl.data.demonstrations import Demonstrations
from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.tasks import FAMILIES
from internal_rl.experts.gridworld import GridworldExpert

HORIZON, SHARD = 16, 8
SOURCE = Demonstrations(GridworldExpert(Gridworld(3, 4, 0, HORIZON, FAMILIES['ant'])), HORIZON)
CONFIG = {'horizon': HORIZON}


@pytest.fixture(scope='module')
def generate():
  return jax.jit(lambda key: SOURCE.expert.rollout(key, SHARD, HORIZON))


@pytest.fixture(scope='module')
def stored(generate, tmp_path_factory):
  directory = tmp_path_factory.mktemp('store')
  collect(directory, generate, 3, seed=3, config=CONFIG)
  return SOURCE.opened(str(directory), CONFIG)


def test_what_is_fed_and_rendered_is_what_the_expert_did(stored, generate):
  feed = stored.feed(0, 2 * SHARD)
  render = jax.jit(lambda fed: stored.batch(jax.random.key(0), 2 * SHARD, fed))
  fed = [jax.device_get(render(feed(0))) for _ in range(2)]
  jax.tree.map(np.testing.assert_array_equal, *fed)
  shards = [generate(jax.random.fold_in(jax.random.key(3), i)) for i in (1, 2)]
  whole = jax.tree.map(lambda *x: np.concatenate(x), *map(SOURCE.expert.observations, shards))
  order = lambda batch: np.lexsort(batch.observations.reshape(2 * SHARD, -1).T)
  for got, expected in zip(jax.tree.leaves(fed[0]), jax.tree.leaves(whole), strict=True):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got[order(fed[0])], expected[order(whole)])
  others = [feed(1), stored.feed(1, 2 * SHARD)(0)]
  assert not any(np.array_equal(feed(0).positions, other.positions) for other in others)


def test_the_first_shard_is_held_out_from_training(stored, generate):
  first = generate(jax.random.fold_in(jax.random.key(3), 0))
  held = stored.held_out(SHARD)
  jax.tree.map(np.testing.assert_array_equal, held, jax.device_get(first))
  episodes = lambda batch: {row.tobytes() for row in np.asarray(batch.positions, np.int32)}
  # Three epochs of what is trained on.
  fed = set().union(*(episodes(stored.feed(0, SHARD)(step)) for step in range(6)))
  assert len(fed) > SHARD
  assert not fed & episodes(held)
  np.testing.assert_array_equal(stored.held_out(3).positions, held.positions[:3])
  np.testing.assert_array_equal(stored.held_out(2, skip=1).positions, held.positions[1:3])
  with pytest.raises(ValueError, match=r'holds out one shard of 8 episodes, but 9 are'):
    stored.held_out(SHARD + 1)
  with pytest.raises(ValueError, match=r'but 9 are to be measured on, 1 of them to choose a chec'):
    stored.held_out(SHARD, skip=1)


def test_a_store_of_one_shard_is_refused(generate, tmp_path):
  collect(tmp_path, generate, 1, seed=3, config=CONFIG)
  with pytest.raises(ValueError, match=r'data\.episodes at least twice'):
    SOURCE.opened(str(tmp_path), CONFIG).feed(0, 4)


def test_without_a_store_nothing_is_fed_and_episodes_are_fresh(stored):
  assert SOURCE.feed(0, 4) is None
  assert SOURCE.fingerprint == {}
  batches = [SOURCE.batch(jax.random.key(i), 4) for i in (0, 0, 1)]
  same = [np.array_equal(batches[0].observations, other.observations) for other in batches[1:]]
  assert same == [True, False]


def test_another_store_has_another_fingerprint(stored, generate, tmp_path):
  collect(tmp_path, generate, 2, seed=4, config=CONFIG)
  assert SOURCE.opened(str(tmp_path), CONFIG).fingerprint != stored.fingerprint


def test_a_store_made_otherwise_is_refused_by_name(stored):
  with pytest.raises(ValueError, match='collected with another horizon'):
    SOURCE.opened(str(stored.store.directory), {'horizon': 12})
