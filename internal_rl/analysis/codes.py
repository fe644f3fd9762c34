"""What a code means: a goal, a place, or the next move (App. B.3.2)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def first_steps(segments: Int[Array, 'b t'], mask: Bool[Array, 'b t']) -> Bool[Array, 'b t']:
  """Marks the first step of every subgoal, that of the episode included."""
  changed = jnp.diff(segments, axis=1, prepend=-1) != 0
  return changed & mask


def by_segment(
  values: Float[Array, 'b t z'],
  segments: Int[Array, 'b t'],
  mask: Bool[Array, 'b t'],
  num_segments: int,
) -> Float[Array, 'b s z']:
  """Returns what `values` were at the first step of each subgoal; 0 for those not reached."""
  which = jax.nn.one_hot(segments, num_segments, dtype=bool)
  starts = first_steps(segments, mask)[..., None] & which
  return jnp.einsum('bts,btz->bsz', starts.astype(values.dtype), values)


def by_label(
  values: Float[Array, 'b t z'],
  labels: Int[Array, 'b t'],
  mask: Bool[Array, 'b t'],
  num_labels: int,
) -> Float[Array, 'l z']:
  """Returns the mean of `values` over the steps in `mask` with each label; 0 without any."""
  weight = jax.nn.one_hot(labels, num_labels) * mask[..., None]
  total = jnp.einsum('btl,btz->lz', weight, values)
  return total / jnp.maximum(weight.sum((0, 1)), 1)[:, None]


def decodability_at_starts(
  values: Float[Array, 'b t z'],
  labels: Int[Array, 'b t'],
  segments: Int[Array, 'b t'],
  mask: Bool[Array, 'b t'],
  num_classes: int,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns accuracy and majority, as `decodability`, at the first step of each subgoal."""
  weights = first_steps(segments, mask).astype(values.dtype).reshape(-1)
  return decodability(values.reshape(weights.size, -1), labels.reshape(-1), weights, num_classes)


def decodability(
  codes: Float[Array, 'n z'],
  labels: Int[Array, ' n'],
  weights: Float[Array, ' n'],
  num_classes: int,
  steps: int = 300,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns a linear classifier's accuracy at reading `labels` off `codes`, and the majority's.

  Trained on the first half of the rows and scored on the second; rows of weight 0 do not count.
  """
  half = codes.shape[0] // 2
  inputs = jax.nn.standardize(codes, axis=0)
  one_hot = jax.nn.one_hot(labels, num_classes)
  tx = optax.adam(0.05)

  def loss(params, rows):
    log_prob = jax.nn.log_softmax(inputs[rows] @ params['w'] + params['b'][None])
    return -(weights[rows] * (log_prob * one_hot[rows]).sum(-1)).sum() / weights[rows].sum()

  def step(carry, _):
    params, opt_state = carry
    updates, opt_state = tx.update(jax.grad(loss)(params, slice(0, half)), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  params = {'w': jnp.zeros((codes.shape[1], num_classes)), 'b': jnp.zeros(num_classes)}
  (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
  test = slice(half, None)
  guess = (inputs[test] @ params['w'] + params['b'][None]).argmax(-1)
  total = jnp.maximum(weights[test].sum(), 1e-9)
  accuracy = (weights[test] * (guess == labels[test])).sum() / total
  majority = (weights[test][:, None] * one_hot[test]).sum(0).max() / total
  return accuracy, majority
