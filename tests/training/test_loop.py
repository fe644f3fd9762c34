"""The loop against updates done one by one, and its promises: one compile, no NaN on disk."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl import training
from internal_rl.training import loop
from tests.training import toy


def config(**changes):
  return dataclasses.replace(toy.CONFIG, **changes)


@pytest.fixture
def calls(monkeypatch):
  """Collects the jitted calls that `fit` makes."""
  made = []
  compile_call = loop.compile_call

  def remember(*args):
    made.append(compile_call(*args))
    return made[-1]

  monkeypatch.setattr(loop, 'compile_call', remember)
  return made


def poison(step, *leaves):
  """The toy's update, with leaves of the new state, or its loss, made NaN at one step."""

  def update(state, frozen, key):
    nan = jnp.where(state.step == step, jnp.nan, 0.0)
    state, metrics = toy.update(state, frozen, key)
    for name in leaves:
      if name == 'loss':
        metrics = {'loss': metrics['loss'] + nan}
      else:
        tree = getattr(state, name)
        tree = jax.tree.map(lambda x: x + nan if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)
        state = state.replace(**{name: tree})
    return state, metrics

  return update


def test_fit_does_what_updates_one_by_one_do(tmp_path):
  state, losses = toy.state(), []
  for step in range(toy.STEPS):
    key = jax.random.fold_in(toy.state().key, step)
    state, metrics = toy.update(state, toy.frozen(), key)
    losses.append(float(metrics['loss']))
  fitted = toy.run(tmp_path)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, toy.host(fitted), toy.host(state))
  logged = [row for row in toy.rows(tmp_path) if 'train/loss' in row]
  assert [row['step'] for row in logged] == list(range(2, 25, 2))
  expected = np.mean(np.reshape(losses, (-1, 2)), axis=1)
  np.testing.assert_allclose([row['train/loss'] for row in logged], expected, rtol=1e-4)


def test_the_number_of_updates_a_call_does_not_change_the_result(tmp_path):
  one = toy.run(tmp_path / '1', config(updates_per_call=1))
  eight = toy.run(tmp_path / '8', config(updates_per_call=8, eval_every=8, checkpoint_every=8))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, toy.host(one), toy.host(eight))


def test_intervals_decide_what_is_logged_evaluated_and_saved_when(tmp_path):
  toy.run(tmp_path, config(log_every=6, eval_every=8, checkpoint_every=10))
  rows = toy.rows(tmp_path)
  assert [row['step'] for row in rows if 'train/loss' in row] == [6, 12, 18, 24]
  assert [row['step'] for row in rows if 'eval/error' in row] == [0, 8, 16, 24]
  assert {path.name for path in (tmp_path / 'latest').iterdir()} == {'20', '24'}


def test_milestones_are_kept_whole_and_change_nothing_else(tmp_path):
  kept = toy.run(tmp_path / 'kept', config(milestones=(2, 6, 100)))
  assert toy.same(kept, toy.run(tmp_path / 'plain'))
  assert training.milestones(str(tmp_path / 'kept')) == [2, 6]
  assert training.milestones(str(tmp_path / 'plain')) == []
  for step in (2, 6):
    until = toy.run(tmp_path / f'until_{step}', config(steps=step, milestones=()))
    found = training.restore_params(str(tmp_path / 'kept'), which='milestone', step=step)
    assert toy.same(found, until.params)
  with pytest.raises(FileNotFoundError, match='no checkpoint of step 4 in .*milestone'):
    training.restore_params(str(tmp_path / 'kept'), which='milestone', step=4)


def test_a_finished_run_whose_last_step_is_a_milestone_stays_as_it_is(tmp_path):
  last = config(milestones=(toy.STEPS,))
  assert toy.same(toy.run(tmp_path, last), toy.run(tmp_path, last))


def test_a_milestone_that_a_kill_prevented_is_made_up_for(tmp_path):
  toy.run(tmp_path, config(steps=8, milestones=(4, 8)))
  shutil.rmtree(tmp_path / 'milestone' / '8')
  toy.run(tmp_path, config(milestones=(4, 8)))
  assert training.milestones(str(tmp_path)) == [4, 8]
  until = toy.run(tmp_path / 'until', config(steps=8))
  kept = training.restore_params(str(tmp_path), which='milestone', step=8)
  assert toy.same(kept, until.params)


