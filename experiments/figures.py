"""Draws a run's figures, animates its episodes and writes its report, from the finished stages.

  python -m experiments.figures --config=configs/gridworld.py:quickstart --workdir=runs/quickstart

Writes `figures/*.png`, `figures/*.gif` and the self-contained `report.html` into the workdir.
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments import artifacts, common, discover
from internal_rl.analysis import figures, report
from internal_rl.analysis.report import Picture
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.envs import render
from internal_rl.envs.recording import RecordingEnvironment
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.internal_env import Frozen
from internal_rl.training import checkpoint

STAGES = ('expert', 'collect', 'pretrain', 'probe', 'control', 'discover', 'evaluate')
GATE_ROWS = 6
FILMED = ('gridworld',)  # Worlds whose episodes `envs.render` draws.
RECORDED = 64  # Episodes rolled out, one or two of which are shown.

Results = dict[str, dict[str, Any]]
Named = Iterator[tuple[str, Picture]]


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Writes everything; returns the report's path and what it contains."""
  results = read_results(config, workdir)
  if not results:
    raise FileNotFoundError(
      f'no finished stage in {workdir}; run: {artifacts.command(config, workdir, "pipeline")}'
    )
  directory = artifacts.stage_dir(workdir, 'figures')
  os.makedirs(directory, exist_ok=True)
  drawn: list[Picture] = []
  animated: list[Picture] = []
  for pictures, make, suffix in ((drawn, _figures, 'png'), (animated, _episodes, 'gif')):
    for name, picture in make(config, workdir, results):
      artifacts.write_bytes(os.path.join(directory, f'{name}.{suffix}'), picture.data)
      pictures.append(picture)
  again = artifacts.command(config, workdir, 'pipeline')
  page = report.render(results, drawn, animated, again)
  path = os.path.join(workdir, 'report.html')
  artifacts.write_bytes(path, page.encode())
  logging.info('%s: %d figures, %d episodes', path, len(drawn), len(animated))
  return {'report': path, 'figures': len(drawn), 'episodes': len(animated)}


def read_results(config: common.Config, workdir: str) -> Results:
  """Returns `result.json` of every finished stage and of every method of reinforcement."""
  reinforce = artifacts.stage_dir(workdir, 'reinforce')
  methods = sorted(os.listdir(reinforce)) if os.path.isdir(reinforce) else []
  stages = [*STAGES, *(f'reinforce/{method}' for method in methods)]
  found = {stage: artifacts.read_result(config, workdir, stage) for stage in stages}
  return {stage: result for stage, result in found.items() if result is not None}


# Figures.


def _figures(config: common.Config, workdir: str, results: Results) -> Named:
  """Draws what the finished stages allow."""
  if 'pretrain' in results:
    yield 'pretraining', _pretraining(results['pretrain'])
  if 'probe' in results:
    yield 'probes', _probes(config, results['probe'])
  if 'control' in results:
    yield 'controllers', _controllers(results['control'])
  if 'discover' in results:
    yield 'gates', _gates(config, workdir)
    if len(results['discover']['members']) > 1:
      base_nll = results.get('pretrain', {}).get('nll')
      yield 'kl_sweep', _kl_sweep(results['discover'], base_nll)
  curves = {
    stage.split('/')[1]: [run['curve'] for run in _best_runs(result)]
    for stage, result in results.items()
    if stage.startswith('reinforce/')
  }
  if curves:
    yield 'learning_curves', _learning_curves(results, curves)


def _pretraining(result: dict[str, Any]) -> Picture:
  curve = result['curve']
  floors = [name for name in ('bayes_nll', 'goal_nll') if name in result]
  by_stage = [result[f'{name}_by_stage'] for name in ('nll', *floors)]
  figure = figures.pretraining(
    curve['step'], curve['eval/nll'], by_stage, *(result[name] for name in floors)
  )
  caption = 'Held-out action loss of the base model (one seed)'
  if floors:
    caption += (
      f', {result["nll"] - result["bayes_nll"]:.3f} nats a step above its exact floor in the end. '
      'Knowing the goal would gain the distance between the dashed and the dotted line'
    )
  caption += (
    '. By stage one sees what is yet to be learnt: which goal comes next, or how to reach it.'
  )
  return Picture(figures.png(figure), 'Pretraining loss', caption)


