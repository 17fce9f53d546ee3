"""Log-linear Mamba-2: a state for each power of two of the distance (Guo et al. 2025)."""

from typing import Unpack

from flax import nnx

from linear_transformer.nn.mixers.log_linear import LogLinear
from linear_transformer.nn.mixers.mamba2 import Mamba2, Mamba2Options
from linear_transformer.nn.mixers.mechanism import mechanism


@mechanism(
    "log_linear_mamba2",
    meaning="Mamba-2 with a state for each power of two of the distance",
    source="Guo et al. 2025, arXiv:2506.04761, section 3.4",
    options={"max_length": 1024},
    encodes_order=True,
    feed_forward_ratio=0,
    layers=2,
    length_option="max_length",
    limits_length=True,
)
class LogLinearMamba2(Mamba2, LogLinear):
    """Mamba-2 whose output is a sum over levels of the distance, see `ops.log_linear`.

    Attributes:
      max_length: longest segment in tokens, see `LogLinear`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        max_length: int = 1024,
        rngs: nnx.Rngs,
        **options: Unpack[Mamba2Options],
    ):
        super().__init__(width, heads, rngs=rngs, **options)
        self._make_scales(max_length, rngs)

    def _attend(self, x, q, k, v, log_decay, sums, segment_ids):
        return self._over_levels(x, q, k, v, log_decay, sums, segment_ids)
