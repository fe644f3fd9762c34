"""Numbers of one run and of several seeds beside the paper's."""

import copy

from internal_rl.analysis import claims
from tests.analysis import synthetic

RESULTS = synthetic.results()


def rows_of(*runs):
  return {row.claim: row for row in claims.numbers(runs)}


def test_every_claim_has_its_number_beside_the_papers():
  rows = rows_of(RESULTS)
  base = rows['Base model: action loss, nats a step']
  assert (base.measured, base.bound[:11]) == ('0.271', 'floor 0.262')
  internal = rows['Unseen task: internal RL after 256,000 episodes']
  assert internal.measured == '0.712 (0.694 to 0.731; 3 seeds)'
  assert internal.paper.startswith('about 0.8')
  raw = rows['Unseen task: raw-action RL after 256,000 episodes']
  assert (raw.name, raw.stage, raw.paper[:4]) == ('C5', 'reinforce/raw', 'does')
  amplified = rows['Unseen task: labelled controllers amplified 1.5 times, best layer (2)']
  assert (amplified.name, amplified.measured[:5]) == ('', '0.700')
  decoded = rows['Subgoal read linearly off the codes']
  assert decoded.measured == '0.87'
  assert decoded.bound == '0.3 by naming the most frequent one'
  longer = rows['Unseen task: one code for each goal, switched by the truth, 1.5 times as long']
  assert (longer.measured[:5], longer.bound) == ('0.450', '0.62 on pretraining tasks')
  moved = rows['First action on the way to the subgoal read linearly off the codes']
  assert (moved.measured, moved.bound) == ('0.4', '0.26 by naming the most frequent one')
  sampled = rows['Unseen task: actions sampled from the base model']
  assert (sampled.name, sampled.measured[:9]) == ('C6', '0 of 2048')
  assert sampled.bound == '0.06 on pretraining tasks, of 0.0833 for a clone of a perfect expert'


def test_a_sweep_tells_what_every_strength_came_to():
  other = copy.deepcopy(RESULTS)
  for member in other['discover']['members']:
    member['f1_tolerance_0'] -= 0.1
  rows = rows_of(RESULTS, other)
  f1 = rows['F1 of switches, exact step, at α = 0.05, 0.1, 0.17']
  assert f1.measured == '0.35, 0.92, 0.15 (medians of 2 metacontrollers)'
  rate = rows_of(RESULTS)['Rate: KL, nats a step, at α = 0.05, 0.1, 0.17']
  assert rate.measured == '0.4, 0.25, 0.1 (of one metacontroller)'
  hard = rows_of(RESULTS)['The same, with the gate thresholded, at α = 0.05, 0.1, 0.17']
  assert hard.measured == '0.185, 0.205, 0.255 (of one metacontroller)'
  chosen = rows['Unsupervised switches against changes of subgoal: F1, exact step']
  assert chosen.bound == 'at most 1; chosen: α = 0.1'
  alike = copy.deepcopy(RESULTS)
  for member in alike['discover']['members']:
    member['alpha'] = 0.1
  rows = rows_of(alike)
  assert not any('α = ' in claim for claim in rows)
  decoded = rows['Subgoal read linearly off the codes']
  assert decoded.bound.endswith('; 0.36 (0.27 to 0.615; 3 seeds) of all that were trained')


def test_how_the_simulation_held_is_told_where_there_is_one():
  assert not [claim for claim in rows_of(RESULTS) if 'blew up' in claim]
  results = copy.deepcopy(RESULTS)
  results['evaluate']['simulation'] = {
    'random': {'steps': 500_000, 'blown_up': 0},
    'constant': {'steps': 500_000, 'blown_up': 3},
  }
  rows = rows_of(results, results)
  assert rows['Simulation blew up under random torques, control steps'].measured == '0 of 1,000,000'
  assert rows['Simulation blew up under constant torques, control steps'].measured == (
    '6 of 1,000,000'
  )


def test_probes_are_counted_early_and_late_in_pretraining_where_milestones_were_kept():
  row = 'Subgoal decoded by a linear probe, layer 2 after 1,000 updates of pretraining'
  assert rows_of(RESULTS)[row].measured == '0.4'
  results = copy.deepcopy(RESULTS)
  del results['probe']['milestones']
  assert row not in rows_of(results)


def test_a_metacontroller_that_was_told_the_subgoals_is_none_of_the_papers():
  results = copy.deepcopy(RESULTS)
  results['discover']['config']['discover']['labelled_steps'] = 600
  rows = [row for row in claims.numbers([results]) if row.stage == 'discover']
  assert 'told subgoals for 600 updates, exact step' in rows[0].claim
  assert not any(row.name or row.paper for row in rows)


