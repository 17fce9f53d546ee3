"""Random feature attention, RFA, with its gate (Peng et al. 2021, arXiv:2103.02143)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.mixers.kernel_attention import KernelAttention, KernelOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.normalizer import append_ones, divide
from linear_transformer.ops.random_features import draw_projections, fourier_features


@mechanism(
    "rfa",
    meaning="softmax attention by random Fourier features, with a gate that forgets",
    source="Peng et al. 2021, arXiv:2103.02143, equations 3-7",
    options={"features": 64, "gate": True},
    bidirectional={},
    causal_only=("gate",),
)
class RandomFeatureAttention(KernelAttention):
    """Attention with random sin and cos features of queries and keys of unit length (section 3.1).

    With the gate g_t = sigmoid(w_g x_t + b_g), a scalar per head (section 3.2):

        S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t^T        z_t = g_t z_{t-1} + (1 - g_t) phi(k_t)

    The estimate phi(q)^T z of the denominator may be near 0 or negative although its expectation is
    not, so it is clamped from below, as in the paper's code, where the bound is larger: 100 / M in
    the unit of `epsilon`.  The projections are a function of `seed`, as in `Performer`.

    Attributes:
      features: number of random projections per head, each with a sine and a cosine.
      gate: whether the gate g_t adds a recency bias; causal only.
      scale: sigma, the standard deviation of the projections: the kernel is
        exp(-|sigma (q - k)|^2 / 2).
      learn_scale: whether sigma is a parameter, one per key feature, which starts at `scale`.
      epsilon: lower bound of the denominator.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        features: int = 64,
        gate: bool = False,
        scale: float = 1.0,
        learn_scale: bool = True,
        orthogonal: bool = True,
        seed: int = 0,
        epsilon: float = 1e-2,
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        checks.counts(features=features)
        checks.positive(scale=scale, epsilon=epsilon)
        self.features = features
        self.scale = scale
        self.orthogonal = orthogonal
        self.seed = seed
        self.epsilon = epsilon
        super().__init__(width, heads, rngs=rngs, **options)
        if gate and self.direction != "causal":
            raise ValueError(f"gate is True; it needs direction='causal', not {self.direction!r}")
        self.gate = self._linear(heads, rngs, use_bias=True) if gate else None
        sigma_HK = jnp.full((heads, self.key_width), scale)
        self.sigma_HK = nnx.Param(sigma_HK, **vector("heads", None)) if learn_scale else None

    @property
    def _state_shape(self):
        return 2 * self.features, self.value_width + 1

    def flops_per_token(self, context: int) -> int:
        projections = 4 * self.heads * self.features * self.key_width
        return super().flops_per_token(context) + projections

    def _attend(self, x, q, k, v, sums, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        w_HMK = draw_projections(
            self.heads, self.features, self.key_width, seed=self.seed, orthogonal=self.orthogonal
        )
        sigma = self.scale if self.sigma_HK is None else self.sigma_HK[...].astype(dtype)[:, None]
        w_HMK = jnp.asarray(w_HMK, dtype) * sigma
        q, k = (fourier_features(a, w_HMK).astype(v.dtype) for a in (q, k))
        v_and_ones = append_ones(v).astype(dtype)
        options = {"initial_state": sums} | self._recurrence(segment_ids)
        if self.gate is None:
            options |= {"direction": self.direction, "feature_map": None, "normalize": False}
            o, sums = linear_attention(q, k, v_and_ones, **options)
        else:
            logits_BTH = self.gate(x).astype(dtype)
            k *= jax.nn.sigmoid(-logits_BTH)[..., None].astype(k.dtype)
            o, sums = decayed_attention(q, k, v_and_ones, jax.nn.log_sigmoid(logits_BTH), **options)
        return divide(o, self.epsilon).astype(v.dtype), sums
