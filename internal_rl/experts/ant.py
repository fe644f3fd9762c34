"""The ant's expert: one policy for all tasks, told the way (App. C.1.1)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.training.acme import running_statistics
from brax.training.agents.ppo import networks as ppo_networks
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.envs import pinpad
from internal_rl.envs.ant import Ant, State
from internal_rl.envs.ant_body import Body
from internal_rl.envs.pinpad import Layout, Progress
from internal_rl.experts.ant_guide import Guide, Guided
from internal_rl.types import Key, Params, Trajectories

CLIP = 10.0  # Normalised features lie within so many standard deviations.
_NODES = 16  # Of the quadrature.
_LEAST_VARIANCE = 1e-6  # Far above the rounding of actions, stored in half precision: about 2e-8.


@struct.dataclass
class Episodes:
  """Compact ant episodes, about 100 bytes a step; `observations` renders them.

  Attributes:
    layout: the layouts.
    qpos: positions of the body at `o_1 .. o_{T+1}`, see `ant_body.Body`.
    qvel: velocities of the body, likewise, float16.
    actions: torques in [-1, 1], float16, arbitrary where masked out.
    mask: True on the steps that were acted on; False throughout for an unsuccessful episode.
    subgoals: ground-truth subgoals, see `Trajectories`.
    segments: how many subgoals were completed before each. Analysis only.
    tasks: index of each episode's task.
    rejected: unsolvable layouts that were rejected on the way to each episode's.
    diverged: whether the simulation blew up; counted and not stored, so None where it was read.
  """

  layout: Layout
  qpos: Float[Array, 'b t_plus_1 15']
  qvel: Float[Array, 'b t_plus_1 14']
  actions: Float[Array, 'b t 8']
  mask: Bool[Array, 'b t']
  subgoals: Int[Array, 'b t']
  segments: Int[Array, 'b t']
  tasks: Int[Array, ' b']
  rejected: Int[Array, ' b']
  diverged: Bool[Array, ' b'] | None = None


@dataclasses.dataclass(frozen=True)
class Actor:
  """The expert's networks, from brax: a policy and, to train it, a value.

  Attributes:
    guide: what they read.
    width: of hidden layers, 256 in Table A3.
    depth: hidden layers. Table A3 has an SSM of 6 blocks; what the expert is told leaves nothing to
      remember, so these are MLPs.
  """

  guide: Guide
  width: int = 256
  depth: int = 3

  @functools.cached_property
  def networks(self) -> ppo_networks.PPONetworks:
    hidden = (self.width,) * self.depth
    with jax.ensure_compile_time_eval():  # The first to ask may be a function under trace.
      return ppo_networks.make_ppo_networks(
        self.guide.num_features,
        self.guide.env.num_actions,
        preprocess_observations_fn=functools.partial(
          running_statistics.normalize, max_abs_value=CLIP
        ),
        policy_hidden_layer_sizes=hidden,
        value_hidden_layer_sizes=hidden,
      )

  def distribution(
    self, params: Params, features: Float[Array, '*b f']
  ) -> Float[Array, '*b parameters']:
    """Returns parameters of the Gaussian whose tanh is the action.

    Args:
      params: nested dicts: `policy`, brax's, and `statistics`, mean and spread of the features.
      features: what the guide tells.
    """
    known = params['statistics']
    statistics = running_statistics.NestedMeanStd(mean=known['mean'], std=known['std'])
    with jax.numpy_rank_promotion('allow'):  # brax broadcasts.
      return self.networks.policy_network.apply(statistics, params['policy'], features)


@struct.dataclass
class AntExpert:
  """Demonstrates tasks; a pytree, so that what it has learnt is an argument of jitted functions.

  Attributes:
    params: what it has learnt, see `Actor.distribution`; None for one that only renders what was
      demonstrated before.
    actor: its networks.
    noisy: whether actions are sampled, for `D`, or are the mean of the Gaussian, for `D*`
      (App. C.1.1).
  """

  params: Params
  actor: Actor = struct.field(pytree_node=False)
  noisy: bool = struct.field(pytree_node=False, default=True)

  @property
  def env(self) -> Ant:
    """The world."""
    return self.actor.guide.env

  @property
  def description(self) -> dict[str, Any]:
    """What its demonstrations depend on, beside their length and what it has learnt."""
    actor = dataclasses.asdict(self.actor)
    env = actor['guide'].pop('env')
    del env['frame']  # Of observations, which are rendered from what is stored.
    return {'env': env, 'noisy': self.noisy, 'actor': actor}

  def act(self, key: Key, guided: Guided) -> Float[Array, ' 8']:
    """Returns torques for one control step of an unbatched episode."""
    guide, gaussian = self.actor.guide, self.actor.networks.parametric_action_distribution
    parameters = self.actor.distribution(self.params, guide.features(guided))
    action = gaussian.sample(parameters, key) if self.noisy else gaussian.mode(parameters)
    return guide.torques(guided, action)

  def rollout(self, key: Key, batch: int, horizon: int | None = None) -> Episodes:
    """Demonstrates a uniformly random task on each of `batch` fresh layouts, all on device.

    Args:
      key: consumed.
      batch: number of episodes.
      horizon: steps simulated, at most (and by default) the time limit. An episode that has not
        succeeded by then is masked out, since the data hold successful trajectories only.
    """
    task_key, play_key = jax.random.split(key)
    tasks = jax.random.randint(task_key, (batch,), 0, len(self.env.tasks.lengths))
    return self.play(play_key, tasks, horizon)

  def play(self, key: Key, tasks: Int[Array, ' b'], horizon: int | None = None) -> Episodes:
    """Demonstrates these tasks, each on a fresh layout; see `rollout`."""
    horizon = self.env.time_limit if horizon is None else horizon
    if not 1 <= horizon <= self.env.time_limit:
      raise ValueError(f'horizon={horizon}: must be in [1, time_limit={self.env.time_limit}]')
    keys = jax.random.split(key, tasks.shape[0])
    return jax.vmap(lambda key, task: self._episode(key, task, horizon))(keys, tasks)

  def _episode(self, key: Key, task: Int[Array, ''], horizon: int) -> Episodes:
    reset_key, action_key = jax.random.split(key)
    first, _ = self.env.reset(reset_key, task)
    route = self.actor.guide.route(first.layout)

    def step(state: State, key: Key):
      action = self.act(key, Guided(state, route))
      following, timestep = self.env.step(state, action)
      segment = pinpad.segment(self.env.tasks, state.progress)
      record = (state.body, action, ~state.progress.done, state.subgoal, segment)
      return following, (record, timestep.reward)

    last, (record, rewards) = jax.lax.scan(step, first, jax.random.split(action_key, horizon))
    bodies, actions, alive, subgoals, segments = record
    return Episodes(
      layout=first.layout,
      qpos=jnp.concatenate([bodies.qpos, last.body.qpos[None]]),
      qvel=jnp.concatenate([bodies.qvel, last.body.qvel[None]]).astype(jnp.float16),
      actions=actions.astype(jnp.float16),
      mask=alive & (rewards.sum() > 0),
      subgoals=subgoals,
      segments=segments,
      tasks=task,
      rejected=first.rejected,
      diverged=last.diverged,
    )

  def nll(self, episodes: Episodes) -> Float[Array, 'b t']:
    """Returns the loss of the best Gaussian that is told what the expert is, nats.

    Of `D`, whose actions are drawn, it is what a base model can hope for: its head is a Gaussian,
    too, but nobody tells it the way. Mean and variance are those of the expert's action, the tanh
    of a Gaussian.
    """

    def episode_nll(episode: Episodes) -> Float[Array, ' t']:
      return jax.vmap(self._step_nll)(self._told(episode), episode.actions)

    return jax.lax.map(episode_nll, episodes, batch_size=64)  # Memory stays bounded.

  def _step_nll(self, guided: Guided, torques: Float[Array, ' 8']) -> Float[Array, '']:
    guide = self.actor.guide
    mean, variance = self._moments(self.actor.distribution(self.params, guide.features(guided)))
    action = guide.action(guided, torques.astype(jnp.float32))
    return -jax.scipy.stats.norm.logpdf(action, mean, jnp.sqrt(variance)).sum()

  def since_turn(self, episodes: Episodes) -> Int[Array, 'b t']:
    """Returns how many steps ago the way on from the ant's cell changed, or the episode began.

    A model that does not foresee a turn has its losses right after one, until it sees the ant turn.
    """

    def since(episode: Episodes) -> Int[Array, ' t']:
      moves = jax.vmap(self.actor.guide.move)(self._told(episode))
      time = jnp.arange(len(moves))
      turned = jnp.concatenate([jnp.array([True]), moves[1:] != moves[:-1]])
      return time - jax.lax.cummax(jnp.where(turned, time, 0))

    return jax.lax.map(since, episodes, batch_size=64)

  def _told(self, episode: Episodes) -> Guided:
    """Returns what the expert was told at every step of an episode."""
    env, guide, layout = self.env, self.actor.guide, episode.layout
    first, _ = env.start(jax.random.key(0), layout, episode.tasks)
    route = guide.route(layout)
    cells = jax.vmap(lambda qpos: env.cell_at(qpos[:2]))(episode.qpos)

    def visit(progress: Progress, moved: tuple[Array, Array]):
      return pinpad.visit(env.tasks, layout, progress, *moved)[0], progress

    _, progress = jax.lax.scan(visit, first.progress, (cells[:-1], cells[1:]))

    def at(qpos: Float[Array, ' 15'], qvel: Float[Array, ' 14'], progress: Progress) -> Guided:
      body = Body(qpos, qvel.astype(jnp.float32), jnp.zeros_like(qvel, jnp.float32))
      return Guided(first.replace(body=body, progress=progress), route)

    return jax.vmap(at)(episode.qpos[:-1], episode.qvel[:-1], progress)

  def _moments(self, parameters: Float[Array, ' parameters']) -> tuple[Array, Array]:
    """Returns mean and variance of the tanh of a Gaussian, by Gauss-Hermite quadrature."""
    gaussian = self.actor.networks.parametric_action_distribution.create_dist(parameters)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    spread = jnp.outer(nodes.astype(np.float32), gaussian.scale)
    actions = jnp.tanh(gaussian.loc[None] + spread)
    weights = (weights / weights.sum()).astype(np.float32)
    mean = weights @ actions
    return mean, weights @ jnp.square(actions - mean[None]) + _LEAST_VARIANCE

  def template(self) -> Episodes:
    """Returns the structure that episodes are stored in; its leaves mean nothing."""
    nothing = jnp.zeros(())
    return Episodes(Layout(*[nothing] * 3), *[nothing] * 8)

  def observations(self, episodes: Episodes) -> Trajectories:
    """Renders compact episodes into the observations that models read."""

    def observe(layout: Layout, qpos: Float[Array, ' 15'], qvel: Float[Array, ' 14']):
      qvel = qvel.astype(jnp.float32)
      return self.env.observe(layout, Body(qpos, qvel, jnp.zeros_like(qvel)))

    return Trajectories(
      observations=jax.vmap(jax.vmap(observe, (None, 0, 0)))(
        episodes.layout, episodes.qpos, episodes.qvel
      ),
      actions=episodes.actions.astype(jnp.float32),
      mask=episodes.mask,
      subgoals=episodes.subgoals,
      segments=episodes.segments,
      tasks=episodes.tasks,
    )

  def sample(self, key: Key, batch: int, horizon: int | None = None) -> Trajectories:
    """Returns fresh demonstrations, rendered."""
    return self.observations(self.rollout(key, batch, horizon))
