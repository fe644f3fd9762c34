"""The ant's expert knows the way, one gait serves all directions, and training is reproducible."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from internal_rl.envs.ant import Ant
from internal_rl.envs.ant_body import AntBody, Body
from internal_rl.envs.pinpad import Layout
from internal_rl.envs.tasks import FAMILIES
from internal_rl.experts import ant_ppo
from internal_rl.experts.ant import Actor, AntExpert, Episodes
from internal_rl.experts.ant_guide import STEPS, Guide, Guided, from_legs, to_legs
from internal_rl.training import state as state_lib
from tests.envs import oracle

ENV = Ant(4, 4, 1, 6, FAMILIES['ant'], body=AntBody(frame_skip=1))
GUIDE = Guide(ENV)
TRAINER = ant_ppo.Trainer(
  Actor(GUIDE, width=8, depth=1), ant_ppo.Reward(), num_envs=8, unroll=4, epochs=2, minibatches=2
)


def guided(layout, place, task=0, stage=0, quaternion=(1, 0, 0, 0), joints=None, qvel=None):
  body = ENV.body.rest()
  joints = body.qpos[7:] if joints is None else joints
  qpos = jnp.concatenate([jnp.array([*place, 0.5, *quaternion], jnp.float32), joints])
  qvel = jnp.zeros(14) if qvel is None else qvel
  state, _ = ENV.start(jax.random.key(0), layout, jnp.array(task))
  state = state.replace(
    body=Body(qpos, qvel, jnp.zeros(14)), progress=state.progress.replace(stage=jnp.array(stage))
  )
  return Guided(state, GUIDE.route(layout))


def test_without_centring_the_command_is_a_move_along_a_shortest_path():
  rng, plain = np.random.default_rng(0), Guide(ENV, centring=0.0)
  command = jax.jit(lambda layout, place: plain.command(guided(layout, place)))
  for _ in range(20):
    board = oracle.random_board(rng, 4, 4, 1)
    number = lambda cell: cell[0] * 4 + cell[1]
    objects = jnp.array([number(board.where(colour)) for colour in range(4)])
    layout = Layout(objects, jnp.array([number(board.walls[0])]), jnp.array(number(board.start)))
    colour = int(ENV.tasks.colours[0, 0])
    for (row, column), moves in board.optimal(colour).items():
      place = (2.0 * column - 3 + rng.uniform(-0.9, 0.9), 3 - 2.0 * row + rng.uniform(-0.9, 0.9))
      expected = [STEPS[move] for move in moves]
      got = np.asarray(command(layout, jnp.array(place)))
      assert min(np.abs(got - step).max() for step in expected) < 1e-6


def corridor():
  """Colour 0 in the north-east corner, the ant's way to it along the northern row."""
  return Layout(jnp.array([3, 12, 14, 15]), jnp.array([5]), jnp.array(0))


def test_centring_pulls_towards_the_middle_of_the_path():
  at = lambda y: np.asarray(GUIDE.command(guided(corridor(), (-1.0, y))))
  np.testing.assert_allclose(at(3.0), [1, 0], atol=1e-6)
  np.testing.assert_allclose(at(2.2), np.array([1, 0.8]) / 1.64**0.5, atol=1e-6)
  np.testing.assert_allclose(at(3.5), np.array([1, -0.5]) / 1.25**0.5, atol=1e-6)


def test_features_end_with_the_surroundings_from_the_paths_point_of_view():
  # In cell 1, heading east for cell 3: the wall (5) is on the right, nothing else deadly is near.
  tail = np.asarray(GUIDE.features(guided(corridor(), (-0.5, 3.2))))[-12:]
  np.testing.assert_allclose(tail[:2], [0.5, 0.2], atol=1e-6)
  np.testing.assert_allclose(tail[2:4], [1, 0], atol=1e-6)  # From cell 2, straight on.
  ahead_left, ahead, ahead_right, left, right, *behind = tail[4:]
  assert (ahead_left, ahead, ahead_right, left, right) == (0, 0, 0, 0, 1)
  assert behind == [0, 0, 0]
  # In cell 2 the goal is next, and the wall diagonally behind.
  tail = np.asarray(GUIDE.features(guided(corridor(), (1.0, 3.0))))[-12:]
  np.testing.assert_allclose(tail[2:], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1], atol=1e-6)


