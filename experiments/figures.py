"""Draws a run's figures, animates its episodes and writes its report, from the finished stages.

  python -m experiments.figures --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
  python -m experiments.figures --results=results

The first writes `figures/*.png`, films beside them (GIF of the gridworld, WebP of the ant) and the
self-contained `report.html` into the workdir. The second draws what `publish` wrote, over seeds,
and the table in `results/README.md`.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments import artifacts, common, discover, published
from internal_rl.analysis import claims, drawings, report
from internal_rl.analysis.drawings import Named
from internal_rl.analysis.report import Picture
from internal_rl.control.closed_loop import BaseRollout
from internal_rl.envs.film import film
from internal_rl.envs.recording import RecordingEnvironment
from internal_rl.training import checkpoint

_RESULTS = flags.DEFINE_string('results', None, 'Directory of what `publish` wrote.')

STAGES = ('expert', 'collect', 'pretrain', 'probe', 'control', 'discover', 'evaluate')
GATE_ROWS = 6
RECORDED = 64  # Episodes rolled out, one or two of which are shown.

Results = dict[str, dict[str, Any]]


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Writes everything; returns the report's path and what it contains."""
  results = read_results(config, workdir)
  directory = artifacts.stage_dir(workdir, 'figures')
  drawn: list[Picture] = []
  animated: list[Picture] = []
  for pictures, found in (
    (drawn, drawings.draw([results])),
    (animated, _episodes(config, workdir, results)),
  ):
    for name, picture in found:
      artifacts.write_bytes(os.path.join(directory, f'{name}.{picture.kind}'), picture.data)
      pictures.append(picture)
  again = artifacts.command(config, workdir, 'pipeline')
  page = report.render(results, drawn, animated, again, artifacts.mapping(config))
  path = os.path.join(workdir, 'report.html')
  artifacts.write_bytes(path, page.encode())
  logging.info('%s: %d figures, %d episodes', path, len(drawn), len(animated))
  return {'report': path, 'figures': len(drawn), 'episodes': len(animated)}


def read_results(config: common.Config, workdir: str) -> Results:
  """Returns `result.json` of every finished stage and method of reinforcement, and the gates.

  Raises:
    FileNotFoundError: no stage has finished.
  """
  reinforce = artifacts.stage_dir(workdir, 'reinforce')
  methods = sorted(os.listdir(reinforce)) if os.path.isdir(reinforce) else []
  stages = [*STAGES, *(f'reinforce/{method}' for method in methods)]
  found = {stage: artifacts.read_result(config, workdir, stage) for stage in stages}
  results = {stage: result for stage, result in found.items() if result is not None}
  if not results:
    raise FileNotFoundError(
      f'no finished stage in {workdir}; run: {artifacts.command(config, workdir, "pipeline")}'
    )
  if 'discover' in results:
    results['discover']['gates'] = gate_rows(config, workdir)
  return results


def gate_rows(config: common.Config, workdir: str) -> dict[str, Any]:
  """Returns the selected metacontroller's gate on demonstrations that it was not trained on.

  Returns:
    `beta`, mean over gates, the true `subgoals` and `segments`, and `mask`: `[b, t]` each.
  """
  data = artifacts.demonstrations(config, workdir, clean=True)
  models, key = artifacts.discovered(config, workdir), common.key_for(config, 'gates')

  @jax.jit
  def infer(models, key, held_out):
    batch_key, noise_key = jax.random.split(key)
    batch = data.batch(batch_key, GATE_ROWS, held_out)
    found, _ = discover.infer(config, models, batch, noise_key, 0.0, evaluating=True)
    rows = {name: getattr(batch, name) for name in ('subgoals', 'segments', 'mask')}
    return {'beta': found.beta.mean(-1), **rows}

  return jax.device_get(infer(models, key, data.held_out(GATE_ROWS)))


# Episodes.


def _episodes(config: common.Config, workdir: str, results: Results) -> Named:
  """Animates internal RL, raw-action RL and the unsteered base on the unseen task."""
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
  best = max(claims.best_runs(result), key=lambda run: run['success'])
  name = f'lr_{best["learning_rate"]:g}_seed_{best["seed"]}'
  directory = artifacts.stage_dir(workdir, 'reinforce', result['method'], name)
  return checkpoint.restore_params(directory, which='latest')


def _internal_episodes(config: common.Config, workdir: str, result: dict[str, Any]):
  env = RecordingEnvironment(common.post_training_environment(config))
  rollout = common.internal_rollout(config, env, common.policy(config))
  frozen, tasks = artifacts.discovered(config, workdir), jnp.zeros(RECORDED, jnp.int32)
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
  episode = jax.tree.map(lambda x: x[index], episodes.final)
  codes, switches = _codes_by_step(episodes, index, int(episode.time))
  data = film(common.post_training_environment(config), episode, title, codes, switches)
  return Picture(data, f'{title}: an episode', f'{title}; {chosen}.')


def _codes_by_step(episodes, index: int, steps: int):
  """Spreads the decisions of one episode over its raw steps; `(None, None)` if there were none."""
  if not hasattr(episodes, 'z'):
    return None, None
  times = episodes.times[index][episodes.mask[index]]
  switches = np.isin(np.arange(steps), times)
  return episodes.z[index][np.cumsum(switches) - 1], switches


if __name__ == '__main__':
  common.main(
    lambda config, workdir: run(config, workdir) if workdir else published.run(_RESULTS.value),
    instead='results',
  )
