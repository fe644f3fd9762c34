"""Measures a run against its floors and ceilings, and what its codes mean.

python -m experiments.evaluate --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments import artifacts, common, discover
from internal_rl.analysis import bayes, codes
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.envs import pinpad
from internal_rl.envs.environment import Pinpad
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.rl.internal_env import Frozen


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Writes every part whose stages are finished, and the names of the parts that are missing.

  Raises:
    FileNotFoundError: none is; names a command to run.
    ValueError: a gain is not a finite number above 1, or is there twice.
  """
  common.require_gains('evaluate.gains', config.evaluate.gains)
  started, values = time.time(), dict[str, Any]()
  missing: dict[str, FileNotFoundError] = {}
  for name, measure in PARTS.items():
    try:
      values[name] = measure(config, workdir)
    except FileNotFoundError as error:
      logging.warning('evaluate: no %s: %s', name, error)
      missing[name] = error
  # Of a world alone nobody asks for an evaluation.
  if not any(value for name, value in values.items() if name != 'simulation'):
    raise next(iter(missing.values()))
  values['missing'] = list(missing)
  return artifacts.write_result(config, workdir, 'evaluate', values, started)


def _worlds(config: common.Config) -> dict[str, Pinpad]:
  return {
    'pretraining': common.environment(config),
    'post_training': common.post_training_environment(config),
  }


def _success(config: common.Config, env: Pinpad, stream: str, run) -> dict[str, Any]:
  """Success over `evaluate.episodes` episodes; `run` takes a key and runs `evaluate.batch`."""
  section = config.evaluate
  key = common.key_for(config, stream)
  return common.success_rate(env, run, key, section.episodes, section.batch)


def _floors(config: common.Config, workdir: str) -> dict[str, Any]:
  """The exact floors of an expert whose action probabilities are known; nothing of any other."""
  del workdir
  if common.learns_expert(config):
    return {}
  expert = common.expert(config)
  rollout = jax.jit(
    lambda key: expert.rollout(key, config.evaluate.floor_episodes, config.data.horizon)
  )
  episodes = rollout(common.key_for(config, 'evaluate'))
  return dataclasses.asdict(bayes.floors(expert, episodes))