def test_turning_the_ant_by_quarters_changes_no_feature_but_renumbers_its_legs():
  rng = np.random.default_rng(1)
  joints, speeds = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
  spin = rng.normal(size=3)
  seen, acted = [], []
  action = jnp.linspace(-1, 1, 8)
  for quarter in range(4):
    half = quarter * np.pi / 4 + 0.1  # Near enough to a quarter turn of leg 1's direction.
    turned = to_legs(joints, jnp.array(-quarter % 4))
    cosine, sine = np.cos(quarter * np.pi / 2), np.sin(quarter * np.pi / 2)
    unspin = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    qvel = jnp.concatenate(
      [
        jnp.array([0.3, -0.2, 0.1]),
        jnp.asarray(unspin @ spin),
        to_legs(speeds, jnp.array(-quarter % 4)),
      ]
    )
    walk = guided(
      corridor(),
      (-1.0, 3.0),
      quaternion=(np.cos(half), 0, 0, np.sin(half)),
      joints=turned,
      qvel=qvel,
    )
    seen.append(np.asarray(GUIDE.features(walk)))
    acted.append(from_legs(GUIDE.torques(walk, action), jnp.array(-quarter % 4)))
  for features, torques in zip(seen[1:], acted[1:], strict=True):
    np.testing.assert_allclose(features, seen[0], atol=1e-5)
    np.testing.assert_allclose(torques, acted[0], atol=1e-6)


def test_a_quarter_turn_maps_the_model_onto_itself():
  """Positions of all feet, of an ant turned by a quarter with its legs renumbered, coincide."""
  model = ENV.body.model
  joints = np.random.default_rng(2).uniform(-0.5, 0.5, 8) + ENV.body.stance[7:]

  def feet(quaternion, joints):
    data = mujoco.MjData(model)
    data.qpos[:] = np.concatenate([[0, 0, 0.5], quaternion, joints])
    mujoco.mj_forward(model, data)
    return np.array([data.geom(f'foot_{leg}').xpos for leg in (1, 2, 3, 4)])

  turned = np.asarray(to_legs(from_legs(jnp.asarray(joints), jnp.array(0)), jnp.array(3)))
  ours = feet([np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)], turned)
  np.testing.assert_allclose(np.roll(ours, 1, 0), feet([1, 0, 0, 0], joints), atol=1e-6)


@pytest.fixture(scope='module')
def beginning():
  """Parameters that are trained, statistics of no features yet, and episodes at their start."""
  return jax.jit(TRAINER.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def untrained(beginning):
  """What an expert knows before its first update."""
  params, statistics, _ = beginning
  return {**params, 'statistics': statistics}


@pytest.fixture(scope='module')
def trained(beginning, untrained):
  """Three updates, and what a second run of them gives."""
  tx = state_lib.optimiser(1e-3)
  params, _, walks = beginning
  start = (untrained, tx.init(params), walks)
  update = jax.jit(functools.partial(TRAINER.update, tx))
  runs = []
  for _ in range(2):
    carry, history = start, []
    for key in jax.random.split(jax.random.key(1), 3):
      *carry, metrics = update(*carry, key)
      history.append((carry, metrics))
    runs.append(history)
  return start, runs


def test_training_is_finite_moves_parameters_and_is_a_function_of_its_key(trained):
  start, (one, two) = trained
  jax.tree.map(np.testing.assert_array_equal, one[-1], two[-1])
  (params, _, _), metrics = one[-1]
  assert all(np.isfinite(value) for value in metrics.values())
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), start[0]['policy'], params['policy'])
  assert all(jax.tree.leaves(moved))
  assert float(params['statistics']['count']) == 3 * 8 * 4
  assert np.abs(params['statistics']['mean']).max() > 0.1


def test_episodes_that_end_begin_again_with_another_layout_and_task(trained):
  _, (history, _) = trained
  first, last = (jax.device_get(history[i][0][2].state) for i in (0, 2))
  assert not last.progress.done.any()
  assert (last.time < ENV.time_limit).all()
  renewed = (first.layout.objects != last.layout.objects).any(1)
  assert renewed.all()  # Eight steps lie between the two, and episodes have six at most.
  assert len(np.unique(last.layout.objects, axis=0)) > 4
  assert len(np.unique(last.progress.task)) > 2


