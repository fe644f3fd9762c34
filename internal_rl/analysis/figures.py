"""The paper's figures, drawn from what the stages wrote.

Every function takes plain numbers and returns a `Figure` that belongs to nobody else; pyplot and
its global state stay out of it.
"""

import functools
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from internal_rl.envs.canvas import PALETTE

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
METHODS: dict[str, tuple[str, str, Any]] = {
  'internal': ('internal RL', BLUE, '-'),
  'raw': ('raw-action RL', RED, '--'),
  'forced': ('forced switching', GREEN, '-.'),
  'cotrain': ('co-training', PINK, ':'),
  'compile': ('CompILE', ORANGE, (0, (5, 1))),
}
_SPARE = ((MUTED, (0, (1, 1))), (INK, (0, (3, 1, 1, 1))))
ENDS = {
  'success': GREEN,
  'wrong colour': RED,
  'time is up': ORANGE,
  'fell': BLUE,
  'jumped too high': PINK,
  'walked into a wall': INK,
  'left the grid': MUTED,
  'simulation blew up': '#56B4E9',
}
FEW = 10  # Seeds, up to which each is drawn.


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


def method_name(method: str) -> str:
  """Returns what a method of reinforcement is called in figures and tables."""
  return METHODS[method][0] if method in METHODS else method


def _seeds(rows: Sequence[Any]) -> str:
  return f'{len(rows)} seed{"s" if len(rows) > 1 else ""}'


def _band(
  axis, x: Sequence[Number], rows: Sequence[Any], positive: bool = False, **look: Any
) -> None:
  """Draws the median of `rows`, one a seed, and between their quartiles a band.

  Rows end with the shortest of them and of `x`. With `positive` other values leave a gap, as a
  logarithmic axis has no place for them.
  """
  points = min(len(x), *map(len, rows))
  values = np.array([list(row)[:points] for row in rows], float)
  low, median, high = np.percentile(values, (25, 50, 75), axis=0)
  if positive:
    low, median, high = (np.where(line > 0, line, np.nan) for line in (low, median, high))
  axis.plot(x[:points], median, **look)
  if len(rows) > 1:
    axis.fill_between(x[:points], low, high, color=look['color'], alpha=0.18, linewidth=0)


def _column(runs: Sequence[Row], name: str) -> list[Any]:
  """Returns one field of every run, or nothing where a world does not have it."""
  return [run[name] for run in runs if name in run]


def _level(axis, values: Sequence[Number], colour: str, style: str, label: str) -> None:
  """Draws the median of a bound that every seed has measured, if any has."""
  if values:
    axis.axhline(float(np.median(values)), color=colour, linestyle=style, label=label)


@_styled
def pretraining(runs: Sequence[Row]) -> Figure:
  """The base model's loss against the best that is possible: how much is left to learn, and where.

  Args:
    runs: one a seed, each with `curve`, which has `step` (updates) and `eval/nll` (held-out action
      loss, nats a step). Where the floors are known it also has `eval/bayes_nll`, the loss of the
      Bayes predictor on the same episodes, and the run `goal_nll`, of one told the goal, or
      `expert_nll`, of the expert. With `nll_by_stage` and the like a panel shows the loss on the
      way to the 1st, 2nd, .. colour of a task, with `nll_since_turn` one 0, 1, .. steps after a
      turn.
  """
  floors = _column(_column(runs, 'curve'), 'eval/bayes_nll')
  staged = bool(_column(runs, 'nll_by_stage'))
  turned = bool(_column(runs, 'nll_since_turn'))
  figure, axes = _panels(1 + bool(floors) + staged + turned)
  steps = runs[0]['curve']['step']
  nll = [run['curve']['eval/nll'] for run in runs]
  _band(axes[0], steps, nll, color=BLUE, label='base model')
  _level(axes[0], [np.mean(floor) for floor in floors], INK, '--', 'Bayes predictor (floor)')
  _level(axes[0], _column(runs, 'goal_nll'), MUTED, ':', 'told the goal')
  _level(axes[0], _column(runs, 'expert_nll'), INK, '--', 'expert, told the way')
  axes[0].set(xlabel='updates', ylabel='action loss, nats a step', title='Pretraining')
  axes[0].legend()
  if floors:
    axes[0].set_ylim(0)
    excess = [np.subtract(row, floor) for row, floor in zip(nll, floors, strict=True)]
    _band(axes[1], steps, excess, positive=True, color=BLUE)
    axes[1].set_yscale('log')
    axes[1].set(
      xlabel='updates', ylabel='above the floor, nats a step', title='Distance to the floor'
    )
  rest = iter(axes[1 + bool(floors) :])
  if turned:
    _grouped_losses(axis := next(rest), runs, 'since_turn', 0)
    axis.set(xlabel="steps since the way on from the ant's cell changed", title='After a turn')
    axis.legend()
  if staged:
    _grouped_losses(axis := next(rest), runs, 'by_stage', 1)
    axis.set(xlabel='colour on the way to', title='By stage')
    low, high = axis.get_ylim()
    axis.set_ylim(0 if floors else low, high + 0.5 * (high - low))  # Room for the legend.
    axis.legend(loc='upper right')
  for axis in axes[: 1 + bool(floors)]:
    axis.locator_params(axis='x', nbins=4)
  return figure


