"""Trains metacontrollers on the frozen base model, one for each KL strength (App. D.2, Eq. 9).

  python -m experiments.discover --config=configs/gridworld.py:quickstart --workdir=runs/quickstart

All strengths and seeds train side by side as one vmapped population on the same batches of `D*`, so
that the frozen lower half is computed once. `--config.discover.gate=open` is the forced-switch
variant. With `--config.discover.base=random` or `pretrained`, co-training (App. C.4.2), every
member trains a base model of its own along, on the same loss, data and optimiser. With
`--config.discover.labelled_steps=N` the first N updates are told the true subgoals: a ceiling.
"""

import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging

from experiments import artifacts, common
from internal_rl.analysis import codes as codes_lib
from internal_rl.analysis import switching
from internal_rl.data.demonstrations import Demonstrations
from internal_rl.metacontroller import labelled
from internal_rl.metacontroller import loss as loss_lib
from internal_rl.metacontroller.metacontroller import Codes, Metacontroller
from internal_rl.models.heads import Predictions
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.internal_env import Frozen
from internal_rl.training import checkpoint, loop, metrics
from internal_rl.training import state as state_lib
from internal_rl.types import Params, Trajectories


def infer(
  config: common.Config,
  models: Frozen,
  batch: Trajectories,
  key,
  hardness,
  evaluating: bool = False,
  told: jax.Array | None = None,
) -> tuple[Codes, Predictions]:
  """Returns the codes of a batch and what the base model predicts under their control.

  Gumbel noise is for training: internal RL's switch has none, and so has none when `evaluating`.
  Where `told` is True codes are those of the true subgoals.
  """
  mode = config.discover.gate
  mode = 'soft' if evaluating and mode == 'gumbel' else mode
  module, model = common.metacontroller(config), common.base_model(config)
  e = model.apply(models.base, batch.inputs, method=SequenceModel.lower)
  codes = module.apply(models.metacontroller, e, batch.mask, key, mode, hardness)
  if told is not None:
    codes = labelled.tell(codes, batch.subgoals, told)
  controlled = module.apply(models.metacontroller, codes.z, e, method=Metacontroller.control)
  return codes, model.apply(models.base, controlled, method=SequenceModel.upper)


def alpha_at(config: common.Config, step: jax.Array, alpha: jax.Array) -> jax.Array:
  """Returns the KL strength in force at an update: 0, then a ramp, then `alpha`."""
  section = config.discover
  ramp = (step - section.alpha_delay + 1) / max(section.alpha_ramp, 1)
  return alpha * jnp.clip(ramp, 0, 1)


def create(
  config: common.Config, tx: optax.GradientTransformation, base: Params, key, alpha
) -> state_lib.TrainState:
  """Returns a member before its first update; `base` is pretrained, and not read if 'random'."""
  init_key, noise_key, train_key, base_key = jax.random.split(key, 4)
  e, mask = jnp.zeros((1, 2, config.model.width)), jnp.ones((1, 2), bool)
  method = Metacontroller.touch_everything
  params = common.metacontroller(config).init(init_key, e, mask, noise_key, method=method)
  if config.discover.base == 'random':
    observations = jnp.zeros((1, 2, common.environment(config).observation_size))
    base = common.base_model(config).init(base_key, observations)
  trained = Frozen(base, params) if common.cotrains(config) else params
  return state_lib.create(trained, tx, train_key, extra=alpha)


def models_of(config: common.Config, params: Params, base: Params) -> Frozen:
  """Returns base and metacontroller of a member: `base` is that of all, where it is frozen."""
  return params if common.cotrains(config) else Frozen(base, params)


