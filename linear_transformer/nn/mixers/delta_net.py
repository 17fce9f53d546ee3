"""DeltaNet (Schlag et al. 2021, arXiv:2102.11174; Yang et al. 2024, arXiv:2406.06484)."""

from linear_transformer.nn.mixers.delta_mixer import DeltaMixer
from linear_transformer.nn.mixers.mechanism import mechanism


@mechanism(
    "delta_net",
    meaning="delta rule: a token replaces the value that the state has for its key",
    source="Yang et al. 2024, arXiv:2406.06484, section 3.3",
    options={"negative_eigenvalues": False},
    encodes_order=True,
)
class DeltaNet(DeltaMixer):
    """Delta rule without decay and without a gate, as in the second paper (section 3.3).

    With several steps per token, the mixer is DeltaProduct.  `DeltaMixer` documents the options.
    """
