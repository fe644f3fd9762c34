"""Checkpoints come back whole or not at all, and never to the wrong run."""

import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl import training
from tests.training import toy

CONFIG = {'model': {'width': 64, 'layers': [1, 2]}, 'rate': 0.1}


def state(value):
  """A state with every kind of leaf there is."""
  params = {
    'float32': jnp.full((3, 2), value, jnp.float32),
    'bfloat16': jnp.full(5, value, jnp.bfloat16),
    'scalar': jnp.asarray(value, jnp.float32),
    'empty': jnp.zeros((4, 0), jnp.bfloat16),
  }
  extra = {
    'bool': jnp.asarray([True, False]),
    'ints': (jnp.arange(3, dtype=jnp.int8), jnp.asarray(2**31, jnp.uint32)),
    'keys': jax.random.split(jax.random.key(7), 3),
    'rbg': jax.random.key(8, impl='rbg'),
    'none': None,
    'no_keys': jax.random.split(jax.random.key(1), 0),
  }
  return training.create(params, training.optimiser(0.1), jax.random.key(9), extra)


def save(workdir, *steps, fingerprint=CONFIG):
  with training.Checkpoints(str(workdir), fingerprint) as checkpoints:
    for step in steps:
      checkpoints.save(state(step), step)


def restore(workdir, fingerprint=CONFIG, template=None):
  with training.Checkpoints(str(workdir), fingerprint) as checkpoints:
    return checkpoints.restore(state(0.0) if template is None else template)


def files(directory):
  return sorted(path for path in pathlib.Path(directory).rglob('*') if path.is_file())


def steps(directory):
  return sorted(path.name for path in directory.iterdir())


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
  save(tmp_path, 3)
  restored = restore(tmp_path)
  assert jax.tree.structure(restored) == jax.tree.structure(state(3))
  assert toy.same(restored, state(3))
  for name in ('keys', 'rbg'):
    key, expected = restored.extra[name], state(3).extra[name]
    assert key.dtype == expected.dtype
  np.testing.assert_array_equal(
    jax.random.uniform(restored.key, (4,)), jax.random.uniform(state(3).key, (4,))
  )


def test_a_directory_without_checkpoints_restores_to_none_and_stays_empty(tmp_path):
  assert restore(tmp_path) is None
  assert not files(tmp_path)


def test_the_two_latest_and_the_one_best_are_kept(tmp_path):
  with training.Checkpoints(str(tmp_path)) as checkpoints:
    for step in (1, 2, 3, 4):
      checkpoints.save(state(step), step)
      if step < 4:
        checkpoints.save(state(step), step, kind='best', value=-float(step))
  assert steps(tmp_path / 'latest') == ['3', '4']
  assert steps(tmp_path / 'best') == ['3']
  with training.Checkpoints(str(tmp_path)) as checkpoints:
    assert toy.same(checkpoints.restore(state(0)), state(4))
    assert checkpoints.steps == {'latest': 4, 'best': 3}
    assert checkpoints.best_value == -3


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('two')
  save(workdir, 1, 2)
  return workdir


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
  path.write_bytes(b'')


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


@pytest.mark.parametrize('damage', [halve, empty, flip, pathlib.Path.unlink])
def test_after_damage_to_any_file_a_run_goes_on_loudly_from_the_last_good_state(
  two_checkpoints, tmp_path, caplog, damage
):
  fell_back = 0
  for i, file in enumerate(files(two_checkpoints / 'latest' / '2')):
    if damage is flip and file.parent.name == 'metadata':
      continue  # May read as another config, which is refused.
    workdir = tmp_path / str(i)
    shutil.copytree(two_checkpoints, workdir)
    damage(workdir / file.relative_to(two_checkpoints))
    caplog.clear()
    restored = restore(workdir)
    save(workdir, 3)
    assert toy.same(restore(workdir), state(3))
    if toy.same(restored, state(2)):
      continue
    fell_back += 1
    assert toy.same(restored, state(1))
    assert 'latest/2' in caplog.text
    assert 'FALLING BACK' in caplog.text
  assert fell_back >= 3


