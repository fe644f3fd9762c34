"""Stores give back what was collected, resume exactly, sample purely and say what is broken."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

from internal_rl.data.collect import collect
from internal_rl.data.dataset import MANIFEST, Dataset, indices
from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.tasks import FAMILIES
from internal_rl.experts.gridworld import GridworldExpert


@struct.dataclass
class Inner:
  cells: jax.Array


@struct.dataclass
class Walks:
  torques: jax.Array
  inner: Inner
  mask: jax.Array


def walks(key):
  return Walks(
    torques=jax.random.normal(key, (5, 3, 2)),
    inner=Inner(jax.random.randint(key, (5,), 0, 49)),
    mask=jax.random.bernoulli(key, 0.5, (5, 3)),
  )


LIKE = jax.eval_shape(walks, jax.random.key(0))
CONFIG = {'grid': [4, 4], 'epsilon': 0.1}


def files(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_trees_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def store(tmp_path):
  collect(tmp_path / 'store', walks, 3, seed=7, config=CONFIG)
  return tmp_path / 'store'


def test_episodes_come_back_as_they_were_collected_in_order(store):
  dataset = Dataset.open(store, LIKE)
  shards = [walks(jax.random.fold_in(jax.random.key(7), i)) for i in range(3)]
  expected = jax.tree.map(lambda *x: np.concatenate(x), *shards)
  assert len(dataset) == 15
  assert_trees_equal(dataset.take(np.arange(15)), expected)
  shuffled = np.array([14, 0, 7, 7, 3])
  assert_trees_equal(dataset.take(shuffled), jax.tree.map(lambda x: x[shuffled], expected))
  assert dataset.manifest['seed'] == 7
  assert dataset.manifest['config'] == CONFIG


def test_without_a_structure_episodes_come_as_a_dictionary(store):
  flat, tree = Dataset.open(store).take(np.arange(4)), Dataset.open(store, LIKE).take(np.arange(4))
  assert set(flat) == {'torques', 'inner.cells', 'mask'}
  np.testing.assert_array_equal(flat['inner.cells'], tree.inner.cells)
  np.testing.assert_array_equal(flat['torques'], tree.torques)


def test_integers_are_stored_in_the_smallest_type_and_read_in_one_that_holds_every_shard(tmp_path):
  shards = iter([np.array([0, 100]), np.array([-1, 300])])
  collect(tmp_path, lambda _: {'x': next(shards)}, 2, 0, {})
  stored = [np.load(tmp_path / f'0000{i}.x.npy').dtype for i in range(2)]
  assert stored == [np.int8, np.int16]
  x = Dataset.open(tmp_path).take(np.arange(4))['x']
  assert x.dtype == np.int16
  assert x.tolist() == [0, 100, -1, 300]


def test_arrays_are_memory_mapped(store):
  for shard in Dataset.open(store, LIKE).shards:
    assert all(isinstance(array, np.memmap) for array in shard)


# With a gigabyte to itself it first tries to read everything, then reads the batches.
POOR = """
import resource, sys
import numpy as np
from internal_rl.data.dataset import Dataset

resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
store = Dataset.open(sys.argv[1])
try:
  print(len([np.array(x) for shard in store.shards for x in shard]))
except MemoryError:
  print('too large')
print([int(i) for step in range(400) for i in store.batch(7, step, 4)['number'][:, -1]])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere the limit does not hold')
def test_a_store_larger_than_memory_serves_batches(tmp_path):
  shards, episodes, size = [], 1500, 250_000
  for index in range(2):
    # A sparse file of 1.5 GB; what is in it, a number an episode, takes a few megabytes.
    path = tmp_path / f'{index}.npy'
    array = np.lib.format.open_memmap(path, 'w+', np.float32, (episodes, size))
    array[:, -1] = np.arange(index * episodes, (index + 1) * episodes)
    array.flush()
    field = {'file': path.name, 'dtype': '<f4', 'shape': [episodes, size], 'sha256': ''}
    shards.append({'episodes': episodes, 'fields': {'number': field}})
  (tmp_path / MANIFEST).write_text(json.dumps({'seed': 0, 'config': {}, 'shards': shards}))
  done = subprocess.run(
    [sys.executable, '-c', POOR, tmp_path], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-4000:]
  too_large, numbers = done.stdout.splitlines()
  assert too_large == 'too large'
  drawn = [indices(7, step, 4, 2 * episodes) for step in range(400)]
  assert json.loads(numbers) == np.concatenate(drawn).tolist()


