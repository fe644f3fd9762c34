"""Two devices do what one does; measured in a child process that makes two of one CPU."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from internal_rl import training
from internal_rl.training import loop
from tests.training import toy


def start(*args, **environment):
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.training.test_mesh', *map(str, args)],
    env=os.environ | environment,
    cwd=pathlib.Path(__file__).parents[2],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def results(process):
  try:
    output, errors = process.communicate(timeout=300)
  finally:
    process.kill()
  assert process.returncode == 0, errors
  return json.loads(output.splitlines()[-1])


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('mesh')
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'
  return results(start('measure', workdir, XLA_FLAGS=flags))


def close(a, b):
  return jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_a_batch_split_over_two_devices_trains_as_on_one(measured):
  one, two = measured['1'], measured['2']
  assert (one['devices'], two['devices']) == (1, 2)
  assert not one['all-reduce']
  assert two['all-reduce']
  assert one['compiled'] == two['compiled'] == 1
  close(two['params'], one['params'])


def test_a_run_begun_on_two_devices_ends_on_one_as_if_it_had_begun_there(measured):
  assert measured['moved']['devices'] == 1
  close(measured['moved']['params'], measured['1']['params'])


def test_a_population_split_over_two_devices_trains_as_on_one_and_stays_split(measured):
  alone, split = measured['population'], measured['split population']
  assert (alone['devices'], split['devices']) == (1, 2)
  assert split['compiled'] == 1
  assert not split['all-reduce']
  close(split['params'], alone['params'])
  assert split['shards'] == [[1, 3, 2], [1, 3, 2]]


def test_two_processes_train_resume_and_save_as_one(tmp_path, measured):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  cluster = {  # What Slurm tells its tasks, which is where jax looks.
    'JAX_COORDINATOR_ADDRESS': address,
    'SLURM_JOB_ID': '1',
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NODELIST': 'localhost',
  }
  workers = [
    start('join', tmp_path, **cluster, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
    for rank in range(2)
  ]
  try:
    first, second = (results(worker) for worker in workers)
  finally:
    for worker in workers:
      worker.kill()
  assert first['devices'] == 2
  assert first == second
  close(first['params'], measured['1']['params'])
  close(jax.device_get(training.restore_params(str(tmp_path / 'joined'))), first['params'])
  logged = [row['step'] for row in toy.rows(tmp_path / 'joined') if 'train/loss' in row]
  assert logged == list(range(2, 25, 2))


def test_without_the_flag_processes_stay_alone():
  training.initialize_distributed(False)
  assert not jax.distributed.is_initialized()


def test_a_mesh_that_cannot_be_made_is_named():
  with pytest.raises(ValueError, match=r'seeds=2: must divide the number of devices \(1\)'):
    training.make_mesh(seeds=2)
  with pytest.raises(ValueError, match='seeds=0'):
    training.make_mesh(seeds=0)


def measure(workdir):
  """What the tests above look at; runs where there are two devices."""
  compile_call, calls = loop.compile_call, []
  loop.compile_call = lambda *args: calls.append(compile_call(*args)) or calls[-1]

  def fit(name, state, mesh, update, steps=24):
    frozen = training.replicate(toy.frozen(), mesh)
    settings = training.FitConfig(steps, 2)
    with toy.compilations('call') as compilations:
      state = training.fit(update, state, settings, f'{workdir}/{name}', frozen=frozen)
    kernel = state.params['dense']['kernel']
    return {
      'devices': len(kernel.sharding.device_set),
      'shards': [shard.data.shape for shard in kernel.addressable_shards],
      'compiled': len(compilations),
      'all-reduce': 'all-reduce' in calls[-1].lower(state, frozen).compile().as_text(),
      'params': jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), state.params),
    }

  def fit_split(name, devices, steps=24):
    mesh = training.make_mesh(devices=jax.devices()[:devices])
    update = lambda *args: toy.update(*args, place=lambda batch: training.shard_batch(batch, mesh))
    return fit(name, training.replicate(toy.state(), mesh), mesh, update, steps)

  results = {str(devices): fit_split(str(devices), devices) for devices in (1, 2)}
  fit_split('moved', 2, steps=12)
  results['moved'] = fit_split('moved', 1)
  for name, devices in (('population', 1), ('split population', 2)):
    mesh = training.make_mesh(seeds=devices, devices=jax.devices()[:devices])
    state = jax.vmap(toy.state)(jax.random.split(jax.random.key(0)))
    state = training.shard_population(state, mesh)
    results[name] = fit(name, state, mesh, jax.vmap(toy.update, in_axes=(0, None, 0)))
  return results


def join(workdir):
  """One process of the two."""
  training.initialize_distributed(True)
  mesh = training.make_mesh()
  state, frozen = training.replicate((toy.state(), toy.frozen()), mesh)
  update = lambda *args: toy.update(*args, place=lambda batch: training.shard_batch(batch, mesh))
  for steps in (12, 24):
    settings = dataclasses.replace(toy.CONFIG, steps=steps)
    fitted = training.fit(
      update, state, settings, f'{workdir}/joined', frozen=frozen, evaluate=toy.evaluate
    )
  kernel = fitted.params['dense']['kernel']
  params = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), fitted.params)
  return {'devices': len(kernel.sharding.device_set), 'params': params}


if __name__ == '__main__':
  print(json.dumps({'measure': measure, 'join': join}[sys.argv[1]](sys.argv[2])))
