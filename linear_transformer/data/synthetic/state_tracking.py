"""State tracking: products of words over a finite group, and values of expressions."""

import dataclasses
import functools
import itertools
import re

import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic.recall import Example, require

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


@dataclasses.dataclass(frozen=True)
class ModularArithmetic:
    """Digits joined by + - * without brackets, then "=": the target there is the value.

    `3 * 2 - 4 =` is 2 modulo 5; multiplication comes first.  Deletang et al. 2022
    (arXiv:2207.02098), and Grazzi et al. 2024 (arXiv:2411.12537, section 5.1) for linear
    recurrences.  Tokens from 0 are the residues, then "+", "-", "*" and "=".

    Attributes:
      modulus: the modulus of the arithmetic.
      shortest: expressions have an odd number of tokens, `shortest` to T - 1; 0 for always the
        most.  What follows "=" is 0, and does not count.
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
        shortest = 2 * fewest  # with the "="
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
