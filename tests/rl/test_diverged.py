"""Where a simulation blows up, its episode ends; all others, and the gradients, stay finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, reinforce
from internal_rl.baselines import raw_rl
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.envs.ant import Ant
from internal_rl.envs.ant_body import AntBody
from internal_rl.envs.tasks import FAMILIES
from internal_rl.experts import ant_ppo
from internal_rl.experts.ant import Actor
from internal_rl.experts.ant_guide import Guide
from internal_rl.models.heads import GaussianHead
from internal_rl.rl import objective
from internal_rl.rl.rollout import InternalRollout
from internal_rl.training import state as state_lib
from tests import tiny
from tests.training import toy

BATCH, STEPS = 32, 6


@dataclasses.dataclass(frozen=True)
class Explosive(AntBody):
  """Jitters where it stands, but blows up under a large first torque."""

  limit: float = 1.0

  def advance(self, body, torques):
    qvel = body.qvel.at[6:].set(torques)
    return body.replace(qvel=jnp.where(torques[0] > self.limit, jnp.nan, qvel))


def world(limit=1.0):
  return Ant(4, 4, 1, STEPS, FAMILIES['ant'], body=Explosive(limit=limit))


def base():
  return tiny.model('hawk').clone(action_head=GaussianHead(world().num_actions))


def test_episodes_that_blow_up_end_are_counted_and_poison_nothing():
  env, model = world(), base()
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


def test_internal_rl_decides_and_learns_in_all_other_episodes_as_if_nothing_had_blown_up():
  model, module, policy = base(), tiny.metacontroller(), tiny.policy()
  params = jax.jit(policy.init)(jax.random.key(1), jnp.zeros((1, 1, tiny.WIDTH)))
  frozen = tiny.frozen(model, module, observation_size=world().observation_size)

  @jax.jit
  def play(limit):
    rollout = InternalRollout(world(limit), model, module, policy)
    return rollout(params, frozen, jax.random.key(3), jnp.arange(BATCH) % 16)

  @jax.jit
  def gradient(batch):
    def loss(params):
      log_prob, _ = reinforce.evaluate_codes(policy, params, batch)
      advantage = jnp.linspace(-1, 1, BATCH)
      return objective.surrogate_loss(log_prob, batch.log_prob, advantage, batch.mask, 0.2)[0]

    return jax.grad(loss)(params)

  batch, calm = play(1.0), play(1e9)
  diverged = np.asarray(batch.final.diverged)
  assert 0 < diverged.sum() < BATCH
  assert not calm.final.diverged.any()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((batch, gradient(batch))))
  # Of the others, and with only theirs counted.
  others = lambda tree: jax.tree.map(lambda x: x[~diverged], tree)
  assert toy.same(others(batch), others(calm))
  alone = [gradient(x.replace(mask=x.mask & ~diverged[:, None], final=None)) for x in (batch, calm)]
  assert toy.same(*alone)
  assert max(np.abs(x).max() for x in jax.tree.leaves(alone)) > 0


def test_the_experts_training_goes_on_where_a_body_explodes():
  def trainer(limit):
    actor = Actor(Guide(world(limit)), width=8, depth=1)
    return ant_ppo.Trainer(actor, ant_ppo.Reward(), 8, unroll=4, epochs=2, minibatches=2)

  tx = state_lib.optimiser(1e-3)
  start, statistics, guided = jax.jit(trainer(1.0).init)(jax.random.key(0))
  carry = {**start, 'statistics': statistics}, tx.init(start), guided
  update = jax.jit(lambda limit: trainer(limit).update(tx, *carry, jax.random.key(1)))
  (params, *_, after, metrics), (*_, calm, _) = everything, _ = update(0.5), update(1e9)
  assert metrics['diverged'] > 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(everything)))
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), start['policy'], params['policy'])
  assert all(jax.tree.leaves(moved))
  # Whose body explodes begins anew, and nobody else.
  assert not after.state.diverged.any()
  rows = np.asarray(after.state.time) == 4
  assert 0 < rows.sum() < 8
  assert toy.same(*(jax.tree.map(lambda x: x[rows], guided) for guided in (after, calm)))
