"""Other libraries doing the same kind of work, each in an environment of its own.

  make rivals                                          makes the environments and compares
  python experiments/rivals.py xminigrid --requirement says what one of them needs

None of this is a dependency: `benchmark` starts each rival as a process under the rival's own
Python, and each waits for its turn, so that the two are timed alternately. This file is both ends
of that conversation, a line of JSON for each turn, and imports nothing but the standard library
before it knows which rival it is.

  xminigrid, navix  random actions from reset, every step's observation written. Their worlds are
                    empty 8 x 8 rooms, seen as symbols; navix resets finished episodes as it goes.
  torch             AdamW update of the same transformer on random observations, in PyTorch.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], float]  # does the work once on fresh inputs and returns the seconds
Facts = dict[str, Any]

# What `pip install` is given.
REQUIREMENTS = {
  'xminigrid': ['xminigrid>=0.9,<1'],
  'navix': ['navix>=0.7'],
  'torch': ['torch==2.13.0', '--index-url', 'https://download.pytorch.org/whl/cpu'],
}
# Which of the gridworld's rows each is compared with.
BY_GROUP = {'env_steps': ('xminigrid', 'navix'), 'pretrain': ('torch',)}


def keep_memory() -> None:
  """Lets this process keep what it frees; called by both ends, before anything is timed.

  glibc maps large arrays anew for every call and the kernel then fills them with zeros, page by
  page, which takes longer than most of what is timed here. Within a training loop XLA reuses them.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # Another C library.
  no_maps, no_trim, one_arena, ahead = (-4, 0), (-1, 2**31 - 1), (-8, 1), (-2, 2**28)
  for option, value in (no_maps, no_trim, one_arena, ahead):
    mallopt(option, value)


# Our end.


