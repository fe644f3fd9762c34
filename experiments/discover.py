"""Trains metacontrollers on the frozen base model, one for each KL strength (App. D.2, Eq. 9).

  python -m experiments.discover --config=configs/gridworld.py:quickstart --workdir=runs/quickstart

All strengths and seeds train side by side as one vmapped population on the same batches, so that
the frozen lower half is computed once. `--config.discover.gate=open` is the forced-switch variant.
"""

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from experiments import artifacts, common
from internal_rl.analysis import switching
from internal_rl.data.demonstrations import Demonstrations
from internal_rl.metacontroller import loss as loss_lib
from internal_rl.metacontroller.metacontroller import Codes, Metacontroller
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.internal_env import Frozen
from internal_rl.training import checkpoint, loop, metrics
from internal_rl.training import state as state_lib
from internal_rl.types import Params, Trajectories


def infer(
  config: common.Config,
  params: Params,
  base: Params,
  batch: Trajectories,
  e,
  key,
  hardness,
  evaluating: bool = False,
) -> tuple[Codes, jax.Array]:
  """Returns the codes of a batch and the log-likelihood of its actions under their control.

  Gumbel noise is for training: internal RL's switch has none, and so has none when `evaluating`.
  """
  mode = config.discover.gate
  mode = 'soft' if evaluating and mode == 'gumbel' else mode
  module, model = common.metacontroller(config), common.base_model(config)
  codes = module.apply(params, e, batch.mask, key, mode, hardness)
  controlled = module.apply(params, codes.z, e, method=Metacontroller.control)
  predictions = model.apply(base, controlled, method=SequenceModel.upper)
  return codes, predictions.action.log_prob(batch.actions)


