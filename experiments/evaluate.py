"""Measures a run against its floors and ceilings, and what its codes mean.

python -m experiments.evaluate --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import artifacts, common, discover
from internal_rl.analysis import bayes, codes
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.envs import pinpad
from internal_rl.experts.gridworld import GridworldExpert
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.models.sequence_model import SequenceModel


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Writes floors, success of the unsteered base, and the codes' meaning and replay."""
  started = time.time()
  base = artifacts.base_params(config, workdir)
  params = artifacts.metacontroller_params(config, workdir)
  key = common.key_for(config, 'evaluate')
  expert = common.expert(config)
  episodes = expert.rollout(key, config.evaluate.floor_episodes, config.data.horizon)
  worlds = {
    'pretraining': common.environment(config),
    'post_training': common.post_training_environment(config),
  }
  values = {
    'floors': dataclasses.asdict(bayes.floors(expert, episodes)),
    'base_success': {name: _base_success(config, base, env) for name, env in worlds.items()},
    'replay_success': {
      name: _replay_success(config, base, params, env) for name, env in worlds.items()
    },
    'code_meaning': _code_meaning(config, base, params),
  }
  return artifacts.write_result(config, workdir, 'evaluate', values, started)


def _base_success(config, base, env) -> dict[str, float]:
  """Success of actions sampled from the base model alone: practically 0, says the main text."""
  rollout = BaseRollout(env, common.base_model(config))
  tasks = common.task_batch(env, config.evaluate.batch)
  episodes = jax.jit(lambda base, key: rollout(base, key, tasks))
  return common.success_rate(
    lambda k: episodes(base, k),
    common.key_for(config, 'base'),
    config.evaluate.episodes,
    config.evaluate.batch,
  )


def _replay_success(config, base, params, env) -> dict[str, float]:
  """Success when the codes inferred from a demonstration are replayed with oracle switching."""
  model, module = common.base_model(config), common.metacontroller(config)
  expert = GridworldExpert(env)
  rollout = BaseRollout(env, model)

  @jax.jit
  def replay(base, params, key):
    demonstration_key, code_key, action_key = jax.random.split(key, 3)
    episodes = expert.rollout(demonstration_key, config.evaluate.batch)
    batch = expert.observations(episodes)
    e = model.apply(base, batch.inputs, method=SequenceModel.lower)
    found, _ = discover.infer(config, params, base, batch, e, code_key, 1.0, evaluating=True)
    by_segment = codes.by_segment(
      found.posterior.mean, batch.segments, batch.mask, int(env.tasks.segments.max()) + 1
    )

    def steer(state, e, by_segment):
      segment = jax.vmap(pinpad.segment, (None, 0))(env.tasks, state.progress)
      z = jnp.take_along_axis(by_segment, segment[:, None, None], 1)[:, 0]
      return module.apply(params, z, e, method=Metacontroller.control)

    state, timestep = jax.vmap(env.start)(episodes.layout, episodes.tasks)
    return rollout.run(base, action_key, state, timestep, steer, by_segment)

  return common.success_rate(
    lambda k: replay(base, params, k),
    common.key_for(config, 'replay'),
    config.evaluate.episodes,
    config.evaluate.batch,
  )


def _code_meaning(config, base, params) -> dict[str, dict[str, float]]:
  """What is linearly decodable from mu at the first step of each subgoal, beside chance."""
  expert, model = common.clean_expert(config), common.base_model(config)
  env = expert.env

  @jax.jit
  def measure(base, params, key):
    batch_key, noise_key = jax.random.split(key)
    episodes = expert.rollout(batch_key, config.evaluate.batch, config.data.horizon)
    batch = expert.observations(episodes)
    e = model.apply(base, batch.inputs, method=SequenceModel.lower)
    found, _ = discover.infer(config, params, base, batch, e, noise_key, 1.0, evaluating=True)
    # The goal is the subgoal's first colour; where it lies depends on the layout.
    goals = jnp.array([subgoal[0] for subgoal in env.family.subgoals])[batch.subgoals]
    labels = {
      'subgoal': (batch.subgoals, len(env.family.subgoals)),
      'goal_cell': (jnp.take_along_axis(episodes.layout.objects, goals, 1), env.grid_size**2),
      'first_action': (batch.actions, env.num_actions),
    }
    weights = codes.first_steps(batch.segments, batch.mask).astype(jnp.float32).reshape(-1)
    mu = found.posterior.mean.reshape(weights.size, -1)
    return {
      name: codes.decodability(mu, label.reshape(-1), weights, classes)
      for name, (label, classes) in labels.items()
    }

  found = measure(base, params, common.key_for(config, 'meaning'))
  return {
    name: {'accuracy': float(accuracy), 'majority': float(majority)}
    for name, (accuracy, majority) in found.items()
  }


if __name__ == '__main__':
  common.main(run)
