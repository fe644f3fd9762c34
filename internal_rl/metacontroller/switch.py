"""The causal switching gate, `beta_t = f_switch(e_t, h_{t-1}, z_{t-1})` (App. D.2, Eq. 15)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

GATES = ('soft', 'gumbel', 'open')


class Switch(nn.Module):
  """One hidden layer whose products with the stream do not depend on the codes.

  `evidence` can therefore be computed for all times at once, and what is left inside the scan over
  codes, `logit`, costs a few products of size `n_z`.

  Attributes:
    hidden: width of the hidden layer; the paper leaves it open.
    num_gates: 1 for a scalar gate, `n_z` for one gate a dimension; the paper leaves it open
      (Fig. 6 plots a scalar).
    bias: initial bias of the gate's logit; the paper leaves it open.
  """

  hidden: int
  num_gates: int = 1
  bias: float = 0.0

  def setup(self):
    self.from_stream = nn.Dense(self.hidden)
    self.from_code = nn.Dense(self.hidden, use_bias=False)
    self.output = nn.Dense(self.num_gates, bias_init=nn.initializers.constant(self.bias))

  def evidence(self, e: Float[Array, '*b d'], h: Float[Array, '*b h']) -> Float[Array, '*b k']:
    """Returns the part of the hidden layer that does not depend on the code."""
    return self.from_stream(jnp.concatenate([e, h], -1))

  def logit(
    self, evidence: Float[Array, '*b k'], z: Float[Array, '*b z']
  ) -> Float[Array, '*b gates']:
    """Returns the logit of `beta_t` given the code in force, `z_{t-1}`."""
    return self.output(nn.relu(evidence + self.from_code(z)))


def gate(
  logit: Shaped[Array, '*b'],
  mode: str,
  noise: Shaped[Array, '*b'],
  temperature: float = 1.0,
  hardness: Float[Array, ''] | float = 0.0,
  threshold: float = 0.5,
) -> Shaped[Array, '*b']:
  """Turns a logit into `beta` in [0, 1].

  Args:
    logit: the switch's output.
    mode: 'soft' for the sigmoid (Eq. 15); 'gumbel' for a relaxed Bernoulli sample (App. C.6);
      'open' for beta = 1 everywhere (App. C.4.1).
    noise: logistic noise, for 'gumbel'.
    temperature: of the relaxation, for 'gumbel'.
    hardness: 0 for the value itself, 1 for its threshold, as internal RL will use it (App. C.5);
      the gradient is that of the value either way.
    threshold: of beta, for the hard gate.
  """
  if mode == 'open':
    return jnp.ones_like(logit)
  beta = nn.sigmoid((logit + noise) / temperature if mode == 'gumbel' else logit)
  return beta + jax.lax.stop_gradient(hardness * ((beta >= threshold) - beta))
