"""Linear controllers trained with labels, then switched on the truth (App. C.3, Fig. 4).

On the unseen task they are also measured amplified by each of `control.gains`, which the paper does
not do: what a base model knows of transitions that never occur may take more to overrule than the
pretraining tasks teach them.

python -m experiments.control --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments import artifacts, common
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.control.controller import Controller
from internal_rl.envs.environment import Pinpad
from internal_rl.metacontroller.loss import masked_mean
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.training import loop
from internal_rl.training import state as state_lib
from internal_rl.types import Key


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains the controllers of every layer in `control.layers` and evaluates them closed-loop.

  Raises:
    ValueError: a gain is not a finite number above 1, or is there twice.
  """
  started = time.time()
  common.require_gains('control.gains', config.control.gains)
  base = artifacts.base_params(config, workdir)
  layers = [_run_layer(config, workdir, base, layer) for layer in config.control.layers]
  # Chosen on other episodes than those that its success is measured on.
  best = max(layers, key=lambda row: row['selection']['success'])
  values = {
    'best_success': best['post_training']['success'],
    'best_layer': best['layer'],
    'layers': layers,
  }
  return artifacts.write_result(config, workdir, 'control', values, started)


def _run_layer(config: common.Config, workdir: str, base, layer: int) -> dict[str, Any]:
  section = config.control
  data = artifacts.demonstrations(config, workdir, clean=True)
  model, tx = common.base_model(config), common.optimiser(section)
  held_out = data.held_out(section.eval_batch)  # Refuses a store with too few at once.
  num_subgoals = len(data.expert.env.family.subgoals)
  controller = Controller(config.model.width, num_subgoals, section.kind, section.rank)
  one_hot = lambda subgoals: jax.nn.one_hot(subgoals, num_subgoals)
  lower = lambda base, batch: model.apply(base, batch.inputs, layer, method=SequenceModel.lower)

  def nll(params, base, batch, e):
    controlled = e + controller.apply(params, one_hot(batch.subgoals), e)
    predictions = model.apply(base, controlled, layer, method=SequenceModel.upper)
    return -masked_mean(predictions.action.log_prob(batch.actions), batch.mask)

  def update(state, base, key, fed=None):
    batch = data.batch(key, section.batch, fed)
    loss, grads = jax.value_and_grad(nll)(state.params, base, batch, lower(base, batch))
    return state_lib.apply_gradients(state, grads, tx), {'loss': loss}

  key = common.key_for(config, 'control', layer, 'train')

  @jax.jit
  def init(key, base):
    example = data.example()
    return controller.init(key, one_hot(example.subgoals), lower(base, example))

  params = init(common.key_for(config, 'control', layer, 'init'), base)
  state = loop.fit(
    update,
    state_lib.create(params, tx, key),
    common.fit_config(config, 'control', evaluated=False),
    artifacts.stage_dir(workdir, 'control', f'layer_{layer}'),
    frozen=base,
    feed=data.feed(config.seed, section.batch),
    fingerprint=artifacts.fingerprint(config, 'control', layer=layer) | data.fingerprint,
  )
  key_for = functools.partial(common.key_for, config, 'control', layer)

  @jax.jit
  def held_out_nll(params, base, key, held_out):
    batch = data.batch(key, section.eval_batch, held_out)
    return nll(params, base, batch, lower(base, batch))

  loss = float(held_out_nll(state.params, base, key_for('nll'), held_out))
  measure = functools.partial(_closed_loop, config, controller, state.params, base, layer)
  seen, unseen = (
    measure(env) for env in (common.environment(config), common.post_training_environment(config))
  )
  on_unseen = lambda gain: {
    name: unseen(key_for(name), gain) for name in ('selection', 'post_training')
  }
  return {
    'layer': layer,
    'nll': loss,
    'pretraining': seen(key_for('pretraining'), 1.0),
    **on_unseen(1.0),
    'amplified': [{'gain': gain, **on_unseen(gain)} for gain in section.gains],
  }


def _closed_loop(
  config: common.Config, controller: Controller, params, base, layer: int, env: Pinpad
) -> Callable[[Key, float], dict[str, Any]]:
  """Returns what measures success on the tasks of `env`, steered by the true subgoal throughout.

  It takes a key and what to multiply the controllers' update of the stream by.
  """
  rollout = BaseRollout(env, common.base_model(config), layer)
  tasks = common.task_batch(env, config.evaluate.batch)
  num_subgoals = len(env.family.subgoals)

  @jax.jit
  def episodes(base, params, gain, key):
    one_hot = lambda state: jax.nn.one_hot(state.subgoal, num_subgoals)
    steer = lambda state, e, context: e + gain * controller.apply(params, one_hot(state), e)
    return rollout(base, key, tasks, steer)

  return lambda key, gain: common.success_rate(
    env,
    lambda k: episodes(base, params, gain, k),
    key,
    config.evaluate.episodes,
    config.evaluate.batch,
  )


if __name__ == '__main__':
  common.main(run)
