"""The metacontroller: abstract actions on a frozen residual stream (App. D.2, Eqs. 11-18)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from internal_rl.metacontroller.decoder import Decoder
from internal_rl.metacontroller.embedder import SequenceEmbedder
from internal_rl.metacontroller.encoder import Encoder
from internal_rl.metacontroller.history import History
from internal_rl.metacontroller.switch import GATES, Switch, gate
from internal_rl.models.heads import DiagonalGaussian
from internal_rl.types import Key

FIRST_GATES = ('open', 'free')


@struct.dataclass
class Codes:
  """What the metacontroller inferred about a batch of sequences.

  Attributes:
    z: code in force at each step, `z_t`.
    beta: switching gate, `beta_t`; one gate, or one for each dimension of the code.
    proposal: the sampled `z~_t` that the gate let through.
    posterior: `N(mu_t, Sigma_t)`.
  """

  z: Float[Array, 'b t z']
  beta: Float[Array, 'b t gates']
  proposal: Float[Array, 'b t z']
  posterior: DiagonalGaussian


@struct.dataclass
class SwitchCarry:
  """What the causal half remembers between raw steps of internal RL.

  Attributes:
    h: history `h_{t-1}`.
    first: True until the first step.
  """

  h: Float[Array, 'b h']
  first: Bool[Array, ' b']


class Metacontroller(nn.Module):
  """Proposes codes with the whole sequence in view, and lets a causal gate decide when to switch.

  Attributes:
    width: width of the residual stream, `n_e`.
    code_size: `n_z`, 8 in Tables A9 and A10.
    encoder_hidden: hidden layer of the encoder, 64.
    initial_std: standard deviation of the posterior at the start; the paper leaves it open. While
      noise drowns the means, the controller learns to ignore codes and the encoder learns nothing.
    decoder_hidden: hidden layer of the hypernetwork, 32.
    decoder_activation: of that layer, 'tanh' or 'relu', see `Decoder`; the paper leaves it open.
    history_size: `n_h`, 32.
    embedding_size: `n_s`, 32.
    embedder_blocks: layers of the sequence embedder, `L_emb`; the paper leaves it open.
    summary: 'last', 'mean' or 'per_step', see `SequenceEmbedder`; the paper leaves it open.
    switch_hidden: hidden layer of the switch; the paper leaves it open.
    switch_bias: initial bias of the switch; the paper leaves it open.
    scalar_gate: one gate for the whole code, or one for each dimension; the paper leaves it open,
      but internal RL needs one.
    first_gate: beta_1, where z_0 is undefined: 'open' for 1, 'free' for the gate's own value with
      z_0 = 0; the paper leaves it open.
    threshold: beta above which a hard gate is open (App. C.6: 0.5).
    temperature: of the Gumbel-sigmoid gate (App. C.6).
    controller: 'low_rank' (gridworld, Table A9) or 'full' (ant, Table A10).
    rank: rank of a low-rank controller, 16 in Table A9.
    controller_scale: variance scaling of the controller's weights; the paper leaves it open.
    normalise: whether to normalise the stream before the metacontroller's own networks read it (the
      controller itself always acts on the stream as it is); the paper leaves it open.
  """

  width: int
  code_size: int = 8
  encoder_hidden: int = 64
  initial_std: float = 1.0
  decoder_hidden: int = 32
  decoder_activation: str = 'tanh'
  history_size: int = 32
  embedding_size: int = 32
  embedder_blocks: int = 1
  summary: str = 'last'
  switch_hidden: int = 32
  switch_bias: float = 0.0
  scalar_gate: bool = True
  first_gate: str = 'open'
  threshold: float = 0.5
  temperature: float = 1.0
  controller: str = 'low_rank'
  rank: int = 16
  controller_scale: float = 0.1
  normalise: bool = True

  def setup(self):
    if self.first_gate not in FIRST_GATES:
      raise ValueError(
        f'metacontroller.first_gate={self.first_gate!r}: must be one of {FIRST_GATES}'
      )
    if self.initial_std <= 0:
      raise ValueError(f'metacontroller.initial_std={self.initial_std}: must be positive')
    self.norm = nn.RMSNorm()
    self.history = History(self.history_size)
    self.embedder = SequenceEmbedder(self.embedding_size, self.embedder_blocks, self.summary)
    self.encoder = Encoder(self.encoder_hidden, self.code_size, self.initial_std)
    self.switch = Switch(self.switch_hidden, self.num_gates, self.switch_bias)
    self.decoder = Decoder(
      width=self.width,
      hidden=self.decoder_hidden,
      kind=self.controller,
      rank=self.rank,
      init_scale=self.controller_scale,
      activation=self.decoder_activation,
    )

  @property
  def num_gates(self) -> int:
    return 1 if self.scalar_gate else self.code_size

  def _read(self, e: Float[Array, '*b d']) -> Float[Array, '*b d']:
    return self.norm(e) if self.normalise else e

  def __call__(
    self,
    e: Float[Array, 'b t d'],
    mask: Bool[Array, 'b t'],
    key: Key,
    gate_mode: str = 'soft',
    hardness: Float[Array, ''] | float = 0.0,
  ) -> Codes:
    """Infers codes from whole sequences.

    Args:
      e: residual stream at the controlled layer.
      mask: True on real steps.
      key: consumed; noise of the posterior samples and of the Gumbel gate.
      gate_mode: 'soft', 'gumbel' or 'open', see `gate`.
      hardness: 0 for soft gates, 1 for thresholded ones, see `gate`.
    """
    if gate_mode not in GATES:
      raise ValueError(f'discover.gate={gate_mode!r}: must be one of {GATES}')
    proposal_key, gate_key = jax.random.split(key)
    x = self._read(e)
    h = self.history(x)
    posterior = self.encoder(x, h, self.embedder(x, mask))
    proposal = posterior.sample(proposal_key)
    if gate_mode == 'open':
      return Codes(proposal, jnp.ones((*e.shape[:2], self.num_gates)), proposal, posterior)
    noise = jax.random.logistic(gate_key, (*e.shape[:2], self.num_gates))
    evidence = self.switch.evidence(x, h)
    z, beta = self.integrate(proposal, evidence, noise, gate_mode, hardness)
    return Codes(z, beta, proposal, posterior)

  def integrate(
    self,
    proposal: Float[Array, 'b t z'],
    evidence: Float[Array, 'b t k'],
    noise: Float[Array, 'b t gates'],
    gate_mode: str = 'soft',
    hardness: Float[Array, ''] | float = 0.0,
  ) -> tuple[Float[Array, 'b t z'], Float[Array, 'b t gates']]:
    """Scans `z_t = beta_t z~_t + (1 - beta_t) z_{t-1}` (Eq. 16); returns `z` and `beta`."""

    def body(module, carry, inputs):
      z, first = carry
      proposal, evidence, noise = inputs
      logit = module.switch.logit(evidence, z)
      beta = gate(logit, gate_mode, noise, module.temperature, hardness, module.threshold)
      beta = jnp.where(first, 1.0, beta) if module.first_gate == 'open' else beta
      z = beta * proposal + (1 - beta) * z
      return (z, jnp.array(False)), (z, beta)

    scan = nn.transforms.scan(
      body, variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1
    )
    start = (jnp.zeros_like(proposal[:, 0]), jnp.array(True))
    return scan(self, start, (proposal, evidence, noise))[1]

  def touch_everything(
    self, e: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], key: Key
  ) -> Float[Array, 'b t d']:
    """Runs every submodule once; for `init(..., method=Metacontroller.touch_everything)`."""
    return self.control(self(e, mask, key).z, e)

  def initial_carry(self, batch: int) -> SwitchCarry:
    """Returns what the causal half knows before the first observation."""
    return SwitchCarry(jnp.zeros((batch, self.history_size)), jnp.ones(batch, bool))

  def switch_step(
    self, carry: SwitchCarry, e: Float[Array, 'b d'], z: Float[Array, 'b z']
  ) -> tuple[SwitchCarry, Float[Array, 'b gates']]:
    """Returns beta_t for the code `z_{t-1}` in force, and remembers `e_t` (Algorithm 2)."""
    x = self._read(e)
    beta = nn.sigmoid(self.switch.logit(self.switch.evidence(x, carry.h), z))
    if self.first_gate == 'open':
      beta = jnp.where(carry.first[:, None], 1.0, beta)
    return SwitchCarry(self.history.step(carry.h, x), jnp.zeros_like(carry.first)), beta

  def control(self, z: Float[Array, '*b z'], e: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Returns the controlled stream `e + f_hyp(z) e` (Eqs. 17-18)."""
    return self.decoder(z, e)
