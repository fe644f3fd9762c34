"""A base model trained along with its metacontroller (App. C.4.2), beside a frozen one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.gridworld import get_config
from experiments import common, discover
from internal_rl.rl.internal_env import Frozen
from internal_rl.training.state import named_leaves

ALPHAS = (0.1, 0.3)


@functools.cache
def pretrained():
  """An untrained base in the place of a pretrained one."""
  config = get_config('smoke')
  size = common.environment(config).observation_size
  return jax.jit(common.base_model(config).init)(jax.random.key(7), jnp.zeros((1, 2, size)))


@functools.cache
def batch():
  """Demonstrations that every update here learns from."""
  config = get_config('smoke')
  sample = common.expert(config, clean=True).sample
  return jax.jit(lambda key: sample(key, 8, config.data.horizon))(jax.random.key(3))


def population(config, tx):
  """One member for each strength, of one seed."""
  create = functools.partial(discover.create, config, tx, pretrained())
  keys = jnp.stack([common.key_for(config, 'discover', 0)] * len(ALPHAS))
  return jax.jit(jax.vmap(create))(keys, jnp.array(ALPHAS))


def updated(base, tx, updates, **fields):
  """Returns the population before and after some updates."""
  config = get_config('smoke')
  config.discover.update(base=base, alpha_delay=0, alpha_ramp=0, **fields)
  members = start = population(config, tx)
  update = jax.jit(functools.partial(discover.update_members, config, tx))
  for i in range(updates):
    members, row = update(members, pretrained(), batch(), jax.random.split(jax.random.key(i), 2))
  return start.params, members.params, row


def distances(before, after):
  """Returns by name of a leaf how far it has moved in each member, at most."""
  before, after = named_leaves(before), named_leaves(after)
  change = {name: np.abs(after[name] - before[name]) for name in before}
  return {name: x.reshape(len(ALPHAS), -1).max(1) for name, x in change.items()}


def moved(before, after):
  """Returns by name of a leaf whether it has moved in every member."""
  return {name: bool((x > 0).all()) for name, x in distances(before, after).items()}


def test_without_the_bases_gradient_it_is_training_on_the_frozen_base():
  sgd, still = optax.sgd(0.3), Frozen(base=True, metacontroller=False)
  _, frozen, _ = updated('frozen', sgd, 2)
  tx = optax.chain(optax.masked(optax.set_to_zero(), still), sgd)
  before, after, _ = updated('pretrained', tx, 2)
  jax.tree.map(np.testing.assert_array_equal, before.base, after.base)
  for name, value in named_leaves(frozen).items():
    ours = named_leaves(after.metacontroller)[name]
    np.testing.assert_allclose(ours, value, rtol=1e-4, atol=1e-6, err_msg=name)
  assert any(moved(before.metacontroller, frozen).values())


@pytest.mark.parametrize('weight', [0.0, 0.5])
def test_the_gradient_reaches_all_that_the_loss_depends_on(weight):
  before, after, row = updated('random', optax.sgd(1.0), 1, observation_weight=weight)
  still = {name for name, has in moved(before, after).items() if not has}
  unused = {name for name in named_leaves(before) if 'observation_head' in name}
  assert unused
  assert still == (set() if weight else unused)
  terms = row['nll'] + np.array(ALPHAS) * row['kl'] + weight * row.get('observation_nll', 0)
  np.testing.assert_allclose(row['loss'], terms, rtol=1e-5)


def test_strengths_of_a_seed_start_from_one_base_and_go_their_own_ways():
  before, after, _ = updated('random', optax.sgd(1.0), 1)
  kernel = lambda params: params.base['params']['embedding']['kernel']
  start, end = kernel(before), kernel(after)
  np.testing.assert_array_equal(start[0], start[1])
  assert np.abs(start[0] - pretrained()['params']['embedding']['kernel']).max() > 0
  assert np.abs(end[0] - end[1]).max() > 0


@pytest.mark.parametrize('fields', [{}, {'kl_weight': 'gated'}, {'gate': 'gumbel'}])
def test_the_switch_learns_nothing_while_the_subgoals_are_told(fields):
  def change(told, updates):
    before, after, _ = updated('frozen', optax.sgd(1.0), updates, labelled_steps=told, **fields)
    return max(x.max() for name, x in distances(before, after).items() if 'switch' in name)

  assert change(1, 1) == 0
  assert change(1, 2) > 0


def test_labels_matter_while_they_are_told_and_at_no_other_time():
  config = get_config('smoke')
  config.discover.labelled_steps = 1
  params = jax.tree.map(lambda x: x[0], population(config, optax.sgd(1.0)).params)
  models, key = Frozen(pretrained(), params), jax.random.key(0)
  others = batch().replace(subgoals=(batch().subgoals + 1) % 4)

  def loss(step, batch):
    return discover.objective(config, models, batch, key, jnp.array(step), 0.1)[1]

  measured = lambda batch: discover.measure(config, models, batch, key)[0]
  assert loss(0, batch())['nll'] != loss(0, others)['nll']
  for now, then in ((loss(1, batch()), loss(1, others)), (measured(batch()), measured(others))):
    assert {name for name in now if now[name] != then[name]} <= {'label_error'}
  terms = loss(0, batch())
  parts = terms['nll'] + 0.1 * terms['kl'] * discover.alpha_at(config, jnp.array(0), 1.0)
  np.testing.assert_allclose(terms['loss'], parts + terms['label_error'], rtol=1e-5)


def test_the_encoder_learns_what_it_is_told():
  error = lambda n: updated('frozen', optax.adam(1e-2), n, labelled_steps=40)[2]['label_error']
  assert (error(40) < 0.5 * error(1)).all()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'base': 'free'}, r"discover\.base='free': must be one of"),
    ({'base': 'random', 'gate': 'open'}, r"discover\.gate='open': .* discover\.base='random'"),
    ({'labelled_steps': -1}, r'discover\.labelled_steps=-1: must be 0, or positive'),
    ({'labelled_steps': 2}, r'less than the 2 updates with a soft gate'),
    ({'observation_weight': -1.0}, r'discover\.observation_weight=-1\.0: must be 0'),
  ],
)
def test_options_that_contradict_are_refused(tmp_path, fields, message):
  config = get_config('smoke')
  config.discover.update(fields)
  with pytest.raises(ValueError, match=message):
    discover.run(config, str(tmp_path))


def test_a_base_that_predicts_no_observations_has_no_such_loss(tmp_path):
  config = get_config('smoke')
  config.discover.observation_weight, config.pretrain.observation_weight = 0.1, 0.0
  with pytest.raises(ValueError, match=r'positive pretrain\.observation_weight \(0\.0\)'):
    discover.run(config, str(tmp_path))


def test_a_code_too_short_for_the_labels_is_refused(tmp_path):
  config = get_config('smoke')
  config.discover.labelled_steps, config.metacontroller.code_size = 1, 3
  with pytest.raises(ValueError, match=r'labelled_steps=1: 4 subgoals need a .* of 4 or more'):
    discover.run(config, str(tmp_path))


def member(alpha, hard_nll, kl, success=0.0, nll=0.1):
  prior = {'success': success}
  return {'alpha': alpha, 'nll': nll, 'kl': kl, 'hard_nll': hard_nll, 'prior_success': prior}


def test_seeds_compete_by_objective_and_strengths_by_reward_then_likelihood():
  rows = [
    member(0.1, 0.2, kl=0.5, success=0.9),  # The better objective is its sibling's.
    member(0.1, 0.2, kl=0.4),
    member(0.5, 0.3, kl=0.2, success=0.1),
    member(0.5, 0.2, kl=0.5, success=0.5),
  ]
  assert discover.select(rows) == 2
  assert discover.select(rows[:2]) == 1
  # Rate costs .1 a nat, and is worth it; what soft gates would reach does not count.
  assert discover.select([member(0.1, 0.24, kl=0.2, nll=0.0), member(0.1, 0.2, kl=0.5)]) == 1
  equals = [member(0.1, 0.3, kl=0.1), member(0.2, 0.2, kl=0.1)]
  assert discover.select(equals) == discover.select(equals[::-1]) + 1 == 1
