"""Counts what the stages have to compute, and how long that takes at a given speed.

  python -m experiments.flops --config=configs/gridworld.py:paper --tflops=20

Nothing is run: matrix products are counted in the update's own program at the config's own sizes.
Making demonstrations, evaluations and the `evaluate` stage are left out; of the ant's physics only
matrix products are counted, and it takes longer than they do. Episodes of reinforcement
are taken to last until the time limit, which bounds them from above.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments import benchmark_cases, common
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.control.controller import Controller
from internal_rl.control.probe import LayerProbes
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.training.flops import matmul_flops

_TFLOPS = flags.DEFINE_float('tflops', 20.0, 'Speed to reckon with, 1e12 operations a second.')


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a stage computes.

  Attributes:
    update: floating-point operations of one update, in matrix products.
    updates: how many, in all runs of the stage together.
  """

  update: float
  updates: int

  @property
  def total(self) -> float:
    """Operations of the whole stage."""
    return self.update * self.updates


def costs(config: common.Config) -> dict[str, Cost]:
  """Returns the cost of every stage, by stage."""
  if config.env.kind == 'ant' and config.env.body.iterations > 1:
    raise ValueError(
      f'env.body.iterations={config.env.body.iterations}: must be 1, since a solver that may end '
      'early does an unknown number of products'
    )
  section = config.reinforce
  internal = section.steps * section.seeds * len(section.learning_rates)
  raw = section.steps * section.seeds * len(section.raw_learning_rates)
  milestones = sum(step < config.pretrain.steps for step in config.pretrain.milestones)
  demonstrator = {'expert': Cost(expert_flops(config), config.expert.steps)}
  return {
    **(demonstrator if common.learns_expert(config) else {}),
    'pretrain': Cost(case_flops(config, 'pretrain', config.pretrain.batch), config.pretrain.steps),
    'probe': Cost(probe_flops(config), config.probe.steps * (1 + milestones)),
    'control': Cost(control_flops(config), config.control.steps),
    'discover': Cost(case_flops(config, 'discover', config.discover.batch), config.discover.steps),
    'reinforce': Cost(
      # A single episode's is one loop: a batch's shrinks in nested ones, which share their steps.
      section.batch * case_flops(config, 'rollout', 1)
      + case_flops(config, 'policy_update', section.batch),
      internal,
    ),
    'reinforce --raw': Cost(raw_flops(config), raw),
  }


def case_flops(config: common.Config, group: str, batch: int) -> float:
  """Counts one update of the benchmark's case for this config, the last one of its group.

  Loops that end early go on to the time limit.
  """
  *_, case = benchmark_cases.GROUPS[group](config, batch).values()
  inputs = jax.eval_shape(case.inputs, jax.random.key(0))
  flops = matmul_flops(case.function, *inputs, trips=config.reinforce.time_limit)
  return flops / case.updates


def _stream(config: common.Config, batch: int) -> tuple[SequenceModel, Any, Any]:
  """Returns the base model, and the shapes of its parameters and of a batch it reads."""
  size = common.environment(config).observation_size
  model = common.base_model(config)
  observations = jax.ShapeDtypeStruct((batch, config.data.horizon, size), jnp.float32)
  return model, jax.eval_shape(model.init, jax.random.key(0), observations), observations


def expert_flops(config: common.Config) -> float:
  """Counts one update of the expert that is trained, PPO's, with the physics it acts in."""
  section, env = config.expert, common.environment(config)
  trainer = common.ant().trainer(config, env)
  tx = common.optimiser(section, gradient_steps=section.epochs * section.minibatches)
  params, statistics, guided = jax.eval_shape(trainer.init, jax.random.key(0))
  params = {**params, 'statistics': statistics}
  opt_state = jax.eval_shape(tx.init, {name: params[name] for name in ('policy', 'value')})
  update = functools.partial(trainer.update, tx)
  # Loops without a fixed length draw layouts, and have no products.
  return matmul_flops(update, params, opt_state, guided, jax.random.key(0), trips=1)


def probe_flops(config: common.Config) -> float:
  """Counts one update of all layers' probes."""
  model, base, observations = _stream(config, config.probe.batch)
  probes = LayerProbes(model.num_blocks + 1, len(common.family(config).subgoals))
  residuals = lambda base, x: model.apply(base, x, method=SequenceModel.residuals)
  stream = jax.eval_shape(residuals, base, observations)
  params = jax.eval_shape(probes.init, jax.random.key(0), stream)
  loss = lambda params, base, x: probes.apply(params, residuals(base, x)).sum()
  return matmul_flops(jax.value_and_grad(loss), params, base, observations)


def control_flops(config: common.Config) -> float:
  """Counts one update of every layer's controllers."""
  section = config.control
  model, base, observations = _stream(config, section.batch)
  subgoals = len(common.family(config).subgoals)
  controller = Controller(config.model.width, subgoals, section.kind, section.rank)
  code = jax.ShapeDtypeStruct((*observations.shape[:2], subgoals), jnp.float32)

  def update(layer: int) -> float:
    lower = lambda base, x: model.apply(base, x, layer, method=SequenceModel.lower)

    def loss(params, base, x, code):
      e = lower(base, x)
      controlled = e + controller.apply(params, code, e)
      action = model.apply(base, controlled, layer, method=SequenceModel.upper).action
      return sum(x.sum() for x in jax.tree.leaves(action))

    e = jax.eval_shape(lower, base, observations)
    params = jax.eval_shape(controller.init, jax.random.key(0), code, e)
    return matmul_flops(jax.value_and_grad(loss), params, base, observations, code)

  return sum(map(update, section.layers))


def raw_flops(config: common.Config) -> float:
  """Counts a batch of episodes of raw-action RL, and learning from it."""
  section, env = config.reinforce, common.post_training_environment(config)
  model, base, _ = _stream(config, 1)
  rollout = BaseRollout(env, model)
  play = lambda params, key, tasks: rollout(params, key, tasks).replace(final=None)
  key, task = jax.random.key(0), common.task_batch(env, 1)
  # As above, of a single episode.
  playing = section.batch * matmul_flops(play, base, key, task, trips=section.time_limit)
  return playing + case_flops(config, 'raw_update', section.batch)


def table(found: dict[str, Cost], tflops: float) -> str:
  """Returns the costs as a table in Markdown."""
  lines = [
    f'| stage | GFLOP an update | updates | PFLOP | minutes at {tflops:g} TFLOP/s |',
    '|---|---|---|---|---|',
  ]
  for stage, cost in found.items():
    minutes = cost.total / (tflops * 1e12) / 60
    lines.append(
      f'| `{stage}` | {cost.update / 1e9:,.0f} | {cost.updates:,} | {cost.total / 1e15:,.3g} | '
      f'{minutes:,.3g} |'
    )
  return '\n'.join(lines)


def main(argv: list[str]) -> None:
  """Counts and prints."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  print(table(costs(flags.FLAGS.config), _TFLOPS.value))


if __name__ == '__main__':
  app.run(main)
