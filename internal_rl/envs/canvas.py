"""A picture to draw on, in final pixels, and the colours of everything that is drawn."""

import functools
from collections.abc import Iterable

from PIL import Image, ImageColor, ImageDraw, ImageFont

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
PAPER, INK, FAINT, GRID, CELL, WALL = (
  '#ffffff',
  '#1b1b1f',
  '#74747c',
  '#e3e3e8',
  '#f5f5f7',
  '#4a4a52',
)
_OVERSAMPLING = 2  # Drawn larger and averaged down: smooth edges.
_font = functools.cache(ImageFont.load_default)


class Canvas:
  """A picture addressed in final pixels."""

  def __init__(self, width: int, height: int):
    size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    self._image = Image.new('RGB', size, PAPER)
    self._draw = ImageDraw.Draw(self._image)

  def _scaled(self, points: Iterable[float]) -> list[float]:
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

  def capsule(self, ends, radius, fill):
    self.line(ends, fill, 2 * radius)
    for end in ends:
      self.disc(end, radius, fill)

  def triangle(self, tip, size, fill, points_up=False):
    (x, y), size = self._scaled(tip), size * _OVERSAMPLING
    base = y + size if points_up else y - size
    self._draw.polygon([(x, y), (x - size / 2, base), (x + size / 2, base)], fill)

  def text(self, position, text, size, fill=INK, anchor='lm'):
    x, y = self._scaled(position)
    self._draw.text((x, y), text, fill, _font(size * _OVERSAMPLING), anchor)

  def paste(self, image: Image.Image, left, top, width, height):
    """Fills a box with an image; its pixels stay sharp."""
    x, y, right, bottom = (
      round(side) for side in self._scaled((left, top, left + width, top + height))
    )
    self._image.paste(image.resize((right - x, bottom - y), Image.Resampling.NEAREST), (x, y))

  def finished(self) -> Image.Image:
    return self._image.reduce(_OVERSAMPLING)

  def oversampled(self) -> Image.Image:
    """Returns it as drawn, twice the size, for those who scale it themselves."""
    return self._image


def colour_of(index: int) -> str:
  """Returns the colour of an object; they repeat when there are more than the palette has."""
  return PALETTE[index % len(PALETTE)]


def readable_on(colour: int) -> str:
  """Black or white, whichever stands out from a colour of the palette."""
  red, green, blue = ImageColor.getrgb(colour_of(colour))[:3]
  return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else PAPER
