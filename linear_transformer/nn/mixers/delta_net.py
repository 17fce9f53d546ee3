"""DeltaNet (Schlag et al. 2021, arXiv:2102.11174; Yang et al. 2024, arXiv:2406.06484)."""

from linear_transformer.nn.mixers.delta_mixer import DeltaMixer


class DeltaNet(DeltaMixer):
    """The delta rule without decay and without a gate, as in the second paper (section 3.3).

    With several steps per token it is DeltaProduct.  The options are those of `DeltaMixer`.
    """