def _grouped_losses(axis, runs: Sequence[Row], group: str, first: int) -> None:
  """Draws losses by group, the groups being numbered from `first`."""
  for marker, style, colour, label, name in (
    ('o', '-', BLUE, 'base model', 'nll'),
    ('s', '--', INK, 'Bayes predictor', 'bayes_nll'),
    ('^', ':', MUTED, 'told the goal', 'goal_nll'),
    ('s', '--', INK, 'expert, told the way', 'expert_nll'),
  ):
    if rows := _column(runs, f'{name}_{group}'):
      numbers = range(first, first + len(rows[0]))
      _band(axis, numbers, rows, color=colour, label=label, marker=marker, linestyle=style)
  axis.set_ylabel('action loss, nats a step')
  _integer_axis(axis.xaxis)


@_styled
def probes(runs: Sequence[Row], chance: Number) -> Figure:
  """Figs. 3 and A1: how well each layer's linear probe names the subgoal in force.

  Args:
    runs: one a seed, each with `accuracy`, of each layer, and `accuracy_by_step`, of each layer at
      each step of an episode, NaN where none was that long. Where the Bayes belief is known, which
      no probe can beat on average, also `bayes_accuracy` and `bayes_accuracy_by_step`. Where base
      models were kept on the way, `milestones`, with their `steps` (updates) and `accuracy`, of
      each layer for each of them; the last is the run's own.
    chance: of a blind guess.
  """
  staged = bool(_column(runs, 'accuracy_by_step'))
  kept = _column(runs, 'milestones')
  figure, axes = _panels(1 + staged + bool(kept))
  accuracy = _column(runs, 'accuracy')
  _band(axes[0], range(len(accuracy[0])), accuracy, color=BLUE, marker='o', label='linear probe')
  _level(axes[0], _column(runs, 'bayes_accuracy'), INK, '--', 'Bayes belief (ceiling)')
  axes[0].set(xlabel='layer', ylabel='accuracy', title='Subgoal decoded, by layer', ylim=(0, 1))
  if staged:
    best = int(np.median(accuracy, 0).argmax())
    by_step = [rows[best] for rows in _column(runs, 'accuracy_by_step')]
    time = range(len(by_step[0]))
    _band(axes[1], time, by_step, color=BLUE, label=f'probe of layer {best}')
    if rows := _column(runs, 'bayes_accuracy_by_step'):
      _band(axes[1], time, rows, color=INK, linestyle='--', label='Bayes belief')
    axes[1].set(xlabel='step of the episode', title='... and within an episode', ylim=(0, 1.02))
  for axis in axes:
    _level(axis, [chance], MUTED, ':', 'chance')
  for axis in axes[: 1 + staged]:
    _integer_axis(axis.xaxis)
  if kept:
    _by_updates(axes[-1], kept)
  for axis in axes:
    axis.legend()
  return figure


