"""State-tracking tasks: products of words over a finite group, and values of expressions."""

import dataclasses
import functools
import itertools
import re

import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic.generator import Example, Generator, require

_LARGEST = {"Z": 256, "S": 6, "A": 6}


@functools.lru_cache
def multiplication_table(group: str) -> Int[np.ndarray, "N N"]:
    """Returns the multiplication table of Z_n, S_n or A_n, (N, N); element 0 is the identity.

    Permutations are in lexicographic order; the product a b applies b first.

    Raises:
      DataError: the group does not exist, or it is too large to be useful.
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
class Words(Generator):
    """Random elements of a group; the target at each is the product of all elements so far.

    Z2 is parity, Zn addition modulo n.  The word problems of S5 and A5 are not solved at every
    length by any fixed-depth model with diagonal transitions (Merrill et al. 2024,
    arXiv:2404.08819; Grazzi et al. 2024, arXiv:2411.12537).

    Attributes:
      group: name of the group: "Z2", "Z60", "S5", "A5", ...
      shortest: minimum length of a word, up to T; 0 for always T.  The identity follows a shorter
        word and does not count.
      last: whether only the product of the whole word counts, at its last letter.
    """

    group: str = "Z2"
    shortest: int = 0
    last: bool = False

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
        weights[count - 1 if self.last else 0 : count] = 1
        return letters, np.fromiter(products, np.int32, length), weights


@dataclasses.dataclass(frozen=True)
class ModularArithmetic(Generator):
    """Residues joined by + - * without brackets, then "="; the target at "=" is the value.

    `3 * 2 - 4 =` is 2 modulo 5; multiplication has precedence.  Deletang et al. 2022
    (arXiv:2207.02098), and Grazzi et al. 2024 (arXiv:2411.12537, section 5.1) for linear
    recurrences.  The tokens are the residues from 0, then "+", "-", "*" and "=".

    Attributes:
      modulus: modulus of the arithmetic.
      shortest: minimum length of an expression; 0 for always the maximum.  Lengths are odd and at
        most T - 1.  Tokens after "=" are 0 and do not count.
    """

    modulus: int = 5
    shortest: int = 0

    def __post_init__(self):
        if self.modulus < 2:
            raise DataError(f"config.data.options.modulus = {self.modulus}: must be 2 or more")

    @property
    def vocab_size(self) -> int:
        return self.modulus + 4

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        most, fewest = length // 2, self.shortest // 2 + 1  # digits
        shortest = 2 * fewest  # includes the "="
        require(length >= shortest, length, f"expressions and their = have {shortest} or more")
        digits = int(rng.integers(fewest, most + 1)) if self.shortest else most
        residues = rng.integers(0, self.modulus, digits)
        operators = rng.integers(0, 3, digits - 1)

        inputs, targets = np.zeros(length, np.int32), np.zeros(length, np.int32)
        weights = np.zeros(length, np.float32)
        end = 2 * digits - 1
        inputs[0:end:2], inputs[1:end:2] = residues, self.modulus + operators
        inputs[end] = self.modulus + 3
        targets[end], weights[end] = self._value(residues.tolist(), operators.tolist()), 1
        return inputs, targets, weights

    def _value(self, residues: list[int], operators: list[int]) -> int:
        total, term = 0, residues[0]
        for operator, residue in zip(operators, residues[1:], strict=True):
            if operator == 2:
                term = term * residue % self.modulus
            else:
                total, term = total + term, (residue, -residue)[operator]
        return (total + term) % self.modulus