def test_demonstrations_render_into_what_the_environment_showed(untrained):
  expert = AntExpert(untrained, TRAINER.actor)
  episodes, batch = jax.jit(lambda e, key: ((r := e.rollout(key, 5)), e.observations(r)))(
    expert, jax.random.key(2)
  )
  assert batch.observations.shape == (5, 7, ENV.observation_size)
  assert batch.actions.shape == (5, 6, 8)
  assert np.abs(batch.actions).max() <= 1
  assert not batch.mask.any()  # Nobody succeeds in six substeps.
  body = Body(episodes.qpos[2, 3], episodes.qvel[2, 3].astype(jnp.float32), jnp.zeros(14))
  layout = jax.tree.map(lambda x: x[2], episodes.layout)
  np.testing.assert_allclose(batch.observations[2, 3], ENV.observe(layout, body), atol=1e-6)


def test_actions_from_the_commands_view_are_torques_and_back():
  turned = (np.cos(0.9), 0.0, 0.0, np.sin(0.9))
  seen = guided(corridor(), (1.0, 3.0), quaternion=turned)
  torques = jax.random.normal(jax.random.key(0), (8,))
  action = GUIDE.action(seen, torques)
  assert np.abs(action - torques).max() > 0.1
  np.testing.assert_allclose(GUIDE.torques(seen, action), torques, atol=1e-6)


def test_what_is_noisy_draws_its_actions_and_what_is_not_takes_the_tanh_of_their_mean(untrained):
  noisy, clean = (AntExpert(untrained, TRAINER.actor, noisy) for noisy in (True, False))
  here = guided(corridor(), (-0.5, 3.2), quaternion=(np.cos(0.9), 0, 0, np.sin(0.9)))
  mean, spread = jnp.split(TRAINER.actor.distribution(untrained, GUIDE.features(here)), 2)
  keys = jax.random.split(jax.random.key(1), 4000)
  act = lambda expert: jax.jit(jax.vmap(expert.act, (0, None)))(keys, here)
  actions = np.asarray(act(clean))
  assert (actions == actions[0]).all()
  np.testing.assert_allclose(actions[0], GUIDE.torques(here, jnp.tanh(mean)), atol=1e-6)
  drawn = np.asarray(act(noisy))
  assert len(np.unique(drawn[:, 0])) > 3900
  raw = jnp.arctanh(jax.vmap(GUIDE.action, (None, 0))(here, drawn))
  np.testing.assert_allclose(raw.mean(0), mean, atol=0.1)
  np.testing.assert_allclose(raw.std(0), jax.nn.softplus(spread), rtol=0.1)


def test_its_own_loss_is_that_of_a_gaussian_with_the_moments_of_its_actions(untrained):
  expert = AntExpert(untrained, TRAINER.actor)
  tasks = jnp.array([0, 5])
  episodes = jax.jit(expert.play)(jax.random.key(3), tasks)
  found = jax.jit(expert.nll)(episodes)
  draw = jax.jit(jax.vmap(expert.act, (0, None)))
  for i in range(len(tasks)):
    layout = jax.tree.map(lambda x, i=i: x[i], episodes.layout)
    state, route = ENV.start(jax.random.key(0), layout, tasks[i])[0], GUIDE.route(layout)
    for t in range(ENV.time_limit):
      qvel = episodes.qvel[i, t].astype(jnp.float32)
      state = state.replace(body=Body(episodes.qpos[i, t], qvel, jnp.zeros(14)))
      actions = draw(jax.random.split(jax.random.key(t), 40_000), Guided(state, route))
      mean, variance = actions.mean(0), actions.var(0)
      gap = jnp.square(episodes.actions[i, t].astype(jnp.float32) - mean) / variance
      expected = 0.5 * jnp.sum(gap + jnp.log(2 * jnp.pi * variance))
      np.testing.assert_allclose(found[i, t], expected, atol=0.15)


