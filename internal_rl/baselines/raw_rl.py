"""Raw-action RL: the same objective on the base model's own actions (App. C.5.3)."""

from typing import Any

from jaxtyping import Array, Float

from internal_rl.control.closed_loop import RawEpisodes
from internal_rl.models.sequence_model import SequenceModel
from internal_rl.types import Params


def evaluate(
  model: SequenceModel, params: Params, batch: RawEpisodes
) -> tuple[Float[Array, 'b t'], Float[Array, 'b t']]:
  """Returns log-probability and entropy of every action in `batch`, for `rl.learner.learn`.

  All parameters of the base model are trained; there is no metacontroller.
  """
  action: Any = model.apply(params, batch.observations).action
  return action.log_prob(batch.actions), action.entropy()
