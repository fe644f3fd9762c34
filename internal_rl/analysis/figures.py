"""The paper's figures, drawn from what the stages wrote.

Every function takes plain numbers and returns a `Figure` that belongs to nobody else; pyplot and
its global state stay out of it.
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from internal_rl.analysis.switching import widest
from internal_rl.envs.render import PALETTE

Row = Mapping[str, Any]
Number = float | int

STYLE: Any = {
  'font.size': 10,
  'axes.titlesize': 11,
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#e6e6ea',
  'grid.linewidth': 0.8,
  'lines.linewidth': 2,
  'lines.markersize': 6,
  'legend.frameon': False,
  'savefig.dpi': 192,
  'figure.facecolor': 'white',
}
INK, MUTED = '#1b1b1f', '#74747c'
BLUE, ORANGE, GREEN, RED, PINK = '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7'
# A method keeps its colour and its dashes in every figure; others take what is left.
METHODS = {
  'internal': ('internal RL', BLUE, '-'),
  'raw': ('raw-action RL', RED, '--'),
}
_SPARE = ((GREEN, '-.'), (PINK, ':'), (ORANGE, (0, (5, 1))), (MUTED, (0, (1, 1))))


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
  @functools.wraps(draw)
  def wrapped(*args, **kwargs):
    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  return wrapped


def _panels(columns: int = 1, width: float = 3.9, height: float = 3.2, **kwargs):
  figure = Figure((width * columns + 0.6, height), layout='constrained')
  return figure, figure.subplots(1, columns, squeeze=False, **kwargs)[0]


def _integer_axis(axis) -> None:
  axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def png(figure: Figure) -> bytes:
  """Returns a figure as a PNG file."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=STYLE['savefig.dpi'], facecolor='white')
  return buffer.getvalue()


@_styled
def pretraining(
  steps: Sequence[Number],
  nll: Sequence[Number],
  by_stage: Sequence[Sequence[Number]],
  bayes_nll: Number | None = None,
  goal_nll: Number | None = None,
) -> Figure:
  """The base model's loss against the best that is possible: how much is left to learn, and where.

  Args:
    steps: updates at which the model was evaluated.
    nll: held-out action loss, nats a step.
    by_stage: final loss on the way to the 1st, 2nd, .. colour of a task: the model's and, where
      there are any, the floors'.
    bayes_nll: loss of the Bayes predictor on the same episodes; None where nobody knows it.
    goal_nll: that of the predictor that is told the goal.
  """
  figure, (left, *right, last) = _panels(2 if bayes_nll is None else 3)
  left.plot(steps, nll, color=BLUE, label='base model')
  left.set(xlabel='updates', ylabel='action loss, nats a step', title='Pretraining')
  if bayes_nll is not None:
    left.axhline(bayes_nll, color=INK, linestyle='--', label='Bayes predictor (floor)')
    left.axhline(goal_nll, color=MUTED, linestyle=':', label='told the goal')
    left.set_ylim(0)
    last.set_ylim(0)
    _distance(right[0], steps, np.asarray(nll, float) - bayes_nll)
  left.legend()
  looks: Any = (
    ('o-', BLUE, 'base model'),
    ('s--', INK, 'Bayes predictor'),
    ('^:', MUTED, 'told the goal'),
  )
  for (look, colour, label), values in zip(looks, by_stage, strict=False):
    last.plot(range(1, len(values) + 1), values, look, color=colour, label=label)
  last.set(xlabel='colour on the way to', ylabel='action loss, nats a step', title='By stage')
  _integer_axis(last.xaxis)
  last.legend()
  return figure


def _distance(axis, steps: Sequence[Number], excess: np.ndarray) -> None:
  axis.plot(steps, np.where(excess > 0, excess, np.nan), color=BLUE)
  axis.set_yscale('log')
  axis.set(xlabel='updates', ylabel='above the floor, nats a step', title='Distance to the floor')


