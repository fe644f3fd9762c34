"""Asks whether the frozen residual stream names the subgoal (App. C.2, Figs. 3 and A1).

python -m experiments.probe --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from experiments import artifacts, common
from internal_rl.analysis import bayes
from internal_rl.control import probe
from internal_rl.metacontroller.loss import masked_mean
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.training import checkpoint, loop
from internal_rl.training import state as state_lib


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Trains a probe for every layer at once; reports accuracies beside what can be known.

  The base models that pretraining kept on its way are probed alike, for Fig. A1.
  """
  started, section = time.time(), config.probe
  data = artifacts.demonstrations(config, workdir)
  expert, model, tx = data.expert, common.base_model(config), common.optimiser(section)
  pretrained = artifacts.base_params(config, workdir)
  probes = probe.LayerProbes(model.num_blocks + 1, len(expert.env.family.subgoals))
  residuals = lambda base, batch: model.apply(base, batch.inputs, method=SequenceModel.residuals)
  key = common.key_for(config, 'probe', 'train')
  init = jax.jit(lambda key, base: probes.init(key, residuals(base, data.example())))

  def update(state, base, key, fed=None):
    batch = data.batch(key, section.batch, fed)
    stream = residuals(base, batch)

    def loss_fn(params):
      logits = probes.apply(params, stream)
      return probe.cross_entropy(logits, batch.subgoals, batch.mask).sum()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state_lib.apply_gradients(state, grads, tx), {'loss': loss}

  def measure(state, base, key, held_out=None):
    episodes = data.episodes(key, section.eval_batch, held_out)
    batch, beliefs = expert.observations(episodes), bayes.known_beliefs(expert, episodes)
    correct = probes.apply(state.params, residuals(base, batch)).argmax(-1) == batch.subgoals[None]
    share = lambda correct: masked_mean(correct.astype(jnp.float32), batch.mask)
    by_step = lambda correct: (correct & batch.mask).sum(0) / batch.mask.sum(0)
    subgoals = jnp.arange(probes.num_subgoals)
    row = {
      'accuracy': jax.vmap(share)(correct),
      'accuracy_by_step': jax.vmap(by_step)(correct),
      # Of who names the most frequent subgoal throughout.
      'majority': jax.vmap(lambda subgoal: share(batch.subgoals == subgoal))(subgoals).max(),
    }
    if beliefs is None:
      return row
    return row | {
      'bayes_accuracy': share(beliefs.correct),
      'bayes_accuracy_by_step': by_step(beliefs.correct),
    }

  def evaluate(state, base, key, held_out=None):
    row = measure(state, base, key, held_out)
    return {name: row[name] for name in ('accuracy', 'bayes_accuracy') if name in row}

  held_out = data.held_out(section.eval_batch)
  measured, final_key = jax.jit(measure), common.key_for(config, 'probe', 'final')

  def train(base, *name):
    """Returns what the probes of one base model reach."""
    params = init(common.key_for(config, 'probe', 'init'), base)
    state = loop.fit(
      update,
      state_lib.create(params, tx, key),
      common.fit_config(config, 'probe'),
      artifacts.stage_dir(workdir, 'probe', *name),
      frozen=base,
      evaluate=evaluate,
      feed=data.feed(config.seed, section.batch),
      held_out=held_out,
      fingerprint=artifacts.fingerprint(config, 'probe') | data.fingerprint,
    )
    return measured(state, base, final_key, held_out)

  final = train(pretrained)
  best = {'best_accuracy': final['accuracy'].max(), 'best_layer': final['accuracy'].argmax()}
  values = {**best, **final}
  directory = artifacts.stage_dir(workdir, 'pretrain')
  pretrained_for = checkpoint.read_metadata(directory)['step']
  # Those that lie there, which a shipped base model lacks, rather than those that the config names.
  early = [step for step in checkpoint.milestones(directory) if step < pretrained_for]
  accuracy = {}
  for step in early:
    try:
      base = artifacts.base_params(config, workdir, milestone=step)
    except checkpoint.CheckpointError as error:
      logging.warning('left out: %s', error)
      continue
    accuracy[step] = train(base, f'milestone_{step}')['accuracy']
  if accuracy:
    accuracy[pretrained_for] = final['accuracy']
    values['milestones'] = {'steps': list(accuracy), 'accuracy': list(accuracy.values())}
  return artifacts.write_result(config, workdir, 'probe', values, started)


if __name__ == '__main__':
  common.main(run)
