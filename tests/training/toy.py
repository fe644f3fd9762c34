"""A run of well under a second of arithmetic, with every feature of `fit`, that tests can kill."""

import contextlib
import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from internal_rl import training

STEPS = 24
TX = training.optimiser(0.05, weight_decay=0.01, schedule='cosine', total_steps=STEPS)
CONFIG = training.FitConfig(
  steps=STEPS, updates_per_call=2, eval_every=4, checkpoint_every=4, best_metric='error'
)
FINGERPRINT = {'model': {'width': 3}, 'betas': (0.9, 0.999)}


def frozen():
  return {'target': jnp.arange(6.0).reshape(3, 2)}


def state(key=0):
  key = jax.random.key(key) if isinstance(key, int) else key
  params = {'dense': {'kernel': jnp.zeros((3, 2)), 'bias': jnp.zeros(2)}}
  return training.create(params, TX, key, {'seen': jnp.zeros(()), 'inputs': jnp.zeros((8, 3))})


def loss(params, frozen, inputs):
  predicted = inputs @ params['dense']['kernel'] + params['dense']['bias'][None]
  return jnp.mean((predicted - inputs @ frozen['target']) ** 2)


def update(state, frozen, key, place=lambda batch: batch):
  inputs = place(jax.random.normal(key, (8, 3)))
  value, grads = jax.value_and_grad(loss)(state.params, frozen, inputs)
  state = training.apply_gradients(state, grads, TX)
  seen = state.extra['seen'] + jnp.sum(inputs**2)
  return state.replace(extra={'seen': seen, 'inputs': inputs}), {'loss': value}


def evaluate(state, frozen, key):
  inputs = jax.random.normal(key, (16, 3))
  return {'error': loss(state.params, frozen, inputs), 'noise': jax.random.normal(key, (2,))}


def run(workdir, config=CONFIG, update=update):
  return training.fit(
    update,
    state(),
    config,
    str(workdir),
    frozen=frozen(),
    evaluate=evaluate,
    fingerprint=FINGERPRINT,
  )


def run_saving_at_the_end(workdir):
  run(workdir, dataclasses.replace(CONFIG, checkpoint_every=0))


def run_long(workdir):
  """A run whose only call takes minutes; it makes the file `started` when that is under way."""
  slow = lambda matrix: jax.lax.fori_loop(0, 10**9, lambda _, x: jnp.cos(x @ x), matrix)

  def update_slowly(state, frozen, key):
    jax.debug.callback(pathlib.Path(workdir, 'started').touch)
    state, metrics = update(state, frozen, key)
    return state, metrics | {'slow': slow(jax.random.normal(key, (200, 200))).sum()}

  run(workdir, update=update_slowly)


def child(run, workdir):
  """`run` in a process that may be killed: it must not write to the compilation cache of others."""
  jax.config.update('jax_enable_compilation_cache', False)
  run(workdir)


@contextlib.contextmanager
def compilations(name):
  """Lists, while entered, the compilations of functions of this name."""
  found = []

  def listen(event, _, *, fun_name='', **__):
    if event.endswith('backend_compile_duration') and fun_name in (name, f'jit({name})'):
      found.append(fun_name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def host(tree):
  """The same tree of numpy arrays, keys as their data."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.device_get(jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree))


def same(a, b):
  """Whether two trees are equal bit for bit."""
  equal = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
  return jax.tree.all(jax.tree.map(equal, host(a), host(b)))


def rows(workdir):
  """What the run logged, without what the clock decides."""
  rows = training.read_jsonl(f'{workdir}/metrics.jsonl')
  return [{n: v for n, v in row.items() if n != 'train/updates_per_second'} for row in rows]
