"""Counts the arithmetic of matrix products in a function, without running or compiling it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def matmul_flops(function: Callable[..., Any], *args: Any, trips: float = math.nan) -> float:
  """Returns the floating-point operations of all matrix products in one call, two a multiply-add.

  Everything else is left out, as is usual where use of an accelerator is reported. XLA may still
  simplify a product away. A condition counts as the dearest of its branches.

  Args:
    function: what is called.
    *args: its arguments, or their shapes as `jax.eval_shape` gives them.
    trips: what a `while` loop is taken to repeat its body; with NaN the count of a function that
      has products in such a loop is NaN.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr, trips)


def _count(jaxpr: Any, trips: float) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      total += _product(equation)
    repeats = {'scan': equation.params.get('length'), 'while': trips}
    counts = [_count(inner, trips) for inner in _inner(equation.params)]
    # Of a condition only one branch runs.
    count = np.max(counts) if equation.primitive.name == 'cond' else sum(counts)
    if count:
      total += count * repeats.get(equation.primitive.name, 1)
  return total


def _product(equation: Any) -> float:
  """Returns the operations of one product: each entry is a sum over the contracted axes."""
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _inner(params: Any) -> Iterator[Any]:
  """Yields the programs that an operation may run."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else [value]:
      program = getattr(item, 'jaxpr', item)
      if hasattr(program, 'eqns'):
        yield program
