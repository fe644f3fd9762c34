"""What lies past the end of an episode teaches nothing, in any stage that learns from episodes."""

import jax
import jax.numpy as jnp
import optax
import pytest

from configs.gridworld import get_config
from experiments import artifacts, common, control, discover, pretrain, probe
from internal_rl.data.demonstrations import Demonstrations
from internal_rl.training import loop
from tests.training import toy

STAGES = {'pretrain': pretrain, 'probe': probe, 'control': control, 'discover': discover}


class _Caught(Exception):
  """Carries what a stage hands to the training loop."""


@pytest.fixture
def update(request, monkeypatch, tmp_path):
  """A stage's own update, as a function of the batch: returns the loss, and parameters after it.

  One step of plain gradient descent, so that parameters tell gradients apart.
  """
  stage, kind = request.param
  config = get_config('smoke')
  config.model.kind = kind
  observations = jnp.zeros((1, 2, common.environment(config).observation_size))
  base = jax.jit(common.base_model(config).init)(jax.random.key(0), observations)

  def fit(update, state, config, workdir, *, frozen=None, **_):
    raise _Caught(update, state, frozen)

  monkeypatch.setattr(loop, 'fit', fit)
  monkeypatch.setattr(artifacts, 'base_params', lambda *args: base)
  monkeypatch.setattr(common, 'optimiser', lambda section: optax.sgd(1.0))
  with pytest.raises(_Caught) as caught:
    STAGES[stage].run(config, str(tmp_path))
  take, state, frozen = caught.value.args
  monkeypatch.setattr(Demonstrations, 'batch', lambda self, key, batch, fed=None: fed)
  key = jax.random.key(1)
  keys = jax.random.split(key, len(config.discover.alphas)) if state.step.ndim else key

  @jax.jit
  def apply(batch):
    after, row = take(state, frozen, keys, batch)
    return row, after.params

  return apply


@pytest.fixture(scope='module')
def batch():
  """Episodes of different lengths, some of which never succeed and count for nothing."""
  config = get_config('smoke')
  batch = jax.jit(lambda key: common.expert(config).sample(key, 16, 6))(jax.random.key(2))
  lengths = set(batch.mask.sum(1).tolist())
  assert len(lengths) > 3 and 0 in lengths
  return batch


def changed(batch, where):
  """Another observation, action and subgoal in these steps."""
  # The observation that follows the last step is what the model is to predict.
  seen = jnp.concatenate([where[:, :1], where], 1)[..., None]
  other = lambda x: jnp.where(where, (x + 1) % 4, x)
  return batch.replace(
    observations=jnp.where(seen, 1 - batch.observations, batch.observations),
    actions=other(batch.actions),
    subgoals=other(batch.subgoals),
    segments=batch.segments + where,
  )


@pytest.mark.parametrize(
  'update',
  [(stage, 'transformer') for stage in STAGES] + [('pretrain', 'hawk')],
  indirect=True,
  ids=[*STAGES, 'pretrain hawk'],
)
def test_nothing_past_the_end_of_an_episode_changes_loss_or_gradient(update, batch):
  past, expected = ~batch.mask, update(batch)
  assert toy.same(update(changed(batch, past)), expected)
  last = batch.mask & jnp.concatenate([past[:, 1:], jnp.ones_like(past[:, :1])], 1)
  for ours, theirs in zip(update(changed(batch, last)), expected, strict=True):
    assert not toy.same(ours, theirs)
