"""Pretrains the base sequence model on demonstrations (App. D.1, Eq. 5; Tables A4 and A5).

python -m experiments.pretrain --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
"""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import artifacts, common
from internal_rl.analysis import bayes
from internal_rl.metacontroller.loss import masked_mean
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.training import loop, metrics
from internal_rl.training import state as state_lib
from internal_rl.types import Params, Trajectories

SINCE_TURN = 20  # Steps after a turn that are told apart.


def losses(
  model: SequenceModel, params: Params, batch: Trajectories
) -> tuple[jax.Array, jax.Array]:
  """Returns action and next-observation negative log-likelihood, nats, `[b, t]` each (Eq. 5)."""
  predictions = model.apply(params, batch.inputs)
  action = -predictions.action.log_prob(batch.actions)
  if predictions.observation is None:
    return action, jnp.zeros_like(action)
  return action, -predictions.observation.log_prob(batch.next_observations)


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains; compares with the exact floors, where there are any, on the same held-out episodes."""
  started, section = time.time(), config.pretrain
  data = artifacts.demonstrations(config, workdir)
  expert, model, tx = data.expert, common.base_model(config), common.optimiser(section)
  key = common.key_for(config, 'pretrain', 'train')
  init = jax.jit(lambda key: model.init(key, data.example().inputs))
  state = state_lib.create(init(common.key_for(config, 'pretrain', 'init')), tx, key)

  def update(state, frozen, key, fed=None):
    batch = data.batch(key, section.batch, fed)

    def loss_fn(params):
      action, observation = (masked_mean(x, batch.mask) for x in losses(model, params, batch))
      return action + section.observation_weight * observation, (action, observation)

    (loss, (action, observation)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state_lib.apply_gradients(state, grads, tx)
    return state, {'loss': loss, 'nll': action, 'observation_nll': observation}

  def measure(params, key, held_out, told=None):
    """Returns nats by step, how many colours were visited before it, and which steps count."""
    # Floor and model on the same episodes, so that their difference is known far better than
    # either.
    episodes = data.episodes(key, section.eval_batch, held_out)
    batch, beliefs = expert.observations(episodes), bayes.known_beliefs(expert, episodes)
    action, observation = losses(model, params, batch)
    values = {'nll': action, 'observation_nll': observation}
    if beliefs is None:
      if told is not None:
        values['expert_nll'] = told.nll(episodes)
      # Only of the gridworld's subgoals does one have several colours.
      return values, batch.segments, batch.mask
    values |= {'bayes_nll': beliefs.bayes_nll, 'goal_nll': beliefs.goal_nll}
    return values, beliefs.stage, batch.mask

  def evaluate(state, frozen, key, held_out=None, told=None):
    values, _, mask = measure(state.params, key, held_out, told)
    values = {name: masked_mean(value, mask) for name, value in values.items()}
    gap = {'gap': values['nll'] - values['bayes_nll']} if 'bayes_nll' in values else {}
    return values | gap

  def by_stage(params, key, held_out, told):
    """Means on the way to each colour of a task, which tell what a model has yet to learn.

    Where the expert is at hand, who knows the way, also by how long ago the ant's way on changed.
    """
    values, stage, mask = measure(params, key, held_out, told)
    groups = {'by_stage': (stage, int(expert.env.tasks.lengths.max()))}
    if told is not None:
      episodes = data.episodes(key, section.eval_batch, held_out)
      groups['since_turn'] = (told.since_turn(episodes), SINCE_TURN)
    return {
      f'{name}_{group}': bayes.mean_by_group(value, index, mask, count)
      for group, (index, count) in groups.items()
      for name, value in values.items()
    }

  directory = artifacts.stage_dir(workdir, 'pretrain')
  selecting = data.held_out(section.eval_batch)
  # Other episodes than those that choose the best checkpoint, which is lucky on its own.
  reported = data.held_out(section.eval_batch, skip=section.eval_batch)
  state = loop.fit(
    update,
    state,
    common.fit_config(
      config,
      'pretrain',
      best_metric='nll',
      progress_metrics=('nll',),
      milestones=tuple(section.milestones),
    ),
    directory,
    evaluate=evaluate,
    feed=data.feed(config.seed, section.batch),
    held_out=selecting,
    fingerprint=artifacts.fingerprint(config, 'pretrain') | data.fingerprint,
  )
  rows = [
    row for row in metrics.read_jsonl(os.path.join(directory, 'metrics.jsonl')) if 'eval/nll' in row
  ]
  params = artifacts.base_params(config, workdir)
  key = common.key_for(config, 'pretrain', 'final')

  @jax.jit  # One program: what both measure is computed once.
  def measured(state, key, held_out, told):
    row = evaluate(state, None, key, held_out, told)
    return row | by_stage(state.params, key, held_out, told)

  # What the expert itself would lose takes long, and is asked for once.
  told = artifacts.demonstrator(config, workdir, data)
  final = measured(state.replace(params=params), key, reported, told)
  names = [name for name in ('step', 'eval/nll', 'eval/bayes_nll') if name in rows[0]]
  curve = {name: [row[name] for row in rows] for name in names}
  return artifacts.write_result(config, workdir, 'pretrain', {**final, 'curve': curve}, started)


if __name__ == '__main__':
  common.main(run)
