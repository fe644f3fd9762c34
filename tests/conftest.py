"""What every test runs under: the CPU, checked shapes, no silent broadcasting, shared compiles."""

import getpass
import os
import pathlib
import tempfile

# A compiled function is shared by workers, runs and child processes. In the environment, and before
# jax is imported, so that the programs that tests start as child processes inherit it.
_CACHE = pathlib.Path(tempfile.gettempdir(), f'internal_rl-jax-cache-{getpass.getuser()}')
_CACHE.mkdir(mode=0o700, exist_ok=True)
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(_CACHE)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ['JAX_PLATFORMS'] = 'cpu'

import beartype
import hypothesis
import jax
import jaxtyping

jax.config.update('jax_numpy_rank_promotion', 'raise')

# A test of a jitted function spends its time compiling, which no deadline can bound; the same
# examples every time, so that a red test stays red until it is mended.
hypothesis.settings.register_profile('internal_rl', deadline=None, derandomize=True)
hypothesis.settings.load_profile('internal_rl')


def check_calls(function):
  """Checks annotations at each call, save where jax rebuilds a dataclass around batches, specs."""
  return function if function.__name__ == '__init__' else beartype.beartype(function)


# Must precede the first import of the package.
jaxtyping.install_import_hook('internal_rl', 'tests.conftest.check_calls')
