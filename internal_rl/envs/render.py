"""Frames of an episode: the world, the task, the code in force, every switch, the true subgoal.

`gridworld_pictures` draws the world; `frames` puts what is known of the episode around pictures of
any world. Nothing here needs a display.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageColor

from internal_rl.envs.canvas import (
  CELL,
  FAINT,
  GRID,
  INK,
  PAPER,
  WALL,
  Canvas,
  colour_of,
  readable_on,
)
from internal_rl.envs.pinpad import Layout

SIZE = 360  # Width and height of a picture of the world, pixels.

_TRAIL = (INK, '#8d8d96')  # In turn, so that the path shows where the code changed.
_NEGATIVE, _POSITIVE = np.array([33, 102, 172]), np.array([178, 24, 43])  # Of a code's entries.
_MARGIN, _TITLE, _CHIP, _CAPTION = 14, 26, 24, 24
# From top to bottom of the strip: triangles, the code, a gap, the way to go, triangles.
_LABEL, _MARKER, _CODE, _GAP, _GOAL = 44, 12, 58, 4, 8
_STRIP = _MARKER + _CODE + _GAP + _GOAL + _MARKER
_GIF_COLOURS = 128
_WEBP_QUALITY, _WEBP_EFFORT = 60, 3  # Of 100 and 6.
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
    begins: whether a true subgoal begins at that step; None if that is not known.
  """

  title: str
  task: tuple[int, ...]
  stages: Int[np.ndarray, ' t_plus_1']
  outcome: str
  codes: Float[np.ndarray, 't z'] | None = None
  switches: Bool[np.ndarray, ' t'] | None = None
  begins: Bool[np.ndarray, ' t'] | None = None


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
  cell = SIZE / grid_size
  points = np.stack([positions % grid_size, positions // grid_size], -1) + 0.5
  drawn = []
  for time in range(len(positions)):
    canvas = ground(layout, grid_size, points[: time + 1], switches)
    _agent(canvas, (cell * points[time]).tolist(), cell)
    drawn.append(canvas.finished())
  return drawn


def ground(
  layout: Layout,
  grid_size: int,
  path: Float[np.ndarray, 'n 2'],
  switches: Bool[np.ndarray, ' t'] | None = None,
  margin: float = 0.0,
) -> Canvas:
  """Draws the cells, `SIZE` wide in all, and where an agent went, from above, without the agent.

  Args:
    layout: of one episode.
    grid_size: side of the grid, `G`.
    path: its place at `o_1 .. o_n`: column and row, fractional, in cells from the top left corner.
    switches: raw steps at which a new code was chosen; those up to the last place are marked.
    margin: what is seen around the grid, in cells.
  """
  cell = SIZE / grid_size
  side = round(SIZE + 2 * margin * cell)
  canvas = Canvas(side, side)
  corner = lambda index: (
    (margin + int(index) % grid_size) * cell,
    (margin + int(index) // grid_size) * cell,
  )

  def square(index, fill, inset=1.5):
    left, top = corner(index)
    box = (left + inset, top + inset, left + cell - inset, top + cell - inset)
    canvas.box(box, fill, cell / 10)

  for index in range(grid_size**2):
    square(index, CELL)
  for index in np.asarray(layout.walls):
    square(index, WALL)
  objects = np.asarray(layout.objects)
  for colour, index in enumerate(objects):
    square(index, colour_of(colour))

  marks = np.zeros(len(path), bool) if switches is None else np.asarray(switches)[: len(path)]
  _trail(canvas, (cell * (margin + path)).tolist(), marks, cell)
  for colour, index in enumerate(objects):
    x, y = corner(index)
    label = (x + 0.2 * cell, y + 0.22 * cell)
    canvas.text(label, str(colour), round(cell * 0.26), readable_on(colour), 'mm')
  return canvas


def _trail(canvas: Canvas, path, marks, cell: float) -> None:
  """The path, in another shade from each switch on, and a ring where it happened."""
  under = np.cumsum(marks)  # Which code each step was taken under.
  for time in range(len(path) - 1):
    shade = _TRAIL[(under[time] + 1) % len(_TRAIL)]
    canvas.line((path[time], path[time + 1]), shade, cell / 14)
    canvas.disc(path[time + 1], cell / 28, shade)
  for time in np.flatnonzero(marks):
    canvas.disc(path[time], cell / 9, PAPER, INK, 2)


def _agent(canvas: Canvas, centre, cell: float) -> None:
  x, y = centre
  canvas.disc(centre, cell * 0.27, INK, PAPER, 2)
  for side in (-1, 1):
    canvas.disc((x + side * cell * 0.09, y - cell * 0.04), cell * 0.05, PAPER)


def sampled(steps: int, every: int) -> list[int]:
  """Returns the times to show: from 0 in steps of `every`, and the last, which is `steps`."""
  return [*range(0, steps, every), steps]


def frames(
  pictures: Sequence[Image.Image], story: Story, times: Sequence[int] | None = None
) -> list[Image.Image]:
  """Puts the story around the pictures of one episode.

  Args:
    pictures: of the world, all of one size.
    story: what else there is to show.
    times: which of `o_1 .. o_{T+1}` they show, counted from 0; all of them if left out.

  Raises:
    ValueError: if there is not one picture an observation, or not one code and one switch a step.
  """
  steps = len(story.stages) - 1
  times = range(steps + 1) if times is None else times
  if len(pictures) != len(times):
    raise ValueError(f'story.stages: {len(times)} for {len(pictures)} pictures; give one each')
  for name in ('codes', 'switches', 'begins'):
    value = getattr(story, name)
    if value is not None and len(value) != steps:
      raise ValueError(f'story.{name}: {len(value)} for {steps} steps; give one each')
  return [_frame(picture, story, time) for picture, time in zip(pictures, times, strict=True)]


def _frame(picture: Image.Image, story: Story, time: int) -> Image.Image:
  last = len(story.stages) - 1
  strip = _STRIP if story.codes is not None else 0
  inner_top = _MARGIN + _TITLE + _CHIP + 10
  strip_top = inner_top + picture.height + 8
  width = picture.width + 2 * _MARGIN
  canvas = Canvas(width, strip_top + strip + _CAPTION + _MARGIN // 2)
  canvas.text((_MARGIN, _MARGIN + _TITLE / 2 - 3), story.title, 16)
  _chips(canvas, story, time, _MARGIN + _TITLE, picture.width)
  canvas.paste(picture, _MARGIN, inner_top, picture.width, picture.height)
  if story.codes is not None:
    _strip(canvas, story, story.codes, min(time, last - 1), strip_top, picture.width)
  caption_y = strip_top + strip + _CAPTION / 2
  canvas.text((_MARGIN, caption_y), f'step {time} of {last}', 14, FAINT)
  done = time == last
  complete = story.stages[time] >= len(story.task)
  upcoming = '' if complete else f'next colour {story.task[story.stages[time]]}'
  text = f'{story.outcome}, reward {int(complete)}' if done else upcoming
  canvas.text((width - _MARGIN, caption_y), text, 14, INK if done else FAINT, 'rm')
  return canvas.finished()


def _chips(canvas: Canvas, story: Story, time: int, top: int, width: int) -> None:
  """The task as a row of colours: faded when visited, framed when next."""
  pitch = min(_CHIP + 4, width / len(story.task))
  side = min(_CHIP, pitch - 2)
  for place, colour in enumerate(story.task):
    left = _MARGIN + place * pitch
    box = (left, top, left + side, top + side)
    visited, upcoming = place < story.stages[time], place == story.stages[time]
    fill = GRID if visited else colour_of(colour)
    canvas.box(box, fill, 4, INK if upcoming else None)
    middle = (left + side / 2, top + side / 2)
    canvas.text(middle, str(colour), 13, FAINT if visited else readable_on(colour), 'mm')


def _strip(canvas: Canvas, story: Story, codes, time: int, top: int, width: int) -> None:
  """Time from left to right: the code in force, an entry a row, and the colour to go to below it.

  Triangles mark where a code was chosen anew, above, and where a true subgoal begins, below.
  """
  steps, left = len(codes), _MARGIN + _LABEL
  column = (width - _LABEL) / steps
  code, goal = top + _MARKER, top + _MARKER + _CODE + _GAP
  size = min(10, max(column, 7))
  canvas.text((_MARGIN, code + _CODE / 2), 'code', 13, FAINT)
  canvas.text((_MARGIN, goal + _GOAL / 2), 'goal', 13, FAINT)
  canvas.box((left, code, left + column * steps, code + _CODE), CELL)
  canvas.box((left, goal, left + column * steps, goal + _GOAL), CELL)
  going = [story.task[min(story.stages[t], len(story.task) - 1)] for t in range(time + 1)]
  bands = (
    (_diverging(codes[: time + 1]).swapaxes(0, 1), code, _CODE),
    (np.array([[ImageColor.getrgb(colour_of(colour)) for colour in going]], np.uint8), goal, _GOAL),
  )
  for pixels, above, height in bands:
    canvas.paste(Image.fromarray(pixels), left, above, (time + 1) * column, height)
  for marks, tip, up in ((story.switches, code - 1, False), (story.begins, goal + _GOAL + 1, True)):
    for t in () if marks is None else np.flatnonzero(marks[: time + 1]):
      canvas.triangle((left + (t + 0.5) * column, tip), size, INK, up)
  now = left + time * column
  canvas.box((now, code, now + max(column, 2), goal + _GOAL), None, 0, INK, 1.5)


def _diverging(values: Float[np.ndarray, '*n']) -> UInt8[np.ndarray, '*n 3']:
  """Blue below zero, white at zero, red above."""
  strength = np.minimum(np.abs(values) / _CHANNEL_RANGE, 1.0)[..., None]
  towards = np.where(values[..., None] > 0, _POSITIVE, _NEGATIVE)
  return np.round(255 + strength * (towards - 255)).astype(np.uint8)


def png(image: Image.Image) -> bytes:
  """Returns an image as a PNG file."""
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', optimize=True)
  return buffer.getvalue()


def webp(images: Sequence[Image.Image], seconds: float, hold: float = 2.0) -> bytes:
  """Returns frames as an endless animated WebP, which has more colours than a GIF.

  Args:
    images: all of one size.
    seconds: how long a frame is shown.
    hold: how long the last one is.
  """
  durations = [round(1000 * seconds)] * (len(images) - 1) + [round(1000 * hold)]
  buffer = io.BytesIO()
  images[0].save(
    buffer,
    'WEBP',
    save_all=True,
    append_images=images[1:],
    duration=durations,
    quality=_WEBP_QUALITY,
    method=_WEBP_EFFORT,
  )
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
