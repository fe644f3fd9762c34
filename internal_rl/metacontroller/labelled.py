"""Codes that are told the true subgoals: a ceiling for discovery, and never the method itself.

What labelled controllers (App. C.3) are to a base model this is to a metacontroller: when nothing
was discovered it tells whether there was anything to discover, and what internal RL makes of it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from internal_rl.metacontroller.metacontroller import Codes

DISTANCE = 1.5  # Of a subgoal's code from 0, in standard deviations of the prior.


def codes_of(subgoals: Int[Array, 'b t'], code_size: int) -> Float[Array, 'b t z']:
  """Returns each subgoal's code, along a dimension of its own: `code_size` is at least as many."""
  return DISTANCE * jax.nn.one_hot(subgoals, code_size)


def tell(codes: Codes, subgoals: Int[Array, 'b t'], told: Bool[Array, '']) -> Codes:
  """Puts the true subgoals' codes, with the posterior's noise, in the place of `z` if `told`.

  Then the gate learns nothing either: what it lets through does not matter, and a KL term that it
  weighs would only close it.
  """
  noise = codes.proposal - codes.posterior.mean
  true = codes_of(subgoals, codes.z.shape[-1]) + noise
  return codes.replace(
    z=jnp.where(told, true, codes.z),
    beta=jnp.where(told, jax.lax.stop_gradient(codes.beta), codes.beta),
  )


def error(codes: Codes, subgoals: Int[Array, 'b t']) -> Float[Array, 'b t']:
  """Returns the squared distance of the posterior's mean from the true subgoal's code."""
  return jnp.square(codes.posterior.mean - codes_of(subgoals, codes.z.shape[-1])).sum(-1)
