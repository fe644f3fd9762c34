"""Exact floors of the gridworld: how well its expert can be predicted from observations alone.

The expert of App. C.1.1 is a known distribution over moves given the task, and pretraining tasks
are uniform, so that the best possible sequence model (Eq. 5, action term) is a posterior over the
tasks that mixes the expert's policies. Its loss bounds every base model's, its belief bounds every
probe's accuracy (App. C.2), and the oracle that is told the task bounds every metacontroller's
action loss.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.envs import pinpad
from internal_rl.envs.gridworld import State
from internal_rl.experts.gridworld import Episodes, GridworldExpert

CHUNK = 128  # Episodes in flight: bounds memory, does not change results.


@struct.dataclass
class Beliefs:
  """What the Bayes predictor thinks at each step, having seen `o_1 .. o_t`; arbitrary where masked.

  Attributes:
    predictive: `p(a_t | o_1 .. o_t)`, the best prediction there is.
    tasks: posterior over the tasks.
    subgoals: posterior over the subgoal in force.
    bayes_nll: `-log p(a_t | o_1 .. o_t)`, nats.
    goal_nll: `-log p(a_t | o_t, task, progress)`, nats: the predictor that knows the goal.
    correct: whether the most probable subgoal is the true one.
    stage: colours visited so far.
    mask: the steps that count.
  """

  predictive: Float[Array, 'b t a']
  tasks: Float[Array, 'b t n']
  subgoals: Float[Array, 'b t s']
  bayes_nll: Float[Array, 'b t']
  goal_nll: Float[Array, 'b t']
  correct: Bool[Array, 'b t']
  stage: Int[Array, 'b t']
  mask: Bool[Array, 'b t']


@dataclasses.dataclass(frozen=True)
class Floors:
  """Means over the steps of successful episodes; `*_error` are standard errors, by episode.

  Attributes:
    episodes: successful episodes measured.
    bayes_nll: nats per step of the Bayes predictor.
    goal_nll: nats per step of the predictor that knows the goal.
    subgoal_accuracy: fraction of steps at which the Bayes belief names the true subgoal.
    length_mean: mean steps in an episode.
    length_p99: 99th percentile of the same.
    length_max: maximum of the same.
    rejected_fraction: layouts drawn that left some task unsolvable.
  """

  episodes: int
  bayes_nll: float
  bayes_nll_error: float
  goal_nll: float
  goal_nll_error: float
  subgoal_accuracy: float
  subgoal_accuracy_error: float
  length_mean: float
  length_mean_error: float
  length_p99: float
  length_max: int
  rejected_fraction: float
  rejected_fraction_error: float


@functools.partial(jax.jit, static_argnums=0)
def beliefs(expert: GridworldExpert, episodes: Episodes) -> Beliefs:
  """Returns the exact Bayes predictor of `expert` along `episodes`.

  A task whose policy could not have made an observed move has posterior 0, and so has one that an
  observed visit of a colour would have ended. Moves are judged by the positions they lead to, since
  a model sees no actions: different ways to bump into a wall look the same.

  Exact for `epsilon = 0` on layouts that all tasks can be completed on. For `epsilon > 0` it leaves
  out that episodes were selected for success, which is a small correction.

  Args:
    expert: who acted, at which epsilon, on which tasks (uniform prior).
    episodes: from `expert.rollout`; any integer types.
  """
  return jax.lax.map(functools.partial(_episode_beliefs, expert), episodes, batch_size=CHUNK)


def _episode_beliefs(expert: GridworldExpert, episode: Episodes) -> Beliefs:
  widen = lambda x: x if x.dtype == bool else x.astype(jnp.int32)
  episode = jax.tree.map(widen, episode)
  env, mask = expert.env, episode.mask
  names = np.arange(len(env.tasks.lengths))
  stage, consistent = _progress(expert, episode)

  def act(position, following, stage, task):
    """Returns a task's action probabilities, that of the move that was seen, and its subgoal."""
    state = _state(expert, episode, position, stage, task)
    policy = expert.policy(plan, state)
    landing = jax.vmap(lambda move: env.step(state, move)[0].position)(jnp.arange(env.num_actions))
    return policy, policy @ (landing == following), pinpad.subgoal(env.tasks, state.progress)

  plan = expert.plan(episode.layout)
  over_tasks = jax.vmap(act, (None, None, None, 0))
  policies, seen, goals = jax.vmap(over_tasks, (0, 0, 0, None))(
    episode.positions[:-1], episode.positions[1:], stage, names
  )
  evidence = jnp.cumsum(jnp.log(seen), axis=0)
  evidence = jnp.concatenate([jnp.zeros_like(evidence[:1]), evidence[:-1]])
  evidence = jnp.where(consistent, evidence, -jnp.inf)
  posterior = jax.nn.softmax(jnp.where(mask[:, None], evidence, 0.0))

  predictive = jnp.einsum('tn,tna->ta', posterior, policies)
  goals = jax.nn.one_hot(goals, len(env.family.subgoals))
  subgoals = jnp.einsum('tn,tns->ts', posterior, goals)
  steps = jnp.arange(len(mask))
  return Beliefs(
    predictive=predictive,
    tasks=posterior,
    subgoals=subgoals,
    bayes_nll=-jnp.log(predictive[steps, episode.actions]),
    goal_nll=-jnp.log(policies[steps, episode.tasks, episode.actions]),
    correct=subgoals.argmax(-1) == episode.subgoals,
    stage=stage,
    mask=mask,
  )


