"""The vocabulary that every package shares: time steps and batches of trajectories."""

from typing import Any

import jaxtyping
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

Key = PRNGKeyArray
Keys = jaxtyping.Key[Array, ' b']
Params = Any  # A flax parameter tree.
Observation = Shaped[Array, '... o']


@struct.dataclass
class TimeStep:
  """What an environment returns from `reset` and `step`; unbatched.

  Attributes:
    observation: `o_t`, without any task, goal or progress in it (App. A).
    reward: 1 on the step that completes the task, else 0.
    done: True from the step that ended the episode on.
  """

  observation: Observation
  reward: Float[Array, '...']
  done: Bool[Array, '...']


@struct.dataclass
class Trajectories:
  """A batch of episodes, padded on the right.

  Attributes:
    observations: `o_1 .. o_{T+1}`; inputs are `[:, :-1]`, next-observation targets `[:, 1:]`.
    actions: `a_1 .. a_T`, integers `[b, t]` or torques `[b, t, a]`; arbitrary where masked out.
    mask: True on the steps that were acted on. A row that is False throughout carries no weight.
    subgoals: ground-truth subgoal in force when `a_t` was chosen. For analysis and for ceilings
      alone, which are the labelled controllers of App. C.3 and `metacontroller.labelled`: no other
      model ever sees it.
    segments: how many subgoals were completed before that one; it steps up where a new subgoal
      begins, also where the same one is asked for again. For analysis only.
    tasks: index of each episode's task.
  """

  observations: Shaped[Array, 'b t_plus_1 o']
  actions: Shaped[Array, 'b t *a']
  mask: Bool[Array, 'b t']
  subgoals: Int[Array, 'b t']
  segments: Int[Array, 'b t']
  tasks: Int[Array, ' b']

  @property
  def inputs(self) -> Shaped[Array, 'b t o']:
    """`o_1 .. o_T`."""
    return self.observations[:, :-1]

  @property
  def next_observations(self) -> Shaped[Array, 'b t o']:
    """`o_2 .. o_{T+1}`."""
    return self.observations[:, 1:]