def _probes(config: common.Config, result: dict[str, Any]) -> Picture:
  chance = 1 / len(common.environment(config).family.subgoals)
  by_step = (result['accuracy_by_step'], result.get('bayes_accuracy_by_step'))
  figure = figures.probes(result['accuracy'], result.get('bayes_accuracy'), chance, *by_step)
  ceiling = 'The ceiling is what an ideal observer can know of the subgoal; '
  caption = (
    f'One base model, {config.probe.eval_batch} held-out episodes. '
    f'{ceiling if "bayes_accuracy" in result else ""}few episodes reach the late steps on the '
    'right. Compare Figs. 3 and A1.'
  )
  return Picture(figures.png(figure), 'Probe accuracy by layer', caption)


def _controllers(result: dict[str, Any]) -> Picture:
  caption = (
    'One linear controller a subgoal, trained with labels on pretraining tasks, switched by the '
    'ground truth; one seed a layer, bars are standard errors over episodes. Compare Fig. 4.'
  )
  figure = figures.controllers(result['layers'])
  return Picture(figures.png(figure), 'Labelled controllers by layer', caption)


def _gates(config: common.Config, workdir: str) -> Picture:
  """The selected metacontroller's gate on demonstrations that it was not trained on."""
  data, model = artifacts.demonstrations(config, workdir, clean=True), common.base_model(config)
  base = artifacts.base_params(config, workdir)
  params = artifacts.metacontroller_params(config, workdir)
  key = common.key_for(config, 'gates')

  @jax.jit
  def infer(base, params, key, held_out):
    batch_key, noise_key = jax.random.split(key)
    batch = data.batch(batch_key, GATE_ROWS, held_out)
    e = model.apply(base, batch.inputs, method=SequenceModel.lower)
    found, _ = discover.infer(config, params, base, batch, e, noise_key, 0.0, evaluating=True)
    return batch, found.beta.mean(-1)

  batch, beta = jax.device_get(infer(base, params, key, data.held_out(GATE_ROWS)))
  figure = figures.gates(
    beta, batch.subgoals, batch.segments, batch.mask, config.metacontroller.threshold
  )
  caption = (
    f'The {GATE_ROWS} first held-out demonstrations, not chosen; the gate was trained without '
    'labels. It is open at the first step by construction. Compare Figs. 6 and A3.'
  )
  return Picture(figures.png(figure), 'Switching gates over time', caption)


def _kl_sweep(result: dict[str, Any], base_nll: float | None) -> Picture:
  seeds = len({member['seed'] for member in result['members']})
  selected = result['members'][result['selected']]['alpha']
  caption = (
    f'Metacontrollers on the frozen base, {seeds} seed{"s" if seeds > 1 else ""} a strength; '
    f'numbers on the left are α. Internal RL uses α = {selected:g}, chosen by reward '
    'alone. Compare Fig. 7.'
  )
  figure = figures.kl_sweep(result['members'], base_nll)
  return Picture(figures.png(figure), 'Rate and distortion by KL strength', caption)


def _learning_curves(results: Results, curves: dict[str, list[Any]]) -> Picture:
  rates = ', '.join(
    f'{method} {results[f"reinforce/{method}"]["learning_rate"]:g}' for method in curves
  )
  caption = (
    'Success of the episodes trained on; median and quartiles over seeds, at the learning rate '
    f'that ended best of those tried ({rates}). The paper shows 30 seeds and a million episodes. '
    'Compare Figs. 8 and A5.'
  )
  return Picture(figures.png(figures.learning_curves(curves)), 'Success against episodes', caption)


def _best_runs(result: dict[str, Any]) -> list[dict[str, Any]]:
  return [run for run in result['runs'] if run['learning_rate'] == result['learning_rate']]


# Episodes.


