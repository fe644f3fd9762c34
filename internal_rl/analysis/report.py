"""One self-contained page about a run: `render(...)` returns HTML that needs no other file."""

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from internal_rl.analysis import diagnosis, switching

Result = Mapping[str, Any]
_PAPER = {
  'gridworld': '7 × 7 cells, 8 colours and 4 walls, its transformer 6 blocks of width 256',
  'ant': '4 × 4 cells, 4 colours and 1 wall, its Hawk model 8 blocks of width 256',
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --muted: #63636b; --paper: #fff; --card: #f6f6f8;
  --line: #dcdce2; --good: #006d4f; --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e9ee; --muted: #a3a3ad; --paper: #16161a;
  --card: #202026; --line: #393942; --good: #4cc79c; --bad: #ffa04d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 0.6rem; }
p, li { max-width: 44rem; }
.muted, figcaption { color: var(--muted); font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 0.45rem 0.8rem 0.45rem 0;
  border-bottom: 1px solid var(--line); }
td.number { font-variant-numeric: tabular-nums; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; margin: 1rem 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
ul.findings { list-style: none; padding: 0; }
ul.findings li { background: var(--card); border-left: 4px solid var(--good);
  padding: 0.5rem 0.8rem; margin: 0.5rem 0; border-radius: 0 6px 6px 0; max-width: none; }
ul.findings li.bad { border-color: var(--bad); }
.verdict { font-weight: 600; color: var(--good); } .bad .verdict { color: var(--bad); }
figure { margin: 1.2rem 0 2rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; }
.episodes { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr));
  gap: 1.2rem; }
.episodes figure { margin: 0; }
code { font-size: 0.88em; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  img.plot { max-width: 40rem; }
  thead { display: none; } tr { display: block; padding: 0.6rem 0; }
  tr { border-bottom: 1px solid var(--line); } td { display: block; border: 0; padding: 0.1rem 0; }
  td.none { display: none; } td:not(.claim)::before { content: attr(data-name) ": ";
    color: var(--muted); font-weight: 400; }
}
"""


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image and what it shows.

  Attributes:
    data: a PNG or GIF file.
    title: for those who cannot see it.
    caption: what one sees, at which scale, from how many seeds.
  """

  data: bytes
  title: str
  caption: str


@dataclasses.dataclass(frozen=True)
class Number:
  """A row of the table.

  Attributes:
    claim: what is measured.
    measured: this run's number.
    bound: the exact floor or ceiling in this world, or what else to compare with.
    paper: what the paper reports, in its own world and scale.
  """

  claim: str
  measured: str
  bound: str = ''
  paper: str = ''


def rate(outcome: Mapping[str, Any]) -> str:
  """Returns a success rate with its standard error, or a bound where nothing ever succeeded."""
  episodes = outcome['episodes']
  if not episodes:
    return 'no episodes'
  if outcome['success'] == 0:
    return f'0 of {episodes} (below {3 / episodes:.1g} at 95 %)'
  digits = 3 if outcome['error'] >= 1e-3 else 5
  return f'{outcome["success"]:.{digits}f} ± {outcome["error"]:.{digits}f}'


def numbers(results: Mapping[str, Result]) -> list[Number]:
  """Returns the table's rows for the stages that are there."""
  makers = {
    'pretrain': _pretrain_numbers,
    'probe': _probe_numbers,
    'control': _control_numbers,
    'discover': _discover_numbers,
    'evaluate': _evaluate_numbers,
    'reinforce/internal': _internal_numbers,
  }
  rows = [row for stage, make in makers.items() if stage in results for row in make(results[stage])]
  for stage, result in results.items():
    if stage.startswith('reinforce/') and stage != 'reinforce/internal':
      name = 'raw-action RL' if stage.endswith('/raw') else stage.split('/')[1]
      paper = 'stays near 0' if stage.endswith('/raw') else ''
      rows.append(Number(f'Unseen task: {name}, at the end', _final(result), '', paper))
  return rows