def test_values_that_are_not_those_that_were_saved_are_damage_too(tmp_path, caplog):
  save(tmp_path, 1, 2)
  shutil.rmtree(tmp_path / 'latest/2/state')
  shutil.copytree(tmp_path / 'latest/1/state', tmp_path / 'latest/2/state')
  assert toy.same(restore(tmp_path), state(1))
  assert 'checksum differs: params.bfloat16, params.float32, params.scalar' in caplog.text


def test_a_lost_directory_falls_back_to_the_best_checkpoint(tmp_path):
  save(tmp_path, 2)
  with training.Checkpoints(str(tmp_path), CONFIG) as checkpoints:
    checkpoints.save(state(1), 1, kind='best', value=0.5)
  shutil.rmtree(tmp_path / 'latest' / '2' / 'state')
  assert toy.same(restore(tmp_path), state(1))


def test_a_damaged_step_is_set_aside_and_can_be_saved_again(tmp_path):
  save(tmp_path, 1, 2)
  (tmp_path / 'latest/2/state/manifest.ocdbt').unlink()
  restore(tmp_path)
  (aside,) = (name for name in steps(tmp_path / 'latest') if name not in ('1', '2'))
  assert aside.startswith('2.corrupt')
  save(tmp_path, 2)
  assert toy.same(restore(tmp_path), state(2))


def test_if_none_can_be_read_the_error_says_what_to_do_and_nothing_is_touched(tmp_path):
  save(tmp_path, 1, 2)
  for step in (1, 2):
    (tmp_path / f'latest/{step}/state/manifest.ocdbt').unlink()
  before = files(tmp_path)
  for _ in range(2):
    with pytest.raises(training.CheckpointError, match='Restore one from a backup, or rename'):
      restore(tmp_path)
  assert files(tmp_path) == before


def test_what_a_killed_save_left_is_ignored_and_cleaned_up(tmp_path):
  save(tmp_path, 1)
  shutil.copytree(tmp_path / 'latest/1', tmp_path / 'latest/9.orbax-checkpoint-tmp')
  assert toy.same(restore(tmp_path), state(1))
  save(tmp_path, 2)
  assert steps(tmp_path / 'latest') == ['1', '2']


def test_another_config_is_refused_by_field_with_both_values(tmp_path):
  save(tmp_path, 1)
  other = {'model': {'width': 128, 'layers': (1, 2)}, 'rate': 0.1, 'new': None}
  with pytest.raises(training.CheckpointMismatchError) as error:
    restore(tmp_path, other)
  message = str(error.value)
  assert 'model.width: checkpoint has 64, config says 128' in message
  assert 'new: checkpoint has nothing, config says None' in message
  assert 'use another --workdir or the original config' in message.lower()
  assert 'layers' not in message
  assert 'rate' not in message
  assert steps(tmp_path / 'latest') == ['1']


def test_another_model_is_refused_by_leaf_with_both_shapes(tmp_path):
  save(tmp_path, 1)
  other = state(0)
  params = {**other.params, 'float32': jnp.zeros((3, 4)), 'more': jnp.zeros(1, jnp.int32)}
  del params['scalar']
  with pytest.raises(training.CheckpointMismatchError) as error:
    restore(tmp_path, None, other.replace(params=params, key=jax.random.key(0, impl='rbg')))
  message = str(error.value)
  assert 'params.float32: checkpoint has float32[3,2], this run needs float32[3,4]' in message
  assert 'params.more: checkpoint has nothing, this run needs int32[1]' in message
  assert 'params.scalar: checkpoint has float32[], this run needs nothing' in message
  assert 'key: checkpoint has key<fry>[], this run needs key<rbg>[]' in message
  assert 'bfloat16' not in message