def objective(
  config: common.Config, models: Frozen, batch: Trajectories, key, step, alpha
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the loss of Eq. 3 at an update, and its terms in nats per step.

  With `labelled_steps`, the distance from the true subgoals' codes is added while they are told.
  """
  section, mask = config.discover, batch.mask
  hardness = (step >= section.steps - section.hard_steps).astype(jnp.float32)
  told = step < section.labelled_steps if section.labelled_steps else None
  codes, predictions = infer(config, models, batch, key, hardness, told=told)
  log_prob, alpha = predictions.action.log_prob(batch.actions), alpha_at(config, step, alpha)
  terms = loss_lib.objective(log_prob, codes, mask, alpha, section.kl_weight)
  loss, row = terms.loss, {'nll': terms.nll, 'kl': terms.kl}
  if section.observation_weight:
    log_prob = predictions.observation.log_prob(batch.next_observations)
    row['observation_nll'] = -loss_lib.masked_mean(log_prob, mask)
    loss += section.observation_weight * row['observation_nll']
  if told is not None:
    row['label_error'] = loss_lib.masked_mean(labelled.error(codes, batch.subgoals), mask)
    loss += told * row['label_error']
  return loss, {'loss': loss, **row}


def update_members(
  config: common.Config,
  tx: optax.GradientTransformation,
  population: state_lib.TrainState,
  base: Params,
  batch: Trajectories,
  keys,
) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
  """One update of all members, each with a key of its own.

  `jax.vmap` computes once what no member differs in: the lower half of a frozen base.
  """

  def member(state, key):
    def loss_fn(params):
      models = models_of(config, params, base)
      return objective(config, models, batch, key, state.step, state.extra)

    grads, row = jax.grad(loss_fn, has_aux=True)(state.params)
    return state_lib.apply_gradients(state, grads, tx), row

  return jax.vmap(member)(population, keys)


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains the population, measures every member, and selects the one that internal RL will use."""
  started, section = time.time(), config.discover
  _require_sound(config)
  data = artifacts.demonstrations(config, workdir, clean=True)
  tx = common.optimiser(section)
  members = list(itertools.product(section.alphas, range(section.seeds)))
  # Before training, so that a store with too few episodes is refused at once.
  held_out, prior_success = _held_out(config, data), _prior_success(config)
  base = None if section.base == 'random' else artifacts.base_params(config, workdir)
  # Strengths of one seed share initialisation and noise, so that they differ in alpha alone.
  keys = jnp.stack([common.key_for(config, 'discover', seed) for _, seed in members])
  members_of = jax.vmap(functools.partial(create, config, tx), in_axes=(None, 0, 0))
  population = jax.jit(members_of)(base, keys, jnp.array([alpha for alpha, _ in members]))

  def update(population, base, keys, fed=None):
    batch = data.batch(jax.random.split(keys[0])[0], section.batch, fed)
    noise_keys = jax.vmap(lambda key: jax.random.split(key)[1])(keys)
    return update_members(config, tx, population, base, batch, noise_keys)

  def evaluate(population, base, key, held_out=None):
    batch_key, noise_key = jax.random.split(key)
    batch = data.batch(batch_key, section.eval_batch, held_out)
    models = lambda state: models_of(config, state.params, base)
    return jax.vmap(lambda state: measure(config, models(state), batch, noise_key)[0])(population)

  directory = artifacts.stage_dir(workdir, 'discover')
  population = loop.fit(
    update,
    population,
    common.fit_config(config, 'discover', progress_metrics=('nll', 'kl')),
    directory,
    frozen=None if common.cotrains(config) else base,
    evaluate=evaluate,
    feed=data.feed(config.seed, section.batch),
    held_out=data.held_out(section.eval_batch),
    fingerprint=artifacts.fingerprint(config, 'discover') | data.fingerprint,
  )
  trained = jax.device_get(population.params)  # Or each slice would be a program to compile.
  params_of = lambda i: jax.tree.map(lambda x: x[i], trained)
  models = lambda i: models_of(config, params_of(i), base)
  rows = [
    {
      'alpha': alpha,
      'seed': seed,
      **held_out(models(i)),
      'prior_success': prior_success(models(i), 'selection'),
    }
    for i, (alpha, seed) in enumerate(members)
  ]
  chosen = select(rows)
  checkpoint.save_params(
    os.path.join(directory, 'selected'),
    params_of(chosen),
    artifacts.fingerprint(config, 'discover'),
  )
  logged = metrics.read_jsonl(os.path.join(directory, 'metrics.jsonl'))
  curve = [row for row in logged if 'eval/f1' in row]
  strengths = len(section.alphas)
  values = {
    # Measured again: the best of several strengths is lucky.
    'prior_success': prior_success(models(chosen), 'final'),
    'selected': chosen,
    # Those of the unseen task that the choice has cost.
    'selection_episodes': config.evaluate.episodes * (strengths if strengths > 1 else 0),
    'members': rows,
    'curve': curve,
  }
  return artifacts.write_result(config, workdir, 'discover', {**rows[chosen], **values}, started)


def select(rows: Sequence[Mapping[str, Any]]) -> int:
  """Returns the index of the metacontroller that internal RL is given.

  Seeds of one strength compete by Eq. 9 on held-out demonstrations, with the thresholded gate that
  internal RL acts with; the best of each strength by success on the unseen task before any RL, and
  equals by likelihood. Ground-truth subgoals, which alignment or the colours visited in order would
  betray, choose nothing.
  """
  objective_of = lambda i: rows[i]['hard_nll'] + rows[i]['alpha'] * rows[i]['kl']
  strengths = sorted({row['alpha'] for row in rows})
  best = [
    min((i for i, row in enumerate(rows) if row['alpha'] == alpha), key=objective_of)
    for alpha in strengths
  ]
  return max(best, key=lambda i: (rows[i]['prior_success']['success'], -rows[i]['hard_nll']))


def _require_sound(config: common.Config) -> None:
  section = config.discover
  for field in ('alphas', 'seeds'):
    if not section[field]:
      raise ValueError(f'discover.{field}={section[field]!r}: name at least one')
  if 0 not in section.tolerances:
    raise ValueError(f'discover.tolerances={section.tolerances}: 0 must be among them')
  common.cotrains(config)
  subgoals, size = len(common.family(config).subgoals), config.metacontroller.code_size
  if section.labelled_steps and not 0 < section.labelled_steps < section.steps - section.hard_steps:
    raise ValueError(
      f'discover.labelled_steps={section.labelled_steps}: must be 0, or positive and less than the '
      f'{section.steps - section.hard_steps} updates with a soft gate, in which the switch is found'
    )
  if section.labelled_steps and subgoals > size:
    raise ValueError(
      f'discover.labelled_steps={section.labelled_steps}: {subgoals} subgoals need a '
      f'metacontroller.code_size of {subgoals} or more, not {size}'
    )
  weight, predicts = section.observation_weight, config.pretrain.observation_weight > 0
  if weight < 0 or (weight and not predicts):
    raise ValueError(
      f'discover.observation_weight={weight}: must be 0, or positive with a positive '
      f'pretrain.observation_weight ({config.pretrain.observation_weight}), without which the base '
      'model predicts no observations'
    )


def measure(
  config: common.Config, models: Frozen, batch: Trajectories, key
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
  """Measures one metacontroller on a batch.

  Returns:
    Likelihood with soft and with hard gates, rate, and exact switch alignment; then the detected
    and the true switches. Switches are those of the hard gate, with which internal RL acts.
  """
  section, mask = config.discover, batch.mask
  soft, predicted = infer(config, models, batch, key, 0.0, evaluating=True)
  hard, hard_predicted = infer(config, models, batch, key, 1.0, evaluating=True)
  log_prob, hard_log_prob = (p.action.log_prob(batch.actions) for p in (predicted, hard_predicted))
  terms = loss_lib.objective(log_prob, soft, mask, 0.0, section.kl_weight)
  detected = switching.detected_switches(hard.beta, mask, config.metacontroller.threshold)
  true = switching.true_switches(batch.segments, mask)
  row = {
    'nll': terms.nll,
    'hard_nll': -loss_lib.masked_mean(hard_log_prob, mask),
    'kl': terms.kl,
    'f1': switching.exact_f1(detected, true),
    'switches': detected.sum(-1).mean(),
    'undecided_share': switching.undecided_share(soft.beta, mask),
  }
  return row, detected, true


def _held_out(config: common.Config, data: Demonstrations) -> Callable[[Frozen], dict[str, float]]:
  """Returns what measures a metacontroller on held-out layouts; compiles once for all of them."""
  episodes = data.held_out(config.evaluate.batch)

  @jax.jit
  def measured_on(models, key, episodes):
    batch_key, noise_key = jax.random.split(key)
    batch = data.batch(batch_key, config.evaluate.batch, episodes)
    row, detected, true = measure(config, models, batch, noise_key)
    found, _ = infer(config, models, batch, noise_key, 1.0, evaluating=True)
    mu, count = found.posterior.mean, len(data.expert.env.family.subgoals)
    row['subgoal_decoded'], row['subgoal_majority'] = codes_lib.decodability_at_starts(
      mu, batch.subgoals, batch.segments, batch.mask, count
    )
    return row, detected, true

  def held_out(models: Frozen) -> dict[str, float]:
    key = common.key_for(config, 'discover', 'final')
    measured, detected, true = jax.device_get(measured_on(models, key, episodes))
    row = {name: float(value) for name, value in measured.items()}
    for tolerance in config.discover.tolerances:
      found = switching.alignment(detected, true, tolerance)
      for name in ('precision', 'recall', 'f1'):
        row[f'{name}_tolerance_{tolerance}'] = getattr(found, name)
    row['true_switches'] = found.true_switches
    logging.info('metacontroller: %s', {name: round(value, 4) for name, value in row.items()})
    return row

  return held_out


def _prior_success(config: common.Config) -> Callable[[Frozen, str], dict[str, Any]]:
  """Returns what measures a metacontroller's success on the post-training task before any RL.

  Codes are drawn from N(0, I); the episodes are those of the key stream that is named.
  """
  env = common.post_training_environment(config)
  # A fresh policy of unit spread is the prior: its head starts at zero.
  policy = common.policy(config).clone(initial_std=1.0)
  fresh = jax.jit(policy.init)(jax.random.key(0), jnp.zeros((1, 1, config.model.width)))
  rollout = common.internal_rollout(config, env, policy)
  tasks = common.task_batch(env, config.evaluate.batch)
  episodes = jax.jit(lambda fresh, frozen, key: rollout(fresh, frozen, key, tasks))
  return lambda models, stream: common.success_rate(
    env,
    lambda key: episodes(fresh, models, key),
    common.key_for(config, 'discover', 'prior', stream),
    config.evaluate.episodes,
    config.evaluate.batch,
  )


if __name__ == '__main__':
  common.main(run)
