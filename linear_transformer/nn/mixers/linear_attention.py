"""Multi-head linear attention, the mixer of "Transformers are RNNs" (Katharopoulos et al. 2020)."""

from typing import Any, Unpack

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.norms import make_norm
from linear_transformer.nn.layers.positions import LRPE, rotate
from linear_transformer.nn.layers.short_convolution import ShortConvolution
from linear_transformer.nn.mixers.kernel_attention import KernelOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer
from linear_transformer.ops import feature_maps
from linear_transformer.ops.additive import DIRECTIONS, linear_attention


@mechanism(
    "linear",
    meaning="linear attention with a feature map, normalised; configs add a short convolution",
    source="Katharopoulos et al. 2020, arXiv:2006.16236, equations 8-20",
    options={"feature_map": "elu_plus_one", "convolution": 4},
    encodes_order="convolution",
    rotary=True,
    bidirectional={},
    causal_only=("convolution",),
)
@mechanism(
    "norm",
    meaning="NormAttention: a norm of the output in place of the denominator, and LRPE",
    source="Qin et al. 2022, arXiv:2210.10340, equation 14",
    defaults={
        "feature_map": "elu",
        "normalize": False,
        "output_norm": "simplermsnorm",
        "lrpe": True,
    },
    bidirectional={},
    causal_only=("convolution",),
)
@mechanism(
    "based",
    meaning="Based: linear attention with the Taylor polynomial of exp, on few features",
    source="Arora et al. 2024, arXiv:2402.18668, section 4.1",
    defaults={"feature_map": "taylor", "key_width": 16, "bias": False, "epsilon": 1e-12},
    options={"key_width": 16},
    encodes_order="convolution",
    bidirectional={},
    causal_only=("convolution",),
)
class LinearAttention(RecurrentMixer):
    """Linear attention: projections, a feature map of queries and keys, the additive recurrence.

    Attributes:
      feature_map: name in `ops.feature_maps.FEATURE_MAPS`.
      nu: rolled copies of the feature map "dpfp"; None is 1.
      normalize: whether outputs are divided by the sum of the weights (equation 12).
      rotary: whether features are rotated by position, in the numerator only, so that the
        denominator stays positive (Su et al. 2021, RoFormer, equation 19).
      lrpe: whether `nn.layers.positions.LRPE` rotates the features instead of `rotary`.
      output_norm: norm over the merged heads before the output projection; None for no norm.
        Without `normalize` this is NormAttention (Qin et al. 2022, equation 14).
      direction: "causal", "anticausal" or "bidirectional"; only a causal mixer has a state.
      convolution: size of a short causal convolution on queries, keys and values; 0 for none.
      form, chunk_size: see `ops.additive.linear_attention`.
    """

    directions = DIRECTIONS

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        feature_map: str = "elu_plus_one",
        nu: int | None = None,
        normalize: bool = True,
        epsilon: float = 1e-6,
        rotary: bool = False,
        lrpe: bool = False,
        output_norm: str | None = None,
        convolution: int = 0,
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        phi = feature_maps.named(feature_map, nu)
        super().__init__(width, heads, **options)
        self.features = feature_maps.feature_width(phi, self.key_width)
        if rotary and self.features % 2:
            raise ValueError(
                f"rotary positions need an even number of features, not {self.features}"
            )
        if convolution < 0 or convolution == 1:
            raise ValueError(f"convolution is {convolution}; it must be 0 or at least 2")
        if rotary and lrpe:
            raise ValueError("rotary and lrpe are both on; choose one")
        if convolution and self.direction != "causal":
            raise ValueError(f"convolution is causal, and direction is {self.direction!r}")
        self.feature_map = feature_map
        self.nu = nu
        self.normalize = normalize
        self.epsilon = epsilon
        self.rotary = rotary
        keys = heads * self.key_width
        self.query = self._linear(keys, rngs)
        self.key = self._linear(keys, rngs)
        self.value = self._linear(width, rngs)
        self.convolution = (
            ShortConvolution(2 * keys + width, convolution, dtype=self.dtype, rngs=rngs)
            if convolution
            else None
        )
        self.output = self._output_layer(rngs)
        self.lrpe = LRPE(self.features, rngs=rngs) if lrpe else None
        self.output_norm = (
            None if output_norm is None else make_norm(output_norm, width, self.dtype, rngs)
        )

    @property
    def local(self) -> ShortConvolution | None:
        return self.convolution

    @property
    def _state_shape(self):
        return self.features, self.value_width + self.normalize

    def _mix(self, x, sums, past, segment_ids, positions):
        mixed = (self.query(x), self.key(x), self.value(x))
        if self.convolution is not None:
            mixed, past = self.convolution.side_by_side(mixed, past, segment_ids=segment_ids)
        q, k, v = (split_heads(a, self.heads) for a in mixed)
        o, sums = self._attend(q, k, v, sums, segment_ids, positions)
        o = merge_heads(o)
        return o if self.output_norm is None else self.output_norm(o), sums, past

    def _attend(self, q, k, v, sums, segment_ids, positions):
        options: dict[str, Any] = {"direction": self.direction, **self._recurrence(segment_ids)}
        feature_map = feature_maps.named(self.feature_map, self.nu)
        turn = rotate if self.rotary else self.lrpe
        if turn is None:
            return linear_attention(
                q,
                k,
                v,
                feature_map=feature_map,
                normalize=self.normalize,
                epsilon=self.epsilon,
                initial_state=sums,
                **options,
            )
        q, k = feature_map(q), feature_map(k)
        numerator, denominator = (
            (None, None) if sums is None else jnp.split(sums, [self.value_width], axis=-1)
        )
        o, numerator = linear_attention(
            turn(q, positions),
            turn(k, positions),
            v,
            feature_map=None,
            normalize=False,
            initial_state=numerator,
            **options,
        )
        if self.normalize:
            ones = jnp.ones_like(v[..., :1])
            z, denominator = linear_attention(
                q,
                k,
                ones,
                feature_map=None,
                normalize=False,
                initial_state=denominator,
                **options,
            )
            o = o / (z + self.epsilon)
            numerator = jnp.concatenate([numerator, denominator], axis=-1)
        return o, numerator
