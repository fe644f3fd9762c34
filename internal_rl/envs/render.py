"""Frames of an episode: the world, the task, the code in force, and every switch.

`gridworld_pictures` draws the world; `frames` puts what is known of the episode around pictures of
any world. Nothing here needs a display.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageColor, ImageDraw, ImageFont

from internal_rl.envs.pinpad import Layout

# Okabe and Ito's palette: its colours stay apart under every common colour blindness.
PALETTE = (
  '#E69F00',
  '#56B4E9',
  '#009E73',
  '#F0E442',
  '#0072B2',
  '#D55E00',
  '#CC79A7',
  '#999999',
)
SIZE = 360  # Width and height of a picture of the world, pixels.

_PAPER, _INK, _FAINT, _GRID, _WALL = '#ffffff', '#1b1b1f', '#74747c', '#e3e3e8', '#4a4a52'
_TRAIL = ('#1b1b1f', '#8d8d96')  # In turn, so that the path shows where the code changed.
_NEGATIVE, _POSITIVE = np.array([33, 102, 172]), np.array([178, 24, 43])  # Of a code's entries.
_OVERSAMPLING = 2  # Drawn larger and averaged down: smooth edges.
_MARGIN, _TITLE, _CHIP, _STRIP, _CAPTION = 14, 26, 24, 76, 24
_GIF_COLOURS = 128
_CHANNEL_RANGE = 2.5  # Codes come from N(0, I): beyond this a colour is saturated.


@dataclasses.dataclass(frozen=True)
class Story:
  """What is shown around the pictures of an episode of `T` raw steps.

  Attributes:
    title: who acts.
    task: the colours to be visited, in order.
    stages: colours visited so far, at `o_1 .. o_{T+1}`.
    outcome: how the episode ended, in a word or two.
    codes: the code in force at each raw step; None if nobody steers.
    switches: whether it was chosen anew at that step; None if nobody steers.
  """

  title: str
  task: tuple[int, ...]
  stages: Int[np.ndarray, ' t_plus_1']
  outcome: str
  codes: Float[np.ndarray, 't z'] | None = None
  switches: Bool[np.ndarray, ' t'] | None = None


class _Canvas:
  """A picture addressed in final pixels."""

  def __init__(self, width: int, height: int):
    size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    self._image = Image.new('RGB', size, _PAPER)
    self._draw = ImageDraw.Draw(self._image)

  def _scaled(self, points: Sequence[float | int]) -> list[float | int]:
    return [point * _OVERSAMPLING for point in points]

  def box(self, box, fill, radius=0.0, outline=None, width=2.0):
    left, top, right, bottom = self._scaled(box)
    self._draw.rounded_rectangle(
      (left, top, right - 1, bottom - 1),
      radius * _OVERSAMPLING,
      fill,
      outline,
      round(width * _OVERSAMPLING),
    )

  def disc(self, centre, radius, fill, outline=None, width=0.0):
    (x, y), radius = self._scaled(centre), radius * _OVERSAMPLING
    box = (x - radius, y - radius, x + radius, y + radius)
    self._draw.ellipse(box, fill, outline, round(width * _OVERSAMPLING))

  def line(self, points, fill, width):
    flat = [coordinate for point in points for coordinate in self._scaled(point)]
    self._draw.line(flat, fill, round(width * _OVERSAMPLING), joint='curve')

  def triangle(self, tip, size, fill):
    (x, y), size = self._scaled(tip), size * _OVERSAMPLING
    self._draw.polygon([(x, y), (x - size / 2, y - size), (x + size / 2, y - size)], fill)

  def text(self, position, text, size, fill=_INK, anchor='lm'):
    font = ImageFont.load_default(size * _OVERSAMPLING)
    x, y = self._scaled(position)
    self._draw.text((x, y), text, fill, font, anchor)

  def paste(self, image: Image.Image, left: int, top: int):
    size = (image.width * _OVERSAMPLING, image.height * _OVERSAMPLING)
    place = (left * _OVERSAMPLING, top * _OVERSAMPLING)
    self._image.paste(image.resize(size, Image.Resampling.NEAREST), place)

  def finished(self) -> Image.Image:
    return self._image.reduce(_OVERSAMPLING)


def _readable_on(colour: int) -> str:
  """Black or white, whichever stands out from a colour of the palette."""
  red, green, blue = ImageColor.getrgb(PALETTE[colour % len(PALETTE)])[:3]
  return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else _PAPER


def gridworld_pictures(
  layout: Layout,
  grid_size: int,
  positions: Int[np.ndarray, ' t_plus_1'],
  switches: Bool[np.ndarray, ' t'] | None = None,
) -> list[Image.Image]:
  """Draws the grid at each of an episode's observations.

  Args:
    layout: of one episode.
    grid_size: side of the grid, `G`.
    positions: the agent's cell at `o_1 .. o_{T+1}`.
    switches: raw steps at which a new code was chosen; marked on the path where that happened.
  """
  steps = len(positions) - 1
  marks = np.zeros(steps, bool) if switches is None else np.asarray(switches)
  shown = range(steps + 1)
  return [_grid(layout, grid_size, positions[: time + 1], marks[: time + 1]) for time in shown]


def _grid(layout: Layout, grid_size: int, path, marks) -> Image.Image:
  canvas, cell = _Canvas(SIZE, SIZE), SIZE / grid_size
  corner = lambda index: (index % grid_size * cell, index // grid_size * cell)
  centre = lambda index: tuple(side + cell / 2 for side in corner(int(index)))

  def square(index, fill, inset=1.5):
    left, top = corner(int(index))
    box = (left + inset, top + inset, left + cell - inset, top + cell - inset)
    canvas.box(box, fill, cell / 10)

  for index in range(grid_size**2):
    square(index, '#f5f5f7')
  for index in np.asarray(layout.walls):
    square(index, _WALL)
  objects = np.asarray(layout.objects)
  for colour, index in enumerate(objects):
    square(index, PALETTE[colour % len(PALETTE)])

  under = np.cumsum(marks)  # Which code each step was taken under.
  for time in range(len(path) - 1):
    shade = _TRAIL[(under[time] + 1) % len(_TRAIL)]
    canvas.line((centre(path[time]), centre(path[time + 1])), shade, cell / 14)
    canvas.disc(centre(path[time + 1]), cell / 28, shade)
  for time in np.flatnonzero(marks):
    canvas.disc(centre(path[time]), cell / 9, _PAPER, _INK, 2)
  for colour, index in enumerate(objects):
    x, y = corner(int(index))
    label = (x + 0.2 * cell, y + 0.22 * cell)
    canvas.text(label, str(colour), round(cell * 0.26), _readable_on(colour), 'mm')
  _agent(canvas, centre(path[-1]), cell)
  return canvas.finished()


def _agent(canvas: _Canvas, centre, cell: float) -> None:
  x, y = centre
  canvas.disc(centre, cell * 0.27, _INK, _PAPER, 2)
  for side in (-1, 1):
    canvas.disc((x + side * cell * 0.09, y - cell * 0.04), cell * 0.05, _PAPER)


def frames(pictures: Sequence[Image.Image], story: Story) -> list[Image.Image]:
  """Puts the story around the pictures of one episode.

  Args:
    pictures: of the world at `o_1 .. o_{T+1}`, all of one size.
    story: what else there is to show.

  Raises:
    ValueError: if there is not one picture an observation, or not one code and one switch a step.
  """
  steps = len(pictures) - 1
  if len(story.stages) != steps + 1:
    raise ValueError(f'story.stages: {len(story.stages)} for {steps + 1} pictures; give one each')
  for name in ('codes', 'switches'):
    value = getattr(story, name)
    if value is not None and len(value) != steps:
      raise ValueError(f'story.{name}: {len(value)} for {steps} steps; give one each')
  return [_frame(picture, story, time) for time, picture in enumerate(pictures)]


def _frame(picture: Image.Image, story: Story, time: int) -> Image.Image:
  last = len(story.stages) - 1
  strip = _STRIP if story.codes is not None else 0
  inner_top = _MARGIN + _TITLE + _CHIP + 10
  strip_top = inner_top + picture.height + 8
  width = picture.width + 2 * _MARGIN
  canvas = _Canvas(width, strip_top + strip + _CAPTION + _MARGIN // 2)
  canvas.text((_MARGIN, _MARGIN + _TITLE / 2 - 3), story.title, 16)
  _chips(canvas, story, time, _MARGIN + _TITLE, picture.width)
  canvas.paste(picture, _MARGIN, inner_top)
  if story.codes is not None:
    marks = np.zeros(last, bool) if story.switches is None else story.switches
    _code_strip(canvas, story.codes, marks, min(time, last - 1), strip_top, picture.width)
  caption_y = strip_top + strip + _CAPTION / 2
  canvas.text((_MARGIN, caption_y), f'step {time} of {last}', 14, _FAINT)
  done = time == last
  complete = story.stages[time] >= len(story.task)
  upcoming = '' if complete else f'next colour {story.task[story.stages[time]]}'
  text = f'{story.outcome}, reward {int(complete)}' if done else upcoming
  canvas.text((width - _MARGIN, caption_y), text, 14, _INK if done else _FAINT, 'rm')
  return canvas.finished()


def _chips(canvas: _Canvas, story: Story, time: int, top: int, width: int) -> None:
  """The task as a row of colours: faded when visited, framed when next."""
  pitch = min(_CHIP + 4, width / len(story.task))
  side = min(_CHIP, pitch - 2)
  for place, colour in enumerate(story.task):
    left = _MARGIN + place * pitch
    box = (left, top, left + side, top + side)
    visited, upcoming = place < story.stages[time], place == story.stages[time]
    fill = _GRID if visited else PALETTE[colour % len(PALETTE)]
    canvas.box(box, fill, 4, _INK if upcoming else None)
    middle = (left + side / 2, top + side / 2)
    canvas.text(middle, str(colour), 13, _FAINT if visited else _readable_on(colour), 'mm')


def _code_strip(canvas: _Canvas, codes, switches, time: int, top: int, width: int) -> None:
  """The code in force over time, an entry a row; a triangle marks where it was chosen anew."""
  label, marker = 44, 12
  steps, size = codes.shape
  column, row = (width - label) / steps, (_STRIP - marker - 6) / size
  left, top = _MARGIN + label, top + marker
  canvas.text((_MARGIN, top + (_STRIP - marker - 6) / 2), 'code', 13, _FAINT)
  canvas.box((left, top, left + column * steps, top + row * size), '#f5f5f7')
  for t in range(time + 1):
    for i, value in enumerate(codes[t]):
      box = (left + t * column, top + i * row, left + (t + 1) * column, top + (i + 1) * row)
      canvas.box(box, _diverging(float(value)))
    if switches[t]:
      canvas.triangle((left + (t + 0.5) * column, top - 1), min(10, max(column, 6)), _INK)
  now = left + time * column
  canvas.box((now, top, now + column, top + row * size), None, 0, _INK, 1.5)


def _diverging(value: float) -> tuple[int, ...]:
  """Blue below zero, white at zero, red above."""
  strength = min(abs(value) / _CHANNEL_RANGE, 1.0)
  towards = _POSITIVE if value > 0 else _NEGATIVE
  return tuple(np.round(255 + strength * (towards - 255)).astype(int).tolist())


def png(image: Image.Image) -> bytes:
  """Returns an image as a PNG file."""
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', optimize=True)
  return buffer.getvalue()


def gif(images: Sequence[Image.Image], seconds: float = 0.35, hold: float = 2.0) -> bytes:
  """Returns frames as an endless animated GIF.

  Args:
    images: all of one size.
    seconds: how long a frame is shown.
    hold: how long the last one is.
  """
  # One palette for all, so that nothing flickers; what appears at all is seen in one of these.
  seen, counts = np.unique(
    np.concatenate([_packed(images[i]) for i in (0, len(images) // 2, -1)]), return_counts=True
  )
  palette = _unpacked(seen[np.argsort(-counts)[:_GIF_COLOURS]])
  flat = [_indexed(image, palette) for image in images]
  durations = [round(1000 * seconds)] * (len(flat) - 1) + [round(1000 * hold)]
  buffer = io.BytesIO()
  flat[0].save(
    buffer, 'GIF', save_all=True, append_images=flat[1:], duration=durations, loop=0, disposal=1
  )
  return buffer.getvalue()


def _packed(image: Image.Image) -> Int[np.ndarray, ' pixels']:
  return np.asarray(image, np.int32).reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1])


def _unpacked(colours: Int[np.ndarray, ' n']) -> Int[np.ndarray, 'n 3']:
  return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1)


def _indexed(image: Image.Image, palette: Int[np.ndarray, 'n 3']) -> Image.Image:
  """Maps every pixel to the nearest colour; Pillow's own mapping tints large flat areas."""
  seen, place = np.unique(_packed(image), return_inverse=True)
  distance = np.square(_unpacked(seen)[:, None] - palette[None]).sum(-1)
  indices = distance.argmin(-1).astype(np.uint8)[place]
  mapped = Image.fromarray(indices.reshape(image.height, image.width), 'P')
  mapped.putpalette(palette.astype(np.uint8).tobytes())
  return mapped
