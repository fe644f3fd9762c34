"""What went wrong, in words: known failures recognised from what the stages wrote.

Each check takes the `result.json` of the stages it names and says whether all is well. Thresholds
are ours, chosen to tell apart runs that worked from runs that did not; none is the paper's.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from internal_rl.analysis import switching
from internal_rl.envs.tasks import FAMILIES

Result = Mapping[str, Any]

EXPERT_GAP = 1.0  # Nats a step; naming one of 16 tasks takes 2.8 in a whole episode.
BASE_GAP = 0.1  # Of what the goal is worth to a predictor: more is an under-trained base.
ACTING_SHARE = 0.5  # Of the success of a perfect clone of the expert.
PROBE_SHARE = 0.75  # Of the Bayes belief's accuracy.
COLLAPSED_KL = 0.02  # Nats a step.
COLLAPSED_GAIN = 0.1  # Of what telling the goal would gain.
TOO_MANY, TOO_FEW = 2.5, 0.4  # Switches for every change of subgoal.
ALIGNED_F1 = 0.8
UNDECIDED_SHARE = 0.05  # Of gate values between 0.1 and 0.9.
HARD_COST = 0.03  # Nats a step lost by thresholding the gate.
MEANING_MARGIN = 0.05  # By which one label must be more decodable than another.
REPLAY_WORKS = 0.2  # Success below this is no success.
TRANSFER_SHARE = 0.25  # Of the success on pretraining tasks.
BLOWN_UP_SHARE = 1e-3  # Of simulated episodes.
REACHED_SHARE = 0.5  # Of the success of the best known codes on the unseen task.


@dataclasses.dataclass(frozen=True)
class Finding:
  """One check's outcome.

  Attributes:
    name: what was checked, a few words.
    ok: whether all is well.
    text: what was found and, if something is wrong, what to try.
  """

  name: str
  ok: bool
  text: str


def base_floor(pretrain: Result) -> Finding:
  """Is the base model near the best possible predictor? On a bad one nothing can be judged."""
  gap = pretrain['nll'] - pretrain['bayes_nll']
  share = gap / max(pretrain['bayes_nll'] - pretrain['goal_nll'], 1e-9)
  found = (
    f'The base model is {gap:.3f} nats a step above its exact floor, {share:.0%} of what '
    'knowing the goal is worth.'
  )
  cure = ' It is under-trained, so nothing built on it can be judged: train it longer first.'
  ok = share <= BASE_GAP
  return Finding('Base model against its floor', ok, found + ('' if ok else cure))


def base_imitates(pretrain: Result) -> Finding:
  """Where no Bayes predictor is known: does the base model move as the expert does?"""
  gap = pretrain['nll'] - pretrain['expert_nll']
  found = (
    f'The base model is {gap:.2f} nats a step above a Gaussian that is told the way, as the expert '
    'is.'
  )
  cure = (
    ' Not knowing the task explains next to nothing of that: it does not move as the expert does, '
    'so nothing built on it can be judged. Train it longer, or a larger one.'
  )
  ok = gap <= EXPERT_GAP
  return Finding('Base model against the expert', ok, found + ('' if ok else cure))


def base_acts(evaluate: Result) -> Finding:
  """Does the base model, left to itself, do what the demonstrations do?"""
  success = evaluate['base_success']['pretraining']['success']
  clone = FAMILIES[evaluate['config']['env']['family']].clone_success
  found = (
    f'Actions sampled from the base model complete {success:.1%} of pretraining tasks; a clone of '
    f'a perfect expert, told the task as little, {clone:.1%}.'
  )
  cure = ' Its errors add up over an episode, however well it predicts a step: train it longer.'
  ok = success >= ACTING_SHARE * clone
  return Finding('Base model left to itself', ok, found + ('' if ok else cure))


def subgoal_decodable(probe: Result) -> Finding:
  """Does some layer know the subgoal as well as it can be known, or at all?"""
  best = probe['best_accuracy']
  if 'bayes_accuracy' in probe:
    other, needed = probe['bayes_accuracy'], PROBE_SHARE * probe['bayes_accuracy']
    who = 'the Bayes belief'
  else:
    other, needed = probe['majority'], probe['majority'] + MEANING_MARGIN
    who = 'who names the most frequent one,'
  found = f'The best probe names the subgoal in {best:.0%} of steps; {who} in {other:.0%}.'
  cure = ' The base model does not represent subgoals linearly: train it longer, or the probe.'
  ok = best >= needed
  return Finding('Subgoals in the residual stream', ok, found + ('' if ok else cure))


def controllers_compose(control: Result, discover: Result | None) -> Finding:
  """Can the base model be steered through an order of subgoals that it has never seen?"""
  rows = {row['layer']: row for row in control['layers']}
  best = layer = control['best_layer']
  if discover is not None:
    # Where the metacontroller acts, if it was tried.
    acting = discover['config']['model']['controlled_layer']
    layer = acting if acting in rows else best
  seen, unseen = (rows[layer][k]['success'] for k in ('pretraining', 'post_training'))
  found = (
    f'Labelled controllers at layer {layer} succeed on {seen:.0%} of pretraining tasks and '
    f'{unseen:.0%} of the unseen one.'
  )
  cure = ''
  if seen < REPLAY_WORKS:
    cure = ' They do not steer the model at all: train it, or them, longer.'
  elif unseen < TRANSFER_SHARE * seen:
    cure = (
      ' They do not overcome what the base model knows of subgoals that never follow each other, '
      'and codes are unlikely to.'
    )
    if best != layer:
      cure += f' At layer {best} they reach {rows[best]["post_training"]["success"]:.0%}.'
    gains = {1.0: rows[layer], **{row['gain']: row for row in rows[layer]['amplified']}}
    gain = max(gains, key=lambda gain: gains[gain]['selection']['success'])
    if gain > 1:
      reached = gains[gain]['post_training']['success']
      cure += f' Amplified {gain:g} times they reach {reached:.0%} at layer {layer}.'
  return Finding('Labelled controllers compose', not cure, found + cure)


def posterior_collapse(discover: Result, pretrain: Result) -> Finding:
  """Do the codes carry anything, and does it help to predict actions?"""
  worth = max(pretrain['nll'] - pretrain['goal_nll'], 1e-9)
  gain = (pretrain['nll'] - discover['nll']) / worth
  collapsed = discover['kl'] < COLLAPSED_KL and gain < COLLAPSED_GAIN
  found = (
    f'Codes carry {discover["kl"]:.3f} nats a step and recover {gain:.0%} of what knowing the '
    'goal is worth.'
  )
  cure = ' The posterior has collapsed to the prior: lower alpha, or ramp it up later and slower.'
  return Finding('Posterior', not collapsed, found + (cure if collapsed else ''))


def switch_rate(discover: Result) -> Finding:
  """Does the gate open about as often as the subgoal changes?"""
  switches, true = discover['switches'], discover['true_switches']
  ratio = switches / max(true, 1e-9)
  found = f'The gate opens {switches:.1f} times an episode; the subgoal changes {true:.1f} times.'
  cure = ''
  if ratio > TOO_MANY:
    cure = ' It is open nearly always, so a code means no more than a move: raise alpha.'
  elif ratio < TOO_FEW:
    cure = (
      ' One switch at the first step does everything, as with a co-trained base: lower alpha, or '
      'train the base model longer before it is frozen.'
    )
  return Finding('Number of switches', not cure, found + cure)


def switch_alignment(discover: Result) -> Finding:
  """Do switches fall on the very steps at which the subgoal changes?"""
  field, within = switching.widest(discover)
  exact, near = discover['f1_tolerance_0'], discover[field]
  found = f'Switches match the changes of subgoal with F1 {exact:.2f} ({near:.2f} within {within}).'
  # One step is a move in the gridworld, where nothing less than exact will do.
  ok = (exact if field == 'f1_tolerance_1' else near) >= ALIGNED_F1
  cure = ''
  if not ok:
    late = near >= ALIGNED_F1
    cure = (
      f' They come {within} early or late.'
      if late
      else ' They fall elsewhere: an under-trained base or another alpha are the first suspects.'
    )
  return Finding('Where the switches fall', ok, found + cure)


def binary_gates(discover: Result) -> Finding:
  """Can the soft gate be replaced by its threshold, as internal RL does?"""
  undecided, cost = discover['undecided_share'], discover['hard_nll'] - discover['nll']
  found = (
    f'{undecided:.0%} of gate values lie between 0.1 and 0.9; thresholding costs {cost:.3f} '
    'nats a step.'
  )
  ok = undecided <= UNDECIDED_SHARE and cost <= HARD_COST
  cure = (
    ' Internal RL thresholds the gate and so runs another controller than was trained: finish '
    'with a thresholded gate.'
  )
  return Finding('Gates are quasi-binary', ok, found + ('' if ok else cure))


def code_meaning(evaluate: Result) -> Finding:
  """Do codes name goals, or merely the place or the move they imply in this layout?"""

  def lift(label: str) -> float:
    accuracy, majority = (evaluate['code_meaning'][label][k] for k in ('accuracy', 'majority'))
    return (accuracy - majority) / max(1 - majority, 1e-9)

  goal, place = lift('subgoal'), lift('goal_cell')
  # Torques are not labels.
  move = lift('first_action') if 'first_action' in evaluate['code_meaning'] else 0.0
  found = (
    f'Above chance, codes tell {goal:.0%} of the subgoal, {place:.0%} of its cell and '
    f'{move:.0%} of the next move.'
  )
  cure = ''
  if move > goal + MEANING_MARGIN and move >= place:
    cure = (
      ' They carry directions instead of goals: a policy has to learn a map from layouts to codes.'
    )
  elif place > goal + MEANING_MARGIN:
    cure = ' They carry places instead of goals: a policy has to learn a map from layouts to codes.'
  return Finding('What codes mean', not cure, found + cure)


def code_transfer(evaluate: Result) -> Finding:
  """Do codes that stand for goals still work in an order of goals that was never seen?"""
  gain, row = _best_length(evaluate)
  seen, unseen = (row[k]['success'] for k in ('pretraining', 'post_training'))
  found = (
    f'One code for each goal{_longer(gain)}, switched by the truth, succeeds on {seen:.0%} of '
    f'pretraining tasks and {unseen:.0%} of the unseen one.'
  )
  cure = ''
  if seen < REPLAY_WORKS:
    cure = ' It does not steer the model even where it was trained.'
    replayed = evaluate.get('replay_success', row)['pretraining']['success']
    if replayed >= REPLAY_WORKS:
      cure += f' Codes of demonstrations do ({replayed:.0%}): they mean something else than goals.'
  elif unseen < TRANSFER_SHARE * seen:
    cure = ' It hardly overcomes what the base model knows of goals that never follow each other.'
  return Finding('Codes transfer to the unseen task', not cure, found + cure)


def _best_length(evaluate: Result) -> tuple[float, Result]:
  """Returns how long goal codes are best for the unseen task, and what they reach then."""
  found = evaluate['goal_code_success']
  lengths = {1.0: found, **{row['gain']: row for row in found['lengthened']}}
  return max(lengths.items(), key=lambda item: item[1]['post_training']['success'])


def _longer(gain: float) -> str:
  return f' ({gain:g} times as long)' if gain > 1 else ''


def policy_reaches(internal: Result, evaluate: Result) -> Finding:
  """Does the policy find the codes that are known to work?"""
  success, first = internal['success'], internal['initial_success']
  gain, row = _best_length(evaluate)
  possible = row['post_training']['success']
  found = (
    f'Internal RL went from {first:.3g} to {success:.3g}; one code for each goal'
    f'{_longer(gain)}, switched by the truth, reaches {possible:.3g}.'
  )
  ok = success >= max(REACHED_SHARE * possible, REPLAY_WORKS)
  cure = ''
  if not ok and possible >= REPLAY_WORKS:
    cure = (
      ' Good codes exist and the policy does not find them: more episodes, another learning '
      'rate, more passes.'
    )
  elif not ok:
    cure = (
      ' The codes themselves do not solve this task, so the metacontroller is to blame, not the '
      'policy.'
    )
  return Finding('Policy over codes', ok, found + cure)


def reward_seen(internal: Result) -> Finding:
  """Was there any reward to learn from at the start?"""
  first = internal['initial_success']
  ok = first > 0
  found = f'At the start {first:.2%} of episodes are rewarded.'
  cure = (
    ' Without any rewarded episode there is no gradient: larger batches, or codes that '
    'transfer better.'
  )
  return Finding('Reward at the start', ok, found + ('' if ok else cure))


def better_than_raw(internal: Result, raw: Result) -> Finding:
  """Does acting through codes help at all?"""
  ours, theirs = internal['success'], raw['success']
  ok = ours > theirs
  verdict = 'Acting through codes helps' if ok else 'Acting through codes does not help here'
  found = f'{verdict}: internal RL ends at {ours:.3g}, raw-action RL at {theirs:.3g}.'
  return Finding('Against raw-action RL', ok, found)


def simulation_holds(results: Mapping[str, Result]) -> Finding | None:
  """How many simulated episodes blew up, of all whose ends were counted? None where none can."""
  counts = list(_simulated(results))
  if not counts:
    return None
  episodes, diverged = (round(sum(column)) for column in zip(*counts, strict=True))
  found = f'The simulation blew up in {diverged:,} of {episodes:,} episodes.'
  cure = (
    ' They count as failures, and their last sound state was held; try more solver iterations or '
    'a shorter time step.'
  )
  ok = diverged <= BLOWN_UP_SHARE * episodes
  return Finding('Simulation', ok, found + ('' if ok else cure))


def _simulated(tree: Any) -> Iterator[tuple[float, float]]:
  """Yields, for every success rate and store of a simulation, episodes and how many blew up."""
  if isinstance(tree, Mapping):
    if {'episodes', 'diverged'} <= tree.keys():
      yield tree['episodes'], tree['episodes'] * tree['diverged']
    elif {'episodes', 'failed', 'blown_up'} <= tree.keys():
      yield tree['episodes'] + tree['failed'], tree['blown_up']
    tree = list(tree.values())
  if isinstance(tree, Sequence) and not isinstance(tree, str):
    for item in tree:
      yield from _simulated(item)


# A check needs stages, or single fields of their results: not every world has exact floors. It can
# do without what has a question mark.
CHECKS: tuple[tuple[Callable[..., Finding], tuple[str, ...]], ...] = (
  (base_floor, ('pretrain:bayes_nll',)),
  (base_imitates, ('pretrain:expert_nll',)),
  (base_acts, ('evaluate:base_success',)),
  (subgoal_decodable, ('probe',)),
  (controllers_compose, ('control', 'discover?')),
  (posterior_collapse, ('discover', 'pretrain:goal_nll')),
  (switch_rate, ('discover',)),
  (switch_alignment, ('discover',)),
  (binary_gates, ('discover',)),
  (code_meaning, ('evaluate:code_meaning',)),
  (code_transfer, ('evaluate:goal_code_success',)),
  (reward_seen, ('reinforce/internal',)),
  (policy_reaches, ('reinforce/internal', 'evaluate:goal_code_success')),
  (better_than_raw, ('reinforce/internal', 'reinforce/raw')),
)


def diagnose(results: Mapping[str, Result]) -> list[Finding]:
  """Runs every check whose stages, and what it needs of them, are there.

  Args:
    results: `result.json` by stage: 'pretrain', 'probe', 'control', 'discover', 'evaluate',
      'reinforce/internal', 'reinforce/raw'; any may be missing.
  """

  def found(need: str) -> Result | None:
    stage, _, field = need.rstrip('?').partition(':')
    result = results.get(stage)
    return result if result is not None and (not field or field in result) else None

  simulation = simulation_holds(results)
  return [
    *([] if simulation is None else [simulation]),
    *(
      check(*map(found, needs))
      for check, needs in CHECKS
      if all(found(need) is not None for need in needs if not need.endswith('?'))
    ),
  ]
