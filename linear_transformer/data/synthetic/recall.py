"""Recall tasks: sequences in which the model must retrieve earlier tokens.

Each class is a family of sequences, see `generator.Generator`.
"""

import dataclasses

import numpy as np

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic.generator import Example, Generator, require


@dataclasses.dataclass(frozen=True)
class Copying(Generator):
    """Sequence of symbols to repeat (Katharopoulos et al. 2020, section 4.1.1).

    A sequence is `w 0 w 0 0 ...` with w of n symbols from 1 to `symbols`, n from T / 4 to
    T / 2 - 2.  The separator after the first w and the n tokens of the second w count, as in the
    released code.
    """

    symbols: int = 10

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        require(length >= 8, length, "copying needs 8 or more")
        count = int(rng.integers(length // 4, length // 2 - 1))
        word = rng.integers(1, self.symbols + 1, count)
        tokens = np.zeros(length + 1, np.int32)
        tokens[:count] = tokens[count + 1 : 2 * count + 1] = word
        weights = np.zeros(length, np.float32)
        weights[count - 1 : 2 * count] = 1
        return tokens[:-1], tokens[1:], weights


@dataclasses.dataclass(frozen=True)
class MultiQueryRecall(Generator):
    """Key-value pairs, then every key again; the target of a repeated key is its value (MQAR).

    Arora et al. 2023 (Zoology, arXiv:2312.04927, appendix): `k1 v1 k2 v2 ...`, then every key once
    more at a distance drawn from a power law, which favours short distances; all other tokens are
    0.  Keys are from the lower half of the vocabulary, values from the upper half.

    Attributes:
      pairs: number of key-value pairs of a sequence.
      power: exponent of the power law, from -10 to 10; 1 is uniform.
      fill: whether random tokens replace the 0 between the keys.
    """

    vocab_size: int = 8192
    pairs: int = 4
    power: float = 0.01
    fill: bool = False

    def __post_init__(self):
        if self.pairs < 1 or 2 * self.pairs >= self.vocab_size:
            raise DataError(
                f"config.data.options: {self.pairs} pairs do not fit a vocabulary of "
                f"{self.vocab_size}"
            )
        if not -10 <= self.power <= 10:
            raise DataError(f"config.data.options.power = {self.power}: must be from -10 to 10")

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        pairs, half = self.pairs, self.vocab_size // 2
        require(length >= 4 * pairs, length, f"{pairs} pairs need {4 * pairs} or more")
        keys = 1 + rng.choice(half - 1, pairs, replace=False)
        values = half + rng.choice(self.vocab_size - half, pairs, replace=False)
        slots = (length - 2 * pairs) // 2
        probabilities = np.arange(1, slots + 1) ** (self.power - 1.0)
        gaps = rng.choice(slots, pairs, replace=False, p=probabilities / probabilities.sum())
        places = 2 * pairs + 2 * gaps
        inputs = np.zeros(length, np.int32)
        if self.fill:
            inputs[2 * pairs :] = rng.integers(0, self.vocab_size, length - 2 * pairs)
        inputs[0 : 2 * pairs : 2], inputs[1 : 2 * pairs : 2] = keys, values
        inputs[places] = keys
        targets, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
        targets[places], weights[places] = values, 1
        return inputs, targets, weights

    def answers(self, length: int) -> int:
        return self.pairs


@dataclasses.dataclass(frozen=True)
class SelectiveCopying(Generator):
    """Symbols scattered among blanks, to be repeated in order at the end.

    Gu & Dao 2023 (Mamba, section 4.1.1): `count` symbols at random positions, then `count` markers;
    the target at the i-th marker is the i-th symbol.  T includes the markers.

    Attributes:
      symbols: number of different symbols, with ids from 2; 0 is the blank and 1 the marker.
      count: number of symbols in a sequence.
    """

    symbols: int = 14
    count: int = 16

    @property
    def vocab_size(self) -> int:
        return self.symbols + 2

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        count = self.count
        require(length >= 2 * count, length, f"{count} symbols need {2 * count} or more")
        word = rng.integers(2, self.symbols + 2, count)
        inputs = np.zeros(length, np.int32)
        inputs[np.sort(rng.choice(length - count, count, replace=False))] = word
        inputs[-count:] = 1
        targets, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
        targets[-count:], weights[-count:] = word, 1
        return inputs, targets, weights


@dataclasses.dataclass(frozen=True)
class InductionHeads(Generator):
    """Random symbols with one marker; the target at a second marker is the symbol after the first.

    Gu & Dao 2023 (Mamba, section 4.1.2), after Olsson et al. 2022.  The second marker is the last
    token.

    Attributes:
      symbols: number of different symbols, with ids from 1; 0 is the marker.
    """

    symbols: int = 15

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        require(length >= 3, length, "induction heads need 3 or more")
        inputs = rng.integers(1, self.symbols + 1, length).astype(np.int32)
        place = int(rng.integers(0, length - 2))
        inputs[place] = inputs[-1] = 0
        targets, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
        targets[-1], weights[-1] = inputs[place + 1], 1
        return inputs, targets, weights
