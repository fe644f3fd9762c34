"""Figures show the numbers they were given, beside the bounds they belong to."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from internal_rl.analysis import figures
from internal_rl.envs.ant import Ant
from internal_rl.envs.gridworld import Gridworld
from tests.analysis import synthetic

RESULTS = synthetic.results()
TASKS = ('pretraining', 'post_training')
SEEDS = {
  method: [run['curve'] for run in RESULTS[f'reinforce/{method}']['runs'][:3]]
  for method in ('internal', 'raw')
}


def lines(axis):
  """Heights of every labelled line of an axis, by label."""
  return {line.get_label(): np.asarray(line.get_ydata(), float) for line in axis.get_lines()}


def pretrained(nll, stages=((0.6, 0.2), (0.5, 0.1), (0.2, 0.1))):
  names = ('nll_by_stage', 'bayes_nll_by_stage', 'goal_nll_by_stage')
  curve = {'step': [0, 10, 20], 'eval/nll': nll, 'eval/bayes_nll': [0.26] * 3}
  run = {'curve': curve, 'bayes_nll': 0.3, 'goal_nll': 0.15}  # Of other episodes than the curve.
  return {**run, **dict(zip(names, stages, strict=True))}


def test_pretraining_shows_the_loss_its_floor_and_the_distance_between_them():
  run = pretrained([0.9, 0.5, 0.3])
  left, right, last = figures.pretraining([run]).axes
  for name, field in (('base model', 'nll'), ('Bayes predictor', 'bayes_nll')):
    np.testing.assert_allclose(lines(last)[name], run[f'{field}_by_stage'])
  np.testing.assert_allclose(lines(left)['base model'], [0.9, 0.5, 0.3])
  assert set(lines(left)['Bayes predictor (floor)']) == {0.26}
  assert set(lines(left)['told the goal']) == {0.15}
  np.testing.assert_allclose(right.get_lines()[0].get_ydata(), [0.64, 0.24, 0.04])
  assert right.get_yscale() == 'log'


def test_losses_after_a_turn_have_a_panel_where_they_were_measured():
  run = {'curve': {'step': [0, 10], 'eval/nll': [0.5, -0.2]}, 'nll_by_stage': [0.1, 0.2]}
  run |= {'nll_since_turn': [3.0, 1.0, -2.0], 'expert_nll_since_turn': [-8.0, -8.1, -8.2]}
  _, after, staged = figures.pretraining([run]).axes
  np.testing.assert_allclose(lines(after)['base model'], [3.0, 1.0, -2.0])
  np.testing.assert_allclose(lines(after)['expert, told the way'], [-8.0, -8.1, -8.2])
  np.testing.assert_allclose(after.get_lines()[0].get_xdata(), [0, 1, 2])
  np.testing.assert_allclose(lines(staged)['base model'], [0.1, 0.2])


def test_several_seeds_are_drawn_as_median_and_quartiles():
  runs = [pretrained([top, 0.5, 0.3]) for top in (0.9, 1.0, 1.3, 1.5, 2.0)]
  left = figures.pretraining(runs).axes[0]
  np.testing.assert_allclose(lines(left)['base model'], [1.3, 0.5, 0.3])
  (band,) = left.collections
  at_start = band.get_paths()[0].vertices
  at_start = at_start[at_start[:, 0] == 0, 1]
  assert (at_start.min(), at_start.max()) == pytest.approx((1.0, 1.5))


def test_a_world_without_floors_shows_the_loss_alone():
  run = {'curve': {'step': [0, 10], 'eval/nll': [0.5, -0.2]}}
  (axis,) = figures.pretraining([run]).axes
  assert list(lines(axis)) == ['base model']
  assert axis.get_ylim()[0] < -0.2


def probed(accuracy):
  return {
    'accuracy': accuracy,
    'bayes_accuracy': 0.8,
    'accuracy_by_step': [[0.1, 0.2], [0.3, 0.4], [0.2, 0.3]],
    'bayes_accuracy_by_step': [0.5, None],
  }


def test_probes_stand_beside_ceiling_and_chance_and_the_best_layer_is_followed_in_time():
  left, right = figures.probes([probed([0.3, 0.6, 0.5])], 0.25).axes
  np.testing.assert_allclose(lines(left)['linear probe'], [0.3, 0.6, 0.5])
  assert set(lines(left)['Bayes belief (ceiling)']) == {0.8}
  assert set(lines(left)['chance']) == {0.25}
  np.testing.assert_allclose(lines(right)['probe of layer 1'], [0.3, 0.4])
  np.testing.assert_allclose(lines(right)['Bayes belief'], [0.5, np.nan])


def test_layers_are_followed_through_pretraining_where_its_milestones_were_probed():
  kept = {'steps': [10, 100], 'accuracy': [[0.1, 0.2, 0.3], [0.3, 0.6, 0.5]]}
  runs = [probed([0.3, 0.6, 0.5]) | {'milestones': kept}, probed([0.3, 0.6, 0.5])]
  *_, axis = figures.probes(runs, 0.25).axes
  np.testing.assert_allclose(lines(axis)['layer 1'], [0.2, 0.6])
  assert axis.get_xscale() == 'log'


def test_the_layer_followed_in_time_is_best_in_the_median():
  runs = [probed(accuracy) for accuracy in ([0.3, 0.5, 0.9], [0.3, 0.5, 0.4], [0.3, 0.5, 0.4])]
  assert 'probe of layer 1' in lines(figures.probes(runs, 0.25).axes[1])


def bars(axis):
  """Layers, heights, and both ends of the bars of the unseen task."""
  line, _, (bar,) = axis.containers[0].lines
  ends = np.array([segment[:, 1] for segment in bar.get_segments()])
  return line.get_xdata(), np.asarray(line.get_ydata(), float), ends


def test_controllers_are_drawn_in_the_order_of_layers_with_their_standard_errors():
  rows = RESULTS['control']['layers'][::-1]
  layers, heights, ends = bars(figures.controllers([rows]).axes[0])
  np.testing.assert_array_equal(layers, [0, 1, 2, 3, 4])
  np.testing.assert_allclose(heights, [0.01, 0.21, 0.5, 0.4, 0.12])
  error = np.sqrt(0.25 / 2048)
  np.testing.assert_allclose(ends[2], [0.5 - error, 0.5 + error], rtol=1e-6)


def test_controllers_of_several_seeds_have_quartiles_for_bars():
  both = lambda success: {name: synthetic.outcome(success) for name in TASKS}
  runs = [[{'layer': 0, **both(success)}] for success in (0.1, 0.2, 0.4, 0.5, 0.9)]
  _, heights, ends = bars(figures.controllers(runs).axes[0])
  np.testing.assert_allclose(heights, [0.4])
  np.testing.assert_allclose(ends, [[0.2, 0.5]])


def test_gates_end_with_their_episode_and_true_changes_are_marked():
  beta = np.array([[1.0, 0.1, 0.9, 0.2], [1.0, 0.3, 0.5, 0.5]])
  segments = np.array([[0, 0, 1, 1], [0, 1, 1, 2]])
  mask = np.array([[True] * 4, [True, True, False, False]])
  first, second = figures.gates(beta, segments, segments, mask, 0.5).axes
  drawn = lambda axis: [line for line in axis.get_lines() if line.get_drawstyle() == 'steps-mid']
  marks = lambda axis: [
    line.get_xdata()[0] for line in axis.get_lines() if line.get_marker() == 'v'
  ]
  np.testing.assert_allclose(drawn(first)[0].get_ydata(), beta[0])
  np.testing.assert_allclose(drawn(second)[0].get_ydata(), beta[1, :2])
  assert (marks(first), marks(second)) == ([2], [1])


def test_the_sweep_orders_strengths_and_takes_the_median_over_seeds():
  rows = [synthetic.member(0.2, 0.1, 0.3, f1, 2.0) for f1 in (0.1, 0.5, 0.6)]
  rows.append(synthetic.member(0.1, 0.3, 0.2, 0.9, 3.0))
  plane, f1, count, _ = figures.kl_sweep(rows, base_nll=0.35).axes
  assert set(lines(plane)['uncontrolled']) == {0.35}
  np.testing.assert_allclose(lines(f1)['exact'], [0.9, 0.5])
  np.testing.assert_allclose(lines(count)['switches'], [3.0, 2.0])
  assert [label.get_text() for label in f1.get_xticklabels()] == ['0.1', '0.2']
  assert count.get_ylim()[1] > 3.05 and plane.get_xscale() == 'linear'
  rows.append(synthetic.member(0.0, 30.0, 0.1, 0.2, 9.0))
  assert figures.kl_sweep(rows).axes[0].get_xscale() == 'log'


def test_learning_curves_show_median_and_quartiles_on_both_axes():
  values = ([0.0, 0.2, 0.4], [0.0, 0.3, 0.6, 0.9], [0.0, 0.1, 0.5])
  seeds = [[{'episodes': i, 'success': s} for i, s in enumerate(row)] for row in values]
  linear, logarithmic = figures.learning_curves({'internal': seeds}).axes
  np.testing.assert_allclose(lines(linear)['internal RL (3 seeds)'], [0.0, 0.2, 0.5])
  np.testing.assert_allclose(lines(logarithmic)['internal RL (3 seeds)'], [0.0, 0.2, 0.5])
  singles = [line for line in logarithmic.get_lines() if line.get_label() == '_single']
  np.testing.assert_allclose(singles[2].get_ydata(), [0.0, 0.1, 0.5])
  (band,) = linear.collections
  reached = band.get_paths()[0].vertices
  assert reached[reached[:, 0] == 2, 1].min() == pytest.approx(0.45)
  assert reached[reached[:, 0] == 2, 1].max() == pytest.approx(0.55)


def places(axis, values):
  """Where values are on an axis: 0 at its foot, 1 at its top."""
  transform = axis.transData - axis.transAxes
  return [transform.transform((0, value))[1] for value in values]


def test_decades_are_equally_high_and_zero_has_a_place_below_the_smallest_success():
  curve = [{'episodes': i, 'success': s} for i, s in enumerate((0.0, 1e-3, 0.5))]
  axis = figures.learning_curves({'internal': [curve]}).axes[1]
  zero, *decades = places(axis, (0.0, 1e-3, 1e-2, 1e-1, 1.0))
  assert 0 < zero < decades[0] < decades[-1] == pytest.approx(1)
  np.testing.assert_allclose(np.diff(decades), decades[1] - decades[0])
  np.testing.assert_allclose(axis.get_yticks(), [0, 1e-3, 1e-2, 1e-1, 1])


def test_a_curve_without_any_success_lies_on_zero():
  curve = [{'episodes': i, 'success': 0.0} for i in range(3)]
  axis = figures.learning_curves({'internal': [curve]}).axes[1]
  assert set(lines(axis)['internal RL (1 seed)']) == {0.0}
  (zero,) = places(axis, [0.0])
  assert 0 < zero < 0.1


def test_an_imperfect_expert_is_the_level_that_learning_curves_are_held_against():
  curves = {'internal': [[{'episodes': 0, 'success': 0.1}]]}
  for axis in figures.learning_curves(curves, expert=[0.6, 0.7, 0.9]).axes:
    assert set(lines(axis)['expert']) == {0.7}
  assert 'expert' not in lines(figures.learning_curves(curves).axes[0])


def test_endings_are_shares_of_each_methods_own_episodes_stacked_by_colours_visited():
  ends = {
    'internal': {'success': [0, 0, 3], 'wrong colour': [1, 4, 0]},
    'raw': {'left the grid': [1, 0, 0], 'wrong colour': [1, 2, 0]},
  }
  internal, raw = figures.endings(ends, {'internal': 3, 'raw': 1}).axes
  heights = lambda axis: {
    group.get_label(): [bar.get_height() for bar in group] for group in axis.containers
  }
  assert heights(internal) == {'success': [0, 0, 3 / 8], 'wrong colour': [1 / 8, 1 / 2, 0]}
  assert heights(raw) == {'left the grid': [1 / 4, 0, 0], 'wrong colour': [1 / 4, 1 / 2, 0]}
  assert [bar.get_y() for bar in raw.containers[1]] == [1 / 4, 0, 0]
  colours = lambda axis: [group[0].get_facecolor() for group in axis.containers]
  assert colours(internal)[1] == colours(raw)[1] != colours(raw)[0]
  assert [axis.get_title('left') for axis in (internal, raw)] == [
    'internal RL, 3 runs',
    'raw-action RL, 1 run',
  ]


@pytest.mark.parametrize('world', [Gridworld, Ant])
def test_every_ending_has_a_colour_of_its_own(world):
  colours = [figures.ENDS[name] for name in world.endings.fget(None)]
  assert len(set(colours)) == len(colours)


def test_methods_stay_apart_without_colour_and_unknown_ones_get_a_look_of_their_own():
  curves = {**SEEDS, 'mine': SEEDS['raw'][:1], 'yours': SEEDS['raw'][:1]}
  lines_drawn = figures.learning_curves(curves).axes[0].get_lines()
  drawn = [line for line in lines_drawn if line.get_label() != '_single']
  assert len({line.get_linestyle() + str(line._unscaled_dash_pattern) for line in drawn}) == 4
  assert len({line.get_color() for line in drawn}) == 4
  assert drawn[2].get_label() == 'mine (1 seed)'


def test_a_png_is_an_image_large_enough_to_print():
  image = Image.open(io.BytesIO(figures.png(figures.learning_curves(SEEDS))))
  assert image.format == 'PNG'
  assert image.width > 1000


def test_drawing_leaves_global_settings_alone():
  before = dict(matplotlib.rcParams)
  figures.png(figures.controllers([RESULTS['control']['layers']]))
  assert dict(matplotlib.rcParams) == before