def test_seeds_are_summarised_by_median_and_quartiles():
  runs = [copy.deepcopy(RESULTS) for _ in range(5)]
  for run, f1 in zip(runs, (0.9, 0.1, 0.5, 0.8, 0.4), strict=True):
    run['discover']['f1_tolerance_0'] = f1
  found = rows_of(*runs)['Unsupervised switches against changes of subgoal: F1, exact step']
  assert found.measured == '0.5 (0.4 to 0.8; 5 seeds)'


def test_reinforcement_counts_every_run_of_every_seed_at_the_rate_chosen():
  results = copy.deepcopy(RESULTS)
  for run in results['reinforce/internal']['runs']:
    if run['learning_rate'] != results['reinforce/internal']['learning_rate']:
      run['success'] = 0.999
  changed = {a.claim for a in set(claims.numbers([results])) ^ set(claims.numbers([RESULTS]))}
  assert changed == {'Unseen task: internal RL, in the end, at learning rates 0.0003, 0.001'}
  end = rows_of(results, RESULTS)['Unseen task: internal RL after 256,000 episodes']
  assert end.measured.endswith('; 6 seeds)')


def test_a_scan_of_learning_rates_tells_what_every_one_came_to():
  scan = 'Unseen task: internal RL, in the end, at learning rates 0.0003, 0.001'
  assert rows_of(RESULTS)[scan].measured == (
    '0.712 (0.694 to 0.731; 3 seeds); 0.356 (0.347 to 0.366; 3 seeds)'
  )
  results = copy.deepcopy(RESULTS)
  found = results['reinforce/internal']
  found['runs'] = claims.best_runs(found)
  assert not any('learning rates' in claim for claim in rows_of(results) if 'internal' in claim)


def test_a_rate_of_zero_is_reported_as_the_bound_it_is():
  never = synthetic.outcome(0.0, 1000)
  assert claims.rate([never]) == '0 of 1000 (below 0.003 at 95 %)'
  assert claims.rate([never] * 3) == '0 of 3000 (below 0.001 at 95 %; 3 seeds)'
  always = {**never, 'success': 1.0}
  assert claims.rate([always]) == '1000 of 1000 (failure below 0.003 at 95 %)'
  # 3 / 2048 is more than 0.001.
  assert claims.rate([{**never, 'episodes': 2048}]) == '0 of 2048 (below 0.002 at 95 %)'
  assert claims.rate([synthetic.outcome(0.5, 2500)]) == '0.500 ± 0.010'
  rare = {'success': 0.0004, 'error': 0.0002, 'episodes': 9}
  assert claims.rate([rare]) == '0.00040 ± 0.00020'


def test_a_world_without_floors_has_its_numbers_without_bounds():
  results = copy.deepcopy(RESULTS)
  for field in ('bayes_nll', 'goal_nll', 'bayes_accuracy'):
    for result in results.values():
      result.pop(field, None)
  found = rows_of(results)
  assert {claim: row.measured for claim, row in found.items()} == {
    claim: row.measured for claim, row in rows_of(RESULTS).items()
  }
  assert not [row for row in found.values() if 'floor' in row.bound or 'ceiling' in row.bound]


def test_another_method_of_reinforcement_gets_its_rows():
  found = rows_of(RESULTS, {'reinforce/mine': synthetic.reinforced('mine', 0.01, 0.0)})
  assert 'Unseen task: mine after 256,000 episodes' in found


def test_what_is_not_measured_is_said():
  lacking = {(row.name, row.stage) for row in claims.unmeasured(claims.numbers([RESULTS]))}
  methods = ('forced', 'cotrain', 'compile')
  assert lacking == {(name, f'reinforce/{m}') for name in ('C5', 'C7') for m in methods}
  every = claims.unmeasured([])
  assert {row.name for row in every} == set(claims.CLAIMS)
  assert {row.measured for row in every} == {'not measured'}


def test_the_ant_is_not_set_beside_the_gridworlds_numbers():
  gridworld = claims.numbers([RESULTS])
  paper = lambda rows: {row.claim: row.paper for row in rows}
  assert claims.of_world(gridworld, 'gridworld') == gridworld
  ant = paper(claims.of_world(gridworld, 'ant'))
  internal = next(
    row for row in gridworld if row.stage == 'reinforce/internal' and row.name == 'C5'
  )
  assert 'about 0.6' in ant[internal.claim]
  assert (paper(gridworld)[claims.EXPERT], ant[claims.EXPERT][:3]) == ('', '0.7')
  shared = {claim for claim, text in paper(gridworld).items() if text and ant[claim] == text}
  assert not shared
