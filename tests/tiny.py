"""A world and untrained models small enough for tests; every part is there, and nothing is zero."""

import jax
import jax.numpy as jnp

from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.tasks import FAMILIES
from internal_rl.experts.gridworld import GridworldExpert
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.models.heads import CategoricalHead
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.rl.internal_env import Frozen
from internal_rl.rl.policy import CodePolicy

WIDTH = 16
ENV = Gridworld(4, 4, 1, 12, FAMILIES['ant'])
EXPERT = GridworldExpert(ENV)


def model(kind: str = 'transformer') -> SequenceModel:
  return SequenceModel(
    kind=kind,
    width=WIDTH,
    num_blocks=2,
    num_heads=2,
    mlp_width=16,
    init_scale=1.0,
    action_head=CategoricalHead(4, init_scale=1.0),
  )


def metacontroller(**kwargs) -> Metacontroller:
  return Metacontroller(width=WIDTH, **{'rank': 3, 'controller_scale': 1.0, **kwargs})


def policy() -> CodePolicy:
  return CodePolicy(8, width=8, mlp_width=8, num_heads=2)


def frozen(
  base: SequenceModel, module: Metacontroller, observation_size: int = ENV.observation_size
) -> Frozen:
  """Parameters of both; the switch is made lively, so that it opens now and then."""
  keys = jax.random.split(jax.random.key(0), 3)
  observations = jnp.zeros((1, 2, observation_size))
  base_params = base.init(keys[0], observations)
  e = base.apply(base_params, observations, method='lower')
  params = module.init(
    keys[1], e, jnp.ones((1, 2), bool), keys[2], method=Metacontroller.touch_everything
  )
  output = params['params']['switch']['output']
  output['kernel'] = 3 * output['kernel']
  return Frozen(base_params, params)
