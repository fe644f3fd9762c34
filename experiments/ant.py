"""The ant's world and expert, from config. Needs the extra `ant`; see `common.ant`."""

from experiments import common
from internal_rl.envs.ant import Ant
from internal_rl.envs.ant_body import AntBody
from internal_rl.experts.ant import Actor, AntExpert
from internal_rl.experts.ant_guide import Guide
from internal_rl.experts.ant_ppo import Reward, Trainer
from internal_rl.types import Params


def environment(config: common.Config, task_names: tuple[str, ...], time_limit: int) -> Ant:
  """Returns the world."""
  section = config.env
  return Ant(
    **common.shared_fields(config, task_names, time_limit),
    cell_size=section.cell_size,
    off_grid=section.off_grid,
    frame=section.frame,
    body=AntBody(**section.body),
  )


def expert(config: common.Config, env: Ant, params: Params, noisy: bool) -> AntExpert:
  """Returns the expert; without parameters it can only render what was demonstrated before."""
  section = config.expert
  actor = Actor(Guide(env, section.centring), section.width, section.depth)
  return AntExpert(params, actor, noisy)


def trainer(config: common.Config, env: Ant) -> Trainer:
  """Returns the expert's PPO."""
  section = config.expert
  return Trainer(
    actor=expert(config, env, None, True).actor,
    reward=Reward(**section.reward),
    num_envs=section.batch,
    unroll=section.unroll,
    epochs=section.epochs,
    minibatches=section.minibatches,
    discount=section.discount,
    gae_lambda=section.gae_lambda,
    clip=section.clip,
    entropy=section.entropy,
    reward_scale=section.reward_scale,
  )