@pytest.mark.parametrize('at', [0, 1, 2])
def test_an_interrupted_collection_resumes_to_the_same_bytes(store, tmp_path, at):
  calls = []

  def interrupted(key):
    if len(calls) == at:
      raise KeyboardInterrupt
    calls.append(key)
    return walks(key)

  other = tmp_path / 'other'
  with pytest.raises(KeyboardInterrupt):
    collect(other, interrupted, 3, seed=7, config=CONFIG)
  (other / f'{at:05d}.torques.npy').write_bytes(b'half a shard, which no manifest lists')
  (other / f'{at:05d}.mask.npy.partial').write_bytes(b'half a file')
  if at:
    assert len(Dataset.open(other, LIKE)) == 5 * at
  resumed = []
  collect(other, lambda key: resumed.append(key) or walks(key), 3, seed=7, config=CONFIG)
  assert len(resumed) == 3 - at
  assert files(other) == files(store)


def test_a_finished_collection_is_left_alone_and_can_be_extended(store, tmp_path):
  before = files(store)
  collect(store, lambda key: pytest.fail('collected again'), 3, seed=7, config=CONFIG)
  assert files(store) == before
  collect(store, walks, 4, seed=7, config=CONFIG)
  collect(tmp_path / 'four', walks, 4, seed=7, config=CONFIG)
  assert files(store) == files(tmp_path / 'four')


@pytest.mark.parametrize(
  ('seed', 'config', 'message'),
  [(8, CONFIG, 'seed=7, but 8'), (7, {'grid': 5}, r"config=.*but \{'grid': 5\}")],
)
def test_resuming_something_else_is_refused(store, seed, config, message):
  with pytest.raises(ValueError, match=message):
    collect(store, walks, 4, seed=seed, config=config)


def test_only_episodes_that_are_kept_are_stored_and_the_others_counted(tmp_path):
  def settle(episodes):
    kept = np.asarray(episodes.mask[:, 0])
    return jax.tree.map(lambda x: x[kept], episodes), {'failed': int((~kept).sum())}

  wanted = dict(seed=7, config=CONFIG, settle=settle, size=6)
  collect(tmp_path / 'whole', walks, 3, **wanted)
  dataset = Dataset.open(tmp_path / 'whole', LIKE)
  shards = dataset.manifest['shards']
  assert [shard['episodes'] for shard in shards] == [6, 6, 6]
  stored = dataset.take(np.arange(18))
  assert stored.mask[:, 0].all()
  for index, shard in enumerate(shards):
    key = jax.random.fold_in(jax.random.key(7), index)
    drawn = [walks(jax.random.fold_in(key, i)) for i in range(20)]
    whole = jax.tree.map(lambda *x: np.concatenate(x), *drawn)
    wins = np.flatnonzero(whole.mask[:, 0])[:6]
    np.testing.assert_array_equal(stored.torques[6 * index : 6 * index + 6], whole.torques[wins])
    rounds = wins[-1] // 5 + 1
    assert shard['failed'] == (~whole.mask[: 5 * rounds, 0]).sum()
  collect(tmp_path / 'parts', walks, 1, **wanted)
  collect(tmp_path / 'parts', walks, 3, **wanted)
  assert files(tmp_path / 'parts') == files(tmp_path / 'whole')


def test_collecting_from_an_expert_that_hardly_succeeds_is_given_up(tmp_path):
  never = lambda episodes: (jax.tree.map(lambda x: x[:0], episodes), {})
  with pytest.raises(ValueError, match=r'of 1000 episodes 0 are successful.*train the expert'):
    collect(tmp_path, jax.jit(walks), 1, 7, CONFIG, settle=never, size=6)


def test_shards_that_do_not_match_are_refused(store, tmp_path):
  with pytest.raises(ValueError, match=r'generate: fields .* but earlier shards hold'):
    collect(store, lambda _: {'x': np.zeros(5)}, 4, seed=7, config=CONFIG)
  assert len(Dataset.open(store, LIKE)) == 15
  with pytest.raises(ValueError, match='generate: leading axes'):
    collect(tmp_path / 'ragged', lambda _: {'x': np.zeros(5), 'y': np.zeros(4)}, 1, 0, {})


