"""Where a simulation blows up, its episode ends; all others, and the gradients, stay finite."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from internal_rl.baselines import raw_rl
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.envs.ant import Ant
from internal_rl.envs.ant_body import AntBody
from internal_rl.envs.tasks import FAMILIES
from internal_rl.models.heads import GaussianHead
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl import objective

BATCH, STEPS = 32, 6


class Explosive(AntBody):
  """Stands still, but blows up under a large first torque."""

  def advance(self, body, torques):
    return body.replace(qvel=jnp.where(torques[0] > 1, jnp.nan, body.qvel))


def test_episodes_that_blow_up_end_are_counted_and_poison_nothing():
  env = Ant(4, 4, 1, STEPS, FAMILIES['ant'], body=Explosive())
  model = SequenceModel(
    kind='hawk',
    width=8,
    num_blocks=2,
    num_heads=2,
    mlp_width=8,
    action_head=GaussianHead(env.num_actions),
  )
  params = model.init(jax.random.key(0), jnp.zeros((1, 2, env.observation_size)))
  rollout = BaseRollout(env, model)
  run = jax.jit(lambda key: rollout(params, key, jnp.arange(BATCH) % 16))
  batch = run(jax.random.key(1))
  episodes = jax.device_get(batch)
  diverged = episodes.final.diverged
  assert 0 < diverged.sum() < BATCH
  assert (episodes.lengths[~diverged] == STEPS).all()
  large = episodes.actions[..., 0] > 1
  ends = np.where(large.any(1), large.argmax(1) + 1, STEPS)
  np.testing.assert_array_equal(episodes.lengths, ends)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(episodes))
  outcome = common.success_rate(env, run, jax.random.key(2), 2 * BATCH, BATCH)
  assert 0 < outcome['diverged'] < 1
  counts = {name: sum(by_colours) for name, by_colours in outcome['ends'].items()}
  assert counts['simulation blew up'] == outcome['diverged'] * 2 * BATCH
  assert sum(counts.values()) == 2 * BATCH
  assert counts.get('success', 0) == outcome['success'] * 2 * BATCH
  by_colours = np.array(list(outcome['ends'].values()))
  assert by_colours.shape[1] == env.tasks.lengths.max() + 1
  mean = (by_colours.sum(0) * np.arange(by_colours.shape[1])).sum() / (2 * BATCH)
  np.testing.assert_allclose(mean, outcome['progress'], rtol=1e-6)

  def loss(params):
    log_prob, _ = raw_rl.evaluate(model, params, batch)
    advantage = jnp.linspace(-1, 1, BATCH)
    return objective.surrogate_loss(log_prob, batch.log_prob, advantage, batch.mask, 0.2)[0]

  gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
  assert all(np.isfinite(x).all() for x in gradients)
  assert any(np.abs(x).max() > 0 for x in gradients)