def _by_updates(axis, kept: Sequence[Row]) -> None:
  """Draws every layer's accuracy against the length of pretraining, darker the later the layer."""
  steps = kept[0]['steps'][:-1]
  kept = [run for run in kept if run['steps'][:-1] == steps]  # Their best may come at any step.
  last = np.median([run['steps'][-1] for run in kept])
  layers = len(kept[0]['accuracy'][0])
  named = {0, layers // 2, layers - 1} if layers > 6 else range(layers)
  for layer in range(layers):
    rows = [[accuracy[layer] for accuracy in run['accuracy']] for run in kept]
    colour = matplotlib.colormaps['viridis_r'](0.1 + 0.9 * layer / max(layers - 1, 1))
    label = f'layer {layer}' if layer in named else None
    _band(axis, [*steps, last], rows, color=colour, marker='.', label=label)
  axis.set(xlabel='updates of pretraining', title='... and on the way', ylim=(0, 1), xscale='log')
  axis.minorticks_off()
  axis.set_xticks([*steps, last], [f'{step:,.0f}' for step in (*steps, last)])


@_styled
def controllers(runs: Sequence[Sequence[Row]]) -> Figure:
  """Fig. 4: success when labelled controllers act at one layer and the truth switches them.

  Bars are the standard error over episodes of a single run, or the quartiles of several.

  Args:
    runs: one a seed: rows with `layer`, `pretraining` and `post_training`, the latter two with
      `success` and `error`.
  """
  figure, (axis,) = _panels(1)
  runs = [sorted(run, key=lambda row: row['layer']) for run in runs]
  names = [row['layer'] for row in runs[0]]
  for task, label, colour, style in (
    ('post_training', 'unseen task', BLUE, 'o-'),
    ('pretraining', 'pretraining tasks', MUTED, 's--'),
  ):
    success = [[row[task]['success'] for row in run] for run in runs]
    low, middle, high = np.percentile(success, (25, 50, 75), axis=0)
    error: Any = np.stack([middle - low, high - middle])
    if len(runs) == 1:
      error = [row[task]['error'] for row in runs[0]]
    axis.errorbar(names, middle, error, fmt=style, color=colour, capsize=3, label=label)
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
  title = 'Switching gate β; background: true subgoal, triangles: the next begins'
  axes[0].set_title(title, pad=18)
  axes[rows // 2].set_ylabel('β')
  axes[-1].set_xlabel('step of the episode')
  _integer_axis(axes[-1].xaxis)
  return figure


@_styled
def kl_sweep(members: Sequence[Row], base_nll: Number | None = None) -> Figure:
  """Fig. 7's form: rate against distortion over KL strengths, and where the switches fall.

  Args:
    members: rows with `alpha`, `kl`, `nll`, `switches`, `true_switches` and `f1_tolerance_0`, other
      tolerances beside it. Seeds of one strength are dots, their median a line.
    base_nll: loss of the uncontrolled model, that is at rate zero.
  """
  figure, (plane, f1, count) = _panels(3, width=3.4)
  members = sorted(members, key=lambda row: row['alpha'])
  column = lambda name: np.array([row[name] for row in members], float)
  dots = plane.scatter(
    column('kl'), column('nll'), 60, column('f1_tolerance_0'), cmap='viridis', vmin=0, vmax=1
  )
  figure.colorbar(dots, ax=plane, label='switch F1')
  rates, losses = (medians(members, name) for name in ('kl', 'nll'))
  plane.plot(list(rates.values()), list(losses.values()), color=MUTED, linewidth=1, zorder=0.5)
  for alpha in rates:
    place = (rates[alpha], losses[alpha])
    plane.annotate(f'{alpha:g}', place, (5, 5), textcoords='offset points', fontsize=8)
  if base_nll is not None:
    plane.axhline(base_nll, color=INK, linestyle='--', linewidth=1, label='uncontrolled')
    plane.legend()
  if 0 < min(rates.values()) < max(rates.values()) / 20:  # Without any cost codes carry many nats.
    plane.set_xscale('log')
  plane.margins(x=0.15)  # Room for the numbers.
  plane.set(xlabel='rate: KL, nats a step', ylabel='distortion: nats a step', title='By strength α')
  looks = itertools.cycle([(BLUE, 'o-'), (MUTED, 's--')])
  for tolerance, (colour, style) in zip(tolerances(members[0]), looks, strict=False):
    label = f'within {tolerance}' if tolerance else 'exact'
    _by_alpha(f1, members, f'f1_tolerance_{tolerance}', label, colour, style)
  f1.set(xlabel='KL strength α', ylabel='F1', title='Switches match subgoals', ylim=(0, 1.03))
  f1.legend()
  _by_alpha(count, members, 'switches', 'switches', BLUE, 'o-')
  true = column('true_switches').mean()
  count.axhline(true, color=INK, linestyle='--', label='subgoal changes')
  count.set(xlabel='KL strength α', ylabel='an episode', title='How many')
  count.set_ylim(0, 1.1 * max(true, column('switches').max()))
  count.legend()
  return figure


def tolerances(row: Row) -> list[int]:
  """Returns the distances in steps within which switches counted as aligned, in order."""
  start = 'f1_tolerance_'
  return sorted(int(name.removeprefix(start)) for name in row if name.startswith(start))


def medians(members: Sequence[Row], name: str) -> dict[float, float]:
  """Returns the median over seeds by KL strength, in order."""
  alphas = sorted({row['alpha'] for row in members})
  of = lambda alpha: [row[name] for row in members if row['alpha'] == alpha]
  return {alpha: float(np.median(of(alpha))) for alpha in alphas}


def _by_alpha(axis, members: Sequence[Row], name: str, label: str, colour: str, style: str) -> None:
  """Seeds as dots, their median as a line; alphas evenly spaced, since 0 is among them."""
  middle = medians(members, name)
  places = {alpha: place for place, alpha in enumerate(middle)}
  dots = [(places[row['alpha']], row[name]) for row in members]
  axis.plot(*zip(*dots, strict=True), '.', color=INK, alpha=0.6, zorder=3)
  axis.plot(list(places.values()), list(middle.values()), style, color=colour, label=label)
  axis.set_xticks(list(places.values()), [f'{alpha:g}' for alpha in places])


@_styled
def endings(ends: Mapping[str, Mapping[str, Sequence[int]]], runs: Mapping[str, int]) -> Figure:
  """Where episodes end, and why.

  Args:
    ends: for each method, for every ending how many episodes came to it after 0, 1, ... colours.
    runs: for each method, of how many runs these are.
  """
  figure, axes = _panels(len(ends), width=3.6, sharey=True)
  for axis, (method, found) in zip(axes, ends.items(), strict=True):
    shares = np.array(list(found.values())) / max(sum(map(sum, found.values())), 1)
    below = np.cumsum(shares, 0) - shares
    for name, share, bottom in zip(found, shares, below, strict=True):
      axis.bar(range(len(share)), share, bottom=bottom, color=ENDS[name], label=name)
    count = f'{runs[method]} run{"s" if runs[method] > 1 else ""}'
    axis.set(title=f'{method_name(method)}, {count}', xlabel='colours visited')
    _integer_axis(axis.xaxis)
    axis.legend()
  axes[0].set_ylabel('share of episodes')
  return figure


@_styled
def learning_curves(
  curves: Mapping[str, Sequence[Sequence[Row]]], expert: Sequence[Number] = ()
) -> Figure:
  """Figs. 8 and A5: success against episodes, linear and logarithmic.

  Lines are medians over seeds, bands their quartiles; where seeds are few, thin lines show each.

  Args:
    curves: for each method its seeds' curves, each of rows with `episodes` and `success`. Below the
      smallest success that is not zero the logarithmic axis is linear, so that zero is on it.
    expert: success of the expert on this task, one a seed, where it is not perfect: what Fig. 8
      counts as 1.
  """
  figure, axes = _panels(2, width=4.2, height=3.4)
  spare = iter(_SPARE)
  for method, seeds in curves.items():
    name, colour, dashes = METHODS.get(method) or (method, *next(spare, _SPARE[-1]))
    episodes = [row['episodes'] for row in seeds[0]]
    success = [[row['success'] for row in curve] for curve in seeds]
    label = f'{name} ({_seeds(seeds)})'
    for axis in axes:
      _band(axis, episodes, success, color=colour, linestyle=dashes, label=label)
      for single in success if 1 < len(success) <= FEW else ():
        points = min(len(episodes), len(single))
        axis.plot(episodes[:points], single[:points], color=colour, linewidth=0.6, label='_single')
  if expert:
    for axis in axes:
      _level(axis, expert, INK, ':', 'expert')
  axes[0].set(title='Reinforcement on the unseen task', ylim=(0, 1), ylabel='success')
  values = [row['success'] for seeds in curves.values() for curve in seeds for row in curve]
  least = min([value for value in values if value > 0], default=1e-4)
  axes[1].set_yscale('symlog', linthresh=least, linscale=0.3)
  axes[1].set(title='... on a logarithmic axis, and zero', ylim=(-0.2 * least, 1))
  axes[1].minorticks_off()
  axes[1].set_yticks([0, *10.0 ** np.arange(np.ceil(np.log10(least)), 1)])
  axes[0].legend()
  for axis in axes:
    axis.set_xlabel('episodes')
    axis.ticklabel_format(axis='x', scilimits=(-3, 4))
  return figure
