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
import optax
from absl import flags

from experiments import artifacts, common
from internal_rl.baselines import raw_rl
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.rl import learner
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


def run(config: common.Config, workdir: str, name: str = 'internal') -> dict[str, Any]:
  """Trains every learning rate and seed of one method; reports the best rate.

  The best rate is chosen on other episodes than those that its success is measured on.
  """
  started, section = time.time(), config.reinforce
  if name not in METHODS:
    raise ValueError(f'name={name!r}: must be one of {sorted(METHODS)}')
  field, rates = 'learning_rates', section.learning_rates
  if name == 'raw':
    field, rates = 'raw_learning_rates', section.raw_learning_rates
  if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
    raise ValueError(f'reinforce.{field}={rates}: must be positive, each another, at least one')
  if section.seeds < 1:
    raise ValueError(f'reinforce.seeds={section.seeds}: must be at least 1')
  trainer = _Trainer(config, workdir, name)
  runs = [trainer.run(rate, seed) for rate in rates for seed in range(section.seeds)]
  of = lambda rate, field: [r[field] for r in runs if r['learning_rate'] == rate]
  best = max(rates, key=lambda rate: sum(of(rate, 'selection_success')))
  values = {
    'method': name,
    'learning_rate': best,
    'success': sum(of(best, 'success')) / section.seeds,
    'initial_success': sum(of(best, 'initial_success')) / section.seeds,
    'episodes': section.steps * section.batch,
    'runs': runs,
  }
  return artifacts.write_result(config, workdir, f'reinforce/{name}', values, started)


@dataclasses.dataclass(frozen=True)
class Method:
  """What differs between reinforcing codes and reinforcing raw actions.

  Attributes:
    play: `(params, frozen, key, tasks) -> episodes`.
    score: `(params, episodes) -> (log-probability, entropy)` of every decision.
    init: `key -> params`, what is trained, at the start.
    frozen: what is not.
  """

  play: Callable[[Params, Any, Key, Any], Any]
  score: learner.Evaluate
  init: Callable[[Key], Params]
  frozen: Any


def _internal(config: common.Config, workdir: str) -> Method:
  policy = common.policy(config)
  env = common.post_training_environment(config)
  rollout = common.internal_rollout(config, env, policy, config.reinforce.max_decisions)
  return Method(
    play=rollout,
    score=functools.partial(evaluate_codes, policy),
    init=jax.jit(lambda key: policy.init(key, jnp.zeros((1, 1, config.model.width)))),
    frozen=artifacts.discovered(config, workdir),
  )


def _raw(config: common.Config, workdir: str) -> Method:
  model, base = common.base_model(config), artifacts.base_params(config, workdir)
  rollout = BaseRollout(common.post_training_environment(config), model)
  return Method(
    play=lambda params, frozen, key, tasks: rollout(params, key, tasks),
    score=functools.partial(raw_rl.evaluate, model),
    init=lambda key: base,
    frozen=(),
  )


METHODS = {'internal': _internal, 'raw': _raw}


class _Trainer:
  """Trains a method with any learning rate and seed: both are data, so that it compiles once."""

  def __init__(self, config: common.Config, workdir: str, name: str):
    self.config, self.workdir, self.name = config, workdir, name
    self.method = METHODS[name](config, workdir)
    self.env = common.post_training_environment(config)
    section = config.reinforce
    self.how = learner.LearnerConfig(
      section.epochs, section.minibatches, section.clip, section.entropy_coefficient
    )
    self.tx = self.optimiser(1.0)  # Whatever the rate: a run's own is in its state.
    self.episodes = jax.jit(self.play)

  def optimiser(self, rate: float) -> optax.GradientTransformation:
    """Returns an optimiser that keeps its learning rate in its state."""
    section = self.config.reinforce
    return optax.chain(
      common.optimiser(section, 1.0, section.epochs * section.minibatches),
      optax.inject_hyperparams(optax.scale)(step_size=float(rate)),
    )

  def play(self, params: Params, frozen: Any, key: Key) -> Any:
    tasks = common.task_batch(self.env, self.config.evaluate.batch)
    return self.method.play(params, frozen, key, tasks)

  def update(self, state: state_lib.TrainState, frozen: Any, key: Key):
    rollout_key, learn_key = jax.random.split(key)
    tasks = common.task_batch(self.env, self.config.reinforce.batch)
    batch = self.method.play(state.params, frozen, rollout_key, tasks)
    params, opt_state, row = learner.learn(
      self.how,
      self.tx,
      self.method.score,
      state.params,
      state.opt_state,
      batch.replace(final=None),
      learn_key,
    )
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state, {**row, **learner.rollout_metrics(batch)}

  def evaluate(self, state: state_lib.TrainState, frozen: Any, key: Key):
    tasks = common.task_batch(self.env, self.config.reinforce.eval_batch)
    return learner.rollout_metrics(self.method.play(state.params, frozen, key, tasks))

  def run(self, rate: float, seed: int) -> dict[str, Any]:
    """Trains one run to its end, or finds it finished; returns its curve and its success."""
    config, section = self.config, self.config.reinforce
    stream = functools.partial(common.key_for, config, 'reinforce', self.name, seed)
    directory = artifacts.stage_dir(
      self.workdir, 'reinforce', self.name, f'lr_{rate:g}_seed_{seed}'
    )
    state = loop.fit(
      self.update,
      state_lib.create(self.method.init(stream('init')), self.optimiser(rate), stream('train')),
      common.fit_config(config, 'reinforce', progress_metrics=('success',)),
      directory,
      frozen=self.method.frozen,
      evaluate=self.evaluate,
      fingerprint=artifacts.fingerprint(
        config, f'reinforce/{self.name}', learning_rate=rate, run_seed=seed
      ),
    )
    logged = metrics.read_jsonl(os.path.join(directory, 'metrics.jsonl'))
    curve = [
      {'episodes': row['step'] * section.batch, 'success': row['train/success']}
      for row in logged
      if 'train/success' in row
    ]
    measure = lambda key: common.success_rate(
      self.env,
      lambda k: self.episodes(state.params, self.method.frozen, k),
      key,
      config.evaluate.episodes,
      config.evaluate.batch,
    )
    return {
      'learning_rate': rate,
      'seed': seed,
      'initial_success': next(r['eval/success'] for r in logged if 'eval/success' in r),
      'selection_success': measure(stream('selection'))['success'],
      **measure(stream('final')),
      'curve': curve,
    }


if __name__ == '__main__':
  common.main(lambda config, workdir: run(config, workdir, 'raw' if _RAW.value else 'internal'))
