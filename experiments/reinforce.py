"""Internal RL on the unseen task with sparse reward, or RL on raw actions (App. C.5).

C='--config=configs/gridworld.py:quickstart --workdir=runs/quickstart'
python -m experiments.reinforce $C
python -m experiments.reinforce $C --raw
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import artifacts, common
from internal_rl.baselines import raw_rl
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.rl import learner
from internal_rl.rl.internal_env import Frozen
from internal_rl.rl.policy import CodePolicy
from internal_rl.rl.rollout import Decisions
from internal_rl.training import loop, metrics
from internal_rl.training import state as state_lib
from internal_rl.types import Key, Params

_RAW = flags.DEFINE_bool('raw', False, 'Reinforce the raw actions of the base model instead.')


def evaluate_codes(
  policy: CodePolicy, params: Params, batch: Decisions
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probability and entropy of every decision in `batch`."""
  distribution = policy.apply(params, batch.e)
  return distribution.log_prob(batch.z), distribution.entropy()


def run(config: common.Config, workdir: str, method: str = 'internal') -> dict[str, Any]:
  """Trains every learning rate and seed of one method; reports the best rate."""
  started, section = time.time(), config.reinforce
  if method not in METHODS:
    raise ValueError(f'method={method!r}: must be one of {sorted(METHODS)}')
  rates = section.learning_rates if method == 'internal' else section.raw_learning_rates
  runs = [
    _run_one(config, workdir, method, rate, seed) for rate in rates for seed in range(section.seeds)
  ]
  if not runs:
    raise ValueError('reinforce: name at least one learning rate and one seed')
  mean_final = lambda rate: sum(r['success'] for r in runs if r['learning_rate'] == rate)
  best = max(rates, key=mean_final)
  finals = [r['success'] for r in runs if r['learning_rate'] == best]
  initials = [r['initial_success'] for r in runs if r['learning_rate'] == best]
  values = {
    'method': method,
    'learning_rate': best,
    'success': sum(finals) / len(finals),
    'initial_success': sum(initials) / len(initials),
    'episodes': section.steps * section.batch,
    'runs': runs,
  }
  return artifacts.write_result(config, workdir, f'reinforce/{method}', values, started)


@dataclasses.dataclass(frozen=True)
class Method:
  """What differs between reinforcing codes and reinforcing raw actions.

  Attributes:
    play: `(params, frozen, key, tasks) -> episodes`.
    score: `(params, episodes) -> (log-probability, entropy)` of every decision.
    params: what is trained, at the start.
    frozen: what is not.
  """

  play: Callable[[Params, Any, Key, Any], Any]
  score: learner.Evaluate
  params: Params
  frozen: Any


def _internal(config: common.Config, workdir: str, key: Key) -> Method:
  policy = common.policy(config)
  env = common.post_training_environment(config)
  rollout = common.internal_rollout(config, env, policy, config.reinforce.max_decisions)
  return Method(
    play=rollout,
    score=functools.partial(evaluate_codes, policy),
    params=policy.init(key, jnp.zeros((1, 1, config.model.width))),
    frozen=Frozen(
      artifacts.base_params(config, workdir), artifacts.metacontroller_params(config, workdir)
    ),
  )


def _raw(config: common.Config, workdir: str, key: Key) -> Method:
  del key
  model = common.base_model(config)
  rollout = BaseRollout(common.post_training_environment(config), model)
  return Method(
    play=lambda params, frozen, key, tasks: rollout(params, key, tasks),
    score=functools.partial(raw_rl.evaluate, model),
    params=artifacts.base_params(config, workdir),
    frozen=(),
  )


METHODS = {'internal': _internal, 'raw': _raw}


def _run_one(
  config: common.Config, workdir: str, name: str, rate: float, seed: int
) -> dict[str, Any]:
  section, env = config.reinforce, common.post_training_environment(config)
  stream = functools.partial(common.key_for, config, 'reinforce', name, seed)
  method = METHODS[name](config, workdir, stream('init'))
  tx = common.optimiser(section, rate, section.epochs * section.minibatches)
  how = learner.LearnerConfig(
    section.epochs, section.minibatches, section.clip, section.entropy_coefficient
  )

  def update(state, frozen, key):
    rollout_key, learn_key = jax.random.split(key)
    tasks = common.task_batch(env, section.batch)
    batch = method.play(state.params, frozen, rollout_key, tasks)
    params, opt_state, row = learner.learn(
      how, tx, method.score, state.params, state.opt_state, batch.replace(final=None), learn_key
    )
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state, {**row, **learner.rollout_metrics(batch)}

  def evaluate(state, frozen, key):
    tasks = common.task_batch(env, section.eval_batch)
    return learner.rollout_metrics(method.play(state.params, frozen, key, tasks))

  directory = artifacts.stage_dir(workdir, 'reinforce', name, f'lr_{rate:g}_seed_{seed}')
  state = loop.fit(
    update,
    state_lib.create(method.params, tx, stream('train')),
    common.fit_config(section, progress_metrics=('success',)),
    directory,
    frozen=method.frozen,
    evaluate=evaluate,
    fingerprint=artifacts.fingerprint(
      config, f'reinforce/{name}', learning_rate=rate, run_seed=seed
    ),
  )
  logged = metrics.read_jsonl(os.path.join(directory, 'metrics.jsonl'))
  curve = [
    {'episodes': row['step'] * section.batch, 'success': row['train/success']}
    for row in logged
    if 'train/success' in row
  ]
  tasks = common.task_batch(env, config.evaluate.batch)
  episodes = jax.jit(lambda params, frozen, key: method.play(params, frozen, key, tasks))
  final = common.success_rate(
    lambda k: episodes(state.params, method.frozen, k),
    stream('final'),
    config.evaluate.episodes,
    config.evaluate.batch,
  )
  initial = next(row['eval/success'] for row in logged if 'eval/success' in row)
  return {'learning_rate': rate, 'seed': seed, 'initial_success': initial, **final, 'curve': curve}


if __name__ == '__main__':
  common.main(lambda config, workdir: run(config, workdir, 'raw' if _RAW.value else 'internal'))