def _expert_success(config: common.Config, workdir: str) -> dict[str, Any]:
  """Success of the expert without noise: what Fig. 8 calls 1."""
  section, found = config.evaluate, {}
  for name, env in _worlds(config).items():
    expert = artifacts.expert(config, workdir, clean=True, env=env)
    play = jax.jit(lambda expert, key: _outcome(expert.rollout(key, section.batch)))
    keys = jax.random.split(
      common.key_for(config, 'expert success'), -(-section.episodes // section.batch)
    )
    rows = [play(expert, key) for key in keys]
    outcome = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    found[name] = common.share(outcome['success'])
    if 'diverged' in outcome:
      found[name]['diverged'] = float(outcome['diverged'].mean())
    logging.info('expert, %s tasks: %s', name.replace('_', '-'), found[name])
  return found


def _outcome(episodes: Any) -> dict[str, jax.Array]:
  """Returns what demonstrations came to, a bool each; only a simulation can blow up."""
  outcome = {'success': episodes.mask[:, 0]}
  return outcome | {'diverged': episodes.diverged} if hasattr(episodes, 'diverged') else outcome


def _simulation(config: common.Config, workdir: str) -> dict[str, Any]:
  """How often the physics blows up under torques that nobody chose, in a world that has any.

  `evaluate.stress_steps` control steps with random torques, and as many with constant ones. Nothing
  ends them, so that the ant comes into all sorts of trouble.
  """
  del workdir
  if not config.evaluate.get('stress_steps', 0):
    return {}
  env: Any = common.environment(config)
  batch = config.evaluate.batch
  steps = -(-config.evaluate.stress_steps // batch)
  stress = jax.jit(functools.partial(env.body.stress, batch=batch, steps=steps))
  return {
    kind: {
      'steps': batch * steps,
      'blown_up': stress(common.key_for(config, 'simulation', kind), constant=constant),
    }
    for kind, constant in {'random': False, 'constant': True}.items()
  }


def _base_success(config: common.Config, workdir: str) -> dict[str, Any]:
  """Success of actions sampled from the base model alone: practically 0, says the main text."""
  base = artifacts.base_params(config, workdir)

  def measure(env: Pinpad) -> dict[str, Any]:
    rollout = BaseRollout(env, common.base_model(config))
    tasks = common.task_batch(env, config.evaluate.batch)
    episodes = jax.jit(lambda base, key: rollout(base, key, tasks))
    return _success(config, env, 'base', lambda key: episodes(base, key))

  return {name: measure(env) for name, env in _worlds(config).items()}


def _replay_success(config: common.Config, workdir: str) -> dict[str, Any]:
  """Success when the codes inferred from a demonstration are replayed with oracle switching."""
  models, found = artifacts.discovered(config, workdir), {}
  for name, env in _worlds(config).items():
    expert = artifacts.expert(config, workdir, clean=True, env=env)
    replay = _replay(config, env)

    def demonstrated(key, replay=replay, expert=expert):
      # Where the expert fails there is nothing to replay.
      episodes, successful = replay(expert, models, key)
      return jax.tree.map(lambda x: x[np.asarray(successful)], episodes)

    found[name] = _success(config, env, 'replay', demonstrated)
  return found


def _replay(config: common.Config, env: Pinpad):
  """Returns `(expert, models, key) -> (episodes, which of them had a demonstration)`."""
  module, rollout = common.metacontroller(config), BaseRollout(env, common.base_model(config))

  @jax.jit
  def replay(expert, models, key):
    demonstration_key, code_key, start_key, action_key = jax.random.split(key, 4)
    episodes = expert.rollout(demonstration_key, config.evaluate.batch)
    batch = expert.observations(episodes)
    found, _ = discover.infer(config, models, batch, code_key, 1.0, evaluating=True)
    by_segment = codes.by_segment(
      found.posterior.mean, batch.segments, batch.mask, int(env.tasks.segments.max()) + 1
    )

    def steer(state, e, by_segment):
      segment = jax.vmap(pinpad.segment, (None, 0))(env.tasks, state.progress)
      z = jnp.take_along_axis(by_segment, segment[:, None, None], 1)[:, 0]
      return module.apply(models.metacontroller, z, e, method=Metacontroller.control)

    start_keys = jax.random.split(start_key, config.evaluate.batch)
    state, timestep = jax.vmap(env.start)(start_keys, episodes.layout, episodes.tasks)
    replayed = rollout.run(models.base, action_key, state, timestep, steer, by_segment)
    return replayed, batch.mask[:, 0]

  return replay


def _goal_code_success(config: common.Config, workdir: str) -> dict[str, Any]:
  """Success when every subgoal has one code, whatever the layout, switched by the truth.

  The code is the mean of those that the encoder infers where demonstrations begin the subgoal.
  Unlike a replay it asks the encoder nothing about the unseen task. Longer codes, by
  `evaluate.gains`, are within a policy's reach too.
  """
  models = artifacts.discovered(config, workdir)
  goal_codes = _goal_codes(config, workdir, models)
  measure = {
    name: _steered(config, models, goal_codes, env) for name, env in _worlds(config).items()
  }
  at = lambda gain: {name: success(gain) for name, success in measure.items()}
  return {**at(1.0), 'lengthened': [{'gain': gain, **at(gain)} for gain in config.evaluate.gains]}


def _steered(
  config: common.Config, models: Frozen, goal_codes: jax.Array, env: Pinpad
) -> Callable[[float], dict[str, Any]]:
  """Returns what measures success under the true subgoal's code, multiplied by what it takes."""
  module, rollout = common.metacontroller(config), BaseRollout(env, common.base_model(config))
  tasks = common.task_batch(env, config.evaluate.batch)

  @jax.jit
  def episodes(models, goal_codes, key):
    def steer(state, e, context):
      del context
      z = goal_codes[state.subgoal]
      return module.apply(models.metacontroller, z, e, method=Metacontroller.control)

    return rollout(models.base, key, tasks, steer)

  play = lambda gain: lambda key: episodes(models, gain * goal_codes, key)
  return lambda gain: _success(config, env, 'goal codes', play(gain))


def _goal_codes(config: common.Config, workdir: str, models: Frozen) -> jax.Array:
  """Returns the mean code of each subgoal over demonstrations, `[subgoals, z]`."""
  data = artifacts.demonstrations(config, workdir, clean=True)
  count = len(data.expert.env.family.subgoals)

  @jax.jit
  def average(models, key, held_out):
    batch_key, noise_key = jax.random.split(key)
    batch = data.batch(batch_key, config.evaluate.batch, held_out)
    found, _ = discover.infer(config, models, batch, noise_key, 1.0, evaluating=True)
    return codes.by_label(
      found.posterior.mean, batch.subgoals, codes.first_steps(batch.segments, batch.mask), count
    )

  return average(models, common.key_for(config, 'goal codes'), data.held_out(config.evaluate.batch))


def _code_meaning(config: common.Config, workdir: str) -> dict[str, dict[str, float]]:
  """What is linearly decodable from mu at the first step of each subgoal, beside chance."""
  models = artifacts.discovered(config, workdir)
  data = artifacts.demonstrations(config, workdir, clean=True)
  env = data.expert.env

  @jax.jit
  def measure(models, key, held_out):
    batch_key, noise_key = jax.random.split(key)
    episodes = data.episodes(batch_key, config.evaluate.batch, held_out)
    batch = data.expert.observations(episodes)
    found, _ = discover.infer(config, models, batch, noise_key, 1.0, evaluating=True)
    # The goal is the subgoal's first colour; where it lies depends on the layout.
    goals = jnp.array([subgoal[0] for subgoal in env.family.subgoals])[batch.subgoals]
    labels = {
      'subgoal': (batch.subgoals, len(env.family.subgoals)),
      'goal_cell': (jnp.take_along_axis(episodes.layout.objects, goals, 1), env.grid_size**2),
    }
    if jnp.issubdtype(batch.actions.dtype, jnp.integer):
      labels['first_action'] = (batch.actions, env.num_actions)
    mu = found.posterior.mean
    return {
      name: codes.decodability_at_starts(mu, label, batch.segments, batch.mask, classes)
      for name, (label, classes) in labels.items()
    }

  held_out = data.held_out(config.evaluate.batch)
  found = measure(models, common.key_for(config, 'meaning'), held_out)
  return {
    name: {'accuracy': float(accuracy), 'majority': float(majority)}
    for name, (accuracy, majority) in found.items()
  }


PARTS = {
  'floors': _floors,
  'expert_success': _expert_success,
  'simulation': _simulation,
  'base_success': _base_success,
  'replay_success': _replay_success,
  'goal_code_success': _goal_code_success,
  'code_meaning': _code_meaning,
}


if __name__ == '__main__':
  common.main(run)
