"""Trains metacontrollers on the frozen base model, one for each KL strength (App. D.2, Eq. 9).

  python -m experiments.discover --config=configs/gridworld.py:quickstart --workdir=runs/quickstart

All strengths and seeds train side by side as one vmapped population on the same batches, so that
the frozen lower half is computed once. `--config.discover.gate=open` is the forced-switch variant.
"""

import itertools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments import common
from internal_rl.analysis import switching
from internal_rl.metacontroller import loss as loss_lib
from internal_rl.metacontroller.metacontroller import Codes, Metacontroller
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.internal_env import Frozen
from internal_rl.rl.rollout import InternalRollout
from internal_rl.training import checkpoint, loop, metrics
from internal_rl.training import state as state_lib
from internal_rl.types import Params, Trajectories


def initialise(module: Metacontroller, e, mask, key):
  """Touches every submodule, for `module.init`."""
  return module.control(module(e, mask, key).z, e)


def infer(
  config: common.Config, params: Params, base: Params, batch: Trajectories, e, key, hardness
) -> tuple[Codes, jax.Array]:
  """Returns the codes of a batch and the log-likelihood of its actions under their control."""
  module, model = common.metacontroller(config), common.base_model(config)
  codes = module.apply(params, e, batch.mask, key, config.discover.gate, hardness)
  controlled = module.apply(params, codes.z, e, method=Metacontroller.control)
  predictions = model.apply(base, controlled, method=SequenceModel.upper)
  return codes, predictions.action.log_prob(batch.actions)


