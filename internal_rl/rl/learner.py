"""One update of policy-gradient learning: a batch of episodes, then a few passes over it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from internal_rl.rl import objective
from internal_rl.types import Key, Params


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """How a batch of episodes becomes updates. The paper gives batch size and learning rate only.

  Attributes:
    epochs: passes over each batch; the paper leaves it open.
    minibatches: gradient steps a pass, each on a random part of the batch; the paper leaves it
      open.
    clip: clip range of the probability ratio; the paper leaves it open.
    entropy_coefficient: weight of the entropy bonus, 0 in App. C.5.
  """

  epochs: int = 1
  minibatches: int = 1
  clip: float = 0.2
  entropy_coefficient: float = 0.0

  def __post_init__(self):
    for field in ('epochs', 'minibatches'):
      if getattr(self, field) < 1:
        raise ValueError(f'reinforce.{field}={getattr(self, field)}: must be at least 1')
    if self.clip <= 0:
      raise ValueError(f'reinforce.clip={self.clip}: must be positive')


Evaluate = Callable[[Params, Any], tuple[Float[Array, 'b m'], Float[Array, 'b m']]]


def learn(
  config: LearnerConfig,
  tx: optax.GradientTransformation,
  evaluate: Evaluate,
  params: Params,
  opt_state: optax.OptState,
  batch: Any,
  key: Key,
) -> tuple[Params, optax.OptState, dict[str, Float[Array, '']]]:
  """Improves `params` on a batch of episodes by Eq. 10.

  Args:
    config: passes, minibatches and clip range.
    tx: the optimiser.
    evaluate: `(params, batch) -> (log_prob, entropy)` of the recorded decisions, `[b, m]` each.
    params: the policy that took the decisions.
    opt_state: the optimiser's state.
    batch: a dataclass of arrays with the leading axis `b`, among them `log_prob`, `mask`,
      `returns`.
    key: consumed; the order of the minibatches.

  Returns:
    New parameters, new optimiser state, and metrics averaged over the gradient steps.
  """
  size = batch.returns.shape[0]
  if size % config.minibatches:
    raise ValueError(f'reinforce.minibatches={config.minibatches}: must divide the batch ({size})')
  advantage = objective.advantages(batch.returns)

  def loss_fn(params: Params, rows: Any, advantage: Float[Array, ' b']):
    log_prob, entropy = evaluate(params, rows)
    loss, stats = objective.surrogate_loss(
      log_prob, rows.log_prob, advantage, rows.mask, config.clip
    )
    entropy = jnp.where(rows.mask, entropy, 0).sum() / jnp.maximum(rows.mask.sum(), 1)
    metrics = {'loss': loss, 'clipped': stats.clipped, 'approx_kl': stats.approx_kl}
    return loss - config.entropy_coefficient * entropy, {**metrics, 'entropy': entropy}

  def only_measure(*args):
    return jax.tree.map(jnp.zeros_like, args[0]), loss_fn(*args)[1]

  def step(carry, rows):
    params, opt_state = carry
    part = jax.tree.map(lambda x: x[rows], (batch, advantage))
    # Rewards are rare: without any, advantages are 0 and so is the surrogate's gradient, exactly.
    learns = jnp.any(part[1] != 0) | (config.entropy_coefficient != 0)
    gradient = jax.grad(loss_fn, has_aux=True)
    gradients, metrics = jax.lax.cond(learns, gradient, only_measure, params, *part)
    updates, opt_state = tx.update(gradients, opt_state, params)
    metrics['gradient_norm'] = optax.tree.norm(gradients)
    return (optax.apply_updates(params, updates), opt_state), metrics

  order = lambda key: jax.random.permutation(key, size).reshape(config.minibatches, -1)
  rows = jnp.concatenate([order(key) for key in jax.random.split(key, config.epochs)])
  (params, opt_state), metrics = jax.lax.scan(step, (params, opt_state), rows)
  return params, opt_state, jax.tree.map(jnp.mean, metrics)


def rollout_metrics(batch: Any) -> dict[str, Float[Array, '']]:
  """Returns what an update reports of its episodes, `Decisions` or `RawEpisodes`."""
  decisions, dropped = batch.mask.sum(), getattr(batch, 'dropped', jnp.zeros(())).sum()
  diverged = getattr(batch.final, 'diverged', None)  # Only a simulation can.
  return {
    'success': batch.returns.mean(),
    'length': batch.lengths.mean(),
    'decisions': (decisions + dropped) / batch.returns.shape[0],
    'decisions_dropped': dropped / (decisions + dropped),
    'colours_visited': batch.final.progress.stage.mean(),
    **({} if diverged is None else {'diverged': diverged.mean()}),
  }