def test_batches_are_a_pure_function_of_seed_and_step(store):
  a, b = Dataset.open(store, LIKE), Dataset.open(store, LIKE)
  later = [b.batch(3, step, 4) for step in (5, 1, 0)]
  for step, batch in zip((5, 1, 0), later, strict=True):
    assert_trees_equal(a.batch(3, step, 4), batch)
  assert not np.array_equal(a.batch(3, 0, 4).torques, a.batch(4, 0, 4).torques)
  assert not np.array_equal(a.batch(3, 0, 4).torques, a.batch(3, 1, 4).torques)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(5, 70), st.integers(0, 1000))
def test_an_epoch_holds_every_episode_once(seed, total, size, epoch):
  first, last = epoch * total // size, ((epoch + 1) * total - 1) // size
  drawn = np.concatenate([indices(seed, step, size, total) for step in range(first, last + 1)])
  offset = epoch * total - first * size
  assert sorted(drawn[offset : offset + total]) == list(range(total))


def test_every_order_is_equally_likely():
  orders = np.array([indices(seed, 0, 3, 3) for seed in range(1200)]) @ [9, 3, 1]
  counts = np.unique(orders, return_counts=True)[1]
  assert len(counts) == 6
  assert np.square(counts - 200).sum() / 200 < 26  # 5 dof: p about 1e-4
  firsts = np.array([indices(0, epoch * 10, 10, 100)[0] for epoch in range(2000)])
  counts = np.bincount(firsts, minlength=100)
  assert np.square(counts - 20).sum() / 20 < 160  # 99 dof: p about 1e-4


def test_a_missing_store_says_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'manifest\.json: no such store; collect the data'):
    Dataset.open(tmp_path, LIKE)


def test_a_missing_file_is_named(store):
  (store / '00001.mask.npy').unlink()
  with pytest.raises(FileNotFoundError, match=r'00001\.mask\.npy.*is missing; delete the folder'):
    Dataset.open(store, LIKE)


@pytest.mark.parametrize('keep', [0, 20, 140])
def test_a_truncated_file_is_named(store, keep):
  path = store / '00002.torques.npy'
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r'00002\.torques\.npy: truncated or damaged .*delete the'):
    Dataset.open(store, LIKE)


def test_a_damaged_file_is_found_by_verify_only(store):
  Dataset.open(store, LIKE).verify()
  path = store / '00000.inner.cells.npy'
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'00000\.inner\.cells\.npy: checksum differs'):
    Dataset.open(store, LIKE).verify()


def test_a_file_of_another_shape_and_a_broken_manifest_are_named(store):
  np.save(store / '00000.mask.npy', np.zeros((5, 9), bool))
  with pytest.raises(ValueError, match=r'00000\.mask\.npy: .*but the manifest says'):
    Dataset.open(store, LIKE)
  (store / MANIFEST).write_text(json.dumps({'seed': 0})[:-3])
  with pytest.raises(ValueError, match=r'manifest\.json: not JSON'):
    Dataset.open(store, LIKE)


def test_another_structure_is_refused(store):
  with pytest.raises(ValueError, match=r'holds fields .* expected'):
    Dataset.open(store, {'actions': 0})


def test_indices_outside_are_refused(store):
  with pytest.raises(IndexError, match=r'episodes must be in \[0, 15\)'):
    Dataset.open(store, LIKE).take(np.array([15]))
  with pytest.raises(ValueError, match='batch size=0'):
    Dataset.open(store, LIKE).batch(0, 0, 0)


def test_gridworld_episodes_take_a_byte_a_number_and_render_as_before(tmp_path):
  expert = GridworldExpert(Gridworld(4, 4, 1, 24, FAMILIES['ant']))
  rollout = jax.jit(lambda key: expert.rollout(key, 50))
  collect(tmp_path, rollout, 1, 0, {})
  like = jax.eval_shape(rollout, jax.random.key(0))
  dataset = Dataset.open(tmp_path, like)
  episodes = dataset.take(np.arange(50))
  assert {leaf.dtype for leaf in jax.tree.leaves(episodes)} == {np.dtype(bool), np.dtype(np.int8)}
  direct = rollout(jax.random.fold_in(jax.random.key(0), 0))
  rendered = expert.observations(jax.tree.map(jnp.asarray, episodes))
  assert_trees_equal(rendered, expert.observations(direct))
