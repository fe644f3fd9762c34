"""The report is one well-formed page that needs nothing else and leaves out what was not run."""

import base64
import copy
import html.parser
import io

import pytest
from PIL import Image

from internal_rl.analysis import figures, report
from internal_rl.envs import render
from tests.analysis import synthetic

RESULTS = synthetic.results()
VOID = {'meta', 'img', 'br', 'link'}


class Page(html.parser.HTMLParser):
  """Collects what a browser would load, and insists that every tag is closed in order."""

  def __init__(self, text):
    super().__init__()
    self.open, self.links, self.images, self.text = [], [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'img':
      assert attributes['alt']
      self.images.append(attributes['src'])
    self.links += [attributes[name] for name in ('src', 'href') if name in attributes]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.text.append(data)


def pictures():
  plot = figures.png(figures.controllers(RESULTS['control']['layers']))
  film = render.gif([Image.new('RGB', (40, 30), shade) for shade in ('red', 'white')])
  return (
    [report.Picture(plot, 'a plot', 'Success <by layer> & "more".')],
    [report.Picture(film, 'an episode', 'Internal RL; the first that succeeds.')],
  )


def rendered(results=RESULTS):
  return report.render(results, *pictures(), 'python -m experiments.pipeline --workdir=<here>')


def test_the_page_is_well_formed_and_loads_nothing():
  text = rendered()
  page = Page(text)
  assert all(link.startswith('data:image/') for link in page.links)
  assert 'http' not in text
  assert '@import' not in text
  assert 'url(' not in text


def test_every_image_decodes_and_the_animation_moves():
  sources = Page(rendered()).images
  film, plot = (Image.open(io.BytesIO(base64.b64decode(s.split(',')[1]))) for s in sources)
  for image in (film, plot):
    image.load()
  assert (film.format, film.n_frames) == ('GIF', 2)
  assert plot.format == 'PNG'


def test_text_from_outside_is_escaped():
  text = rendered()
  assert 'Success &lt;by layer&gt; &amp; &quot;more&quot;.' in text
  assert '--workdir=&lt;here&gt;' in text


def test_the_page_says_what_was_run_and_how_it_compares_in_scale():
  text = ' '.join(Page(rendered()).text)
  for part in ('“small”', '4 × 4', '0123456789ab', 'cpu x 1', '2026-01-02', '30 seeds'):
    assert part in text


def test_every_claim_has_its_number_beside_the_papers():
  rows = {row.claim: row for row in report.numbers(RESULTS)}
  base = rows['Base model: action loss, nats a step']
  assert (base.measured, base.bound[:11]) == ('0.271', 'floor 0.262')
  internal = rows['Unseen task: internal RL after 256,000 episodes']
  assert internal.measured == '0.713 (mean of 3 seeds, 0.675 to 0.75)'
  assert internal.paper.startswith('about 0.8')
  assert rows['Unseen task: raw-action RL, at the end'].paper == 'stays near 0'
  assert rows['Unseen task: actions sampled from the base model'].measured.startswith('0 of 2048')


def test_a_rate_of_zero_is_reported_as_the_bound_it_is():
  assert report.rate(synthetic.outcome(0.0, 1000)) == '0 of 1000 (below 0.003 at 95 %)'
  assert report.rate(synthetic.outcome(0.5, 2500)) == '0.500 ± 0.010'
  assert report.rate({'success': 0.0004, 'error': 0.0002, 'episodes': 9}) == '0.00040 ± 0.00020'


def test_only_the_runs_of_the_chosen_learning_rate_are_summarised():
  results = copy.deepcopy(RESULTS)
  for run in results['reinforce/internal']['runs']:
    if run['learning_rate'] != results['reinforce/internal']['learning_rate']:
      run['success'] = 0.999
  assert report.numbers(results) == report.numbers(RESULTS)


@pytest.mark.parametrize('stage', sorted(RESULTS))
def test_a_report_can_be_made_of_any_single_stage(stage):
  page = Page(rendered({stage: RESULTS[stage]}))
  assert stage in ' '.join(page.text)


def test_another_method_of_reinforcement_gets_a_row():
  results = {**RESULTS, 'reinforce/compile': synthetic.reinforced('compile', 0.01, 0.0)}
  assert report.numbers(results)[-1].claim == 'Unseen task: compile, at the end'


def test_problems_come_first_in_the_diagnosis():
  results = copy.deepcopy(RESULTS)
  results['discover']['f1_tolerance_0'] = 0.1
  text = rendered(results)
  assert text.index('✗ Where the switches fall') < text.index('✓')


def test_nothing_to_report_is_an_error():
  with pytest.raises(ValueError, match='at least one stage'):
    report.render({}, [], [], '')