def _pretrain_numbers(result: Result) -> list[Number]:
  bound = ''
  if 'bayes_nll' in result:
    bound = (
      f'floor {result["bayes_nll"]:.3f} (Bayes predictor); '
      f'{result["goal_nll"]:.3f} if told the goal'
    )
  return [Number('Base model: action loss, nats a step', f'{result["nll"]:.3f}', bound)]


def _probe_numbers(result: Result) -> list[Number]:
  return [
    Number(
      f'Subgoal decoded by a linear probe, best layer ({result["best_layer"]})',
      f'{result["best_accuracy"]:.3f}',
      _probe_bound(result),
      'about 0.3 at layer 0, 0.5 mid-depth, up to 0.6 (Figs. 3, A1)',
    )
  ]


def _probe_bound(result: Result) -> str:
  if 'bayes_accuracy' in result:
    return f'ceiling {result["bayes_accuracy"]:.3f} (Bayes belief)'
  return f'{result["majority"]:.3f} by naming the most frequent one'


def _control_numbers(result: Result) -> list[Number]:
  best = next(row for row in result['layers'] if row['layer'] == result['best_layer'])
  return [
    Number(
      f'Unseen task: labelled controllers switched by the truth, layer {best["layer"]}',
      rate(best['post_training']),
      '',
      '0.5 to 0.65, best mid-depth (Fig. 4)',
    )
  ]


def _discover_numbers(result: Result) -> list[Number]:
  field, within = switching.widest(result)
  return [
    Number(
      'Unsupervised switches against changes of subgoal: F1, exact step',
      f'{result["f1_tolerance_0"]:.3f}',
      f'{result[field]:.3f} within {within}',
      '“essentially perfect” (Figs. 6, A3)',
    ),
    Number(
      'Switches an episode',
      f'{result["switches"]:.2f}',
      f'truth {result["true_switches"]:.2f}',
    ),
  ]


def _evaluate_numbers(result: Result) -> list[Number]:
  rows = (
    ('expert_success', 'the expert, without noise', ''),
    ('base_success', 'actions sampled from the base model', 'order of 1e-6'),
    ('replay_success', 'codes of a demonstration replayed, switched by the truth', ''),
  )
  return [
    Number(
      f'Unseen task: {claim}',
      rate(result[name]['post_training']),
      f'{result[name]["pretraining"]["success"]:.3g} on pretraining tasks',
      paper,
    )
    for name, claim, paper in rows
    if name in result
  ]


def _internal_numbers(result: Result) -> list[Number]:
  return [
    Number(
      'Unseen task: internal RL before its first update',
      f'{result["initial_success"]:.3g}',
      '',
      'above every baseline (Fig. A5)',
    ),
    Number(
      f'Unseen task: internal RL after {result["episodes"]:,} episodes',
      _final(result),
      '',
      'about 0.8 within a million (Fig. 8; median of 30 runs)',
    ),
  ]


def _final(result: Result) -> str:
  chosen = [run for run in result['runs'] if run['learning_rate'] == result['learning_rate']]
  finals = sorted(run['success'] for run in chosen)
  if len(finals) == 1:
    return rate(chosen[0])
  spread = f'{finals[0]:.3g} to {finals[-1]:.3g}'
  return f'{result["success"]:.3g} (mean of {len(finals)} seeds, {spread})'


def scale(config: Mapping[str, Any]) -> str:
  """Returns a sentence on how this run's scale compares with the paper's."""
  env, model, reinforce = config['env'], config['model'], config['reinforce']
  world = (
    f'{env["grid_size"]} × {env["grid_size"]} cells, {env["num_objects"]} colours, '
    f'{env["num_walls"]} {"wall" if env["num_walls"] == 1 else "walls"}; '
    f'a {model["kind"]} of {model["num_blocks"]} blocks of width '
    f'{model["width"]}; seeds of reinforcement learning: {reinforce["seeds"]}'
  )
  if config['preset'] == 'paper':
    return f'The paper’s scale: {world} (the paper: 30).'
  return (
    f'Preset “{config["preset"]}”: {world}. The paper’s world has {_PAPER[env["kind"]]}, its '
    'curves 30 seeds: compare shapes and directions with it, not digits.'
  )