def _progress(
  expert: GridworldExpert, episode: Episodes
) -> tuple[Int[Array, ' t'], Bool[Array, 't n']]:
  """Returns the colours visited by each step, and which tasks those visits leave under way."""
  tasks, positions = expert.env.tasks, episode.positions[:-1]
  colour = jax.vmap(pinpad.colour_at, (None, 0))(episode.layout, positions)
  entered = positions != jnp.append(positions[:1], positions[:-1])
  visited = entered & (colour != pinpad.NO_COLOUR)
  stage = jnp.cumsum(visited)
  expected = jnp.asarray(tasks.colours).T[stage - visited]
  wrong = visited[:, None] & (expected != colour[:, None])
  under_way = ~(jnp.cumsum(wrong, axis=0) > 0) & (stage[:, None] < tasks.lengths[None])
  return stage, under_way


def _state(expert: GridworldExpert, episode: Episodes, position, stage, task) -> State:
  state, _ = expert.env.start(jax.random.key(0), episode.layout, task)
  return state.replace(position=position, progress=state.progress.replace(stage=stage))


def known_beliefs(expert: Any, episodes: Any) -> Beliefs | None:
  """Returns `beliefs` of an expert whose action probabilities are known, None for any other."""
  return beliefs(expert, episodes) if isinstance(expert, GridworldExpert) else None


def mean_by_group(
  values: Float[Array, 'b t'], group: Int[Array, 'b t'], mask: Bool[Array, 'b t'], groups: int
) -> Float[Array, ' groups']:
  """Returns the mean of per-step `values` for each group of steps, those beyond `groups` left out.

  By the colour that a step is on the way to, a base model's loss beside `bayes_nll` tells what it
  has yet to learn: where a subgoal begins, to infer the task; within a subgoal, which colour ends
  it. NaN for a group without steps.
  """
  weights = jax.nn.one_hot(group, groups) * mask[..., None]
  sums = jnp.einsum('bt,bts->s', jnp.where(mask, values, 0.0), weights)
  return sums / weights.sum((0, 1))


def floors(expert: GridworldExpert, episodes: Episodes) -> Floors:
  """Summarises `beliefs`: the floors that losses and probe accuracies are compared with.

  Raises:
    ValueError: if no episode is successful.
  """
  belief = jax.device_get(beliefs(expert, episodes))
  lengths = np.asarray(episodes.mask).sum(1)
  kept = lengths > 0
  if not kept.any():
    raise ValueError(f'episodes.mask: none of {len(lengths)} episodes succeeded; raise the horizon')
  rejected = np.asarray(episodes.rejected)
  attempts = rejected + 1 if expert.env.resample else np.ones_like(rejected)

  def per_step(values: np.ndarray) -> tuple[float, float]:
    return _ratio(np.where(belief.mask, values, 0).sum(1)[kept], lengths[kept])

  bayes_nll, bayes_nll_error = per_step(belief.bayes_nll)
  goal_nll, goal_nll_error = per_step(belief.goal_nll)
  subgoal_accuracy, subgoal_accuracy_error = per_step(belief.correct)
  length_mean, length_mean_error = _ratio(lengths[kept], np.ones(kept.sum()))
  rejected_fraction, rejected_fraction_error = _ratio(rejected, attempts)
  return Floors(
    episodes=int(kept.sum()),
    bayes_nll=bayes_nll,
    bayes_nll_error=bayes_nll_error,
    goal_nll=goal_nll,
    goal_nll_error=goal_nll_error,
    subgoal_accuracy=subgoal_accuracy,
    subgoal_accuracy_error=subgoal_accuracy_error,
    length_mean=length_mean,
    length_mean_error=length_mean_error,
    length_p99=float(np.percentile(lengths[kept], 99)),
    length_max=int(lengths.max()),
    rejected_fraction=rejected_fraction,
    rejected_fraction_error=rejected_fraction_error,
  )


def _ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
  """Returns the ratio of totals over independent episodes and its standard error."""
  ratio = sums.sum() / counts.sum()
  error = np.sqrt(np.square(sums - ratio * counts).sum()) / counts.sum()
  return float(ratio), float(error)
