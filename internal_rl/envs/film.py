"""The film of a recorded episode, in whichever world it was."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from internal_rl.envs import pinpad, render
from internal_rl.envs.environment import Environment
from internal_rl.envs.gridworld import Gridworld
from internal_rl.envs.recording import RecordedState

ANT_FRAME = 0.1  # Seconds of an ant's life between frames; shown as fast as it happened.


def film(
  env: Environment,
  episode: RecordedState,
  title: str,
  codes: Float[np.ndarray, 't z'] | None = None,
  switches: Bool[np.ndarray, ' t'] | None = None,
) -> bytes:
  """Returns an animation of an episode of `T` raw steps: GIF of the gridworld, WebP of the ant.

  Where MuJoCo cannot draw, the ant is seen from above instead, and a warning tells why.

  Args:
    env: the world that was recorded.
    episode: one that has ended, with all states in it, on the host.
    title: who acts.
    codes: the code in force at each raw step; None if nobody steers.
    switches: whether it was chosen anew at that step; None if nobody steers.
  """
  steps, trail = int(episode.time), episode.trail
  progress = trail.progress
  task = int(episode.progress.task)
  segments = np.asarray(jax.vmap(pinpad.segment, (None, 0))(env.tasks, progress))[:steps]
  story = render.Story(
    title=title,
    task=tuple(np.asarray(env.tasks.colours)[task, : int(env.tasks.lengths[task])].tolist()),
    stages=np.asarray(progress.stage)[: steps + 1],
    outcome=env.endings[int(env.ending(jax.tree.map(jnp.asarray, episode.state)))],
    codes=codes,
    switches=switches,
    begins=np.diff(segments, prepend=-1) != 0,
  )
  if isinstance(env, Gridworld):
    return _gridworld(env, episode, story)
  return _ant(env, episode, story)


def _gridworld(env: Gridworld, episode: RecordedState, story: render.Story) -> bytes:
  positions = np.asarray(episode.trail.position)[: len(story.stages)]
  pictures = render.gridworld_pictures(
    episode.state.layout, env.grid_size, positions, story.switches
  )
  return render.gif(render.frames(pictures, story))


def _ant(env: Any, episode: RecordedState, story: render.Story) -> bytes:
  from internal_rl.envs import ant_render  # The gridworld needs no MuJoCo.

  steps = len(story.stages) - 1
  every = max(1, round(ANT_FRAME / env.body.seconds))
  times = render.sampled(steps, every)
  qpos = np.asarray(episode.trail.body.qpos)[: steps + 1]
  shown = (env, episode.state.layout, qpos, story.switches, times)
  try:
    pictures = ant_render.pictures(*shown)
  except ant_render.NoGraphicsError as error:
    logging.warning('%s. Until then films show the ant from above; all else goes on.', error)
    pictures = ant_render.pictures_from_above(*shown)
  return render.webp(render.frames(pictures, story, times), every * env.body.seconds)
