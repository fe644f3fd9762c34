"""The paper's claims, each with the paper's number, ours over seeds, and what bounds it.

A run is the `result.json` of its stages, by stage. Several runs of one config differ in their seed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from internal_rl.analysis import figures
from internal_rl.analysis.figures import medians, method_name, tolerances
from internal_rl.envs.tasks import FAMILIES

Result = Mapping[str, Any]
Run = Mapping[str, Result]


@dataclasses.dataclass(frozen=True)
class Number:
  """A row of a table.

  Attributes:
    claim: what is measured.
    measured: our number: of one seed, or median, quartiles and number of seeds.
    bound: the exact floor or ceiling in this world, or what else to compare with.
    paper: what the paper reports, in its own world and scale.
    name: the key in `CLAIMS`, '' for a number that belongs to none of them.
    stage: the stage that measures it.
  """

  claim: str
  measured: str
  bound: str = ''
  paper: str = ''
  name: str = ''
  stage: str = ''


@dataclasses.dataclass(frozen=True)
class Claim:
  """What the paper says and which stages measure it.

  Attributes:
    text: the claim.
    paper: the paper's number and where it stands.
    stages: that measure it, each in rows of its own.
  """

  text: str
  paper: str
  stages: tuple[str, ...]


METHODS = tuple(f'reinforce/{method}' for method in figures.METHODS)
CLAIMS = {
  'C1': Claim(
    'Subgoal decoded by a linear probe',
    'about 0.3 at layer 0, 0.5 mid-depth, up to 0.6 (Figs. 3, A1)',
    ('probe',),
  ),
  'C2': Claim(
    'Unseen task: labelled controllers switched by the truth',
    '0.5 to 0.65, best mid-depth (Fig. 4)',
    ('control',),
  ),
  'C3': Claim(
    'Unsupervised switches against changes of subgoal: F1',
    '“essentially perfect” (Figs. 6, A3)',
    ('discover',),
  ),
  'C5': Claim('Unseen task: {method}, in the end', '', METHODS),
  'C6': Claim(
    'Unseen task: actions sampled from the base model', 'order of 1e-6 (main text)', ('evaluate',)
  ),
  'C7': Claim('Unseen task: {method}, before its first update', '', METHODS),
}
# What the paper says of a method: with training, and before it.
PAPER = {
  'internal': ('about 0.8 within a million episodes (Fig. 8)', 'above every baseline (Fig. A5)'),
  'forced': ('does not solve it (Fig. 8)', 'starts high too (Fig. A5)'),
}
BASELINE = ('does not solve it (Fig. 8)', 'below internal RL (Fig. A5)')
EXPERT = 'Unseen task: the expert, without noise'
# The ant's numbers by claim and stage, where the paper gives any.
ANT = {
  (EXPERT, 'evaluate'): '0.7; 0.8 on pretraining tasks (App. C.1.1)',
  ('C3', 'discover'): '“essentially perfect” (Fig. 6)',
  ('C5', 'reinforce/internal'): 'about 0.6, of an expert that reaches 0.7 (Fig. 8)',
}


def _of_method(method: str) -> tuple[str, str]:
  """Returns what the paper says of a method, with training and before; nothing of our own ones."""
  return PAPER.get(method, BASELINE if method in figures.METHODS else ('', ''))


def spread(values: Sequence[float]) -> str:
  """Returns the median over seeds with its quartiles; of one seed, its value."""
  if len(values) == 1:
    return f'{values[0]:.3g}'
  low, median, high = np.percentile(values, (25, 50, 75))
  return f'{median:.3g} ({low:.3g} to {high:.3g}; {len(values)} seeds)'


def rate(outcomes: Sequence[Mapping[str, Any]]) -> str:
  """Returns success over seeds; of one seed with its standard error.

  Where nothing or everything succeeded it is a bound on all episodes together.
  """
  episodes = sum(outcome['episodes'] for outcome in outcomes)
  if not episodes:
    return 'no episodes'
  seeds = f'; {len(outcomes)} seeds' if len(outcomes) > 1 else ''
  if not any(outcome['success'] for outcome in outcomes):
    return f'0 of {episodes} (below {_rounded_up(3 / episodes)} at 95 %{seeds})'
  if all(outcome['success'] == 1 for outcome in outcomes):
    return f'{episodes} of {episodes} (failure below {_rounded_up(3 / episodes)} at 95 %{seeds})'
  if len(outcomes) > 1:
    return spread([outcome['success'] for outcome in outcomes])
  success, error = outcomes[0]['success'], outcomes[0]['error']
  digits = 3 if error >= 1e-3 else 5
  return f'{success:.{digits}f} ± {error:.{digits}f}'


def _rounded_up(share: float) -> str:
  """Returns a bound with one digit, which it is true of."""
  digit = 10.0 ** math.floor(math.log10(share))
  return f'{math.ceil(round(share / digit, 6)) * digit:.1g}'


def numbers(runs: Sequence[Run]) -> list[Number]:
  """Returns a row for everything that some run has measured, in the order of the story."""
  makers: dict[str, Callable[[list[Result]], list[Number]]] = {
    'pretrain': _pretrain,
    'probe': _probe,
    'control': _control,
    'discover': _discover,
    'evaluate': _evaluate,
  }
  methods = sorted({stage for run in runs for stage in run if stage.startswith('reinforce/')})
  rows = []
  for stage in [*makers, *methods]:
    if results := [run[stage] for run in runs if stage in run]:
      found = makers.get(stage, _reinforce)(results)
      rows += [dataclasses.replace(row, stage=stage) for row in found]
  return rows


def unmeasured(rows: Sequence[Number]) -> list[Number]:
  """Returns a row for every claim and stage of it that `rows` lack."""
  known = {(row.name, row.stage) for row in rows}
  lacking = [
    (name, stage) for name in CLAIMS for stage in CLAIMS[name].stages if (name, stage) not in known
  ]
  return [_unmeasured(name, stage) for name, stage in lacking]


def of_world(rows: Sequence[Number], world: str) -> list[Number]:
  """Returns the same rows, beside what the paper says of that world and not of the gridworld."""
  if world == 'gridworld':
    return list(rows)
  paper = lambda row: ANT.get((row.name or row.claim, row.stage), '')
  return [dataclasses.replace(row, paper=paper(row)) for row in rows]


def _unmeasured(name: str, stage: str) -> Number:
  claim, method = CLAIMS[name], stage.split('/')[-1]
  paper = claim.paper or _of_method(method)[name == 'C7']
  text = claim.text.format(method=method_name(method))
  return Number(text, 'not measured', '', paper, name, stage)


def _claimed(name: str, measured: str, bound: str = '', suffix: str = '') -> Number:
  claim = CLAIMS[name]
  return Number(claim.text + suffix, measured, bound, claim.paper, name)


def _pick(results: Sequence[Result], name: str) -> list[Any]:
  """Returns one field of the results that have it: floors exist in some worlds only."""
  return [result[name] for result in results if name in result]


def _bound(results: Sequence[Result], name: str, text: str) -> str:
  values = _pick(results, name)
  return text.format(np.median(values)) if values else ''


def _pretrain(results: list[Result]) -> list[Number]:
  floors = (
    _bound(results, 'bayes_nll', 'floor {:.3f} (Bayes predictor)'),
    _bound(results, 'goal_nll', '{:.3f} if told the goal'),
    _bound(results, 'expert_nll', '{:.3f} if told the way, as the expert is'),
  )
  measured = spread(_pick(results, 'nll'))
  bound = '; '.join(filter(None, floors))
  return [Number('Base model: action loss, nats a step', measured, bound)]


def _probe(results: list[Result]) -> list[Number]:
  accuracy = np.array(_pick(results, 'accuracy'), float)
  best = int(np.median(accuracy, 0).argmax())
  ceiling = _bound(results, 'bayes_accuracy', 'ceiling {:.3f} (Bayes belief)') or _bound(
    results, 'majority', '{:.3f} by naming the most frequent one'
  )
  rows = [('layer 0', accuracy[:, 0]), (f'best layer ({best})', accuracy[:, best])]
  if kept := _pick(results, 'milestones'):
    first = kept[0]['steps'][0]
    early = [run['accuracy'][0][best] for run in kept if run['steps'][0] == first]
    rows.insert(1, (f'layer {best} after {first:,} updates of pretraining', np.array(early)))
  return [_claimed('C1', spread(list(values)), ceiling, f', {name}') for name, values in rows]


def _control(results: list[Result]) -> list[Number]:
  chosen = [
    next(row for row in result['layers'] if row['layer'] == result['best_layer'])
    for result in results
  ]
  layers = ', '.join(str(layer) for layer in sorted({row['layer'] for row in chosen}))
  seen = np.median([row['pretraining']['success'] for row in chosen])
  measured = rate(_pick(chosen, 'post_training'))
  bound = f'{seen:.3g} on pretraining tasks'
  return [_claimed('C2', measured, bound, f', best layer ({layers})'), *_amplified(results)]


def _amplified(results: list[Result]) -> list[Number]:
  """Returns success of the layer and gain that are best on episodes other than those reported."""
  found: dict[tuple[int, float], list[Result]] = {}
  for row in (row for result in results for row in result['layers']):
    for stronger in row['amplified']:
      found.setdefault((row['layer'], stronger['gain']), []).append(stronger)
  if not found:
    return []
  selection = lambda at: np.median([row['selection']['success'] for row in found[at]])
  layer, gain = best = max(found, key=selection)
  text = f'Unseen task: labelled controllers amplified {gain:g} times, best layer ({layer})'
  return [Number(text, rate(_pick(found[best], 'post_training')), '')]


def chosen_strengths(results: Sequence[Result]) -> str:
  """Returns the KL strengths of the metacontrollers that were selected, in words."""
  chosen = {result['members'][result['selected']]['alpha'] for result in results}
  return ', '.join(f'{alpha:g}' for alpha in sorted(chosen))


def _discover(results: list[Result]) -> list[Number]:
  rows, best = [], 'at most 1'
  members = [member for result in results for member in result['members']]
  every = f'{spread(_pick(members, "subgoal_decoded"))} of all that were trained'
  if by_strength := _by_strength(members):  # Which tells of every one.
    best += f'; chosen: α = {chosen_strengths(results)}'
    every = ''
  for tolerance in tolerances(results[0]):
    within = ['exact step', 'within one step'][tolerance] if tolerance < 2 else ''
    suffix = f', {within or f"within {tolerance} steps"}'
    f1 = spread(_pick(results, f'f1_tolerance_{tolerance}'))
    if told := results[0]['config']['discover'].get('labelled_steps', 0):
      rows.append(Number(f'F1 of switches, told subgoals for {told} updates{suffix}', f1, best))
    else:
      rows.append(_claimed('C3', f1, best, suffix))
  truth = _bound(results, 'true_switches', 'truth {:.2f}')
  rows.append(Number('Switches an episode', spread(_pick(results, 'switches')), truth))
  chance = _bound(results, 'subgoal_majority', '{:.3g} by naming the most frequent one')
  named = spread(_pick(results, 'subgoal_decoded'))
  bound = '; '.join(filter(None, (chance, every)))
  rows.append(Number('Subgoal read linearly off the codes', named, bound))
  if drawn := _pick(results, 'prior_success'):
    rows.append(Number('Unseen task: codes drawn from N(0, I)', rate(drawn), ''))
  return rows + by_strength


def _by_strength(members: Sequence[Result]) -> list[Number]:
  """Returns a row for each axis of a sweep of KL strengths, medians side by side."""
  strengths = sorted({member['alpha'] for member in members})
  if len(strengths) < 2:
    return []
  at = f'at α = {", ".join(f"{alpha:g}" for alpha in strengths)}'
  count = len(members) // len(strengths)
  each = f'medians of {count} metacontrollers' if count > 1 else 'of one metacontroller'
  rows = []
  for field, text in (
    ('f1_tolerance_0', 'F1 of switches, exact step'),
    ('switches', 'Switches an episode'),
    ('subgoal_decoded', 'Subgoal read linearly off the codes'),
    ('kl', 'Rate: KL, nats a step'),
    ('nll', 'Distortion: action loss, nats a step'),
    ('hard_nll', 'The same, with the gate thresholded'),
  ):
    values = ', '.join(f'{value:.3g}' for value in medians(members, field).values())
    rows.append(Number(f'{text}, {at}', f'{values} ({each})'))
  return rows


def _evaluate(results: list[Result]) -> list[Number]:
  rows = []
  for field, make in (
    ('expert_success', _expert),
    ('base_success', lambda *args: _claimed('C6', *args)),
    (
      'replay_success',
      lambda *args: Number(
        'Unseen task: codes of a demonstration replayed, switched by the truth', *args
      ),
    ),
  ):
    found = _pick(results, field)
    if found:
      seen = np.median([outcome['pretraining']['success'] for outcome in found])
      bound = f'{seen:.3g} on pretraining tasks'
      if field == 'base_success':
        family = FAMILIES[results[0]['config']['env']['family']]
        bound += f', of {family.clone_success:.3g} for a clone of a perfect expert'
      rows.append(make(rate(_pick(found, 'post_training')), bound))
  meanings = _pick(results, 'code_meaning')
  for field, what in (
    ('goal_cell', "Cell of the subgoal's first colour"),
    ('first_action', 'First action on the way to the subgoal'),
  ):
    if found := _pick(meanings, field):
      often = f'{np.median(_pick(found, "majority")):.3g} by naming the most frequent one'
      text = f'{what} read linearly off the codes'
      rows.append(Number(text, spread(_pick(found, 'accuracy')), often))
  stress = [row for row in _pick(results, 'simulation') if row]
  for torques in ('random', 'constant') if stress else ():
    blown_up, steps = (sum(row[torques][name] for row in stress) for name in ('blown_up', 'steps'))
    text = f'Simulation blew up under {torques} torques, control steps'
    rows.append(Number(text, f'{blown_up:,} of {steps:,}', ''))
  return rows + _goal_codes(_pick(results, 'goal_code_success'))


def _goal_codes(found: list[Result]) -> list[Number]:
  """Returns a row for each length at which the codes of goals were tried."""
  by_length: dict[float, list[Result]] = {1.0: found} if found else {}
  for row in (row for outcome in found for row in outcome['lengthened']):
    by_length.setdefault(row['gain'], []).append(row)
  rows = []
  for gain, outcomes in by_length.items():
    times = f', {gain:g} times as long' if gain > 1 else ''
    seen = np.median([outcome['pretraining']['success'] for outcome in outcomes])
    text = f'Unseen task: one code for each goal, switched by the truth{times}'
    bound = f'{seen:.3g} on pretraining tasks'
    rows.append(Number(text, rate(_pick(outcomes, 'post_training')), bound))
  return rows


def _expert(measured: str, bound: str) -> Number:
  return Number(EXPERT, measured, bound)


def best_runs(result: Result) -> list[Result]:
  """Returns the runs of the learning rate that was chosen."""
  return [run for run in result['runs'] if run['learning_rate'] == result['learning_rate']]


def _reinforce(results: list[Result]) -> list[Number]:
  method = results[0]['method']
  runs = [run for result in results for run in best_runs(result)]
  episodes = min(_pick(results, 'episodes'))
  end, start = _of_method(method)
  names = ('C7', 'C5') if method in figures.METHODS else ('', '')
  told = f'Unseen task: {method_name(method)}'
  initial = spread(_pick(runs, 'initial_success'))
  rows = [
    Number(f'{told} before its first update', initial, '', start, names[0]),
    Number(f'{told} after {episodes:,} episodes', rate(runs), '', end, names[1]),
  ]
  tried = [run for result in results for run in result['runs']]
  rates = sorted({run['learning_rate'] for run in tried})
  if len(rates) > 1:
    at = ', '.join(f'{value:g}' for value in rates)
    each = [rate([run for run in tried if run['learning_rate'] == value]) for value in rates]
    rows.append(Number(f'{told}, in the end, at learning rates {at}', '; '.join(each)))
  return rows