def _image(picture: Picture) -> str:
  image = Image.open(io.BytesIO(picture.data))
  kind = str(image.format).lower()
  # Plots have twice the pixels, for sharp screens; on a narrow one they scroll rather than shrink.
  width, name = (image.width // 2, 'plot') if kind == 'png' else (image.width, 'animation')
  data = base64.b64encode(picture.data).decode()
  return (
    f'<figure><div class="scroll"><img class="{name}" width="{width}" '
    f'src="data:image/{kind};base64,{data}" alt="{html.escape(picture.title)}"></div>'
    f'<figcaption>{html.escape(picture.caption)}</figcaption></figure>'
  )


def _table(rows: Sequence[Number]) -> str:
  names = ('', 'this run', 'to compare with', 'the paper')

  def cells(row: Number) -> str:
    texts = (row.claim, row.measured, row.bound, row.paper)
    kinds = ('claim', 'number', 'bound', 'paper')
    return ''.join(
      f'<td class="{kind if text else "none"}" data-name="{name}">{html.escape(text) or "–"}</td>'
      for name, text, kind in zip(names, texts, kinds, strict=True)
    )

  body = ''.join(f'<tr>{cells(row)}</tr>' for row in rows)
  head = ''.join(f'<th>{name}</th>' for name in names)
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def _findings(findings: Sequence[diagnosis.Finding]) -> str:
  items = ''.join(
    f'<li class="{"good" if found.ok else "bad"}"><span class="verdict">'
    f'{"✓" if found.ok else "✗"} {html.escape(found.name)}.</span> {html.escape(found.text)}</li>'
    for found in sorted(findings, key=lambda found: found.ok)
  )
  return f'<ul class="findings">{items}</ul>'


def _facts(results: Mapping[str, Result], command: str) -> str:
  latest = max(results.values(), key=lambda result: result['date'])
  unique = lambda name: ', '.join(sorted({str(result[name]) for result in results.values()}))
  facts = {
    'stages': ', '.join(results),
    'seed': unique('seed'),
    'commit': unique('commit'),
    'device': unique('device'),
    'jax': unique('jax'),
    'finished': latest['date'],
    'time': f'{sum(result["seconds"] for result in results.values()) / 60:.1f} minutes in all',
    'again': f'<code>{html.escape(command)}</code>',
  }
  escaped = lambda name, text: text if name == 'again' else html.escape(text)
  return f'<dl>{"".join(f"<dt>{k}</dt><dd>{escaped(k, v)}</dd>" for k, v in facts.items())}</dl>'


def render(
  results: Mapping[str, Result],
  figures: Sequence[Picture],
  episodes: Sequence[Picture],
  command: str,
) -> str:
  """Returns the report of a run.

  Args:
    results: `result.json` by stage, at least one.
    figures: drawn from them.
    episodes: animations.
    command: what makes all of it again.
  """
  if not results:
    raise ValueError('results={}: at least one stage must have finished')
  config = next(iter(results.values()))['config']
  sections = [
    '<h1>Internal RL: what this run showed</h1>',
    f'<p>{html.escape(scale(config))}</p>',
    _facts(results, command),
    '<h2>Diagnosis</h2>',
    _findings(diagnosis.diagnose(results)),
    '<h2>Numbers</h2>',
    _table(numbers(results)),
    '<p class="muted">± is one standard error over episodes. Floors and ceilings are exact, by '
    'enumeration over the tasks, up to sampling of layouts.</p>',
  ]
  if episodes:
    sections += [
      '<h2>Episodes on the unseen task</h2>',
      '<p>Squares on top are the task; the framed one is next. The strip below is the code in '
      'force, an entry a row, blue below and red above zero; a triangle, and a ring on the path, '
      'mark where a new code was chosen.</p>',
      f'<div class="episodes">{"".join(map(_image, episodes))}</div>',
    ]
  if figures:
    sections += ['<h2>Figures</h2>', *map(_image, figures)]
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>Internal RL: {html.escape(config["preset"])}</title><style>{_STYLE}</style></head>'
    f'<body>{"".join(sections)}</body></html>\n'
  )
