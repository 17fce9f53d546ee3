"""State tracking: words over a finite group, whose product has to be known after every letter."""

import dataclasses
import functools
import itertools
import re

import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.recall import Example, require

_LARGEST = {"Z": 256, "S": 6, "A": 6}


@functools.lru_cache
def multiplication_table(group: str) -> Int[np.ndarray, "N N"]:
    """The products of the elements of Z_n, S_n or A_n; element 0 is the identity.

    Permutations are in lexicographic order, and a b applies b first.

    Raises:
      DataError: no such group, or a larger one than is useful.
    """
    match = re.fullmatch(r"([ZSA])(\d+)", group)
    if not match or not 2 <= int(match[2]) <= _LARGEST[match[1]]:
        raise DataError(
            f'config.data.options.group = "{group}": use Z2 to Z256, S2 to S6 or A2 to A6'
        )
    kind, size = match[1], int(match[2])
    if kind == "Z":
        return np.add.outer(np.arange(size), np.arange(size)) % size
    elements = list(itertools.permutations(range(size)))
    if kind == "A":
        elements = [p for p in elements if _is_even(p)]
    number = {p: i for i, p in enumerate(elements)}
    return np.array([[number[tuple(a[i] for i in b)] for b in elements] for a in elements])


def _is_even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


@dataclasses.dataclass(frozen=True)
class Words:
    """Random letters of a group; the target of each is the product of all letters so far.

    Z2 is parity, Zn addition modulo n, S5 and A5 are the word problems that no fixed-depth model
    with diagonal transitions solves at every length (Merrill et al. 2024, arXiv:2404.08819; Grazzi
    et al. 2024, arXiv:2411.12537).

    Attributes:
      group: "Z2", "Z60", "S5", "A5", ...
      shortest: words have `shortest` to T letters; 0 for always T.  What follows a word is the
        identity, and does not count.
    """

    group: str = "Z2"
    shortest: int = 0

    @property
    def vocab_size(self) -> int:
        return len(multiplication_table(self.group))

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        require(length >= self.shortest, length, f"words have {self.shortest} letters or more")
        letters = rng.integers(0, self.vocab_size, length).astype(np.int32)
        count = int(rng.integers(self.shortest, length + 1)) if self.shortest else length
        letters[count:] = 0
        table = multiplication_table(self.group)
        products = itertools.accumulate(letters, lambda product, letter: table[product, letter])
        weights = np.zeros(length, np.float32)
        weights[:count] = 1
        return letters, np.fromiter(products, np.int32, length), weights