def alpha_at(config: common.Config, step: jax.Array, alpha: jax.Array) -> jax.Array:
  """Returns the KL strength in force at an update: 0, then a ramp, then `alpha`."""
  section = config.discover
  ramp = (step - section.alpha_delay + 1) / max(section.alpha_ramp, 1)
  return alpha * jnp.clip(ramp, 0, 1)


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains the population, measures every member, and selects the one that internal RL will use."""
  started, section = time.time(), config.discover
  for field in ('alphas', 'seeds'):
    if not section[field]:
      raise ValueError(f'discover.{field}={section[field]!r}: name at least one')
  if 0 not in section.tolerances:
    raise ValueError(f'discover.tolerances={section.tolerances}: 0 must be among them')
  data = artifacts.demonstrations(config, workdir, clean=True)
  model, tx = common.base_model(config), common.optimiser(section)
  module, base = common.metacontroller(config), artifacts.base_params(config, workdir)
  members = list(itertools.product(section.alphas, range(section.seeds)))
  lower = lambda base, batch: model.apply(base, batch.inputs, method=SequenceModel.lower)
  example = data.example()
  e = lower(base, example)

  def create(key, alpha):
    init_key, noise_key, train_key = jax.random.split(key, 3)
    params = module.init(
      init_key, e, example.mask, noise_key, method=Metacontroller.touch_everything
    )
    return state_lib.create(params, tx, train_key, extra=alpha)

  # Strengths of one seed share initialisation and noise, so that they differ in alpha alone.
  keys = jnp.stack([common.key_for(config, 'discover', seed) for _, seed in members])
  population = jax.vmap(create)(keys, jnp.array([alpha for alpha, _ in members]))

  def update(population, base, keys, fed=None):
    batch = data.batch(jax.random.split(keys[0])[0], section.batch, fed)
    e = lower(base, batch)

    def member(state, key):
      _, noise_key = jax.random.split(key)
      hardness = (state.step >= section.steps - section.hard_steps).astype(jnp.float32)

      def loss_fn(params):
        codes, log_prob = infer(config, params, base, batch, e, noise_key, hardness)
        alpha = alpha_at(config, state.step, state.extra)
        terms = loss_lib.objective(log_prob, codes, batch.mask, alpha, section.kl_weight)
        return terms.loss, {'loss': terms.loss, 'nll': terms.nll, 'kl': terms.kl}

      grads, row = jax.grad(loss_fn, has_aux=True)(state.params)
      return state_lib.apply_gradients(state, grads, tx), row

    return jax.vmap(member)(population, keys)

  def evaluate(population, base, key, held_out=None):
    batch_key, noise_key = jax.random.split(key)
    batch = data.batch(batch_key, section.eval_batch, held_out)
    e = lower(base, batch)
    one = lambda state: measure(config, state.params, base, batch, e, noise_key)[0]
    return jax.vmap(one)(population)

  directory = artifacts.stage_dir(workdir, 'discover')
  population = loop.fit(
    update,
    population,
    common.fit_config(config, 'discover', progress_metrics=('nll', 'kl')),
    directory,
    frozen=base,
    evaluate=evaluate,
    feed=data.feed(config.seed, section.batch),
    held_out=data.held_out(section.eval_batch),
    fingerprint=artifacts.fingerprint(config, 'discover') | data.fingerprint,
  )
  params_of = lambda i: jax.tree.map(lambda x: x[i], population.params)
  held_out, prior_success = _held_out(config, data, base), _prior_success(config, base)
  rows = [
    {
      'alpha': alpha,
      'seed': seed,
      **held_out(params_of(i)),
      'prior_success': prior_success(params_of(i), 'selection'),
    }
    for i, (alpha, seed) in enumerate(members)
  ]
  # By what the environment tells: ground-truth subgoals must not choose what internal RL is given.
  prior = [row['prior_success'] for row in rows]
  chosen = max(range(len(rows)), key=lambda i: (prior[i]['success'], prior[i]['progress']))
  checkpoint.save_params(
    os.path.join(directory, 'selected'),
    params_of(chosen),
    artifacts.fingerprint(config, 'discover'),
  )
  logged = metrics.read_jsonl(os.path.join(directory, 'metrics.jsonl'))
  curve = [row for row in logged if 'eval/f1' in row]
  values = {
    # Measured again: the best of several is lucky.
    'prior_success': prior_success(params_of(chosen), 'final'),
    'selected': chosen,
    'selection_episodes': len(rows) * config.evaluate.episodes,
    'members': rows,
    'curve': curve,
  }
  return artifacts.write_result(config, workdir, 'discover', {**rows[chosen], **values}, started)


def measure(
  config: common.Config, params: Params, base: Params, batch: Trajectories, e, key
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
  """Measures one metacontroller on a batch.

  Returns:
    Likelihood with soft and with hard gates, rate, and exact switch alignment; then the detected
    and the true switches. Switches are those of the hard gate, with which internal RL acts.
  """
  section, mask = config.discover, batch.mask
  soft, log_prob = infer(config, params, base, batch, e, key, 0.0, evaluating=True)
  hard, hard_log_prob = infer(config, params, base, batch, e, key, 1.0, evaluating=True)
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


def _held_out(
  config: common.Config, data: Demonstrations, base: Params
) -> Callable[[Params], dict[str, float]]:
  """Returns what measures a metacontroller on held-out layouts; compiles once for all of them."""
  model, episodes = common.base_model(config), data.held_out(config.evaluate.batch)

  @jax.jit
  def measured_on(params, base, key, episodes):
    batch_key, noise_key = jax.random.split(key)
    batch = data.batch(batch_key, config.evaluate.batch, episodes)
    e = model.apply(base, batch.inputs, method=SequenceModel.lower)
    return measure(config, params, base, batch, e, noise_key)

  def held_out(params: Params) -> dict[str, float]:
    key = common.key_for(config, 'discover', 'final')
    measured, detected, true = jax.device_get(measured_on(params, base, key, episodes))
    row = {name: float(value) for name, value in measured.items()}
    for tolerance in config.discover.tolerances:
      found = switching.alignment(detected, true, tolerance)
      for name in ('precision', 'recall', 'f1'):
        row[f'{name}_tolerance_{tolerance}'] = getattr(found, name)
    row['true_switches'] = found.true_switches
    logging.info('metacontroller: %s', {name: round(value, 4) for name, value in row.items()})
    return row

  return held_out


def _prior_success(
  config: common.Config, base: Params
) -> Callable[[Params, str], dict[str, float]]:
  """Returns what measures a metacontroller's success on the post-training task before any RL.

  Codes are drawn from N(0, I); the episodes are those of the key stream that is named.
  """
  env = common.post_training_environment(config)
  # A fresh policy of unit spread is the prior: its head starts at zero.
  policy = common.policy(config).clone(initial_std=1.0)
  fresh = policy.init(jax.random.key(0), jnp.zeros((1, 1, config.model.width)))
  rollout = common.internal_rollout(config, env, policy)
  tasks = common.task_batch(env, config.evaluate.batch)
  episodes = jax.jit(lambda fresh, frozen, key: rollout(fresh, frozen, key, tasks))
  return lambda params, stream: common.success_rate(
    lambda key: episodes(fresh, Frozen(base, params), key),
    common.key_for(config, 'discover', 'prior', stream),
    config.evaluate.episodes,
    config.evaluate.batch,
  )


if __name__ == '__main__':
  common.main(run)
