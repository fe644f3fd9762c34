"""Trains the ant's expert, who demonstrates all tasks (App. C.1.1, Table A3).

python -m experiments.expert --config=configs/ant.py:small --workdir=runs/ant
"""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import artifacts, common
from internal_rl.envs.ant import Ant
from internal_rl.envs.ant_body import AntBody
from internal_rl.experts.ant import Actor, AntExpert
from internal_rl.experts.ant_guide import Guide
from internal_rl.experts.ant_ppo import Reward, Trainer
from internal_rl.training import checkpoint, loop, metrics
from internal_rl.training.state import TrainState


def environment(config: common.Config, task_names: tuple[str, ...] = ()) -> Ant:
  """Returns the world, with its pretraining tasks unless others are named."""
  section = config.env
  if section.kind != 'ant':
    raise ValueError(f"env.kind={section.kind!r}: must be 'ant'; only the ant's expert is trained")
  env = Ant(
    grid_size=section.grid_size,
    num_objects=section.num_objects,
    num_walls=section.num_walls,
    time_limit=section.time_limit,
    family=common.family(config),
    task_names=task_names,
    cell_size=section.cell_size,
    off_grid=section.off_grid,
    body=AntBody(**section.body),
  )
  common.require_solvable(env)
  return env


def actor(config: common.Config, env: Ant) -> Actor:
  """Returns the expert's networks, acting in `env`."""
  section = config.expert
  return Actor(Guide(env, section.centring), section.width, section.depth)


def trained(config: common.Config, workdir: str, noisy: bool = True) -> AntExpert:
  """Restores the expert: the demonstrator of `D`, or, without noise, of `D*`."""
  params = checkpoint.restore_params(
    artifacts.stage_dir(workdir, 'expert'),
    expect=artifacts.fingerprint(config, 'expert'),
    hint='run: ' + artifacts.command(config, workdir, 'expert'),
  )
  return AntExpert(params, actor(config, environment(config)), noisy)


def trainer(config: common.Config) -> Trainer:
  """Returns the expert's PPO."""
  section = config.expert
  return Trainer(
    actor=actor(config, environment(config)),
    reward=Reward(**section.reward),
    num_envs=section.batch,
    unroll=section.unroll,
    epochs=section.epochs,
    minibatches=section.minibatches,
    discount=section.discount,
    gae_lambda=section.gae_lambda,
    clip=section.clip,
    entropy=section.entropy,
    reward_scale=section.reward_scale,
  )


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains, and measures success by mean action on pretraining tasks and on the unseen one."""
  started, section = time.time(), config.expert
  ppo = trainer(config)
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
  judge = actor(config, environment(config, (*family.pretraining, family.post_training)))

  def evaluate(state, frozen, key):
    half, seen = section.eval_batch // 2, len(family.pretraining)
    tasks = jnp.concatenate([jnp.arange(half) % seen, jnp.full(section.eval_batch - half, seen)])
    episodes = AntExpert(state.params, judge, noisy=False).play(key, tasks)
    success = episodes.mask[:, 0].astype(jnp.float32)
    # Finer than success, which is 0 for long: colours visited, each of which is a subgoal here.
    progress = episodes.segments[:, -1] + success
    return {
      'success': success[:half].mean(),
      'unseen_success': success[half:].mean(),
      'progress': progress.mean(),
    }

  directory = artifacts.stage_dir(workdir, 'expert')
  state = loop.fit(
    update,
    state,
    common.fit_config(
      section,
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
  expert = trained(config, workdir)
  final = jax.jit(evaluate)(
    state.replace(params=expert.params), None, common.key_for(config, 'expert', 'final')
  )
  curve = {
    name: [row[name] for row in rows] for name in ('step', 'eval/success', 'eval/unseen_success')
  }
  return artifacts.write_result(config, workdir, 'expert', {**final, 'curve': curve}, started)


if __name__ == '__main__':
  common.main(run)
