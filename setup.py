"""The `internal_rl` package; experiments/ and configs/ are run from the repository root."""

from setuptools import find_packages, setup

# Lower bounds are what the tests have run with; upper bounds are the next release that may break an
# interface this code uses. Python 3.11 resolves to jax 0.10, Python 3.12 and later to jax 0.11.
JAX = '>=0.9,<0.12'

# The ant's world, and the PPO that its expert learns with; the gridworld needs neither. MuJoCo and
# MJX belong together, version for version.
ANT = ['mujoco>=3.17,<4', 'mujoco-mjx>=3.17,<4', 'brax>=0.14.2,<0.15']

setup(
  name='internal_rl',
  version='0.1.0',
  description='Internal RL: emergent temporal abstractions in autoregressive models, in JAX',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['internal_rl', 'internal_rl.*']),
  package_data={'internal_rl.envs': ['assets/*.xml']},
  install_requires=[
    f'jax{JAX}',
    'flax>=0.12,<0.13',
    'optax>=0.2.6,<0.3',
    'orbax-checkpoint>=0.11.28,<0.13',
    'ml-collections>=1.1,<2',
    'absl-py>=1.4,<3',
    'jaxtyping>=0.3.2,<0.4',
    'numpy>=2.0,<3',
    'tensorboardX>=2.6.4,<3',
    'matplotlib>=3.9,<4',
    'pillow>=11',  # films, as GIF and WebP: nothing here needs an ffmpeg
    'tqdm>=4.66,<5',
  ],
  extras_require={
    'cuda': [f'jax[cuda13]{JAX}'],  # driver 580 or later; older: pip install 'jax[cuda12]'
    'tpu': [f'jax[tpu]{JAX}'],
    'ant': ANT,
    'dev': [
      *ANT,
      'pytest>=8,<10',
      'pytest-xdist>=3.6,<4',
      'hypothesis>=6.100,<7',
      'beartype>=0.20,<1',
      'scipy>=1.14,<2',  # distributions that tests compare with
      'recurrentgemma>=1.0.1,<2',  # the reference RG-LRU that models/hawk.py is tested against
      'mypy>=2.4,<2.5',
      'ruff>=0.17,<0.18',
    ],
  },
)