@_styled
def probes(
  accuracy: Sequence[Number],
  bayes_accuracy: Number | None,
  chance: Number,
  accuracy_by_step: Sequence[Sequence[Number]] | None = None,
  bayes_by_step: Sequence[Number] | None = None,
) -> Figure:
  """Figs. 3 and A1: how well each layer's linear probe names the subgoal in force.

  Args:
    accuracy: of each layer.
    bayes_accuracy: of the exact Bayes belief, which no probe can beat on average; None where nobody
      knows it.
    chance: of a blind guess.
    accuracy_by_step: of each layer at each step of an episode, NaN where none was that long.
    bayes_by_step: of the Bayes belief at each step.
  """
  figure, axes = _panels(1 if accuracy_by_step is None else 2)
  axes[0].plot(range(len(accuracy)), accuracy, 'o-', color=BLUE, label='linear probe')
  if bayes_accuracy is not None:
    axes[0].axhline(bayes_accuracy, color=INK, linestyle='--', label='Bayes belief (ceiling)')
  axes[0].axhline(chance, color=MUTED, linestyle=':', label='chance')
  axes[0].set(xlabel='layer', ylabel='accuracy', title='Subgoal decoded, by layer', ylim=(0, 1))
  _integer_axis(axes[0].xaxis)
  axes[0].legend()
  if accuracy_by_step is not None:
    best = int(np.argmax(accuracy))
    axes[1].plot(accuracy_by_step[best], color=BLUE, label=f'probe of layer {best}')
    if bayes_by_step is not None:
      axes[1].plot(bayes_by_step, color=INK, linestyle='--', label='Bayes belief')
    axes[1].axhline(chance, color=MUTED, linestyle=':')
    axes[1].set(xlabel='step of the episode', title='... and within an episode', ylim=(0, 1.02))
    _integer_axis(axes[1].xaxis)
    axes[1].legend()
  return figure


@_styled
def controllers(layers: Sequence[Row]) -> Figure:
  """Fig. 4: success when labelled controllers act at one layer and the truth switches them.

  Args:
    layers: rows with `layer`, `pretraining` and `post_training`, the latter two with `success` and
      `error`.
  """
  figure, (axis,) = _panels(1)
  layers = sorted(layers, key=lambda row: row['layer'])
  names = [row['layer'] for row in layers]
  for task, label, colour, style in (
    ('post_training', 'unseen task', BLUE, 'o-'),
    ('pretraining', 'pretraining tasks', MUTED, 's--'),
  ):
    success = [row[task]['success'] for row in layers]
    error = [row[task]['error'] for row in layers]
    axis.errorbar(names, success, error, fmt=style, color=colour, capsize=3, label=label)
  axis.set(xlabel='controlled layer', ylabel='success', title='Labelled controllers', ylim=(0, 1))
  _integer_axis(axis.xaxis)
  axis.legend()
  return figure


