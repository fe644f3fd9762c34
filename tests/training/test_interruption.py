"""Runs that are killed, stopped and started again; in child processes, so the kills are real."""

import itertools
import multiprocessing
import os
import random
import signal
import time

import pytest

from internal_rl import training
from tests.training import toy

KILLS = 20
SECONDS = 300.0  # By when anything awaited must have happened, on the slowest machine.


@pytest.fixture
def start():
  """Starts a run in a child; forked from a server that has imported jax, it is up in no time."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.training.toy'])
  children = []

  def start(run, workdir):
    children.append(context.Process(target=toy.child, args=(run, str(workdir))))
    children[-1].start()
    return children[-1]

  yield start
  for process in children:
    process.kill()
    process.join()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  return toy.run(workdir), toy.rows(workdir)


def wait_for(condition, process):
  """Waits for the condition, or for the process to end."""
  deadline = time.monotonic() + SECONDS
  while not condition() and process.is_alive():
    assert time.monotonic() < deadline
    time.sleep(0.001)


def unfinished_saves(workdir):
  return list(workdir.glob('*/*.orbax-checkpoint-tmp*'))


def test_killed_at_any_moment_a_run_ends_as_if_undisturbed(start, undisturbed, tmp_path):
  chance = random.Random(0)
  state, rows = undisturbed
  kills = kills_amid_save = 0
  seconds = 1.0  # What a run takes, start of the process included.
  for attempt in itertools.count():
    workdir = tmp_path / str(attempt)
    workdir.mkdir()
    exit_code = None
    while exit_code != 0 and kills < KILLS:
      begun = time.monotonic()
      before = set(unfinished_saves(workdir))
      saving = lambda workdir=workdir, before=before: set(unfinished_saves(workdir)) - before
      process = start(toy.run, workdir)
      if kills % 2:  # Anywhere.
        process.join(chance.uniform(0.0, seconds))
      else:  # In the middle of a save, or just after it, while it clears up older ones.
        wait_for(saving, process)
        time.sleep(chance.uniform(0.0, 0.05))
      process.kill()
      process.join()
      exit_code = process.exitcode
      assert exit_code in (0, -signal.SIGKILL)
      if exit_code:
        kills += 1
        kills_amid_save += bool(saving())
      else:
        seconds = time.monotonic() - begun
    assert toy.same(toy.run(workdir), state)
    assert toy.rows(workdir) == rows
    if kills == KILLS:
      break
  assert kills_amid_save


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_the_code_that_asks_for_another_run(
  start, undisturbed, tmp_path, number
):
  process = start(toy.run_saving_at_the_end, tmp_path)
  wait_for((tmp_path / 'best' / '4').exists, process)
  os.kill(process.pid, number)
  process.join(SECONDS)
  assert process.exitcode == training.EXIT_PREEMPTED
  saved = training.read_metadata(str(tmp_path), which='latest')['step']
  assert 0 < saved < toy.STEPS
  assert [row['step'] for row in toy.rows(tmp_path)][-1] == saved
  state, rows = undisturbed
  assert toy.same(toy.run(tmp_path), state)
  assert toy.rows(tmp_path) == rows


def test_a_second_signal_kills_at_once_amid_a_call(start, tmp_path):
  process = start(toy.run_long, tmp_path)
  wait_for((tmp_path / 'started').exists, process)
  os.kill(process.pid, signal.SIGTERM)
  time.sleep(0.5)
  assert process.is_alive()
  os.kill(process.pid, signal.SIGTERM)
  process.join(10.0)
  assert process.exitcode == 128 + signal.SIGTERM
