"""Internal RL's rollouts, batched: Algorithm 1 flattened over raw time (App. C.5).

`internal_env` is the definition. Here a whole batch takes raw steps together and each episode asks
the policy for a code only where its own switch fires, so that no episode waits for another.
Decisions are written to the front of `[batch, max_decisions]` buffers, so that the policy's update
costs decisions (about ten an episode), not raw steps.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.control.unroll import unroll
from internal_rl.envs.environment import Environment
from internal_rl.metacontroller.metacontroller import Metacontroller, SwitchCarry
from internal_rl.models.sequence_model import Carry, SequenceModel
from internal_rl.rl.internal_env import Frozen, action_key, code_key, episode_keys
from internal_rl.rl.policy import CodePolicy
from internal_rl.types import Key, Keys, Params


@struct.dataclass
class Decisions:
  """A batch of episodes as the policy saw them.

  Attributes:
    e: residual stream at each decision.
    z: the code chosen.
    log_prob: its log-probability under the policy that chose it.
    mask: True on real decisions.
    times: raw time of each decision.
    returns: sum of rewards of each episode; 1 for success.
    lengths: raw steps of each episode.
    dropped: decisions that did not fit `max_decisions`: taken, but not recorded.
    final: environment state at the end, for analysis.
  """

  e: Float[Array, 'b m d']
  z: Float[Array, 'b m z']
  log_prob: Float[Array, 'b m']
  mask: Bool[Array, 'b m']
  times: Int[Array, 'b m']
  returns: Float[Array, ' b']
  lengths: Int[Array, ' b']
  dropped: Int[Array, ' b']
  final: Any


@struct.dataclass
class RolloutCarry:
  """One raw step's state of the whole batch; see also `InternalState`."""

  env: Any
  keys: Keys
  base: Carry
  switch: SwitchCarry
  e: Float[Array, 'b d']
  done: Bool[Array, ' b']
  time: Int[Array, '']
  policy: Any
  z: Float[Array, 'b z']
  due: Bool[Array, ' b']
  count: Int[Array, ' b']
  out: Decisions


