"""cosFormer attention (Qin et al. 2022, arXiv:2202.08791)."""

from typing import Unpack

from flax import nnx

from linear_transformer.nn.mixers.kernel_attention import KernelAttention, KernelOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.ops import checks
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.cosformer import cosine_features
from linear_transformer.ops.normalizer import append_ones, divide


@mechanism(
    "cosformer",
    meaning="linear attention with ReLU features and a cosine of the distance",
    source="Qin et al. 2022, arXiv:2202.08791, equations 9-12",
    options={"max_length": 1024},
    length_option="max_length",
    limits_length=True,
    bidirectional={},
)
class CosFormer(KernelAttention):
    """Linear attention with ReLU features, weighted by a cosine of the distance between tokens.

    Attributes:
      max_length: M, the distance at which weights reach 0.  The caller must keep positions below M;
        `capacity` is M.
      epsilon: lower bound of the denominator.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        max_length: int = 1024,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        checks.counts(max_length=max_length)
        checks.positive(epsilon=epsilon)
        self.max_length = max_length
        self.epsilon = epsilon
        super().__init__(width, heads, rngs=rngs, **options)

    @property
    def capacity(self) -> int:
        return self.max_length

    @property
    def _state_shape(self):
        return 2 * self.key_width, self.value_width + 1

    def _attend(self, x, q, k, v, sums, segment_ids, positions):
        del x
        if positions is None:
            raise ValueError("positions is None; cosFormer weights depend on them")
        q, k = (cosine_features(a, positions, self.max_length) for a in (q, k))
        o, sums = linear_attention(
            q,
            k,
            append_ones(v).astype(self._state_dtype),
            direction=self.direction,
            feature_map=None,
            normalize=False,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        return divide(o, self.epsilon).astype(v.dtype), sums
