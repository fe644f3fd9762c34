"""Acting with the base model: its own samples, or steered by a function of the residual stream.

Serves closed-loop evaluation of labelled controllers (App. C.3), random sampling from the base
model, and the rollouts of raw-action RL (App. C.5.3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from internal_rl.control.unroll import unroll
from internal_rl.envs.environment import Environment
from internal_rl.models.sequence_model import Carry, SequenceModel
from internal_rl.types import Key, Keys, Params, TimeStep

Steer = Callable[[Any, Float[Array, 'b d'], Any], Float[Array, 'b d']]


@struct.dataclass
class RawEpisodes:
  """A batch of episodes, one entry a raw step; what lies past `mask` means nothing.

  Attributes:
    observations: what the model read, `o_1 .. o_T`.
    actions: what it sampled.
    log_prob: log-probability of each action when it was sampled.
    mask: True on the steps that were acted on.
    returns: sum of rewards of each episode; 1 for success.
    lengths: raw steps of each episode.
    final: environment state at the end, for analysis.
  """

  observations: Shaped[Array, 'b t o']
  actions: Shaped[Array, 'b t *a']
  log_prob: Float[Array, 'b t']
  mask: Bool[Array, 'b t']
  returns: Float[Array, ' b']
  lengths: Int[Array, ' b']
  final: Any


@struct.dataclass
class _Carry:
  env: Any
  base: Carry
  context: Any
  keys: Keys
  observation: Shaped[Array, 'b o']
  done: Bool[Array, ' b']
  time: Int[Array, '']
  out: RawEpisodes


def _no_steering(env_state: Any, e: Float[Array, 'b d'], context: Any) -> Float[Array, 'b d']:
  del env_state, context
  return e


@dataclasses.dataclass(frozen=True)
class BaseRollout:
  """Rolls out the base model.

  Attributes:
    env: the environment.
    model: the base sequence model.
    layer: layer at which `steer` acts; None for the model's controlled layer.
  """

  env: Environment
  model: SequenceModel
  layer: int | None = None

  def __call__(
    self, params: Params, key: Key, tasks: Int[Array, ' b'], steer: Steer = _no_steering
  ) -> RawEpisodes:
    """Runs one episode of each of `tasks` to its end, on fresh layouts.

    Args:
      params: of the base model.
      key: consumed.
      tasks: index of each episode's task.
      steer: `(environment state, e, context) -> e^`, applied to the stream at `layer` at every raw
        step; here the context is empty. Only analyses may look at the state's ground truth.
    """
    reset_key, sampling_key = jax.random.split(key)
    reset_keys = jax.random.split(reset_key, tasks.shape[0])
    return self.run(params, sampling_key, *jax.vmap(self.env.reset)(reset_keys, tasks), steer)

  def run(
    self,
    params: Params,
    key: Key,
    env_state: Any,
    timestep: TimeStep,
    steer: Steer = _no_steering,
    context: Any = (),
  ) -> RawEpisodes:
    """The same from given starts; `key` is consumed by the actions alone.

    `context` is what else `steer` looks at: arrays with one row an episode. It may not close over
    such arrays, because rows are gathered as episodes end.
    """

    def step(carry: _Carry) -> _Carry:
      lower, e = self.model.apply(
        params, carry.base.lower, carry.observation, method=SequenceModel.lower_step
      )
      upper, predictions = self.model.apply(
        params,
        carry.base.upper,
        steer(carry.env, e, carry.context),
        method=SequenceModel.upper_step,
      )
      action = jax.vmap(lambda distribution, key: distribution.sample(key))(
        predictions.action, jax.vmap(jax.random.fold_in, (0, None))(carry.keys, carry.time)
      )
      record = {
        'observations': carry.observation,
        'actions': action,
        'log_prob': predictions.action.log_prob(action),
        'mask': ~carry.done,
      }
      put = lambda name, value: getattr(carry.out, name).at[:, carry.time].set(value)
      written = {name: put(name, value) for name, value in record.items()}
      env_state, timestep = jax.vmap(self.env.step)(carry.env, action)
      return carry.replace(
        env=env_state,
        base=Carry(lower=lower, upper=upper),
        observation=timestep.observation,
        done=timestep.done,
        time=carry.time + 1,
        out=carry.out.replace(returns=carry.out.returns + timestep.reward, **written),
      )

    start = self._start(params, key, env_state, timestep, context)
    end = unroll(step, start, self.env.time_limit)
    return end.out.replace(lengths=end.env.time, final=end.env)

  def _start(
    self, params: Params, key: Key, env_state: Any, timestep: TimeStep, context: Any
  ) -> _Carry:
    batch, steps = timestep.done.shape[0], self.env.time_limit
    base = self.model.initial_carry(batch, steps, layer=self.layer)

    def first_action():
      _, e = self.model.apply(
        params, base.lower, timestep.observation, method=SequenceModel.lower_step
      )
      _, predictions = self.model.apply(params, base.upper, e, method=SequenceModel.upper_step)
      return predictions.action.mode()

    action = jax.eval_shape(first_action)
    observation = timestep.observation
    out = RawEpisodes(
      observations=jnp.zeros((batch, steps, observation.shape[-1]), observation.dtype),
      actions=jnp.zeros((batch, steps, *action.shape[1:]), action.dtype),
      log_prob=jnp.zeros((batch, steps)),
      mask=jnp.zeros((batch, steps), bool),
      returns=jnp.zeros(batch),
      lengths=jnp.zeros(batch, jnp.int32),
      final=None,
    )
    return _Carry(
      env=env_state,
      base=base,
      context=context,
      keys=jax.random.split(key, batch),
      observation=observation,
      done=timestep.done,
      time=jnp.zeros((), jnp.int32),
      out=out,
    )