def test_a_full_disk_is_a_clear_error_and_leaves_the_earlier_checkpoint(tmp_path):
  save(tmp_path, 1)
  big = state(2).replace(extra=jax.random.normal(jax.random.key(0), (100_000,)))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # Writes beyond it fail.
  try:
    with (
      training.Checkpoints(str(tmp_path), CONFIG) as checkpoints,
      pytest.raises(training.CheckpointError, match=r'save step 2.*intact: \[1\].*Make space'),
    ):
      checkpoints.save(big, 2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert toy.same(restore(tmp_path), state(1))
  save(tmp_path, 2)
  assert toy.same(restore(tmp_path), state(2))


def test_a_run_s_best_and_latest_parameters_can_be_read_alone(tmp_path):
  with training.Checkpoints(str(tmp_path), CONFIG) as checkpoints:
    checkpoints.save(state(1), 1, kind='best', value=0.5)
    checkpoints.save(state(2), 2)
  assert toy.same(training.restore_params(str(tmp_path)), state(1).params)
  assert toy.same(training.restore_params(str(tmp_path), which='latest'), state(2).params)
  metadata = training.read_metadata(str(tmp_path))
  assert metadata == {'step': 1, 'value': 0.5, 'fingerprint': CONFIG}


def test_parameters_that_are_not_there_are_reported_with_the_hint(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no checkpoint in .*/none/best; run: python -m x'):
    training.restore_params(str(tmp_path / 'none'), hint='run: python -m x')
  with pytest.raises(ValueError, match="which='worst'"):
    training.restore_params(str(tmp_path), which='worst')
  assert not files(tmp_path)


def test_parameters_of_another_model_are_refused_by_field(tmp_path):
  training.save_params(str(tmp_path), {'w': jnp.ones(2)}, CONFIG)
  training.restore_params(str(tmp_path), expect={'model': {'width': 64, 'layers': (1, 2)}})
  with pytest.raises(training.CheckpointMismatchError, match='model.width.* 64, config says 65'):
    training.restore_params(str(tmp_path), expect={'model': {'width': 65}})


def test_training_does_not_go_on_from_parameters_alone(tmp_path):
  training.save_params(str(tmp_path), state(1.0).params, CONFIG)
  with (
    training.Checkpoints(str(tmp_path), CONFIG) as checkpoints,
    pytest.raises(training.CheckpointMismatchError, match='holds parameters alone'),
  ):
    checkpoints.restore(state(0.0))


def test_damaged_parameters_are_an_error_rather_than_other_parameters(tmp_path):
  training.save_params(str(tmp_path), {'w': jnp.ones(2)}, CONFIG)
  (tmp_path / 'best/0/state/manifest.ocdbt').unlink()
  with pytest.raises(training.CheckpointError, match='can be read .*; run: python -m x'):
    training.restore_params(str(tmp_path), hint='run: python -m x')


@pytest.mark.parametrize('lose', [shutil.rmtree, lambda path: empty(files(path / '1/state/d')[0])])
def test_in_place_of_a_lost_best_state_the_latest_is_taken_loudly(tmp_path, caplog, lose):
  with training.Checkpoints(str(tmp_path), CONFIG) as checkpoints:
    checkpoints.save(state(1), 1, kind='best', value=1.0)
    checkpoints.save(state(2), 2)
  assert toy.same(training.restore_params(str(tmp_path)), state(1).params)
  assert not caplog.text
  lose(tmp_path / 'best')
  assert toy.same(training.restore_params(str(tmp_path)), state(2).params)
  assert 'latest/2 in its place' in caplog.text


def test_shipped_parameters_are_small_portable_and_replaced_whole(tmp_path):
  params = {'dense': {'kernel': jax.random.normal(jax.random.key(0), (300, 300))}}
  training.save_params(str(tmp_path), params, {'name': 'old'})
  training.save_params(str(tmp_path), params, {'name': 'new'})
  assert len(list((tmp_path / 'best').iterdir())) == 1
  assert toy.same(training.restore_params(str(tmp_path)), params)
  assert training.read_metadata(str(tmp_path))['fingerprint'] == {'name': 'new'}
  written = files(tmp_path)
  assert sum(file.stat().st_size for file in written) < 1.1 * 4 * 300 * 300 + 20_000
  assert len(written) < 15
  assert not any('sharding' in file.name for file in written)
  assert not any(str(tmp_path).encode() in file.read_bytes() for file in written)
