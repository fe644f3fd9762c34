"""The metacontroller against a literal reading of App. D.2, Eqs. 11-18."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.metacontroller import loss as loss_lib
from internal_rl.metacontroller.embedder import SUMMARIES
from internal_rl.metacontroller.history import History
from internal_rl.metacontroller.metacontroller import Metacontroller
from internal_rl.metacontroller.switch import gate
from internal_rl.models.sequence_model import SequenceModel
from tests import tiny

BATCH, TIME = 3, 7


def make(**kwargs):
  module = tiny.metacontroller(**kwargs)
  params = tiny.frozen(tiny.model(), module).metacontroller
  e = jax.random.normal(jax.random.key(5), (BATCH, TIME, tiny.WIDTH))
  mask = jnp.arange(TIME)[None] < jnp.array([[TIME], [4], [TIME]])
  return module, params, e, mask


def literal(module, params, e, mask, key, hardness=0.0):
  """One equation a line, one step at a time, nothing hoisted."""
  bound = module.bind(params)
  proposal_key, _ = jax.random.split(key)
  x = bound.norm(e)
  s = bound.embedder(x, mask)
  h, z = jnp.zeros((BATCH, module.history_size)), jnp.zeros((BATCH, module.code_size))
  noise = jax.random.normal(proposal_key, (BATCH, TIME, module.code_size))
  zs, betas, controlled = [], [], []
  for t in range(TIME):
    step = lambda y, t=t: y[:, t : t + 1]
    posterior = bound.encoder(step(x), h[:, None], step(s))
    proposal = (posterior.mean + jnp.exp(posterior.log_std) * step(noise))[:, 0]
    hidden = nn.relu(
      bound.switch.from_stream(jnp.concatenate([x[:, t], h], -1)) + bound.switch.from_code(z)
    )
    soft = nn.sigmoid(bound.switch.output(hidden))
    beta = soft if hardness == 0 else soft + jax.lax.stop_gradient((soft >= 0.5) - soft)
    beta = jnp.ones_like(beta) if t == 0 else beta
    z = beta * proposal + (1 - beta) * z
    u = bound.decoder.controller.matrix(bound.decoder.basis(z))
    controlled.append(e[:, t] + (u @ e[:, t, :, None])[..., 0])
    h = bound.history.step(h, x[:, t])
    zs.append(z)
    betas.append(beta)
  stack = lambda values: jnp.stack(values, 1)
  return stack(zs), stack(betas), stack(controlled)


@pytest.mark.parametrize('hardness', [0.0, 1.0])
@pytest.mark.parametrize('kwargs', [{}, {'summary': 'per_step', 'scalar_gate': False}])
def test_hoisted_scan_is_the_literal_recursion_in_value_and_gradient(kwargs, hardness):
  module, params, e, mask = make(controller_scale=0.1, **kwargs)
  key = jax.random.key(9)

  def fast(params, e):
    codes = module.apply(params, e, mask, key, 'soft', hardness)
    return codes.z, codes.beta, module.apply(params, codes.z, e, method=Metacontroller.control)

  slow = lambda params, e: literal(module, params, e, mask, key, hardness)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
  jax.tree.map(close, fast(params, e), slow(params, e))
  total = lambda f: lambda *args: sum(jnp.sin(y).mean() for y in f(*args))
  gradients = [jax.jit(jax.grad(total(f), (0, 1)))(params, e) for f in (fast, slow)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3), *gradients)


def test_causal_half_stepped_alone_gives_the_gates_of_the_whole_pass():
  module, params, e, mask = make()
  codes = module.apply(params, e, mask, jax.random.key(2))
  carry = module.initial_carry(BATCH)
  z = jnp.zeros((BATCH, module.code_size))
  for t in range(TIME):
    carry, beta = module.apply(params, carry, e[:, t], z, method=Metacontroller.switch_step)
    np.testing.assert_allclose(beta, codes.beta[:, t], atol=1e-5)
    z = codes.z[:, t]


def test_switch_is_causal_and_the_proposal_is_not():
  module, params, e, mask = make()
  mask = jnp.ones_like(mask)
  key = jax.random.key(2)

  def evidence(e):
    bound = module.bind(params)
    x = bound.norm(e)
    return bound.switch.evidence(x, bound.history(x))[0, 3].sum()

  seen = jnp.abs(jax.grad(evidence)(e)).sum(-1)[0]
  assert (seen[:4] > 0).all() and (seen[4:] == 0).all()
  mean = lambda e: module.apply(params, e, mask, key).posterior.mean[0, 3].sum()
  assert (jnp.abs(jax.grad(mean)(e)).sum(-1)[0] > 0).all()


@pytest.mark.parametrize('summary', SUMMARIES)
def test_padding_and_other_episodes_change_nothing(summary):
  module, params, e, mask = make(summary=summary)
  key = jax.random.key(2)
  before = module.apply(params, e, mask, key)
  noise = jax.random.normal(jax.random.key(3), e.shape)
  padded = module.apply(params, jnp.where(mask[..., None], e, noise), mask, key)
  others = module.apply(params, e.at[1:].set(noise[1:]), mask, key)
  real = lambda codes: jnp.where(mask[..., None], codes.posterior.mean, 0)
  np.testing.assert_allclose(real(padded), real(before), atol=1e-6)
  np.testing.assert_allclose(real(others)[0], real(before)[0], atol=1e-6)


@pytest.mark.parametrize('summary', ['last', 'mean'])
def test_one_summary_serves_the_whole_sequence(summary):
  module, params, e, mask = make(summary=summary)
  s = module.bind(params).embedder(e, mask)
  np.testing.assert_array_equal(s, jnp.broadcast_to(s[:, :1], s.shape))


def test_history_is_flax_gru():
  history, cell = History(5), nn.GRUCell(5)
  e = jax.random.normal(jax.random.key(0), (2, 6, 4))
  params = history.init(jax.random.key(1), e)
  ours = params['params']
  theirs = {}
  for i, gate_name in enumerate('rzn'):
    part = slice(5 * i, 5 * i + 5)
    take = lambda name, leaf, part=part: ours[name][leaf][..., part]
    theirs['i' + gate_name] = {'kernel': take('input', 'kernel'), 'bias': take('input', 'bias')}
    theirs['h' + gate_name] = {'kernel': take('recurrent', 'kernel')}
  theirs['hn']['bias'] = ours['recurrent']['bias'][10:]
  h = jnp.zeros((2, 5))
  states = history.apply(params, e)
  for t in range(6):
    np.testing.assert_allclose(states[:, t], h, atol=1e-6)
    h, _ = cell.apply({'params': theirs}, h, e[:, t])


def test_gates():
  logit, noise = jnp.array([-2.0, 0.3, 4.0]), jnp.array([0.5, -1.0, 0.0])
  sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x)))
  np.testing.assert_allclose(gate(logit, 'soft', noise), sigmoid(logit), rtol=1e-6)
  np.testing.assert_allclose(
    gate(logit, 'gumbel', noise, 0.5), sigmoid((logit + noise) / 0.5), rtol=1e-5
  )
  np.testing.assert_array_equal(gate(logit, 'open', noise), 1)
  np.testing.assert_array_equal(gate(logit, 'soft', noise, hardness=1.0), [0, 1, 1])
  slope = jax.grad(lambda x: gate(x, 'soft', noise, hardness=1.0).sum())(logit)
  np.testing.assert_allclose(slope, sigmoid(logit) * (1 - sigmoid(logit)), rtol=1e-5)


def test_open_gates_let_every_proposal_through():
  module, params, e, mask = make()
  codes = module.apply(params, e, mask, jax.random.key(2), 'open')
  np.testing.assert_array_equal(codes.z, codes.proposal)
  np.testing.assert_array_equal(codes.beta, 1)


def test_objective_is_eq_9_computed_by_hand():
  module, params, e, mask = make()
  codes = module.apply(params, e, mask, jax.random.key(2))
  log_prob = -jnp.arange(BATCH * TIME, dtype=jnp.float32).reshape(BATCH, TIME) / 10
  mean, std = np.asarray(codes.posterior.mean), np.exp(np.asarray(codes.posterior.log_std))
  nll = kl = gated = steps = 0.0
  for b in range(BATCH):
    for t in range(TIME):
      if mask[b, t]:
        divergence = 0.5 * (std[b, t] ** 2 + mean[b, t] ** 2 - 1 - 2 * np.log(std[b, t])).sum()
        nll, steps = nll - float(log_prob[b, t]), steps + 1
        kl, gated = kl + divergence, gated + divergence * float(codes.beta[b, t, 0])
  terms = loss_lib.objective(log_prob, codes, mask, 0.3)
  np.testing.assert_allclose(terms.loss, (nll + 0.3 * kl) / steps, rtol=1e-5)
  np.testing.assert_allclose((terms.nll, terms.kl), (nll / steps, kl / steps), rtol=1e-5)
  by_gate = loss_lib.objective(log_prob, codes, mask, 0.3, 'gated')
  np.testing.assert_allclose(by_gate.kl, gated / steps, rtol=1e-5)
  with pytest.raises(ValueError, match='discover.kl_weight'):
    loss_lib.objective(log_prob, codes, mask, 0.3, 'none')


def test_likelihood_trains_every_part_through_the_frozen_upper_blocks():
  model, module = tiny.model(), tiny.metacontroller()
  frozen = tiny.frozen(model, module)
  batch = tiny.EXPERT.sample(jax.random.key(0), 16)

  def nll(params):
    e = model.apply(frozen.base, batch.inputs, method=SequenceModel.lower)
    codes = module.apply(params, e, batch.mask, jax.random.key(1))
    controlled = module.apply(params, codes.z, e, method=Metacontroller.control)
    action = model.apply(frozen.base, controlled, method=SequenceModel.upper).action
    return -loss_lib.masked_mean(action.log_prob(batch.actions), batch.mask)

  gradients = jax.jit(jax.grad(nll))(frozen.metacontroller)['params']
  assert set(gradients) == {'norm', 'history', 'embedder', 'encoder', 'switch', 'decoder'}
  for name, part in gradients.items():
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part)) > 0, name


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'first_gate': 'shut'}, 'metacontroller.first_gate'),
    ({'summary': 'all'}, 'metacontroller.summary'),
    ({'rank': 17}, 'controller.rank=17'),
    ({'initial_std': 0.0}, 'metacontroller.initial_std=0.0'),
    ({'decoder_activation': 'step'}, 'metacontroller.decoder_activation'),
  ],
)
def test_fields_out_of_range_are_refused_by_name(kwargs, message):
  with pytest.raises(ValueError, match=message):
    make(**kwargs)


def test_posterior_starts_as_narrow_as_it_is_told():
  wide, params, e, mask = make(initial_std=0.5)
  narrow = wide.clone(initial_std=0.05)
  spread = lambda module: jnp.exp(
    module.apply(params, e, mask, jax.random.key(1)).posterior.log_std
  )
  np.testing.assert_allclose(spread(narrow), 0.1 * spread(wide), rtol=1e-5)


@pytest.mark.parametrize(('activation', 'alive'), [('tanh', True), ('relu', False)])
def test_only_rectified_units_can_shut_codes_out_for_good(activation, alive):
  module, params, e, _ = make(decoder_activation=activation)
  layer = params['params']['decoder']['layer']
  layer['bias'] = jnp.full_like(layer['bias'], -4.0)
  z = jnp.zeros((BATCH, TIME, module.code_size))
  control = lambda z: module.apply(params, z, e, method=Metacontroller.control).sum()
  assert bool(jnp.abs(jax.grad(control)(z)).max() > 0) is alive
