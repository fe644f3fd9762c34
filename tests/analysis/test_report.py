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
  plot = figures.png(figures.controllers([RESULTS['control']['layers']]))
  film = render.gif([Image.new('RGB', (40, 30), shade) for shade in ('red', 'white')])
  return (
    [report.Picture(plot, 'a plot', 'Success <by layer> & "more".')],
    [report.Picture(film, 'an episode', 'Internal RL; the first that succeeds.')],
  )


CONFIG = RESULTS['pretrain']['config']


def rendered(results=RESULTS, config=CONFIG):
  command = 'python -m experiments.pipeline --workdir=<here>'
  return report.render(results, *pictures(), command, config)


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


def test_the_scale_is_that_of_the_run_whatever_its_first_stage_was_told():
  config = copy.deepcopy(CONFIG)
  config['reinforce']['seeds'] = 17
  assert 'seeds of reinforcement learning: 17' in rendered(config=config)


@pytest.mark.parametrize('stage', sorted(RESULTS))
def test_a_report_can_be_made_of_any_single_stage(stage):
  page = Page(rendered({stage: RESULTS[stage]}))
  assert stage in ' '.join(page.text)


def test_problems_come_first_in_the_diagnosis():
  results = copy.deepcopy(RESULTS)
  results['discover']['f1_tolerance_0'] = 0.1
  text = rendered(results)
  assert text.index('✗ Where the switches fall') < text.index('✓')


def test_nothing_to_report_is_an_error():
  with pytest.raises(ValueError, match='at least one stage'):
    report.render({}, [], [], '', CONFIG)
