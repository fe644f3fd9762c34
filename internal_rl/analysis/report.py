"""One self-contained page about a run: `render(...)` returns HTML that needs no other file."""

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from internal_rl.analysis import claims, diagnosis
from internal_rl.analysis.claims import Number

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
    data: a PNG, GIF or WebP file.
    title: for those who cannot see it.
    caption: what one sees, at which scale, from how many seeds.
  """

  data: bytes
  title: str
  caption: str

  @property
  def kind(self) -> str:
    """What its file is called after the dot."""
    return str(Image.open(io.BytesIO(self.data)).format).lower()


def sizes(config: Mapping[str, Any]) -> str:
  """Returns the sizes of a config's world and base model in words."""
  env, model = config['env'], config['model']
  return (
    f'{env["grid_size"]} × {env["grid_size"]} cells, {env["num_objects"]} colours, '
    f'{env["num_walls"]} {"wall" if env["num_walls"] == 1 else "walls"}; '
    f'a {model["kind"]} of {model["num_blocks"]} blocks of width {model["width"]}'
  )


def scale(config: Mapping[str, Any]) -> str:
  """Returns a sentence on how this run's scale compares with the paper's."""
  seeds = config['reinforce']['seeds']
  world = f'{sizes(config)}; seeds of reinforcement learning: {seeds}'
  told = config['discover'].get('labelled_steps', 0)
  ceiling = f' Its metacontroller was told the true subgoals for {told} updates.' if told else ''
  if config['preset'] == 'paper':
    return f'The paper’s scale: {world} (the paper: 30).{ceiling}'
  theirs = _PAPER[config['env']['kind']]
  return (
    f'Preset “{config["preset"]}”: {world}. The paper’s world has {theirs}, its '
    f'curves 30 seeds: compare shapes and directions with it, not digits.{ceiling}'
  )


def _image(picture: Picture) -> str:
  image, kind = Image.open(io.BytesIO(picture.data)), picture.kind
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
  config: Mapping[str, Any],
) -> str:
  """Returns the report of a run.

  Args:
    results: `result.json` by stage, at least one.
    figures: drawn from them.
    episodes: animations.
    command: what makes all of it again.
    config: that of the run. Stages know it only as far as they read it.
  """
  if not results:
    raise ValueError('results={}: at least one stage must have finished')
  sections = [
    '<h1>Internal RL: what this run showed</h1>',
    f'<p>{html.escape(scale(config))}</p>',
    _facts(results, command),
    '<h2>Diagnosis</h2>',
    _findings(diagnosis.diagnose(results)),
    '<h2>Numbers</h2>',
    _table(claims.of_world(claims.numbers([results]), config['env']['kind'])),
    '<p class="muted">± is one standard error over episodes; with several seeds of reinforcement '
    'learning, median and quartiles. Floors and ceilings are exact, by '
    'enumeration over the tasks, up to sampling of layouts.</p>',
  ]
  if episodes:
    sections += [
      '<h2>Episodes on the unseen task</h2>',
      '<p>Squares on top are the task; the framed one is next. The strip below is the code in '
      'force, an entry a row, blue below and red above zero; a triangle above it, and a ring on '
      'the path, mark where a new code was chosen. Under it is the colour to go to, with a '
      'triangle below where a true subgoal begins.</p>',
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