@dataclasses.dataclass(frozen=True)
class InternalRollout:
  """Rolls out a policy over codes.

  Attributes:
    env: the real environment.
    model: the base sequence model.
    metacontroller: switch and decoder.
    policy: the policy over codes.
    threshold: beta from which on the switch fires (App. C.6: 0.5).
    max_decisions: decisions recorded of an episode, at most; None for all.
    forced: decide at every raw step, whatever the switch says (App. C.4.1).
  """

  env: Environment
  model: SequenceModel
  metacontroller: Metacontroller
  policy: CodePolicy
  threshold: float = 0.5
  max_decisions: int | None = None
  forced: bool = False

  def __post_init__(self):
    if self.metacontroller.num_gates > 1:
      raise ValueError(
        'metacontroller.scalar_gate=False: must be True for internal RL; one switch decides'
      )

  @property
  def capacity(self) -> int:
    return self.max_decisions or self.env.time_limit

  def __call__(
    self, policy_params: Params, frozen: Frozen, key: Key, tasks: Int[Array, ' b']
  ) -> Decisions:
    """Runs one episode of each of `tasks` to its end, on fresh layouts.

    Episode `i` takes the decisions, actions and rewards that `InternalEnvironment` gives for the
    key `jax.random.split(key, b)[i]`.
    """
    keys = jax.random.split(key, tasks.shape[0])
    return self.episodes(policy_params, frozen, keys, tasks)

  def episodes(
    self, policy_params: Params, frozen: Frozen, keys: Keys, tasks: Int[Array, ' b']
  ) -> Decisions:
    """The same with one key an episode."""
    step = functools.partial(self.step, policy_params, frozen)
    end = unroll(step, self.start(frozen, keys, tasks), self.env.time_limit)
    return end.out.replace(
      mask=jnp.arange(self.capacity)[None] < end.count[:, None],
      dropped=jnp.maximum(end.count - self.capacity, 0),
      lengths=end.env.time,
      final=end.env,
    )

  def start(self, frozen: Frozen, keys: Keys, tasks: Int[Array, ' b']) -> RolloutCarry:
    """Returns one episode of each of `tasks` at its start, where each has to decide."""
    batch = tasks.shape[0]
    reset_keys, sampling_keys = jax.vmap(episode_keys)(keys)
    env_state, timestep = jax.vmap(self.env.reset)(reset_keys, tasks)
    base = self.model.initial_carry(batch, self.env.time_limit)
    lower, e = self._lower(frozen, base.lower, timestep.observation)
    switch = self.metacontroller.initial_carry(batch)
    z = jnp.zeros((batch, self.metacontroller.code_size))
    switch, _ = self._switch(frozen, switch, e, z)
    shape = (batch, self.capacity)
    none = jnp.zeros(batch, jnp.int32)
    out = Decisions(
      e=jnp.zeros((*shape, e.shape[-1]), e.dtype),
      z=jnp.zeros((*shape, z.shape[-1])),
      log_prob=jnp.zeros(shape),
      mask=jnp.zeros(shape, bool),
      times=jnp.zeros(shape, jnp.int32),
      returns=jnp.zeros(batch),
      lengths=none,
      dropped=none,
      final=None,
    )
    return RolloutCarry(
      env=env_state,
      keys=sampling_keys,
      base=base.replace(lower=lower),
      switch=switch,
      e=e,
      done=timestep.done,
      time=jnp.zeros((), jnp.int32),
      policy=self.policy.initial_carry(batch),
      z=z,
      due=jnp.ones(batch, bool),
      count=none,
      out=out,
    )

  def step(self, policy_params: Params, frozen: Frozen, carry: RolloutCarry) -> RolloutCarry:
    """Takes one raw step of the whole batch; where a code is due, the policy chooses it first."""
    carry = self._decide(policy_params, carry)
    controlled = self._apply(frozen, Metacontroller.control, carry.z, carry.e)
    upper, predictions = self.model.apply(
      frozen.base, carry.base.upper, controlled, method=SequenceModel.upper_step
    )
    keys = jax.vmap(action_key, (0, None))(carry.keys, carry.time)
    actions = jax.vmap(lambda distribution, key: distribution.sample(key))(predictions.action, keys)
    env_state, timestep = jax.vmap(self.env.step)(carry.env, actions)
    lower, e = self._lower(frozen, carry.base.lower, timestep.observation)
    switch, beta = self._switch(frozen, carry.switch, e, carry.z)
    due = jnp.ones_like(carry.due) if self.forced else beta[:, 0] >= self.threshold
    return carry.replace(
      env=env_state,
      base=Carry(lower=lower, upper=upper),
      switch=switch,
      e=e,
      done=timestep.done,
      time=carry.time + 1,
      due=due,
      out=carry.out.replace(returns=carry.out.returns + timestep.reward),
    )

  def _decide(self, policy_params: Params, carry: RolloutCarry) -> RolloutCarry:
    """Samples a code and records the decision, in the episodes where one is due."""
    decide = carry.due & ~carry.done
    policy, distribution = self.policy.apply(
      policy_params, carry.policy, carry.e, method=CodePolicy.step
    )
    keys = jax.vmap(code_key, (0, None))(carry.keys, carry.time)
    z = jax.vmap(lambda distribution, key: distribution.sample(key))(distribution, keys)
    # Rows that do not decide, or whose buffer is full, are written out of bounds, and so nowhere.
    row = jnp.arange(decide.shape[0])
    slot = jnp.where(decide, carry.count, self.capacity)
    put = lambda buffer, value: buffer.at[row, slot].set(value, mode='drop')
    out = carry.out.replace(
      e=put(carry.out.e, carry.e),
      z=put(carry.out.z, z),
      log_prob=put(carry.out.log_prob, distribution.log_prob(z)),
      times=put(carry.out.times, carry.time),
    )
    return carry.replace(
      policy=_select(decide, policy, carry.policy),
      z=_select(decide, z, carry.z),
      count=carry.count + decide,
      out=out,
    )

  def _apply(self, frozen: Frozen, method, *args):
    return self.metacontroller.apply(frozen.metacontroller, *args, method=method)

  def _lower(self, frozen: Frozen, carry, observation):
    return self.model.apply(frozen.base, carry, observation, method=SequenceModel.lower_step)

  def _switch(self, frozen: Frozen, carry: SwitchCarry, e, z):
    return self._apply(frozen, Metacontroller.switch_step, carry, e, z)


def _select(condition: Bool[Array, ' b'], new: Any, old: Any) -> Any:
  """Chooses row by row; what has no rows (a flag that all episodes share) is taken from `new`.

  Every episode decides at time 0, so a shared flag such as 'first step' changes for all at once.
  """

  def choose(new, old):
    if new.ndim == 0:
      return new
    return jnp.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)

  return jax.tree.map(choose, new, old)
