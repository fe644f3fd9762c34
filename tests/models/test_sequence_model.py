"""All the ways through the base model agree, none sees the future, and it starts as claimed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.models import (
  BernoulliHead,
  Carry,
  CategoricalHead,
  GaussianHead,
  SequenceModel,
)

KINDS = ('transformer', 'hawk')
BATCH, LENGTH, INPUTS, BLOCKS = 3, 9, 6, 2


def _model(kind, **kwargs):
  defaults = {
    'width': 16,
    'num_blocks': BLOCKS,
    'num_heads': 2,
    'mlp_width': 24,
    'action_head': CategoricalHead(4),
    'observation_head': BernoulliHead(INPUTS),
    'init_scale': 1.0,  # large enough for every path to matter at the tolerances below
    'relative_buckets': 4,
    'relative_max_distance': 6,
  }
  return SequenceModel(kind=kind, **defaults | kwargs)


@functools.cache  # tracing and compiling the initialisers is most of a test's time
def _setup(kind, **kwargs):
  model = _model(kind, **kwargs)
  observations = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, INPUTS))
  return model, jax.jit(model.init)(jax.random.key(1), observations), observations


@functools.partial(jax.jit, static_argnums=0, static_argnames=('layer', 'method'))
def _apply(model, *args, **kwargs):
  return model.apply(*args, **kwargs)


def _assert_close(actual, expected, tolerance=1e-5):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=tolerance), actual, expected)


@pytest.mark.parametrize('kind', KINDS)
def test_lower_then_upper_is_the_model_at_every_layer(kind):
  model, params, observations = _setup(kind)
  expected = _apply(model, params, observations)
  residuals = _apply(model, params, observations, method='residuals')
  assert residuals.shape == (BLOCKS + 1, BATCH, LENGTH, 16)
  for layer in range(BLOCKS + 1):
    e = _apply(model, params, observations, layer=layer, method='lower')
    _assert_close(e, residuals[layer])
    _assert_close(_apply(model, params, e, layer=layer, method='upper'), expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('layer', range(BLOCKS + 1))
def test_steps_equal_the_whole_sequence_at_every_layer(kind, layer):
  model, params, observations = _setup(kind)
  expected = _apply(model, params, observations)
  expected_e = _apply(model, params, observations, layer=layer, method='lower')

  def step(carry, observation):
    lower, e = model.apply(params, carry.lower, observation, method='lower_step')
    upper, predictions = model.apply(params, carry.upper, e, method='upper_step')
    return Carry(lower, upper), (e, predictions)

  carry = model.initial_carry(BATCH, LENGTH, layer)
  outputs = jax.jit(lambda c, o: jax.lax.scan(step, c, o))(carry, observations.swapaxes(0, 1))[1]
  e, predictions = jax.tree.map(lambda y: y.swapaxes(0, 1), outputs)
  _assert_close(e, expected_e)
  _assert_close(predictions, expected)


def test_controlled_layer_is_the_middle_unless_configured():
  model, params, observations = _setup('hawk', num_blocks=3)
  residuals = _apply(model, params, observations, method='residuals')
  for configured, layer in ((None, 1), (0, 0), (2, 2), (3, 3)):
    model = _model('hawk', num_blocks=3, controlled_layer=configured)
    _assert_close(_apply(model, params, observations, method='lower'), residuals[layer])
    assert len(model.initial_carry(1, 1).lower) == layer


@pytest.mark.parametrize('kind', KINDS)
def test_outputs_depend_on_the_past_and_the_present_and_exactly_not_on_the_future(kind):
  model, params, observations = _setup(kind, norm='layer', activation='gelu')

  def outputs(observations):
    predictions = model.apply(params, observations[None])
    return predictions.action.logits[0].sum(-1) + predictions.observation.logits[0].sum(-1)

  jacobian = jax.jit(jax.jacrev(outputs))(observations[0])
  influence = np.abs(jacobian).sum(axis=-1)
  assert np.all(influence[np.triu_indices(LENGTH, k=1)] == 0)
  assert np.all(influence[np.tril_indices(LENGTH)] > 0)


@pytest.mark.parametrize('kind', KINDS)
def test_other_rows_and_padding_after_the_end_do_not_matter(kind):
  model, params, observations = _setup(kind)
  changed = observations.at[1:].set(7.0).at[0, 5:].set(-3.0)
  before, after = (_apply(model, params, o).action.logits for o in (observations, changed))
  np.testing.assert_array_equal(before[0, :5], after[0, :5])
  assert np.all(np.any(before[0, 5:] != after[0, 5:], axis=-1))


@pytest.mark.parametrize('kind', KINDS)
def test_vmapped_single_steps_equal_batched_steps_even_at_different_times(kind):
  model, params, observations = _setup(kind)
  expected = _apply(model, params, observations, method='lower')
  single = model.initial_carry(1, LENGTH).lower
  carry = jax.tree.map(lambda x: jnp.stack([x] * BATCH), single)
  step = jax.jit(
    jax.vmap(lambda c, o: model.apply(params, c, o[None], method='lower_step'), in_axes=(0, 0))
  )
  for t in range(4):
    carry, e = step(carry, observations[:, t])
    _assert_close(e[:, 0], expected[:, t])
  # The first row begins again while the others go on.
  carry = jax.tree.map(lambda new, old: new.at[0].set(old), carry, single)
  carry, e = step(carry, observations[jnp.arange(BATCH), jnp.array([0, 4, 4])])
  _assert_close(e[:, 0], expected[jnp.arange(BATCH), jnp.array([0, 4, 4])])


@pytest.mark.parametrize('kind', KINDS)
def test_recomputing_blocks_changes_neither_parameters_nor_gradients(kind):
  model, params, observations = _setup(kind)
  remat = _model(kind, remat=True)
  _assert_close(jax.jit(remat.init)(jax.random.key(1), observations), params)

  def loss(params, model):
    return jnp.sum(jnp.sin(model.apply(params, observations).action.logits))

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  _assert_close(gradient(params, remat), gradient(params, model))
  carry = remat.initial_carry(BATCH, LENGTH).lower
  actual = _apply(remat, params, carry, observations[:, 0], method='lower_step')[1]
  _assert_close(actual, _apply(model, params, observations, method='lower')[:, 0])


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_stays_close_and_predicts_in_float32(kind):
  model, params, observations = _setup(kind)
  half = _model(kind, dtype=jnp.bfloat16)
  jax.tree.map(lambda p: np.testing.assert_equal(p.dtype, np.float32), params)
  assert _apply(half, params, observations, method='lower').dtype == jnp.bfloat16
  actual, expected = (_apply(m, params, observations).action.logits for m in (half, model))
  assert actual.dtype == jnp.float32
  assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
  assert np.any(actual != expected)


@pytest.mark.parametrize('dtype', [bool, np.uint8])
def test_binary_observations_are_read_as_zeros_and_ones(dtype):
  model, params, _ = _setup('hawk')
  bits = jax.random.bernoulli(jax.random.key(0), 0.3, (BATCH, LENGTH, INPUTS))
  actual = _apply(model, params, bits.astype(dtype))
  _assert_close(actual, _apply(model, params, bits.astype(jnp.float32)))


@pytest.mark.parametrize('kind', KINDS)
def test_kernels_start_with_variance_a_tenth_over_fan_in_and_biases_at_zero(kind):
  model = _model(kind, width=256, mlp_width=512, num_blocks=1, num_heads=4, init_scale=0.1)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1, 637)))['params']
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    name = path[-1].key
    if name in ('bias', 'b'):
      np.testing.assert_array_equal(value, 0)
    elif name in ('kernel', 'w') and value.size > 5000:
      np.testing.assert_allclose(value.var() * value.shape[-2], 0.1, rtol=0.05)


def _dense(inputs, outputs):
  return inputs * outputs + outputs


def _count(model, inputs):
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, inputs)))
  return sum(x.size for x in jax.tree.leaves(shapes))


def test_gridworld_model_of_table_a4_has_its_number_of_parameters():
  model = SequenceModel(
    kind='transformer',
    width=256,
    num_blocks=6,
    num_heads=4,
    mlp_width=512,
    action_head=CategoricalHead(4),
  )
  mlp = _dense(256, 512) + _dense(512, 256)
  block = 256 + _dense(256, 3 * 256) + 32 * 4 + _dense(256, 256) + 256 + mlp
  expected = _dense(637, 256) + 6 * block + 256 + _dense(256, 4)
  assert _count(model, 637) == expected == 3_324_932


def test_ant_model_of_table_a5_has_its_number_of_parameters():
  model = SequenceModel(
    kind='hawk',
    width=256,
    num_blocks=8,
    num_heads=8,
    mlp_width=512,
    action_head=GaussianHead(8),
    observation_head=GaussianHead(40),
  )
  recurrence = (4 + 1) * 256 + 2 * 8 * _dense(32, 32) + 256
  mixing = 256 + _dense(256, 2 * 256) + recurrence + _dense(256, 256)
  block = mixing + 256 + _dense(256, 512) + _dense(512, 256)
  heads = _dense(256, 8) + 8 + _dense(256, 40) + 40
  assert _count(model, 40) == _dense(40, 256) + 8 * block + 256 + heads


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'controlled_layer': 3}, r'model.controlled_layer=3: must be between 0 and .* \(2\)'),
    ({'controlled_layer': -1}, 'model.controlled_layer=-1'),
    ({'kind': 'lstm'}, "model.kind='lstm': must be"),
    ({'norm': 'batch'}, "norm='batch': must be one of"),
    ({'activation': 'tanh'}, "activation='tanh': must be one of"),
  ],
)
def test_wrong_fields_are_named_in_the_error(kwargs, message):
  with pytest.raises(ValueError, match=message):
    _setup(**{'kind': 'hawk'} | kwargs)
