"""Trains the ant's expert, who demonstrates all tasks (App. C.1.1, Table A3).

python -m experiments.expert --config=configs/ant.py:small --workdir=runs/ant
"""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import artifacts, common
from internal_rl.training import loop, metrics
from internal_rl.training.state import TrainState


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains, and measures success by mean action on pretraining tasks and on the unseen one."""
  started, section = time.time(), config.expert
  env = common.environment(config)
  if not common.learns_expert(config):
    raise ValueError(f"env.kind={config.env.kind!r}: must be 'ant'; no other expert is trained")
  ppo = common.ant().trainer(config, env)
  tx = common.optimiser(section, gradient_steps=section.epochs * section.minibatches)
  params, statistics, guided = jax.jit(ppo.init)(common.key_for(config, 'expert', 'init'))
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params={**params, 'statistics': statistics},
    opt_state=tx.init(params),
    key=common.key_for(config, 'expert', 'train'),
    extra=guided,
  )

  def update(state, frozen, key):
    params, opt_state, guided, metrics = ppo.update(
      tx, state.params, state.opt_state, state.extra, key
    )
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, extra=guided)
    return state, metrics

  family = common.family(config)
  # One world for both kinds of task, so that it is compiled once.
  world = common.environment(config, (*family.pretraining, family.post_training))

  def evaluate(state, frozen, key):
    half, seen = section.eval_batch // 2, len(family.pretraining)
    tasks = jnp.concatenate([jnp.arange(half) % seen, jnp.full(section.eval_batch - half, seen)])
    judged = common.expert(config, clean=True, env=world, params=state.params)
    episodes = judged.play(key, tasks)
    success = episodes.mask[:, 0].astype(jnp.float32)
    # Finer than success, which is 0 for long: colours visited, each of which is a subgoal here.
    progress = episodes.segments[:, -1] + success
    return {
      'success': success[:half].mean(),
      'unseen_success': success[half:].mean(),
      'progress': progress.mean(),
      'diverged': episodes.diverged.mean(),
    }

  directory = artifacts.stage_dir(workdir, 'expert')
  state = loop.fit(
    update,
    state,
    common.fit_config(
      config,
      'expert',
      best_metric='progress',
      best_mode='max',
      progress_metrics=('success', 'length', 'reward'),
    ),
    directory,
    evaluate=evaluate,
    fingerprint=artifacts.fingerprint(config, 'expert'),
  )
  rows = metrics.read_jsonl(os.path.join(directory, 'metrics.jsonl'))
  rows = [row for row in rows if 'eval/success' in row]
  best = artifacts.expert(config, workdir).params
  final = jax.jit(evaluate)(
    state.replace(params=best), None, common.key_for(config, 'expert', 'final')
  )
  curve = {
    name: [row[name] for row in rows] for name in ('step', 'eval/success', 'eval/unseen_success')
  }
  return artifacts.write_result(config, workdir, 'expert', {**final, 'curve': curve}, started)


if __name__ == '__main__':
  common.main(run)
