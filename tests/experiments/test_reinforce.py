"""A sweep of learning rates and seeds, each run's own data in one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.gridworld import get_config
from experiments import artifacts, common, reinforce
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.rl.internal_env import Frozen
from tests.training.toy import compilations


@pytest.fixture
def config(monkeypatch):
  """The smoke config, on untrained models."""
  config = get_config('smoke')
  model, module = common.base_model(config), common.metacontroller(config)
  observation = jnp.zeros((1, 2, common.environment(config).observation_size), jnp.uint8)
  base = model.init(jax.random.key(0), observation)
  e, mask = jnp.zeros((1, 2, config.model.width)), jnp.ones((1, 2), bool)
  key, method = jax.random.key(1), Metacontroller.touch_everything
  params = module.init(key, e, mask, key, method=method)
  monkeypatch.setattr(artifacts, 'discovered', lambda *args: Frozen(base, params))
  return config


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_a_rate_kept_in_the_state_is_the_optimisers_own(config, tmp_path, kind):
  config.reinforce.update(
    optimiser=kind, weight_decay=0.1, clip_norm=1.0, schedule='cosine', warmup_steps=1, steps=4
  )
  trainer = reinforce._Trainer(config, str(tmp_path), 'internal')
  section = config.reinforce
  plain = common.optimiser(section, 3e-3, section.epochs * section.minibatches)
  params = {'kernel': jax.random.normal(jax.random.key(0), (4, 3)), 'bias': jnp.ones(3)}
  ours, theirs = params, params
  our_state, their_state = trainer.optimiser(3e-3).init(params), plain.init(params)
  for i in range(4):
    grads = jax.tree.map(lambda x, i=i: jnp.cos(i + x), params)
    updates, our_state = trainer.tx.update(grads, our_state, ours)
    ours = jax.tree.map(jnp.add, ours, updates)
    updates, their_state = plain.update(grads, their_state, theirs)
    theirs = jax.tree.map(jnp.add, theirs, updates)
  assert np.abs(ours['kernel'] - params['kernel']).max() > 1e-4
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_rates_and_seeds_share_one_program_and_the_best_is_chosen_by_other_episodes(
  config, tmp_path, monkeypatch
):
  config.reinforce.update(learning_rates=(1e-3, 1e-2), seeds=2)
  made, run = [], reinforce._Trainer.run

  def remember(self, rate, seed):
    made.append(run(self, rate, seed))
    # Where selection and report disagree, selection decides.
    made[-1] |= {'selection_success': float(rate == 1e-3), 'success': float(rate == 1e-2)}
    return made[-1]

  monkeypatch.setattr(reinforce._Trainer, 'run', remember)
  with compilations('call') as calls:
    result = reinforce.run(config, str(tmp_path))
  assert len(calls) == 1
  assert result['learning_rate'] == 1e-3
  assert result['success'] == 0
  assert [(r['learning_rate'], r['seed']) for r in made] == [
    (1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)
  ]  # fmt: skip


@pytest.mark.parametrize('rates', [(), (0.0,), (1e-3, -1e-3), (1e-3, 1e-3)])
def test_rates_out_of_range_are_refused(config, tmp_path, rates):
  config.reinforce.learning_rates = rates
  with pytest.raises(ValueError, match=r'reinforce\.learning_rates='):
    reinforce.run(config, str(tmp_path))