def test_its_own_loss_follows_the_colours_that_were_visited(untrained):
  expert = AntExpert(untrained, TRAINER.actor)
  layout, task = corridor(), jnp.array(0)  # 0-3-2
  body = ENV.body.rest()
  at = lambda x, y: body.qpos.at[:2].set(jnp.array([x, y]))
  qpos = jnp.stack([at(1.0, 3.0), at(3.0, 3.0), at(3.0, 3.0)])  # Enters the cell of colour 0.
  nothing = jnp.zeros((1, 2))
  episode = Episodes(
    layout=jax.tree.map(lambda x: x[None], layout),
    qpos=qpos[None],
    qvel=jnp.zeros((1, 3, 14)),
    actions=0.3 * jax.random.normal(jax.random.key(0), (1, 2, 8)),
    mask=nothing,
    subgoals=nothing,
    segments=nothing,
    tasks=task[None],
    rejected=nothing[:, 0],
  )
  found = expert.nll(episode)[0]

  def expected(t, stage):
    now = guided(layout, (1.0, 3.0), stage=stage)
    now = now.replace(state=now.state.replace(body=Body(qpos[t], jnp.zeros(14), jnp.zeros(14))))
    actions = jax.vmap(expert.act, (0, None))(jax.random.split(jax.random.key(1), 40_000), now)
    gap = jnp.square(episode.actions[0, t] - actions.mean(0)) / actions.var(0)
    return 0.5 * jnp.sum(gap + jnp.log(2 * jnp.pi * actions.var(0)))

  np.testing.assert_allclose(found, [expected(0, 0), expected(1, 1)], atol=0.05)
  assert abs(found[1] - expected(1, 0)) > 0.15


def test_a_turn_is_where_the_expert_is_told_another_way_and_not_where_the_ant_takes_it(untrained):
  expert = AntExpert(untrained, TRAINER.actor)
  # East along the northern row to colour 0, and from it south to colour 3.
  places = jnp.array([(-1, 3), (1, 3), (2.1, 3), (2.3, 3), (3, 1), (3, 0.5)], jnp.float32)
  qpos = jnp.broadcast_to(ENV.body.rest().qpos, (6, 15)).at[:, :2].set(places)
  nothing = jnp.zeros((1, 5))
  episode = Episodes(
    layout=jax.tree.map(lambda x: x[None], corridor()),
    qpos=qpos[None],
    qvel=jnp.zeros((1, 6, 14)),
    actions=jnp.zeros((1, 5, 8)),
    mask=nothing,
    subgoals=nothing,
    segments=nothing,
    tasks=jnp.array([0]),
    rejected=nothing[:, 0],
  )
  np.testing.assert_array_equal(expert.since_turn(episode), [[0, 1, 0, 1, 2]])


@pytest.mark.parametrize(
  ('stage', 'done', 'time', 'failed'),
  [(1, False, 3, 0), (1, True, 3, 1), (3, True, 3, 0), (1, True, 6, 0)],
  ids=['under way', 'ended early', 'complete', 'time is up'],
)
def test_an_end_that_is_neither_success_nor_the_time_limit_is_a_failure(stage, done, time, failed):
  state = guided(corridor(), (-1.0, 3.0), stage=stage).state
  progress = state.progress.replace(done=jnp.array(done))
  state = state.replace(progress=progress, time=jnp.array(time))
  assert ant_ppo.has_failed(ENV, state) == failed


def test_reward_is_the_sum_of_its_terms():
  reward = ant_ppo.Reward(2.0, 1.5, 0.5, 0.1, 0.2, 5.0, 10.0)
  qvel = jnp.zeros(14).at[2].set(3.0)
  before = guided(corridor(), (-1.0, 3.0)).state
  after = guided(corridor(), (-0.99, 3.005), stage=1, qvel=qvel).state
  torques = jnp.array([1.0, -1.0, 0, 0, 0, 0, 0.5, 0])
  east, south = jnp.array([1.0, 0.0]), jnp.array([0.0, -1.0])
  rest = 0.5 - 0.1 * 2.25 - 0.2 * 9 + 5
  # A hundredth of a second: 1 m/s east and 0.5 m/s north.
  for command, speed in ((east, 1.0), (south, -0.5), (3 * east, 1.5), (-3 * east, -1.5)):
    got = reward(ENV, before, after, command, torques)
    np.testing.assert_allclose(got, 2 * speed + rest, rtol=1e-3)
  ended = after.replace(progress=after.progress.replace(done=jnp.array(True)))
  got = reward(ENV, before, ended, east, torques)
  np.testing.assert_allclose(got, 2 + rest - 10, rtol=1e-3)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('minibatches', 3, r'expert\.minibatches=3: must divide expert\.batch \(8\)'),
    ('minibatches', 0, r'expert\.minibatches=0: must be at least 1'),
    ('epochs', 0, r'expert\.epochs=0: must be at least 1'),
    ('unroll', 0, r'expert\.unroll=0: must be at least 1'),
  ],
)
def test_bad_settings_are_refused(field, value, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TRAINER, **{field: value})