def test_a_run_goes_on_from_a_milestone_when_it_is_the_newest(tmp_path):
  toy.run(tmp_path / 'parts', config(steps=6, eval_every=4, checkpoint_every=4, milestones=(6,)))
  shutil.rmtree(tmp_path / 'parts' / 'latest' / '6')
  shutil.rmtree(tmp_path / 'parts' / 'best')
  with training.Checkpoints(str(tmp_path / 'parts')) as checkpoints:
    assert checkpoints.restore(toy.state()).step == 6
  resumed = toy.run(tmp_path / 'parts')
  assert toy.same(resumed, toy.run(tmp_path / 'whole'))


@pytest.mark.parametrize('population', [False, True])
def test_a_run_and_its_resumption_each_compile_one_call_once(tmp_path, population):
  update, state, traces = toy.update, toy.state(), []
  if population:
    update = jax.vmap(update, in_axes=(0, None, 0))
    state = jax.vmap(toy.state)(jax.random.split(jax.random.key(0), 3))
  else:
    state = state.replace(extra=state.extra | {'seen': jnp.asarray(0.0)})  # Of weak type.

  def traced(*args):
    traces.append(1)
    return update(*args)

  for steps in (12, 24):
    traces.clear()
    loop._compile_call.cache_clear()  # A resumption is another process.
    with toy.compilations('call') as compilations:
      training.fit(traced, state, training.FitConfig(steps, 2), str(tmp_path), frozen=toy.frozen())
    assert len(traces) == len(compilations) == 1


def test_runs_that_share_their_update_compile_it_once(tmp_path):
  update = lambda *args: toy.update(*args)

  def judge(*args):
    return toy.evaluate(*args)

  run = training.FitConfig(4, 2, eval_every=2)
  with toy.compilations('call') as calls, toy.compilations('judge') as evaluations:
    for name, seed in (('a', 0), ('b', 1)):
      state = toy.state().replace(key=jax.random.key(seed))
      training.fit(update, state, run, str(tmp_path / name), frozen=toy.frozen(), evaluate=judge)
  assert len(calls) == len(evaluations) == 1


def fed(state, frozen, key, inputs):
  """The toy's update on inputs from the host."""
  value, grads = jax.value_and_grad(toy.loss)(state.params, frozen, inputs)
  return training.apply_gradients(state, grads, toy.TX), {'loss': value}


def feed(step):
  return np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)


def fit_fed(workdir, feed=feed, **changes):
  return training.fit(
    fed,
    toy.state(),
    config(best_metric='', **changes),
    str(workdir),
    frozen=toy.frozen(),
    evaluate=toy.evaluate,
    feed=feed,
  )


def test_what_is_fed_from_the_host_reaches_each_update_in_order(tmp_path, calls):
  state = toy.state()
  for step in range(toy.STEPS):
    state, _ = fed(state, toy.frozen(), None, feed(step))
  fitted = fit_fed(tmp_path)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, toy.host(fitted), toy.host(state))
  assert calls[0]._cache_size() == 1


def test_a_run_that_is_fed_resumes_exactly_and_reads_nothing_twice_or_too_much(tmp_path):
  steps = []
  noting = lambda step: (steps.append(step), feed(step))[1]
  fit_fed(tmp_path / 'parts', noting, steps=8)
  assert steps == list(range(8))
  resumed = fit_fed(tmp_path / 'parts', noting)
  assert steps == list(range(toy.STEPS))
  assert toy.same(resumed, fit_fed(tmp_path / 'whole'))


def test_an_error_in_reading_ends_the_run_and_keeps_its_checkpoint(tmp_path):
  def broken(step):
    if step == 6:
      raise OSError('the disk is gone')
    return feed(step)

  with pytest.raises(OSError, match='the disk is gone'):
    fit_fed(tmp_path, broken)
  assert training.read_metadata(str(tmp_path), which='latest')['step'] == 4
  assert toy.same(fit_fed(tmp_path), fit_fed(tmp_path / 'whole'))


def test_frozen_parameters_are_arguments_of_the_call(tmp_path, calls):
  toy.run(tmp_path)
  (call,) = calls
  results = [
    call(jax.tree.map(jnp.copy, toy.state()), {'target': jnp.full((3, 2), value)})[1]['loss']
    for value in (1.0, 2.0)
  ]
  np.testing.assert_allclose(results[1][0], 4 * results[0][0], rtol=1e-5)


