"""Figures show the numbers they were given, beside the bounds they belong to."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from internal_rl.analysis import figures
from tests.analysis import synthetic

RESULTS = synthetic.results()
SEEDS = {
  method: [run['curve'] for run in RESULTS[f'reinforce/{method}']['runs'][:3]]
  for method in ('internal', 'raw')
}


def lines(axis):
  """Heights of every labelled line of an axis, by label."""
  return {line.get_label(): np.asarray(line.get_ydata(), float) for line in axis.get_lines()}


def test_pretraining_shows_the_loss_its_floor_and_the_distance_between_them():
  stages = [[0.6, 0.2], [0.5, 0.1], [0.2, 0.1]]
  left, right, last = figures.pretraining([0, 10, 20], [0.9, 0.5, 0.3], stages, 0.26, 0.15).axes
  names = ('base model', 'Bayes predictor', 'told the goal')
  for name, values in zip(names, stages, strict=True):
    np.testing.assert_allclose(lines(last)[name], values)
  np.testing.assert_allclose(lines(left)['base model'], [0.9, 0.5, 0.3])
  assert set(lines(left)['Bayes predictor (floor)']) == {0.26}
  assert set(lines(left)['told the goal']) == {0.15}
  np.testing.assert_allclose(right.get_lines()[0].get_ydata(), [0.64, 0.24, 0.04])
  assert right.get_yscale() == 'log'


def test_probes_stand_beside_ceiling_and_chance_and_the_best_layer_is_followed_in_time():
  by_step = [[0.1, 0.2], [0.3, 0.4], [0.2, 0.3]]
  left, right = figures.probes([0.3, 0.6, 0.5], 0.8, 0.25, by_step, [0.5, 0.9]).axes
  np.testing.assert_allclose(lines(left)['linear probe'], [0.3, 0.6, 0.5])
  assert set(lines(left)['Bayes belief (ceiling)']) == {0.8}
  assert set(lines(left)['chance']) == {0.25}
  np.testing.assert_allclose(lines(right)['probe of layer 1'], [0.3, 0.4])
  np.testing.assert_allclose(lines(right)['Bayes belief'], [0.5, 0.9])


def test_controllers_are_drawn_in_the_order_of_layers():
  rows = RESULTS['control']['layers'][::-1]
  (axis,) = figures.controllers(rows).axes
  unseen = axis.containers[0].lines[0]
  np.testing.assert_array_equal(unseen.get_xdata(), [0, 1, 2, 3, 4])
  heights = np.asarray(unseen.get_ydata(), float)
  np.testing.assert_allclose(heights, [0.01, 0.21, 0.5, 0.4, 0.12])


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


def test_learning_curves_show_median_and_quartiles_and_no_logarithm_of_zero():
  values = ([0.0, 0.2, 0.4], [0.0, 0.3, 0.6, 0.9], [0.0, 0.1, 0.5])
  seeds = [[{'episodes': i, 'success': s} for i, s in enumerate(row)] for row in values]
  linear, logarithmic = figures.learning_curves({'internal': seeds}).axes
  np.testing.assert_allclose(lines(linear)['internal RL (3 seeds)'], [0.0, 0.2, 0.5])
  np.testing.assert_allclose(lines(logarithmic)['internal RL (3 seeds)'], [np.nan, 0.2, 0.5])
  (band,) = linear.collections
  reached = band.get_paths()[0].vertices
  assert reached[reached[:, 0] == 2, 1].min() == pytest.approx(0.45)
  assert reached[reached[:, 0] == 2, 1].max() == pytest.approx(0.55)


def test_methods_stay_apart_without_colour_and_unknown_ones_get_a_look_of_their_own():
  curves = {**SEEDS, 'compile': SEEDS['raw'][:1], 'cotrain': SEEDS['raw'][:1]}
  drawn = figures.learning_curves(curves).axes[0].get_lines()
  assert len({line.get_linestyle() + str(line._unscaled_dash_pattern) for line in drawn}) == 4
  assert len({line.get_color() for line in drawn}) == 4
  assert drawn[2].get_label() == 'compile (1 seed)'


def test_a_png_is_an_image_large_enough_to_print():
  image = Image.open(io.BytesIO(figures.png(figures.learning_curves(SEEDS))))
  assert image.format == 'PNG'
  assert image.width > 1000


def test_drawing_leaves_global_settings_alone():
  before = dict(matplotlib.rcParams)
  figures.png(figures.controllers(RESULTS['control']['layers']))
  assert dict(matplotlib.rcParams) == before
