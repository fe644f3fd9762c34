"""Asks whether the frozen residual stream names the subgoal (App. C.2, Figs. 3 and A1).

python -m experiments.probe --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
"""

import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import artifacts, common
from internal_rl.analysis import bayes
from internal_rl.control import probe
from internal_rl.metacontroller.loss import masked_mean
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.training import loop
from internal_rl.training import state as state_lib


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains a probe for every layer at once; reports accuracies beside the Bayes belief's."""
  started, section = time.time(), config.probe
  data = common.demonstrations(config)
  expert, model, tx = data.expert, common.base_model(config), common.optimiser(section)
  base = artifacts.base_params(config, workdir)
  probes = probe.LayerProbes(model.num_blocks + 1, len(expert.env.family.subgoals))
  residuals = lambda base, batch: model.apply(base, batch.inputs, method=SequenceModel.residuals)
  key = common.key_for(config, 'probe', 'train')
  example = residuals(base, data.batch(jax.random.key(0), 1))
  state = state_lib.create(probes.init(common.key_for(config, 'probe', 'init'), example), tx, key)

  def update(state, base, key, fed=None):
    batch = data.batch(key, section.batch, fed)
    stream = residuals(base, batch)

    def loss_fn(params):
      logits = probes.apply(params, stream)
      return probe.cross_entropy(logits, batch.subgoals, batch.mask).sum()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state_lib.apply_gradients(state, grads, tx), {'loss': loss}

  def measure(state, base, key):
    episodes = expert.rollout(key, section.eval_batch, config.data.horizon)
    batch = expert.observations(episodes)
    correct = probes.apply(state.params, residuals(base, batch)).argmax(-1) == batch.subgoals[None]
    beliefs = bayes.beliefs(expert, episodes)
    by_step = lambda correct: (correct & batch.mask).sum(0) / batch.mask.sum(0)
    return {
      'accuracy': jax.vmap(masked_mean, (0, None))(correct.astype(jnp.float32), batch.mask),
      'accuracy_by_step': jax.vmap(by_step)(correct),
      'bayes_accuracy': masked_mean(beliefs.correct.astype(jnp.float32), batch.mask),
      'bayes_accuracy_by_step': by_step(beliefs.correct),
    }

  def evaluate(state, base, key):
    row = measure(state, base, key)
    return {name: row[name] for name in ('accuracy', 'bayes_accuracy')}

  directory = artifacts.stage_dir(workdir, 'probe')
  state = loop.fit(
    update,
    state,
    common.fit_config(section),
    directory,
    frozen=base,
    evaluate=evaluate,
    feed=data.feed(config.seed, section.batch),
    fingerprint=artifacts.fingerprint(config, 'probe') | data.fingerprint,
  )
  final = jax.jit(measure)(state, base, common.key_for(config, 'probe', 'final'))
  best = {'best_accuracy': final['accuracy'].max(), 'best_layer': final['accuracy'].argmax()}
  return artifacts.write_result(config, workdir, 'probe', {**best, **final}, started)


if __name__ == '__main__':
  common.main(run)