def alpha_at(config: common.Config, step: jax.Array, alpha: jax.Array) -> jax.Array:
  """Returns the KL strength in force at an update: 0, then a ramp, then `alpha`."""
  section = config.discover
  ramp = (step - section.alpha_delay) / max(section.alpha_ramp - section.alpha_delay, 1)
  return alpha * jnp.clip(ramp, 0, 1) if section.alpha_ramp else alpha


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains the population, measures every member, and selects the one that internal RL will use."""
  started, section = time.time(), config.discover
  data, store = common.demonstrations(config, clean=True)
  model, tx = common.base_model(config), common.optimiser(section)
  module, base = common.metacontroller(config), common.base_params(config, workdir)
  members = list(itertools.product(section.alphas, range(section.seeds)))
  lower = lambda base, batch: model.apply(base, batch.inputs, method=SequenceModel.lower)
  example = data.sample((), jax.random.key(0), 1)
  e = lower(base, example)

  def create(key, alpha):
    params = module.init(key, e, example.mask, key, method=initialise)
    return state_lib.create(params, tx, key, extra=alpha)

  keys = jnp.stack([common.key_for(config, 'discover', seed) for _, seed in members])
  population = jax.vmap(create)(keys, jnp.array([alpha for alpha, _ in members]))

  def update(population, frozen, keys):
    base, store = frozen
    batch = data.sample(store, keys[0], section.batch)
    e = lower(base, batch)

    def member(state, key):
      hardness = (state.step >= section.steps - section.hard_steps).astype(jnp.float32)

      def loss_fn(params):
        codes, log_prob = infer(config, params, base, batch, e, key, hardness)
        alpha = alpha_at(config, state.step, state.extra)
        terms = loss_lib.objective(log_prob, codes, batch.mask, alpha, section.kl_weight)
        return terms.loss, {'loss': terms.loss, 'nll': terms.nll, 'kl': terms.kl}

      grads, row = jax.grad(loss_fn, has_aux=True)(state.params)
      return state_lib.apply_gradients(state, grads, tx), row

    return jax.vmap(member)(population, keys)

  def evaluate(population, frozen, key):
    base, _ = frozen
    batch = data.sample((), key, section.eval_batch)
    e = lower(base, batch)
    return jax.vmap(lambda state: measure(config, state.params, base, batch, e, key))(population)

  directory = common.stage_dir(workdir, 'discover')
  population = loop.fit(
    update,
    population,
    common.fit_config(section, progress_metrics=('nll', 'kl')),
    directory,
    frozen=(base, store),
    evaluate=evaluate,
    fingerprint=common.fingerprint(config, 'pretrain', 'metacontroller', 'discover'),
  )
  rows = []
  for i, (alpha, seed) in enumerate(members):
    params = jax.tree.map(lambda x, i=i: x[i], population.params)
    rows.append({'alpha': alpha, 'seed': seed, **_measure_member(config, base, params)})
  # By reward alone: ground-truth subgoals must not choose what internal RL is given.
  chosen = max(range(len(rows)), key=lambda i: rows[i]['prior_success']['success'])
  checkpoint.save_params(
    os.path.join(directory, 'selected'),
    jax.tree.map(lambda x: x[chosen], population.params),
    {**common.fingerprint(config, 'metacontroller'), 'alpha': rows[chosen]['alpha']},
  )
  logged = metrics.read_jsonl(os.path.join(directory, 'metrics.jsonl'))
  curve = [row for row in logged if 'eval/f1' in row]
  values = {'selected': chosen, 'members': rows, 'curve': curve}
  return common.write_result(config, directory, {**rows[chosen], **values}, started)


def measure(
  config: common.Config, params: Params, base: Params, batch: Trajectories, e, key
) -> dict[str, jax.Array]:
  """Returns likelihood with soft and with hard gates, rate, and exact switch alignment."""
  row = {}
  for name, hardness in (('', 0.0), ('hard_', 1.0)):
    codes, log_prob = infer(config, params, base, batch, e, key, hardness)
    row[name + 'nll'] = -loss_lib.masked_mean(log_prob, batch.mask)
  detected = switching.detected_switches(codes.beta, batch.mask, config.metacontroller.threshold)
  true = switching.true_switches(batch.segments, batch.mask)
  row['kl'] = loss_lib.masked_mean(codes.posterior.kl_to_standard_normal(), batch.mask)
  row['f1'] = switching.exact_f1(detected, true)
  row['switches'] = detected.sum(-1).mean()
  return row


def _measure_member(config: common.Config, base: Params, params: Params) -> dict[str, Any]:
  """Measures one metacontroller on held-out layouts, and its prior on the post-training task."""
  data, _ = common.demonstrations(config, clean=True)
  model = common.base_model(config)
  key = common.key_for(config, 'discover final')

  @jax.jit
  def held_out(params, base, key):
    batch = data.sample((), key, config.evaluate.batch)
    e = model.apply(base, batch.inputs, method=SequenceModel.lower)
    codes, _ = infer(config, params, base, batch, e, key, 0.0)
    row = measure(config, params, base, batch, e, key)
    row['undecided_share'] = switching.undecided_share(codes.beta, batch.mask)
    detected = switching.detected_switches(codes.beta, batch.mask, config.metacontroller.threshold)
    return row, detected, switching.true_switches(batch.segments, batch.mask)

  row, detected, true = jax.device_get(held_out(params, base, key))
  for tolerance in (0, 1):
    found = switching.alignment(detected, true, tolerance)
    names = ('precision', 'recall', 'f1')
    row |= {f'{name}_tolerance_{tolerance}': getattr(found, name) for name in names}
  row['true_switches'] = found.true_switches
  row['prior_success'] = prior_success(config, base, params)
  logging.info(
    'metacontroller: %s', {k: np.round(v, 4) for k, v in row.items() if k != 'prior_success'}
  )
  return {k: v if isinstance(v, dict) else float(v) for k, v in row.items()}


def prior_success(config: common.Config, base: Params, params: Params) -> dict[str, float]:
  """Returns success on the post-training task with codes from N(0, I), before any RL."""
  env = common.post_training_environment(config)
  policy = common.policy(config)
  rollout = InternalRollout(
    env,
    common.base_model(config),
    common.metacontroller(config),
    policy,
    config.metacontroller.threshold,
    forced=config.discover.gate == 'open',
  )
  key = common.key_for(config, 'prior')
  # A fresh policy is the prior: its head starts at zero mean and the given spread.
  fresh = policy.init(key, jnp.zeros((1, 1, config.model.width)))
  tasks = common.task_batch(env, config.evaluate.batch)
  episodes = jax.jit(lambda frozen, key: rollout(fresh, frozen, key, tasks))
  return common.success_rate(
    lambda k: episodes(Frozen(base, params), k),
    key,
    config.evaluate.episodes,
    config.evaluate.batch,
  )


if __name__ == '__main__':
  common.main(run)
