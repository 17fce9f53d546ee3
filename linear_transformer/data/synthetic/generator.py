"""Base class of the generators of synthetic sequences."""

import numpy as np
from jaxtyping import Float, Int

from linear_transformer.data.errors import DataError

Example = tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"], Float[np.ndarray, " T"]]


class Generator:
    """Generator of a family of sequences.

    Attributes:
      vocab_size: number of tokens.
    """

    vocab_size: int

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        """Returns inputs, targets and weights of T = `length` tokens; targets of weight 1 count.

        Raises:
          DataError: the generator can't make sequences of this length.
        """
        raise NotImplementedError

    def answers(self, length: int) -> int:
        """Returns an upper bound on the number of targets that count in a sequence."""
        return length


def require(possible: bool, length: int, needs: str) -> None:
    """Raises a DataError if a generator can't make this length; the caller adds the config key."""
    if not possible:
        raise DataError(f"sequences of {length} tokens: {needs}")
