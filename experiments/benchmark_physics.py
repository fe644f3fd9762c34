"""The ant's physics alone, for `benchmark` to time beside its environment. Needs extra `ant`."""

import importlib.metadata
from collections.abc import Callable

import jax
import mujoco
import numpy as np
from mujoco import mjx, rollout

from experiments.benchmark_case import Case, Cases, cores
from internal_rl.envs.ant_body import AntBody

Inputs = Callable[[jax.Array], tuple]


def cases(body: AntBody, inputs: Inputs, items: float) -> Cases:
  """Returns physics without rules or observations, on MJX and in C.

  Args:
    body: model and substeps.
    inputs: states of the environment and torques `[t, b, 8]` in [-1, 1], from a key.
    items: control steps a call.
  """
  return {'physics': _on_mjx(body, inputs, items), 'mujoco_c': _in_c(body, inputs, items)}


def _on_mjx(body: AntBody, inputs: Inputs, items: float) -> Case:
  """Scans `mjx.step` over the whole of MJX's data, as its users do.

  Only positions and velocities are returned, so that the compiler may drop whatever else MJX
  computes, as it may in the environment.
  """
  model = mjx.put_model(body.model, impl='jax')
  blank = mjx.make_data(body.model, impl='jax')

  def start(pose):
    return blank.replace(qpos=pose.qpos, qvel=pose.qvel, qacc_warmstart=pose.warmstart)

  def step(data, torques):
    substep = lambda data, _: (mjx.step(model, data), None)
    return jax.lax.scan(substep, data.replace(ctrl=torques), length=body.frame_skip)

  def function(poses, torques):
    with jax.numpy_rank_promotion('allow'), jax.default_matmul_precision('highest'):
      end, _ = jax.lax.scan(jax.vmap(step), jax.vmap(start)(poses), torques)
    return end.qpos, end.qvel

  def bodies(key):
    state, torques = inputs(key)
    return state.body, torques

  details = lambda output: {'version': importlib.metadata.version('mujoco-mjx')}
  return Case(function, bodies, items, 'steps', details)


def _in_c(body: AntBody, inputs: Inputs, items: float) -> Case:
  """MuJoCo's own threads, one for each core that this process may use, in float64."""
  threads = cores()
  pool = rollout.Rollout(nthread=threads)
  workspaces = [mujoco.MjData(body.model) for _ in range(threads)]

  def function(start, control, warmstart):
    states, _ = pool.rollout(body.model, workspaces, start, control, initial_warmstart=warmstart)
    return np.split(states[:, -1, 1:], [body.model.nq], axis=1)

  def on_host(key):
    state, torques = jax.device_get(inputs(key))
    pose = state.body
    time = np.zeros_like(pose.qpos[:, :1])
    control = np.repeat(torques.swapaxes(0, 1), body.frame_skip, axis=1)
    arrays = np.concatenate([time, pose.qpos, pose.qvel], 1), control, pose.warmstart
    return tuple(np.ascontiguousarray(array, np.float64) for array in arrays)

  details = lambda output: {'version': mujoco.__version__, 'threads': threads}
  return Case(function, on_host, items, 'steps', details, jitted=False)
