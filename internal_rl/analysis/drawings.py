"""The figures of one run or of several seeds, each with its caption.

A run is the `result.json` of its stages, by stage.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from internal_rl.analysis import figures
from internal_rl.analysis.claims import METHODS, Result, Run, best_runs, chosen_strengths
from internal_rl.analysis.report import Picture
from internal_rl.envs.tasks import FAMILIES

Named = Iterator[tuple[str, Picture]]


def draw(runs: Sequence[Run], base_nll: Sequence[float] = ()) -> Named:
  """Draws what the finished stages allow; yields names and pictures.

  Args:
    runs: one a seed. Those of `discover` show their gates if they have `gates`.
    base_nll: losses of the base models, one a seed, where `runs` lack `pretrain`.
  """
  of = lambda stage: [run[stage] for run in runs if stage in run]
  if pretrain := of('pretrain'):
    yield 'pretraining', _pretraining(pretrain)
  if probe := of('probe'):
    yield 'probes', _probes(probe)
  if control := of('control'):
    yield 'controllers', _controllers(control)
  if discover := of('discover'):
    if 'gates' in discover[0] and discover[0]['config']['discover']['gate'] != 'open':
      yield 'gates', _gates(discover[0])
    if len({member['alpha'] for member in discover[0]['members']}) > 1:
      uncontrolled = [result['nll'] for result in of('pretrain')] or base_nll
      yield 'kl_sweep', _kl_sweep(discover, uncontrolled)
  present = {stage for run in runs for stage in run if stage.startswith('reinforce/')}
  own = [stage for stage in METHODS if stage in present]
  stages = [*own, *sorted(present.difference(own))]  # Variants come last.
  if stages:
    judged = [run['expert_success'] for run in of('evaluate') if 'expert_success' in run]
    reached = [row['post_training']['success'] for row in judged]
    expert = reached if min(reached, default=1) < 1 else []
    yield 'learning_curves', _learning_curves({stage: of(stage) for stage in stages}, expert)
    yield from _endings({stage.split('/')[1]: of(stage) for stage in stages})


def seeds(results: Sequence[Any]) -> str:
  """Returns how many seeds there are, and what is drawn of several."""
  return 'one seed' if len(results) == 1 else f'{len(results)} seeds: median and quartiles'


def _pretraining(results: list[Result]) -> Picture:
  caption = f'Held-out action loss of the base model ({seeds(results)}).'
  if 'bayes_nll' in results[0]:
    gap = np.median([result['nll'] - result['bayes_nll'] for result in results])
    caption = caption[:-1] + (
      f', {gap:.3f} nats a step above its exact floor in the end. Knowing the goal would gain the '
      'distance between the dashed and the dotted line. By stage one sees what is yet to be '
      'learnt: which goal comes next, or how to reach it.'
    )
  if told := [result for result in results if 'expert_nll' in result]:
    gap = np.median([result['nll'] - result['expert_nll'] for result in told])
    caption = caption[:-1] + (
      f', in the end {gap:.3f} nats a step above what a Gaussian can reach that is told the way, '
      'as the expert is and no base model.'
    )
  if 'nll_since_turn' in results[0]:
    caption += (
      ' After a turn one sees how long it takes the model to notice that the way on from the '
      "ant's cell is another one; where it foresees turns there is nothing to see."
    )
  return Picture(figures.png(figures.pretraining(results)), 'Pretraining loss', caption)


def _probes(results: list[Result]) -> Picture:
  config = results[0]['config']
  caption = (
    f'{config["probe"]["eval_batch"]} held-out episodes a base model ({seeds(results)}). Few '
    'episodes reach the late steps. Compare Figs. 3 and A1.'
  )
  kept = sum('milestones' in result for result in results)
  if 0 < kept < len(results):
    caption += f' On the way: the {kept} of them that were kept at the time.'
  if 'bayes_accuracy' in results[0]:
    caption = f'The ceiling is what an ideal observer can know of the subgoal. {caption}'
  chance = 1 / len(FAMILIES[config['env']['family']].subgoals)
  figure = figures.probes(results, chance)
  return Picture(figures.png(figure), 'Probe accuracy by layer', caption)


def _controllers(results: list[Result]) -> Picture:
  bars = 'one seed, bars are standard errors over episodes'
  if len(results) > 1:
    bars = f'{len(results)} seeds: medians, bars are quartiles'
  kind = results[0]['config']['control']['kind'].replace('_', '-')
  caption = (
    f'One {kind} controller a subgoal, trained with labels on pretraining tasks, switched by the '
    f'ground truth ({bars}). Compare Fig. 4.'
  )
  figure = figures.controllers([result['layers'] for result in results])
  return Picture(figures.png(figure), 'Labelled controllers by layer', caption)


def _gates(result: Result) -> Picture:
  """The selected metacontroller's gate on demonstrations that it was not trained on."""
  gates = result['gates']
  beta, subgoals, segments, mask = (
    np.array(gates[name]) for name in ('beta', 'subgoals', 'segments', 'mask')
  )
  figure = figures.gates(
    beta, subgoals, segments, mask, result['config']['metacontroller']['threshold']
  )
  caption = (
    f'The {len(beta)} first held-out demonstrations, not chosen (seed {result["seed"]}, α = '
    f'{result["alpha"]:g}); the gate was trained without labels. It is open at the first step by '
    'construction. The next subgoal may be the same again. Compare Figs. 6 and A3.'
  )
  return Picture(figures.png(figure), 'Switching gates over time', caption)


