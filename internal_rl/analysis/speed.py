"""Speeds as a table."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns what `experiments.benchmark` measured as text, a row a line.

  Speed is that of the median call. Where a call makes several updates, its milliseconds are those
  of one.
  """
  header = (
    f'{"row":<18}{"batch":>7}{"per second":>13} {"unit":<12}{"ms":>11}{"calls":>7}{"compile s":>11}'
  )
  lines = [header, '-' * len(header)]
  for row in rows:
    line = f'{row["row"]:<18}{row["batch"]:>7}'
    if 'error' in row:
      lines.append(f'{line}  failed: {row["error"]}')
      continue
    milliseconds = 1e3 * row['seconds'] / row.get('updates', 1)
    line += f'{row["per_second"]:>13,.0f} {row["unit"]:<12}{milliseconds:>11.2f}'
    line += f'{row["calls"]:>7}{row["compile_seconds"]:>11.2f}'
    if 'gflop_per_second' in row:
      line += f'  {row["gflop_per_second"]:,.1f} GFLOP/s'
    if 'behind' in row:
      line += f'  {row["reference"]} is {row["behind"]:.2f} x as fast'
    lines.append(line)
  return '\n'.join(lines)