@_styled
def gates(
  beta: np.ndarray, subgoals: np.ndarray, segments: np.ndarray, mask: np.ndarray, threshold: Number
) -> Figure:
  """Figs. 6 and A3: the switching gate along held-out demonstrations, over the true subgoals.

  Args:
    beta: `[b, t]`, mean over gates.
    subgoals: `[b, t]`, true subgoal in force: background.
    segments: `[b, t]`, steps up where one begins: triangles.
    mask: `[b, t]`.
    threshold: from which on internal RL switches.
  """
  beta, mask = np.asarray(beta), np.asarray(mask)
  rows = len(beta)
  longest = max(int(mask.sum(1).max()), 1)
  figure = Figure((8.0, 0.8 * rows + 1.1), layout='constrained')
  axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
  for i, axis in enumerate(axes):
    length = int(mask[i].sum())
    for t in range(length):
      colour = PALETTE[int(subgoals[i][t]) % len(PALETTE)]
      axis.axvspan(t - 0.5, t + 0.5, color=colour, alpha=0.28, linewidth=0)
    for t in np.flatnonzero(np.diff(segments[i][:length])) + 1:
      axis.plot(t, 1.2, 'v', color=RED, markersize=5, clip_on=False)
    axis.axhline(threshold, color=MUTED, linestyle=':', linewidth=1)
    axis.step(range(length), beta[i][:length], where='mid', color=INK, linewidth=1.6)
    axis.set(ylim=(-0.06, 1.06), yticks=(0, 1), xlim=(-0.5, longest - 0.5))
    axis.grid(visible=False)
  axes[0].set_title('Switching gate β; background: true subgoal, triangles: it changes', pad=12)
  axes[rows // 2].set_ylabel('β')
  axes[-1].set_xlabel('step of the episode')
  _integer_axis(axes[-1].xaxis)
  return figure


@_styled
def kl_sweep(members: Sequence[Row], base_nll: Number | None = None) -> Figure:
  """Fig. 7's form: rate against distortion over KL strengths, and where the switches fall.

  Args:
    members: rows with `alpha`, `kl`, `nll`, `switches`, `true_switches` and `f1_tolerance_*`,
      at 0 and other steps.
    base_nll: loss of the uncontrolled model, that is at rate zero.
  """
  figure, (plane, f1, count) = _panels(3, width=3.4)
  members = sorted(members, key=lambda row: row['alpha'])
  column = lambda name: np.array([row[name] for row in members], float)
  plane.plot(column('kl'), column('nll'), color=MUTED, linewidth=1)
  dots = plane.scatter(
    column('kl'), column('nll'), 60, column('f1_tolerance_0'), cmap='viridis', vmin=0, vmax=1
  )
  figure.colorbar(dots, ax=plane, label='switch F1')
  for row in members:
    plane.annotate(
      f'{row["alpha"]:g}', (row['kl'], row['nll']), (5, 5), textcoords='offset points', fontsize=8
    )
  if base_nll is not None:
    plane.axhline(base_nll, color=INK, linestyle='--', linewidth=1, label='uncontrolled')
    plane.legend()
  plane.set(xlabel='rate: KL, nats a step', ylabel='distortion: nats a step', title='By strength α')
  _by_alpha(f1, members, 'f1_tolerance_0', 'exact', BLUE, 'o-')
  field, within = widest(members[0])
  _by_alpha(f1, members, field, f'within {within}', MUTED, 's--')
  f1.set(xlabel='KL strength α', ylabel='F1', title='Switches match subgoals', ylim=(0, 1.03))
  f1.legend()
  _by_alpha(count, members, 'switches', 'switches', BLUE, 'o-')
  true = column('true_switches').mean()
  count.axhline(true, color=INK, linestyle='--', label='subgoal changes')
  count.set(xlabel='KL strength α', ylabel='an episode', title='How many')
  count.set_ylim(0)
  count.legend()
  return figure


def _by_alpha(axis, members: Sequence[Row], name: str, label: str, colour: str, style: str) -> None:
  """Seeds as dots, their median as a line; alphas evenly spaced, since 0 is among them."""
  alphas = sorted({row['alpha'] for row in members})
  values = [[row[name] for row in members if row['alpha'] == alpha] for alpha in alphas]
  for place, dots in enumerate(values):
    axis.plot([place] * len(dots), dots, '.', color=colour, alpha=0.4)
  median = [np.median(dots) for dots in values]
  axis.plot(range(len(alphas)), median, style, color=colour, label=label)
  axis.set_xticks(range(len(alphas)), [f'{alpha:g}' for alpha in alphas])


@_styled
def learning_curves(curves: Mapping[str, Sequence[Sequence[Row]]]) -> Figure:
  """Figs. 8 and A5: success against episodes, linear and logarithmic.

  Lines are medians over seeds, bands their quartiles.

  Args:
    curves: for each method its seeds' curves, each of rows with `episodes` and `success`. Success
      of exactly zero has no place on the logarithmic axis and leaves a gap there.
  """
  figure, axes = _panels(2, width=4.2, height=3.4)
  spare = iter(_SPARE)
  for method, seeds in curves.items():
    name, colour, dashes = METHODS.get(method) or (method, *next(spare, _SPARE[-1]))
    points = min(map(len, seeds))
    episodes = [row['episodes'] for row in seeds[0][:points]]
    success = np.array([[row['success'] for row in curve[:points]] for curve in seeds], float)
    low, median, high = np.percentile(success, (25, 50, 75), axis=0)
    label = f'{name} ({len(seeds)} seed{"s" if len(seeds) > 1 else ""})'
    for axis, bounded in ((axes[0], lambda x: x), (axes[1], lambda x: np.where(x > 0, x, np.nan))):
      axis.plot(episodes, bounded(median), color=colour, linestyle=dashes, label=label)
      if len(seeds) > 1:
        axis.fill_between(episodes, bounded(low), bounded(high), color=colour, alpha=0.18)
  axes[0].set(title='Reinforcement on the unseen task', ylim=(0, 1), ylabel='success')
  axes[1].set(title='... on a logarithmic axis')
  axes[1].set_yscale('log')
  values = [row['success'] for seeds in curves.values() for curve in seeds for row in curve]
  axes[1].set_ylim(0.5 * min([value for value in values if value > 0], default=2e-4), 1)
  axes[1].set_xlim(axes[0].get_xlim())  # Also where nothing ever succeeded.
  axes[0].legend()
  for axis in axes:
    axis.set_xlabel('episodes')
    axis.ticklabel_format(axis='x', scilimits=(-3, 4))
  return figure
