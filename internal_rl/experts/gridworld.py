"""The epsilon-noisy stochastic shortest-path expert (App. C.1.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.envs import pinpad, shortest_path
from internal_rl.envs.gridworld import Gridworld, State
from internal_rl.envs.pinpad import Layout
from internal_rl.types import Key, Trajectories


@struct.dataclass
class Episodes:
  """Compact gridworld episodes, about a hundred bytes each; `observations` renders them.

  Attributes:
    layout: the layouts.
    positions: the agent's cell at `o_1 .. o_{T+1}`.
    actions: moves, arbitrary where masked out.
    mask: True on the steps that were acted on; False throughout for an unsuccessful episode.
    subgoals: ground-truth subgoals, see `Trajectories`.
    segments: how many subgoals were completed before each. Analysis only.
    tasks: index of each episode's task.
    rejected: unsolvable layouts that were rejected on the way to each episode's.
  """

  layout: Layout
  positions: Int[Array, 'b t_plus_1']
  actions: Int[Array, 'b t']
  mask: Bool[Array, 'b t']
  subgoals: Int[Array, 'b t']
  segments: Int[Array, 'b t']
  tasks: Int[Array, ' b']
  rejected: Int[Array, ' b']


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GridworldExpert:
  """Follows a uniformly random shortest path to each colour in turn.

  Attributes:
    epsilon: probability of a uniformly random action among those that do not end the episode
      instead (0, 0.05, 0.1 and 0.2 in Fig. A2; the paper's default is 0).
  """

  env: Gridworld
  epsilon: float = 0.0

  def __post_init__(self):
    if not 0 <= self.epsilon < 1:
      raise ValueError(f'expert.epsilon={self.epsilon}: must be in [0, 1)')

  @property
  def description(self) -> dict[str, Any]:
    """What its demonstrations depend on, beside their length."""
    return {'env': dataclasses.asdict(self.env), 'epsilon': self.epsilon}

  def plan(self, layout: Layout) -> Bool[Array, 'o cells 4']:
    """Returns the optimal moves towards every colour: what `policy` needs of a layout."""
    return shortest_path.optimal_moves(shortest_path.distances(layout, self.env.grid_size))

  def policy(self, plan: Bool[Array, 'o cells 4'], state: State) -> Float[Array, ' 4']:
    """Returns the action probabilities in `state`, for the state's own task."""
    tasks, progress = self.env.tasks, state.progress
    target = pinpad.next_colour(tasks, progress)
    optimal = plan[target, state.position]
    probabilities = optimal / jnp.maximum(optimal.sum(), 1)
    if self.epsilon == 0:
      return probabilities
    last = progress.stage + 1 == jnp.asarray(tasks.lengths)[progress.task]
    safe = shortest_path.safe_moves(state.layout, self.env.grid_size, state.position, target, last)
    # Noise may lead into a pocket that the next colour cannot be reached from: all is noise there.
    noise = jnp.where(safe.any(), jnp.where(optimal.any(), self.epsilon, 1.0), 0.0)
    return (1 - noise) * probabilities + noise * safe / jnp.maximum(safe.sum(), 1)

  def rollout(self, key: Key, batch: int, horizon: int | None = None) -> Episodes:
    """Demonstrates a uniformly random task on each of `batch` fresh layouts, all on device.

    Args:
      key: consumed.
      batch: number of episodes.
      horizon: steps simulated, at most (and by default) the time limit. An episode that has not
        succeeded by then is masked out, since the data hold successful trajectories only.
    """
    horizon = self._checked(horizon)
    return jax.vmap(lambda key: self._episode(key, horizon))(jax.random.split(key, batch))

  def _checked(self, horizon: int | None) -> int:
    horizon = self.env.time_limit if horizon is None else horizon
    if not 1 <= horizon <= self.env.time_limit:
      raise ValueError(f'horizon={horizon}: must be in [1, time_limit={self.env.time_limit}]')
    return horizon

  def _episode(self, key: Key, horizon: int) -> Episodes:
    task_key, reset_key, action_key = jax.random.split(key, 3)
    task = jax.random.randint(task_key, (), 0, len(self.env.tasks.lengths))
    state, _ = self.env.reset(reset_key, task)
    plan = self.plan(state.layout)
    gumbels = jax.random.gumbel(action_key, (horizon, self.env.num_actions))

    def act(state: State, gumbel: Float[Array, ' 4']):
      action = jnp.argmax(jnp.log(self.policy(plan, state)) + gumbel)
      following, timestep = self.env.step(state, action)
      segment = pinpad.segment(self.env.tasks, state.progress)
      record = (state.position, action, ~state.progress.done, state.subgoal, segment)
      return following, (record, timestep.reward)

    final, (record, rewards) = jax.lax.scan(act, state, gumbels)
    positions, actions, alive, subgoals, segments = record
    return Episodes(
      layout=state.layout,
      positions=jnp.append(positions, final.position),
      actions=actions,
      mask=alive & (rewards.sum() > 0),
      subgoals=subgoals,
      segments=segments,
      tasks=task,
      rejected=state.rejected,
    )

  def template(self) -> Episodes:
    """Returns the structure that episodes are stored in; its leaves mean nothing."""
    nothing = jnp.zeros(())
    return Episodes(Layout(*[nothing] * 3), *[nothing] * 7)

  def observations(self, episodes: Episodes) -> Trajectories:
    """Renders compact episodes into the observations that models read."""
    observe = jax.vmap(jax.vmap(self.env.observe, (None, 0)))
    return Trajectories(
      observations=observe(episodes.layout, episodes.positions),
      actions=episodes.actions,
      mask=episodes.mask,
      subgoals=episodes.subgoals,
      segments=episodes.segments,
      tasks=episodes.tasks,
    )

  def sample(self, key: Key, batch: int, horizon: int | None = None) -> Trajectories:
    """Returns fresh demonstrations, rendered: on-the-fly data for a jitted update."""
    return self.observations(self.rollout(key, batch, horizon))
