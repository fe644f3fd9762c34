"""Every known failure is recognised, and a run that went well is not accused of any."""

import copy

import pytest

from internal_rl.analysis import diagnosis
from tests.analysis import synthetic

HEALTHY = synthetic.results()
# No world has all of this: on the ant nobody knows the Bayes predictor.
HEALTHY['pretrain']['expert_nll'] = 0.1


def spoiled(changes):
  """Results with the fields at `stage.field.field` replaced; stages have slashes, not dots."""
  results = copy.deepcopy(HEALTHY)
  for path, value in changes.items():
    *parents, last = path.split('.')
    place = results
    for name in parents:
      place = place[name]
    assert last in place
    place[last] = value
  return results


def failures(results):
  return {found.name: found.text for found in diagnosis.diagnose(results) if not found.ok}


def test_a_run_that_went_well_is_not_accused_of_anything():
  assert failures(HEALTHY) == {}
  assert len(diagnosis.diagnose(HEALTHY)) == len(diagnosis.CHECKS)


MEANING = 'evaluate.code_meaning'
REPLAY = 'evaluate.replay_success'
GOALS = 'evaluate.goal_code_success'
NO_LONGER = {f'{GOALS}.lengthened': []}


@pytest.mark.parametrize(
  ('changes', 'name', 'words'),
  [
    ({'pretrain.nll': 0.345}, 'Base model against its floor', 'under-trained'),
    (
      {'evaluate.base_success.pretraining.success': 0.01},
      'Base model left to itself',
      'clone of a perfect expert, told the task as little, 8.3%',
    ),
    ({'pretrain.expert_nll': -7.5}, 'Base model against the expert', 'does not move as the expert'),
    (
      {'probe': {'best_accuracy': 0.27, 'majority': 0.26}},
      'Subgoals in the residual stream',
      'most frequent one, in 26%. The base model does not represent',
    ),
    ({'probe.best_accuracy': 0.44}, 'Subgoals in the residual stream', 'not represent'),
    (
      {'discover.config.model.controlled_layer': 0},
      'Labelled controllers compose',
      'At layer 3 they reach 40%. Amplified 1.5 times they reach 1% at layer 0.',
    ),
    (
      {
        'control.best_layer': 0,
        'control.layers': [
          {'layer': 0, 'pretraining': {'success': 0.1}, 'post_training': {'success': 0.1}}
        ],
      },
      'Labelled controllers compose',
      'do not steer',
    ),
    ({'discover.kl': 0.001, 'discover.nll': 0.27}, 'Posterior', 'collapsed'),
    ({'discover.switches': 8.0}, 'Number of switches', 'raise alpha'),
    ({'discover.switches': 0.0}, 'Number of switches', 'lower alpha'),
    ({'discover.f1_tolerance_0': 0.4}, 'Where the switches fall', 'one step early or late'),
    (
      {'discover.f1_tolerance_0': 0.4, 'discover.f1_tolerance_1': 0.5},
      'Where the switches fall',
      'elsewhere',
    ),
    ({'discover.undecided_share': 0.3}, 'Gates are quasi-binary', '30%'),
    ({'discover.hard_nll': 0.3}, 'Gates are quasi-binary', 'thresholding costs 0.100'),
    (
      {f'{MEANING}.first_action.accuracy': 0.9, f'{MEANING}.subgoal.accuracy': 0.3},
      'What codes mean',
      'directions',
    ),
    (
      {f'{MEANING}.goal_cell.accuracy': 0.9, f'{MEANING}.subgoal.accuracy': 0.3},
      'What codes mean',
      'places',
    ),
    (
      {**NO_LONGER, f'{GOALS}.post_training.success': 0.06},
      'Codes transfer to the unseen task',
      'hardly overcome',
    ),
    (
      {**NO_LONGER, f'{GOALS}.pretraining.success': 0.1},
      'Codes transfer to the unseen task',
      'Codes of demonstrations do (70%): they mean something else than goals',
    ),
    (
      {**NO_LONGER, f'{GOALS}.pretraining.success': 0.1, f'{REPLAY}.pretraining.success': 0.1},
      'Codes transfer to the unseen task',
      'even where it was trained.',
    ),
    ({'reinforce/internal.success': 0.04}, 'Policy over codes', 'does not find them'),
    (
      {
        'reinforce/internal.success': 0.04,
        **NO_LONGER,
        f'{GOALS}.post_training.success': 0.0,
      },
      'Policy over codes',
      'to blame',
    ),
    ({'reinforce/internal.initial_success': 0.0}, 'Reward at the start', 'no gradient'),
    ({'reinforce/raw.success': 0.9}, 'Against raw-action RL', 'does not help'),
  ],
)
def test_a_known_failure_is_named(changes, name, words):
  found = failures(spoiled(changes))
  assert words in found[name]


@pytest.mark.parametrize(
  'changes',
  [
    {'discover.kl': 0.001},  # Little rate, but it helps: a frugal code, not a collapsed one.
    {'discover.nll': 0.27},  # No help, but plenty of rate: some other failure.
  ],
)
def test_collapse_takes_both_no_rate_and_no_gain(changes):
  assert 'Posterior' not in failures(spoiled(changes))


def test_only_what_was_measured_is_judged():
  only = {stage: HEALTHY[stage] for stage in ('pretrain', 'discover')}
  names = {found.name for found in diagnosis.diagnose(only)}
  assert 'Posterior' in names
  assert 'Policy over codes' not in names
  assert diagnosis.diagnose({}) == []


def test_simulations_that_blew_up_are_counted_wherever_they_were_measured():
  assert 'Simulation' not in {found.name for found in diagnosis.diagnose(HEALTHY)}
  results = copy.deepcopy(HEALTHY)
  results['evaluate']['base_success']['post_training'] |= {'episodes': 1000, 'diverged': 0.0}
  results['control']['layers'][0]['post_training'] |= {'episodes': 1000, 'diverged': 0.001}
  results['collect'] = {'D': {'episodes': 800, 'failed': 200, 'blown_up': 2}}
  (found,) = [row for row in diagnosis.diagnose(results) if row.name == 'Simulation']
  assert found.ok
  assert 'in 3 of 3,000 episodes' in found.text
  results['reinforce/raw']['runs'][0] |= {'episodes': 1000, 'diverged': 0.25}
  assert 'in 253 of 4,000 episodes' in failures(results)['Simulation']
