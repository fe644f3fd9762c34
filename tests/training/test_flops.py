"""The count of matrix products against arithmetic by hand and against XLA's own count."""

import math

import jax
import jax.numpy as jnp
import pytest

from internal_rl.training.flops import matmul_flops

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def test_products_count_two_operations_a_multiply_add_and_sums_none():
  assert matmul_flops(lambda a, b: jnp.tanh(a @ b).sum() + 1, A, B) == PRODUCT
  batched = lambda a, b: jnp.einsum('nij,njk->nik', a, b)
  assert matmul_flops(batched, jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))) == 4 * PRODUCT


def test_shapes_are_enough_and_jit_vmap_and_checkpoint_change_nothing():
  shapes = (jax.ShapeDtypeStruct(A.shape, A.dtype), jax.ShapeDtypeStruct(B.shape, B.dtype))
  assert matmul_flops(jax.jit(jax.checkpoint(jnp.matmul)), *shapes) == PRODUCT
  assert matmul_flops(jax.vmap(jnp.matmul, (None, 0)), A, jnp.ones((4, 5, 7))) == 4 * PRODUCT


def test_a_gradient_by_both_arguments_costs_two_products_more():
  gradient = jax.grad(lambda a, b: jnp.tanh(a @ b).sum(), (0, 1))
  assert matmul_flops(gradient, A, B) == 3 * PRODUCT


def test_a_scan_counts_every_step_and_a_while_loop_as_many_as_are_told():
  square = jnp.ones((3, 3))
  scanned = lambda x: jax.lax.scan(lambda c, _: (c @ square, None), x, length=6)[0]
  assert matmul_flops(scanned, square) == 6 * 54
  loop = lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ square, x)
  assert matmul_flops(loop, square, trips=10) == 540
  assert math.isnan(matmul_flops(loop, square))
  counter = lambda x: jax.lax.while_loop(lambda c: c < 9, lambda c: c + 1, 0) + (x @ x)
  assert matmul_flops(counter, square) == 54


def test_a_condition_counts_as_its_dearest_branch():
  branches = (lambda a, b: a @ b + a @ b, lambda a, b: a @ b)
  assert matmul_flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, *branches, a, b), A, B) == 2 * PRODUCT


def test_it_agrees_with_xla_where_products_are_nearly_all_there_is():
  def loss(weights, x):
    for w in weights:
      x = jnp.maximum(x @ w, 0)
    return x.sum()

  weights, x = [jnp.ones((128, 128))] * 3, jnp.ones((256, 128))
  gradient = jax.grad(loss)
  counted: dict = jax.jit(gradient).lower(weights, x).compile().cost_analysis()
  assert matmul_flops(gradient, weights, x) == pytest.approx(counted['flops'], rel=0.03)
