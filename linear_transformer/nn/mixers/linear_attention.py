"""Multi-head linear attention, the mixer of "Transformers are RNNs" (Katharopoulos et al. 2020)."""

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import Linear, merge_heads, split_heads
from linear_transformer.nn.layers.norms import make_norm
from linear_transformer.nn.layers.positions import LRPE, rotate
from linear_transformer.nn.layers.short_convolution import ShortConvolution
from linear_transformer.nn.mixers.base import MixerState, checked, head_width, require_causal
from linear_transformer.nn.mixers.mechanism import Mechanism
from linear_transformer.ops import segments
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.feature_maps import FEATURE_MAPS
from linear_transformer.ops.recurrence import FORMS
from linear_transformer.types import Activations, Positions, SegmentIds

DIRECTIONS = ("causal", "anticausal", "bidirectional")


class LinearAttention(nnx.Module):
    """Linear attention: projections, a feature map of queries and keys, the additive recurrence.

    Attributes:
      feature_map: name in `ops.feature_maps.FEATURE_MAPS`.
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

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        feature_map: str = "elu_plus_one",
        normalize: bool = True,
        epsilon: float = 1e-6,
        rotary: bool = False,
        lrpe: bool = False,
        output_norm: str | None = None,
        direction: str = "causal",
        convolution: int = 0,
        bias: bool = True,
        form: str = "auto",
        chunk_size: int | None = None,
        output_scale: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.value_width = head_width(width, heads)
        self.key_width = self.value_width if key_width is None else key_width
        if feature_map not in FEATURE_MAPS:
            raise ValueError(
                f"feature_map is {feature_map!r}; choose one of {', '.join(FEATURE_MAPS)}"
            )
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
        if self.key_width < 1:
            raise ValueError(f"key_width is {self.key_width}; it must be positive")
        if rotary and self.key_width % 2:
            raise ValueError(f"rotary positions need an even key width, not {self.key_width}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be positive")
        if convolution < 0 or convolution == 1:
            raise ValueError(f"convolution is {convolution}; it must be 0 or at least 2")
        if rotary and lrpe:
            raise ValueError("rotary and lrpe are both on; choose one")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction is {direction!r}; choose one of {', '.join(DIRECTIONS)}")
        if convolution and direction != "causal":
            raise ValueError(f"convolution is causal, and direction is {direction!r}")
        self.direction = direction
        self.feature_map = feature_map
        self.normalize = normalize
        self.epsilon = epsilon
        self.rotary = rotary
        self.dtype = jnp.dtype(dtype)
        self.form = form
        self.chunk_size = chunk_size
        keys = heads * self.key_width
        axes = ("embed", "heads")
        options = {"use_bias": bias, "dtype": dtype, "rngs": rngs}
        self.query = Linear(width, keys, axes=axes, **options)
        self.key = Linear(width, keys, axes=axes, **options)
        self.value = Linear(width, width, axes=axes, **options)
        self.convolution = (
            ShortConvolution(2 * keys + width, convolution, dtype=self.dtype, rngs=rngs)
            if convolution
            else None
        )
        init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "normal")
        self.output = Linear(width, width, axes=axes[::-1], kernel_init=init, **options)
        self.lrpe = LRPE(self.key_width, rngs=rngs) if lrpe else None
        self.output_norm = (
            None if output_norm is None else make_norm(output_norm, width, self.dtype, rngs)
        )

    capacity = None  # no limit

    def init_state(self, batch_size: int) -> MixerState:
        require_causal(self.direction)
        shape = (batch_size, self.heads, self.key_width, self.value_width + self.normalize)
        state = {
            "sums": jnp.zeros(shape, jnp.promote_types(self.dtype, jnp.float32)),
            "segment": jnp.zeros((batch_size,), jnp.int32),
        }
        if self.convolution is not None:
            state["convolution"] = self.convolution.init_state(batch_size)
        return state

    @checked
    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        positions: Positions | None = None,
    ) -> tuple[Activations, MixerState | None]:
        if state is not None:
            require_causal(self.direction)
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        new_state = {}
        if self.convolution is not None:
            past = None if state is None else state["convolution"]
            (q, k, v), past = self.convolution.side_by_side(
                (q, k, v), past, segment_ids=segment_ids
            )
            new_state["convolution"] = past
        q_BTHK, k_BTHK, v_BTHV = (split_heads(x, self.heads) for x in (q, k, v))
        sums = None if state is None else state["sums"]
        if state is not None and segment_ids is not None:
            kept = segments.continues(state["segment"], segment_ids)
            sums = jnp.where(kept[:, None, None, None], state["sums"], 0)
        o_BTHV, sums = self._attend(q_BTHK, k_BTHK, v_BTHV, sums, segment_ids, positions)
        o_BTD = merge_heads(o_BTHV)
        if self.output_norm is not None:
            o_BTD = self.output_norm(o_BTD)
        y_BTD = self.output(o_BTD)
        if state is None:
            return y_BTD, None
        last = state["segment"] if segment_ids is None else segment_ids[:, -1]
        return y_BTD, new_state | {"sums": sums, "segment": last}

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for k v^T and q^T S; see `Mixer.flops_per_token`."""
        del context  # the cost of a token does not depend on its position
        return 4 * self.heads * self.key_width * (self.value_width + self.normalize)

    def _attend(self, q, k, v, sums, segment_ids, positions):
        options = {
            "segment_ids_BT": segment_ids,
            "direction": self.direction,
            "form": self.form,
            "chunk_size": self.chunk_size,
        }
        feature_map = FEATURE_MAPS[self.feature_map]
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


MECHANISMS = (
    Mechanism(
        name="linear",
        mixer=LinearAttention,
        meaning="linear attention with a feature map, normalised; configs add a short convolution",
        source="Katharopoulos et al. 2020, arXiv:2006.16236, equations 8-20",
        options={"feature_map": "elu_plus_one", "convolution": 4},
        knows_order="convolution",
        rotary=True,
        bidirectional={},
        causal_only=("convolution",),
    ),
    Mechanism(
        name="norm",
        mixer=LinearAttention,
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
    ),
)
