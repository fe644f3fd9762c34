"""Codes that are told the true subgoals."""

import jax.numpy as jnp
import numpy as np

from internal_rl.metacontroller import labelled
from internal_rl.metacontroller.metacontroller import Codes
from internal_rl.models.heads import DiagonalGaussian

SUBGOALS = jnp.array([[0, 2]])
MEAN = jnp.array([[[1.5, 0.0, 0.0], [0.0, 1.0, 0.5]]])
NOISE = jnp.array([[[0.1, 0.0, -0.1], [0.0, 0.2, 0.0]]])
CODES = Codes(
  z=jnp.full((1, 2, 3), 9.0),
  beta=jnp.ones((1, 2, 1)),
  proposal=MEAN + NOISE,
  posterior=DiagonalGaussian(MEAN, jnp.zeros_like(MEAN)),
)


def test_codes_are_the_subgoals_own_with_the_posteriors_noise_while_told():
  told = labelled.tell(CODES, SUBGOALS, jnp.array(True))
  truth = np.array([[1.5, 0.0, 0.0], [0.0, 0.0, 1.5]])
  np.testing.assert_allclose(told.z[0], truth + NOISE[0], atol=1e-6)
  left_alone = labelled.tell(CODES, SUBGOALS, jnp.array(False))
  np.testing.assert_array_equal(left_alone.z, CODES.z)


def test_the_error_is_the_distance_of_the_mean_from_the_subgoals_code():
  np.testing.assert_allclose(labelled.error(CODES, SUBGOALS), [[0.0, 1.0 + 1.0]], atol=1e-6)