class Worker:
  """A rival, ready to be timed.

  Attributes:
    facts: what it says of itself: `unit`, `items` (units of work a call), `compile_seconds`,
      `version`, `device`.
  """

  def __init__(self, name: str, directory: str, shapes: Facts):
    python = os.path.join(directory, name, 'bin', 'python')
    if not os.path.exists(python):
      raise FileNotFoundError(f'{python}: there is no such environment; run: make rivals')
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115
    # A second process must not claim most of an accelerator's memory, as jax does by default. The
    # script's own folder must not be searched for modules (-P).
    self._process = subprocess.Popen(
      [python, '-P', os.path.abspath(__file__), name, '--shapes', json.dumps(shapes)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env={**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
    )
    self.facts = self._read()

  def call(self) -> float:
    """Returns the seconds of one call."""
    assert self._process.stdin is not None
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    return self._read()['seconds']

  def _read(self) -> Facts:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    self._process.wait()
    self._errors.seek(0)
    said = self._errors.read().strip().splitlines() or ['it ended without a word']
    raise RuntimeError(said[-1])

  def __del__(self):
    # Without its input, a rival comes to its end.
    process = getattr(self, '_process', None)
    if process is not None:
      process.communicate()
      self._errors.close()


# Their end.


def xminigrid(shapes: Facts) -> tuple[Facts, Call]:
  """XLand-MiniGrid."""
  import xminigrid

  env, params = xminigrid.make('MiniGrid-Empty-8x8')

  def step(state, action):
    state = env.step(params, state, action)
    return state, (state.observation, state.reward, state.step_type)

  reset = lambda key: env.reset(params, key)
  return _random_actions(reset, step, env.num_actions(params), shapes)


def navix(shapes: Facts) -> tuple[Facts, Call]:
  """NAVIX."""
  import navix

  env = navix.make('Navix-Empty-8x8-v0', observation_fn=navix.observations.symbolic)

  def step(state, action):
    state = env.step(state, action)
    return state, (state.observation, state.reward, state.step_type)

  return _random_actions(env.reset, step, len(env.action_set), shapes)


def _random_actions(reset, step, num_actions: int, shapes: Facts) -> tuple[Facts, Call]:
  """Scans `step` over random actions; states and actions are made outside the clock."""
  import jax

  batch, steps = shapes['batch'], shapes['env_steps']

  @jax.jit
  def inputs(key):
    state = jax.vmap(reset)(jax.random.split(key, batch))
    return state, jax.random.randint(key, (steps, batch), 0, num_actions)

  function = lambda state, actions: jax.lax.scan(jax.vmap(step), state, actions)
  key = jax.random.PRNGKey(0)
  arguments = inputs(key)
  started = time.perf_counter()
  compiled = jax.jit(function).lower(*arguments).compile()
  facts = {
    'unit': 'steps',
    'items': batch * steps,
    'compile_seconds': time.perf_counter() - started,
    'device': jax.devices()[0].device_kind,
  }
  jax.block_until_ready(compiled(*arguments))

  def call() -> float:
    nonlocal key
    key, _ = jax.random.split(key)
    arguments = jax.block_until_ready(inputs(key))
    started = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return time.perf_counter() - started

  return facts, call


def torch(shapes: Facts) -> tuple[Facts, Call]:
  """PyTorch, as one would write it: no compilation, fused attention."""
  import torch
  from torch import nn

  if shapes['kind'] != 'transformer':
    raise ValueError(f'model.kind={shapes["kind"]}: the rival is a transformer')
  width, heads, length = shapes['width'], shapes['num_heads'], shapes['horizon']
  size, cells, channels = shapes['observation_size'], shapes['cells'], shapes['channels']
  distance = torch.arange(length)[:, None] - torch.arange(length)
  future = torch.zeros(length, length).masked_fill(distance < 0, float('-inf'))

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
      self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
      hidden = shapes['mlp_width']
      self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
      self.bias = nn.Parameter(torch.zeros(length, heads))

    def forward(self, x):
      parts = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
      bias = self.bias[distance.clamp(min=0)].permute(2, 0, 1) + future
      mixed = nn.functional.scaled_dot_product_attention(*parts, attn_mask=bias[None])
      x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
      return x + self.mlp(self.norms[1](x))

  blocks = [Block() for _ in range(shapes['num_blocks'])]
  trunk = nn.Sequential(nn.Linear(size, width), *blocks, nn.RMSNorm(width))
  actions, next_cells = nn.Linear(width, shapes['num_actions']), nn.Linear(width, size)
  weight = shapes['observation_weight']
  modules = nn.ModuleList([trunk, actions, next_cells] if weight else [trunk, actions])
  optimiser = torch.optim.AdamW(
    modules.parameters(), shapes['learning_rate'], weight_decay=shapes['weight_decay']
  )

  def loss_of(observations, taken):
    x = trunk(observations[:, :-1].float())
    loss = nn.functional.cross_entropy(actions(x).flatten(0, 1), taken.flatten())
    if weight:
      log_probs = next_cells(x).view(*x.shape[:2], cells, channels).log_softmax(-2).flatten(2)
      loss = loss - weight * (log_probs * observations[:, 1:]).sum(-1).mean()
    return loss

  def call() -> float:
    shape = (shapes['batch'], length + 1, size)
    observations = torch.randint(0, 2, shape, dtype=torch.uint8)
    taken = torch.randint(0, shapes['num_actions'], (*shape[:1], length))
    started = time.perf_counter()
    optimiser.zero_grad()
    loss_of(observations, taken).backward()
    optimiser.step()
    return time.perf_counter() - started

  call()
  items = shapes['batch'] * length
  return {'unit': 'transitions', 'items': items, 'compile_seconds': 0.0, 'device': 'cpu'}, call


RIVALS = {'xminigrid': xminigrid, 'navix': navix, 'torch': torch}


def main() -> None:
  """Says what a rival needs, or is that rival until its input ends."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('name', choices=RIVALS)
  parser.add_argument('--requirement', action='store_true', help='print what pip install needs')
  parser.add_argument('--shapes', type=json.loads, help='what `benchmark_cases.shapes` returns')
  flags = parser.parse_args()
  requirement = REQUIREMENTS[flags.name]
  if flags.requirement:
    print(' '.join(requirement))
    return
  keep_memory()
  turns, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is not part of the talk
  say = lambda facts: print(json.dumps(facts), file=turns, flush=True)
  try:
    facts, call = RIVALS[flags.name](flags.shapes)
  except ImportError as error:
    sys.exit(f'{error}; install it with: {sys.executable} -m pip install {shlex.join(requirement)}')
  say({**facts, 'version': importlib.metadata.version(flags.name)})
  for _ in sys.stdin:
    say({'seconds': call()})


if __name__ == '__main__':
  main()
