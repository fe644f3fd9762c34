"""Trains the ant's expert by PPO (App. C.1.1, Table A3), on brax's networks, loss and statistics.

One update unrolls a batch of episodes some steps further and passes over them a few times. Whatever
ends is begun again, each time on a layout and with a task of its own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from brax.training import types as brax_types
from brax.training.acme import running_statistics
from brax.training.agents.ppo import losses
from jaxtyping import Array, Float, Int

from internal_rl.envs.ant import Ant
from internal_rl.envs.ant import State as AntState
from internal_rl.envs.pinpad import Layout
from internal_rl.experts.ant import Actor
from internal_rl.experts.ant_guide import Guided
from internal_rl.types import Key, Params, TimeStep

Metrics = dict[str, Float[Array, '']]


@dataclasses.dataclass(frozen=True)
class Reward:
  """What the expert is rewarded for, a control step.

  The paper names the velocity along the direction of the path; it leaves the rest open.

  Attributes:
    velocity: for each m/s along the command.
    max_speed: m/s beyond which faster is not better, nor backwards worse: sprinting ants leap above
      the height limit.
    alive: for not having failed.
    control: cost of the sum of squared torques.
    bounce: cost of the squared vertical velocity, (m/s)^2, which is what a leap begins with.
    visit: for the next colour of the task; the last one's step, which ends the episode, teaches
      nothing, because PPO leaves out steps at which an episode was cut off.
    failure: cost of an end that is neither success nor the time limit.
  """

  velocity: float = 1.0
  max_speed: float = 2.5
  alive: float = 0.5
  control: float = 0.02
  bounce: float = 0.2
  visit: float = 5.0
  failure: float = 10.0

  def __call__(
    self,
    env: Ant,
    before: AntState,
    after: AntState,
    command: Float[Array, ' 2'],
    torques: Float[Array, ' 8'],
  ) -> Float[Array, '']:
    velocity = (after.body.place - before.body.place) @ command / env.body.seconds
    return (
      self.velocity * jnp.clip(velocity, -self.max_speed, self.max_speed)
      + self.alive
      - self.control * jnp.square(torques).sum()
      - self.bounce * jnp.square(after.body.qvel[2])
      + self.visit * (after.progress.stage - before.progress.stage)
      - self.failure * has_failed(env, after)
    )


def has_failed(env: Ant, state: AntState) -> Float[Array, '']:
  """Returns 1 for an end that is neither success nor the time limit, else 0."""
  complete = state.progress.stage == jnp.asarray(env.tasks.lengths)[state.progress.task]
  in_time = state.time < env.time_limit
  return (state.progress.done & ~complete & in_time).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Trainer:
  """PPO for an actor. Table A3 gives batch, optimiser and entropy; the paper leaves the rest open.

  Attributes:
    actor: what is trained.
    reward: what for.
    num_envs: episodes side by side.
    unroll: control steps of each in an update.
    epochs: passes over them.
    minibatches: gradient steps a pass, each on some of the episodes.
    discount: per control step.
    gae_lambda: of generalised advantage estimation.
    clip: range of the probability ratio.
    entropy: weight of the entropy bonus.
    reward_scale: brings returns to the scale that the value network starts at.
  """

  actor: Actor
  reward: Reward
  num_envs: int
  unroll: int
  epochs: int = 4
  minibatches: int = 4
  discount: float = 0.98
  gae_lambda: float = 0.95
  clip: float = 0.2
  entropy: float = 3e-4
  reward_scale: float = 0.1

  def __post_init__(self):
    for field in ('unroll', 'epochs', 'minibatches'):
      if getattr(self, field) < 1:
        raise ValueError(f'expert.{field}={getattr(self, field)}: must be at least 1')
    if self.num_envs % self.minibatches:
      raise ValueError(
        f'expert.minibatches={self.minibatches}: must divide expert.batch ({self.num_envs})'
      )

  @property
  def env(self) -> Ant:
    """The world."""
    return self.actor.guide.env

  def init(self, key: Key) -> tuple[Params, Params, Guided]:
    """Returns untrained parameters, statistics of no features yet, and episodes at their start."""
    policy_key, value_key, bank_key, begin_key = jax.random.split(key, 4)
    networks = self.actor.networks
    params = {
      'policy': networks.policy_network.init(policy_key),
      'value': networks.value_network.init(value_key),
    }
    zeros = jnp.zeros(self.actor.guide.num_features)
    statistics = {
      'count': jnp.zeros(()),
      'mean': zeros,
      'summed_variance': zeros,
      'std': jnp.ones_like(zeros),
    }
    return params, statistics, self._begin(begin_key, self._bank(bank_key))

  def update(
    self,
    tx: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    guided: Guided,
    key: Key,
  ) -> tuple[Params, optax.OptState, Guided, Metrics]:
    """One update: unroll, then `epochs` passes.

    Args:
      tx: the optimiser.
      params: `policy` and `value`, which are trained, and `statistics`.
      opt_state: the optimiser's, of `policy` and `value`.
      guided: the episodes under way.
      key: consumed.

    Returns:
      All three anew, and metrics that are means over the update.
    """
    bank_key, unroll_key, learn_key = jax.random.split(key, 3)
    guided, data, metrics = self._unroll(params, guided, self._bank(bank_key), unroll_key)
    statistics = running_statistics.RunningStatisticsState(**params['statistics'])
    trained = {name: params[name] for name in ('policy', 'value')}
    # With the statistics that it acted with: probability ratios have to begin at 1.
    trained, opt_state, learned = self._learn(tx, trained, opt_state, statistics, data, learn_key)
    with jax.numpy_rank_promotion('allow'):  # brax broadcasts.
      updated = running_statistics.update(statistics, data.observation)
    statistics = {name: getattr(updated, name) for name in params['statistics']}
    return {**trained, 'statistics': statistics}, opt_state, guided, metrics | learned

  def _bank(self, key: Key) -> tuple[Layout, Int[Array, 'b o cells']]:
    """Returns fresh layouts and their routes, for all that begins during an update.

    Searching for them at every step would cost more than the physics.
    """
    layouts, _ = jax.vmap(self.env.sample_layout)(jax.random.split(key, self.num_envs))
    return layouts, jax.vmap(self.actor.guide.route)(layouts)

  def _begin(self, key: Key, bank: tuple[Layout, Int[Array, 'b o cells']]) -> Guided:
    """Returns `num_envs` episodes at their start: random tasks on random layouts of the bank."""

    def begin(key: Key) -> Guided:
      row_key, task_key, start_key = jax.random.split(key, 3)
      row = jax.random.randint(row_key, (), 0, self.num_envs)
      task = jax.random.randint(task_key, (), 0, len(self.env.tasks.lengths))
      layout, route = jax.tree.map(lambda x: x[row], bank)
      return Guided(self.env.start(start_key, layout, task)[0], route)

    return jax.vmap(begin)(jax.random.split(key, self.num_envs))

  def _unroll(
    self, params: Params, guided: Guided, bank: tuple[Layout, Array], key: Key
  ) -> tuple[Guided, brax_types.Transition, Metrics]:
    """Takes `unroll` steps; returns transitions `[b, t, ...]` as brax's loss reads them."""

    def step(guided: Guided, key: Key):
      act_key, begin_key = jax.random.split(key)
      following, transition, timestep = self._step(params, guided, act_key)
      fresh = self._begin(begin_key, bank)
      choose = lambda new, old: jnp.where(
        timestep.done.reshape(-1, *[1] * (old.ndim - 1)), new, old
      )
      ends = following.state.time, following.state.diverged
      return jax.tree.map(choose, fresh, following), (transition, timestep, ends)

    guided, (transition, timestep, (times, diverged)) = jax.lax.scan(
      step, guided, jax.random.split(key, self.unroll)
    )
    after = jax.vmap(self.actor.guide.features)(guided)
    transition = transition._replace(
      next_observation=jnp.concatenate([transition.observation[1:], after[None]])
    )
    ended = jnp.maximum(timestep.done.sum(), 1)
    metrics = {
      'success': timestep.reward.sum() / ended,
      'length': (times * timestep.done).sum() / ended,
      'diverged': (diverged & timestep.done).sum() / ended,
      'reward': transition.reward.mean(),
    }
    return guided, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), transition), metrics

  def _step(
    self, params: Params, guided: Guided, key: Key
  ) -> tuple[Guided, brax_types.Transition, TimeStep]:
    """Takes one step of every episode."""
    guide, gaussian = self.actor.guide, self.actor.networks.parametric_action_distribution
    features = jax.vmap(guide.features)(guided)
    parameters = self.actor.distribution(params, features)
    raw = gaussian.sample_no_postprocessing(parameters, key)
    torques = jax.vmap(guide.torques)(guided, gaussian.postprocess(raw))
    after, timestep = jax.vmap(self.env.step)(guided.state, torques)
    reward = jax.vmap(self.reward, (None, 0, 0, 0, 0))(
      self.env, guided.state, after, jax.vmap(guide.command)(guided), torques
    )
    failed = jax.vmap(has_failed, (None, 0))(self.env, after)
    transition = brax_types.Transition(
      observation=features,
      action=torques,
      reward=reward,
      discount=1.0 - timestep.done,
      next_observation=features,  # Filled in once all steps are taken.
      extras={
        'policy_extras': {
          'raw_action': raw,
          'log_prob': gaussian.log_prob(parameters, raw),
          'distribution_params': parameters,
        },
        # Success and the time limit only cut an episode off: neither is better put off.
        'state_extras': {'truncation': timestep.done * (1.0 - failed)},
      },
    )
    return Guided(after, guided.route), transition, timestep

  def _learn(
    self,
    tx: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    statistics: Any,
    data: brax_types.Transition,
    key: Key,
  ) -> tuple[Params, optax.OptState, Metrics]:
    """Passes over the transitions; metrics are means over the gradient steps."""

    def loss_fn(params: Params, data: brax_types.Transition, key: Key):
      with jax.numpy_rank_promotion('allow'):
        return losses.compute_ppo_loss(
          losses.PPONetworkParams(params['policy'], params['value']),
          statistics,
          data,
          key,
          self.actor.networks,
          entropy_cost=self.entropy,
          discounting=self.discount,
          reward_scaling=self.reward_scale,
          gae_lambda=self.gae_lambda,
          clipping_epsilon=self.clip,
        )

    def step(carry, rows_and_key):
      params, opt_state = carry
      rows, key = rows_and_key
      part = jax.tree.map(lambda x: x[rows], data)
      gradients, metrics = jax.grad(loss_fn, has_aux=True)(params, part, key)
      updates, opt_state = tx.update(gradients, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), metrics

    order_key, entropy_key = jax.random.split(key)
    order = lambda key: jax.random.permutation(key, self.num_envs).reshape(self.minibatches, -1)
    rows = jnp.concatenate([order(key) for key in jax.random.split(order_key, self.epochs)])
    keys = jax.random.split(entropy_key, rows.shape[0])
    (params, opt_state), metrics = jax.lax.scan(step, (params, opt_state), (rows, keys))
    means = jax.tree.map(jnp.mean, metrics)
    return params, opt_state, {'loss': means.pop('total_loss'), **means}