def test_metrics_are_read_one_call_late(tmp_path, monkeypatch):
  events = []
  compile_call, read = loop.compile_call, loop._Run._read

  def noting(*args):
    call = compile_call(*args)

    def noted(*args):
      events.append('call')
      return call(*args)

    return noted

  monkeypatch.setattr(loop, 'compile_call', noting)
  monkeypatch.setattr(
    loop._Run, '_read', lambda self, step, m: (events.append(step), read(self, step, m))
  )
  toy.run(tmp_path, config(steps=8, eval_every=8, checkpoint_every=8))
  assert events == ['call', 'call', 2, 'call', 4, 'call', 6, 8]


def test_the_initial_state_stays_valid_and_more_steps_go_on_from_the_last(tmp_path):
  target = jnp.ones((3, 2))
  params = {'dense': {'kernel': target, 'bias': jnp.ones(2)}}  # Shares its buffer with `frozen`.
  state = training.create(params, toy.TX, jax.random.key(0), toy.state().extra)
  before = toy.host(state)

  def fit(workdir, steps):
    settings = training.FitConfig(steps, 2)
    return training.fit(
      toy.update, state, settings, str(tmp_path / workdir), frozen={'target': target}
    )

  whole = fit('whole', 24)
  half = fit('parts', 12)
  assert toy.same(state, before)
  assert half.step == 12
  assert not toy.same(half.params, state.params)
  assert toy.same(fit('parts', 24), whole)


def test_a_finished_run_returns_at_once_without_tracing(tmp_path):
  state = toy.run(tmp_path)
  before = sorted(tmp_path.rglob('*'))

  def update(*_):
    raise AssertionError('traced')

  assert toy.same(toy.run(tmp_path, update=update), state)
  assert sorted(tmp_path.rglob('*')) == before


def test_every_member_of_a_population_trains_as_it_would_alone(tmp_path):
  keys = jax.random.split(jax.random.key(3), 3)
  states = training.fit(
    jax.vmap(toy.update, in_axes=(0, None, 0)),
    jax.vmap(toy.state)(keys),
    toy.CONFIG,
    str(tmp_path / 'all'),
    frozen=toy.frozen(),
    evaluate=jax.vmap(toy.evaluate, in_axes=(0, None, None)),
  )
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  rows = toy.rows(tmp_path / 'all')
  for member in range(3):
    workdir = str(tmp_path / str(member))
    alone = training.fit(
      toy.update, toy.state(keys[member]), training.FitConfig(24, 2), workdir, frozen=toy.frozen()
    )
    picked = jax.tree.map(lambda x, member=member: x[member], states)
    jax.tree.map(close, toy.host(picked), toy.host(alone))
    for row, row_alone in zip(
      (row for row in rows if 'train/loss' in row), toy.rows(workdir), strict=True
    ):
      close(row['train/loss'][member], row_alone['train/loss'])
  errors = {row['step']: np.mean(row['eval/error']) for row in rows if 'eval/error' in row}
  best = training.read_metadata(str(tmp_path / 'all'))
  np.testing.assert_allclose(best['value'], min(errors.values()), rtol=1e-6)
  np.testing.assert_allclose(errors[best['step']], best['value'], rtol=1e-6)


def test_evaluations_draw_the_same_numbers_each_time_and_in_each_run(tmp_path):
  toy.run(tmp_path / 'a')
  toy.run(tmp_path / 'b', config(eval_seed=1))
  noise = lambda run: {
    tuple(r['eval/noise']) for r in toy.rows(tmp_path / run) if 'eval/noise' in r
  }
  assert len(noise('a')) == len(noise('b')) == 1
  assert noise('a') != noise('b')