def _kl_sweep(results: list[Result], base_nll: Sequence[float]) -> Picture:
  members = [member for result in results for member in result['members']]
  count = len(members) // len({member['alpha'] for member in members})
  caption = (
    f'Metacontrollers, {count} a strength; numbers beside the line are α. Rate and distortion are '
    'of the gate as it was trained, switches of the thresholded one. For internal RL α = '
    f'{chosen_strengths(results)} was chosen: of one strength the best '
    'objective, of strengths the most successes of codes drawn from N(0, I), which may be few, '
    'then the lowest loss. Compare Fig. 7.'
  )
  figure = figures.kl_sweep(members, float(np.median(base_nll)) if base_nll else None)
  return Picture(figures.png(figure), 'Rate and distortion by KL strength', caption)


def _endings(results: Mapping[str, list[Result]]) -> Named:
  ends, count = {}, {}
  for method, found in results.items():
    runs = [run['ends'] for result in found for run in best_runs(result) if 'ends' in run]
    if runs:
      names = sorted({name for run in runs for name in run})
      counts = lambda name, runs=runs: np.sum([run[name] for run in runs if name in run], 0)
      ends[method] = {name: counts(name).tolist() for name in names}
      count[method] = len(runs)
  if ends:
    caption = (
      'Episodes of the unseen task after reinforcement: how many colours they visited, and what '
      'ended them. Those of all runs of a method are counted together, however much runs differ.'
    )
    yield (
      'endings',
      Picture(figures.png(figures.endings(ends, count)), 'Where episodes end', caption),
    )


def _learning_curves(results: Mapping[str, list[Result]], expert: Sequence[float]) -> Picture:
  curves, rates = {}, []
  for stage, found in results.items():
    method = stage.split('/')[1]
    curves[method] = [run['curve'] for result in found for run in best_runs(result)]
    chosen = sorted({result['learning_rate'] for result in found})
    rates.append(f'{method} {", ".join(f"{rate:g}" for rate in chosen)}')
  caption = (
    'Success of the episodes trained on; median and quartiles over seeds, each at the learning '
    f'rate that ended best of those it tried, of equals the first ({"; ".join(rates)}). Below its '
    'smallest success the logarithmic axis is linear. The paper shows 30 seeds and a million '
    'episodes. Compare Figs. 8 and A5.'
  )
  if expert:
    caption += ' The level is that of the expert, by which Fig. 8 divides.'
  figure = figures.learning_curves(curves, expert)
  return Picture(figures.png(figure), 'Success against episodes', caption)
