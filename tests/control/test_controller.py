"""Controllers against the matrices they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.control.controller import KINDS, Controller

WIDTH, BASIS, RANK = 6, 4, 2


def make(kind):
  controller = Controller(WIDTH, BASIS, kind, RANK)
  keys = jax.random.split(jax.random.key(0), 3)
  basis = jax.random.normal(keys[0], (2, 5, BASIS))
  e = jax.random.normal(keys[1], (2, 5, WIDTH))
  return controller, controller.init(keys[2], basis, e), basis, e


@pytest.mark.parametrize('kind', KINDS)
def test_factored_product_is_the_dense_product_in_value_and_gradient(kind):
  controller, params, basis, e = make(kind)

  def dense(params, basis, e):
    u = controller.apply(params, basis, method='matrix')
    return (u @ e[..., None])[..., 0]

  np.testing.assert_allclose(controller.apply(params, basis, e), dense(params, basis, e), atol=1e-5)
  weights = jnp.cos(jnp.arange(e.size).reshape(e.shape))
  gradient = lambda f: jax.grad(lambda *args: (weights * f(*args)).sum(), (0, 1, 2))
  fast, slow = gradient(controller.apply)(params, basis, e), gradient(dense)(params, basis, e)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fast, slow)


@pytest.mark.parametrize('kind', KINDS)
def test_one_hot_basis_selects_one_matrix_and_no_other(kind):
  controller, params, _, e = make(kind)
  one_hot = jnp.broadcast_to(jax.nn.one_hot(1, BASIS), (2, 5, BASIS))
  before = controller.apply(params, one_hot, e)
  other = jax.tree.map(lambda p: p.at[2].set(7.0), params)
  own = jax.tree.map(lambda p: p.at[1].set(7.0), params)
  np.testing.assert_array_equal(controller.apply(other, one_hot, e), before)
  assert np.abs(controller.apply(own, one_hot, e) - before).max() > 0.1


def test_low_rank_matrix_is_the_product_of_the_summed_factors_and_has_that_rank():
  controller, params, basis, _ = make('low_rank')
  read, write = params['params']['read'], params['params']['write']
  weights = np.asarray(basis[0, 0])
  a = sum(w * np.asarray(m).T for w, m in zip(weights, write, strict=True))
  b = sum(w * np.asarray(m) for w, m in zip(weights, read, strict=True))
  u = controller.apply(params, basis[0, 0], method='matrix')
  np.testing.assert_allclose(u, a @ b.T, atol=1e-5)
  assert np.linalg.matrix_rank(u, tol=1e-5) == RANK


@pytest.mark.parametrize('kind', KINDS)
def test_controller_matrix_is_never_built(kind):
  batch, time, width, basis = 8, 32, 64, 3
  controller = Controller(width, basis, kind, 4)
  e, weights = jnp.ones((batch, time, width)), jnp.ones((batch, time, basis))
  params = controller.init(jax.random.key(0), weights, e)

  def loss(params, weights, e):
    return controller.apply(params, weights, e).sum()

  def sizes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (np.prod(variable.aval.shape) for variable in equation.outvars)
      for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'jaxpr')):
        if hasattr(inner, 'jaxpr'):
          yield from sizes(inner.jaxpr)

  computed = list(sizes(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(params, weights, e).jaxpr))
  assert max(computed) >= batch * time * width
  assert max(computed) < batch * time * width * width / 8


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [({'rank': 0}, 'controller.rank=0'), ({'rank': 7}, r'\(6\)'), ({'kind': 'x'}, 'controller.kind')],
)
def test_fields_out_of_range_are_refused_by_name(kwargs, message):
  controller = Controller(WIDTH, BASIS, **kwargs)
  with pytest.raises(ValueError, match=message):
    controller.init(jax.random.key(0), jnp.ones((1, BASIS)), jnp.ones((1, WIDTH)))
