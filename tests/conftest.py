"""What every test runs under: the CPU, checked shapes, no silent broadcasting, shared compiles."""

import os
import pathlib
import tempfile

# Compiled functions are shared by workers, by runs and by the programs that tests start.
_COMPILED = pathlib.Path(tempfile.gettempdir(), f'internal_rl-compiled-{os.getuid()}')
_COMPILED.mkdir(mode=0o700, exist_ok=True)

# Compiling is most of what tests do, and most of that are optimisations that none of them needs.
# The second flag is that of `experiments.common`. Workers inherit both and must not repeat them:
# where flags differ nothing is shared.
_QUICK = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
_XLA_FLAGS = os.environ.get('XLA_FLAGS', '')
if _QUICK not in _XLA_FLAGS:
  _XLA_FLAGS = f'{_XLA_FLAGS} {_QUICK}'.strip()

# In the environment, which jax reads when it starts, so that child processes inherit it all.
os.environ |= {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': _XLA_FLAGS,
  'JAX_NUMPY_RANK_PROMOTION': 'raise',
  'JAX_COMPILATION_CACHE_DIR': str(_COMPILED),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
}

import beartype
import hypothesis
import jaxtyping

# Compiling takes longer than any deadline; the same examples every time, so that what fails once
# fails until it is mended.
hypothesis.settings.register_profile('internal_rl', deadline=None, derandomize=True)
hypothesis.settings.load_profile('internal_rl')


_CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float


def check_calls(function):
  """Checks annotations at each call, save where jax rebuilds a dataclass from whatever leaves."""
  return function if function.__name__ == '__init__' else _CHECK(function)


# Must precede the first import of the package.
jaxtyping.install_import_hook('internal_rl', 'tests.conftest.check_calls')
