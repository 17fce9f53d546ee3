"""Nystromformer: softmax attention through landmarks (Xiong et al. 2021)."""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers.local_convolution import convolve
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.nn.parameters import taps
from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.non_finite import keep
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.ops.softmax import softmax_attention

ITERATIONS = 6


@mechanism(
    "nystromformer",
    meaning="softmax attention by the Nystrom approximation, through the means of tokens",
    source="Xiong et al. 2021, arXiv:2102.03902, section 3",
    options={"landmarks": 64, "convolution": 35},
    causal=False,
    bidirectional={},
)
class Nystromformer(ProjectedMixer):
    """Attention softmax(Q K~^T) softmax(Q~ K~^T)^+ softmax(Q~ K^T) V, all with 1 / sqrt(K).

    The landmarks Q~ and K~ are means of the queries and keys of equal parts of the row (equation
    10).  Six steps of equation 11 approximate the pseudoinverse.  A convolution of the values of
    each head is added.  Tokens attend to the first segment of each row; all later tokens are
    padding.  Outputs at padding have no meaning.  A sequence over several devices is computed as a
    whole on each of them.

    Attributes:
      direction: "bidirectional"; the default is an error, so that a config states the direction.
      landmarks: number of landmarks m.
      convolution: taps of the convolution of the values, odd.
    """

    directions = ("bidirectional",)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        landmarks: int = 64,
        convolution: int = 33,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        checks.counts(landmarks=landmarks, convolution=convolution)
        if convolution % 2 == 0:
            raise ValueError(f"convolution is {convolution}; it must be odd")
        self.landmarks = landmarks
        self.convolution = convolution
        self._make_projections(rngs)
        init = nnx.initializers.normal(convolution**-0.5)
        weights_IH = init(rngs.params(), (convolution, heads), jnp.float32)
        self.taps = nnx.Param(weights_IH, **taps(None, "heads"))
        self.output = self._output_layer(rngs)

    def _forward(self, x_BTD, state, segment_ids, positions):
        del state, positions
        exist = jnp.ones(x_BTD.shape[:2], bool)
        if segment_ids is not None:
            exist = sequence_parallel.segment_index(segment_ids) == 0
        tokens = (keep(exist, x) for x in self._by_head(x_BTD, self.query, self.key, self.value))
        o_BTHK = sequence_parallel.on_whole_rows(self._attend, *tokens, exist)
        return self.output(merge_heads(o_BTHK)), None

    def _attend(self, q_BTHK, k_BTHK, v_BTHK, exist_BT):
        q_BMHK, held_BM = self._landmarks(q_BTHK, exist_BT)
        k_BMHK, _ = self._landmarks(k_BTHK, exist_BT)
        attend = functools.partial(softmax_attention, direction="bidirectional")
        o_BMHK = attend(q_BMHK, k_BTHK, v_BTHK, key_mask_BS=exist_BT)
        pairs_BMM = held_BM[:, :, None] & held_BM[:, None]
        scores_BHMM = jnp.einsum("bmhk,bnhk->bhmn", q_BMHK, k_BMHK) * self.key_width**-0.5
        # The least number, not -inf: the softmax of an empty landmark must not be NaN.
        least = jnp.finfo(scores_BHMM.dtype).min
        weights_BHMM = jax.nn.softmax(jnp.where(pairs_BMM[:, None], scores_BHMM, least))
        weights_BHMM = jnp.where(pairs_BMM[:, None], weights_BHMM, 0)
        o_BMHK = jnp.einsum("bhmn,bnhk->bmhk", pseudoinverse(weights_BHMM), o_BMHK)
        o_BTHK = attend(q_BTHK, k_BMHK, o_BMHK.astype(self.dtype), key_mask_BS=held_BM)
        taps_ID = jnp.repeat(self.taps[...], self.key_width, axis=1)
        return o_BTHK + convolve(merge_heads(v_BTHK), taps_ID).reshape(o_BTHK.shape)

    def _landmarks(
        self, x_BTHK: Float[Array, "B T H K"], exist_BT: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B M H K"], Bool[Array, "B M"]]:
        """Means over the tokens of each part of the row, and which parts have a token."""
        batch, time, *features = x_BTHK.shape
        dtype = accumulation_dtype(x_BTHK)
        part = -(-time // self.landmarks)
        behind = -time % part
        x = jnp.pad(x_BTHK.astype(dtype), ((0, 0), (0, behind), (0, 0), (0, 0)))
        exist = jnp.pad(exist_BT, ((0, 0), (0, behind))).reshape(batch, -1, part)
        count_BM = jnp.sum(exist, axis=2)
        sums = jnp.sum(x.reshape(batch, -1, part, *features), axis=2)
        return sums / jnp.maximum(count_BM, 1)[..., None, None], count_BM > 0

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for two attentions and the inverse; see `Mixer.flops_per_token`."""
        landmarks, width = min(self.landmarks, context), self.key_width
        inverse = (8 * ITERATIONS * landmarks + 4 * width) * landmarks**2
        return self.heads * (8 * width * landmarks + inverse // context)


def pseudoinverse(a_BHMM: Float[Array, "B H M M"]) -> Float[Array, "B H M M"]:
    """Approximates the Moore-Penrose inverse by `ITERATIONS` steps (Xiong et al. 2021, eq. 11)."""
    identity = jnp.eye(a_BHMM.shape[-1], dtype=a_BHMM.dtype)
    rows, columns = (jnp.max(jnp.sum(jnp.abs(a_BHMM), axis), -1) for axis in (-1, -2))
    z = a_BHMM.mT / (rows * columns)[..., None, None]
    for _ in range(ITERATIONS):
        az = a_BHMM @ z
        z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    return z