def _episodes(config: common.Config, workdir: str, results: Results) -> Named:
  """Animates internal RL, raw-action RL and the unsteered base on the unseen task."""
  if config.env.kind not in FILMED:
    return
  if 'reinforce/internal' in results:
    episodes = _internal_episodes(config, workdir, results['reinforce/internal'])
    yield from _animate(config, 'internal', 'Internal RL', episodes, both=True)
  if 'reinforce/raw' in results:
    params = _trained(workdir, results['reinforce/raw'])
    episodes = _raw_episodes(config, params)
    yield from _animate(config, 'raw', 'Raw-action RL', episodes)
  if 'pretrain' in results:
    episodes = _raw_episodes(config, artifacts.base_params(config, workdir))
    yield from _animate(config, 'base', 'Base model, unsteered', episodes)


def _trained(workdir: str, result: dict[str, Any]):
  """Restores what the most successful seed ended with."""
  best = max(_best_runs(result), key=lambda run: run['success'])
  name = f'lr_{best["learning_rate"]:g}_seed_{best["seed"]}'
  directory = artifacts.stage_dir(workdir, 'reinforce', result['method'], name)
  return checkpoint.restore_params(directory, which='latest')


def _internal_episodes(config: common.Config, workdir: str, result: dict[str, Any]):
  env = RecordingEnvironment(common.post_training_environment(config))
  rollout = common.internal_rollout(config, env, common.policy(config))
  frozen = Frozen(
    artifacts.base_params(config, workdir), artifacts.metacontroller_params(config, workdir)
  )
  tasks = jnp.zeros(RECORDED, jnp.int32)
  key = common.key_for(config, 'animation')
  return jax.device_get(jax.jit(rollout)(_trained(workdir, result), frozen, key, tasks))


def _raw_episodes(config: common.Config, params):
  rollout = BaseRollout(
    RecordingEnvironment(common.post_training_environment(config)), common.base_model(config)
  )
  play = jax.jit(lambda params, key, tasks: rollout(params, key, tasks))
  key = common.key_for(config, 'animation')
  return jax.device_get(play(params, key, jnp.zeros(RECORDED, jnp.int32)))


def _animate(config: common.Config, name: str, title: str, episodes, both: bool = False) -> Named:
  """Shows the first success, or else the episode that got furthest; with `both`, a failure too."""
  stages = episodes.final.state.progress.stage
  won = episodes.returns > 0
  best = int(np.argmax(won)) if won.any() else int(np.argmax(stages))
  count = f'{int(won.sum())} of {len(won)} episodes succeed'
  chosen = f'the first that does: {count}' if won.any() else f'the one that got furthest: {count}'
  yield name, _animation(config, title, episodes, best, chosen)
  if both and won.any() and not won.all():
    failure = int(np.argmin(won))
    yield f'{name}_failure', _animation(config, title, episodes, failure, 'the first that fails')


def _animation(config: common.Config, title: str, episodes, index: int, chosen: str) -> Picture:
  env = common.post_training_environment(config)
  state, trail = jax.tree.map(lambda x: x[index], (episodes.final.state, episodes.final.trail))
  steps = int(state.time)
  codes, switches = _codes_by_step(episodes, index, steps)
  length = int(env.tasks.lengths[0])
  won, late = state.progress.stage == length, steps >= env.time_limit
  story = render.Story(
    title=title,
    task=tuple(env.tasks.colours[0, :length].tolist()),
    stages=trail.progress.stage[: steps + 1],
    outcome='success' if won else 'time is up' if late else 'wrong colour',
    codes=codes,
    switches=switches,
  )
  pictures = render.gridworld_pictures(
    state.layout, env.grid_size, trail.position[: steps + 1], switches
  )
  data = render.gif(render.frames(pictures, story))
  return Picture(data, f'{title}: an episode', f'{title}; {chosen}.')


def _codes_by_step(episodes, index: int, steps: int):
  """Spreads the decisions of one episode over its raw steps; `(None, None)` if there were none."""
  if not hasattr(episodes, 'z'):
    return None, None
  times = episodes.times[index][episodes.mask[index]]
  switches = np.isin(np.arange(steps), times)
  return episodes.z[index][np.cumsum(switches) - 1], switches


if __name__ == '__main__':
  common.main(run)