@pytest.mark.parametrize(('mode', 'best'), [('min', 8), ('max', 16)])
def test_the_best_checkpoint_is_the_first_with_the_best_finite_value(tmp_path, mode, best):
  values = jnp.asarray([3, jnp.nan, 1, 3, 4, 1, jnp.inf])  # At steps 0, 4, ... 24.
  params = {}

  def evaluate(state, frozen, key):
    jax.debug.callback(lambda step, now: params.update({int(step): now}), state.step, state.params)
    return {'score': values[state.step // 4]}

  settings = config(best_metric='score', best_mode=mode)
  training.fit(
    toy.update, toy.state(), settings, str(tmp_path), frozen=toy.frozen(), evaluate=evaluate
  )
  metadata = training.read_metadata(str(tmp_path))
  assert (metadata['step'], metadata['value']) == (best, float(values[best // 4]))
  assert toy.same(training.restore_params(str(tmp_path)), params[best])


@pytest.mark.parametrize(
  ('step', 'leaves', 'named'),
  [
    (0, ('loss',), 'the loss of update 1.'),
    (9, ('params', 'loss'), 'the loss of update 10.'),
    (9, ('opt_state',), 'the loss of update 12.'),  # By way of the parameters after update 11.
    (11, ('params',), 'after update 12: params.dense.bias (2 values), params.dense.kernel (6 val'),
    (23, ('opt_state',), 'after update 24: opt_state.0.mu.dense.bias (2 values), opt_state.0.mu.'),
  ],
)
def test_nan_is_an_error_that_names_it_and_never_reaches_a_checkpoint(
  tmp_path, step, leaves, named
):
  with pytest.raises(training.DivergedError) as error:
    toy.run(tmp_path, update=poison(step, *leaves))
  last_good = step // 4 * 4
  assert named in str(error.value)
  assert f'last good checkpoint (step {last_good})' in str(error.value)
  with training.Checkpoints(str(tmp_path)) as checkpoints:
    restored = checkpoints.restore(toy.state())
  assert int(restored.step) == last_good
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(toy.host(restored)))


def test_a_frozen_parameter_that_changes_is_named(tmp_path):
  frozen = {'target': np.ones((3, 2), np.float32), 'other': np.ones(2, np.float32)}

  def tampering(state, frozen_arguments, key):
    frozen['other'][0] = 5.0
    return toy.update(state, frozen_arguments, key)

  with pytest.raises(RuntimeError, match='frozen parameters changed during fit: other$'):
    training.fit(tampering, toy.state(), training.FitConfig(2), str(tmp_path), frozen=frozen)


def test_other_frozen_parameters_are_refused_by_name(tmp_path):
  toy.run(tmp_path)
  with pytest.raises(training.CheckpointMismatchError, match=r'frozen parameters\.target'):
    training.fit(
      toy.update,
      toy.state(),
      toy.CONFIG,
      str(tmp_path),
      frozen={'target': toy.frozen()['target'] + 1},
      evaluate=toy.evaluate,
      fingerprint=toy.FINGERPRINT,
    )


def test_a_checkpoint_that_cannot_lead_to_the_last_step_is_refused(tmp_path):
  toy.run(tmp_path)
  with pytest.raises(ValueError, match=r'steps=12: .* is at step 24; use another --workdir'):
    toy.run(tmp_path, config(steps=12))
  with pytest.raises(ValueError, match=r'updates_per_call=20: must divide the 16 updates left'):
    toy.run(tmp_path, training.FitConfig(40, 20))


def test_an_update_that_does_not_count_its_step_is_refused(tmp_path):
  def update(state, frozen, key):
    return state.replace(params=state.params), {'loss': jnp.zeros(())}

  with pytest.raises(ValueError, match=r'one step on .* after update 4 state\.step is 0'):
    toy.run(tmp_path, update=update)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'updates_per_call': 0}, 'updates_per_call=0: must be at least 1'),
    ({'steps': 25}, r'steps=25: must be a multiple of updates_per_call \(2\)'),
    ({'log_every': 3}, 'log_every=3: must be a multiple'),
    ({'eval_every': 3}, 'eval_every=3: must be a multiple'),
    ({'checkpoint_every': -2}, 'checkpoint_every=-2: must be a multiple'),
    ({'milestones': (4, 3)}, r'milestones=\(4, 3\): must be multiples of updates_per_call'),
    ({'best_mode': 'most'}, "best_mode='most': must be 'min' or 'max'"),
  ],
)
def test_settings_that_do_not_fit_together_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)


def test_an_evaluation_that_is_missing_or_lacks_the_best_metric_is_named(tmp_path):
  with pytest.raises(ValueError, match='evaluate=None: eval_every and best_metric need'):
    training.fit(toy.update, toy.state(), toy.CONFIG, str(tmp_path), frozen=toy.frozen())
  with pytest.raises(ValueError, match="best_metric='typo': evaluate returns error, noise"):
    toy.run(tmp_path, config(best_metric='typo'))
