"""Tasks of mechanistic architecture design, MAD (Poli et al. 2024, arXiv:2403.17844).

For selective copying, use `recall.SelectiveCopying`: it has one marker per symbol to copy, where
MAD has one marker and then blanks.  MAD trains on 12,800 fixed examples (256 for memorization) and
tests on 1,280; here training draws new examples without end.  In the recall tasks, MAD trains on
every token and tests on the answers; here only the answers count in both.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic.generator import Example, Generator, require

_MAP_SEED = 12_345  # fixed, so that the facts of memorization are the same in all runs


def _require_symbols(generator: "InContextRecall | FuzzyRecall", keys: int, needed: int) -> None:
    if keys < needed:
        raise DataError(
            f"config.data.options: a vocabulary of {generator.vocab_size} has {max(keys, 0)} "
            f"symbols for keys, and {needed} are needed"
        )


@dataclasses.dataclass(frozen=True)
class InContextRecall(Generator):
    """Recall in pairs `k1 v1 k2 v2 ...`: if a key occurs again, the target is its value.

    Keys are the lower half of the symbols and values the upper half.  Each sequence has its own map
    from keys to values, in which keys may share a value.  The last key occurs earlier, too.

    Attributes:
      vocab_size: number of keys, values and noise symbols.
      noise_symbols: number of noise symbols, the last symbols of the vocabulary.
      noise: probability that two noise symbols replace a pair.
    """

    vocab_size: int = 16
    noise_symbols: int = 0
    noise: float = 0.0

    def __post_init__(self):
        _require_symbols(self, (self.vocab_size - self.noise_symbols) // 2, 1)
        if not 0 <= self.noise < 1 or (self.noise and self.noise_symbols < 1):
            raise DataError(
                f"config.data.options.noise = {self.noise}: must be from 0 to below 1, and needs "
                "noise_symbols"
            )

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        even = length % 2 == 0 and length >= 4
        require(even, length, "MAD's recall needs an even number from 4")
        symbols, pairs = self.vocab_size - self.noise_symbols, length // 2
        half = symbols // 2
        keys = rng.integers(0, half, pairs)
        is_noise = rng.random(pairs) < self.noise
        is_noise[rng.integers(pairs - 1)] = is_noise[-1] = False
        keys[-1] = rng.choice(np.unique(keys[:-1][~is_noise[:-1]]))
        values = rng.integers(half, symbols, half)[keys]

        inputs = np.stack([keys, values], axis=1).astype(np.int32)
        if self.noise_symbols:
            inputs[is_noise] = rng.integers(symbols, self.vocab_size, (is_noise.sum(), 2))
        asked = ~is_noise & ~_first_of_its_kind(keys, ~is_noise)
        targets, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
        targets[::2][asked], weights[::2][asked] = values[asked], 1
        return inputs.reshape(-1), targets, weights


def _first_of_its_kind(keys: Int[np.ndarray, " N"], counted: Bool[np.ndarray, " N"]):
    """Returns a mask of the first counted position of every key."""
    first = np.zeros(keys.size, bool)
    _, places = np.unique(keys[counted], return_index=True)
    first[np.flatnonzero(counted)[places]] = True
    return first


@dataclasses.dataclass(frozen=True)
class FuzzyRecall(Generator):
    """Recall with keys and values that are words of several symbols.

    The symbols of a word are distinct.  A sequence of fewer than T tokens is padded in front with
    the last symbol of the vocabulary.  MAD tests with the longest keys only: `shortest_key` = 3.

    Attributes:
      vocab_size: number of symbols for keys, values and padding.
      shortest_key, longest_key, longest_value: number of symbols of a word; values have 1 or more.
    """

    vocab_size: int = 16
    shortest_key: int = 1
    longest_key: int = 3
    longest_value: int = 3

    def __post_init__(self):
        keys = (self.vocab_size - 1) // 2
        _require_symbols(self, keys, max(self.longest_key, self.longest_value))
        if not 1 <= self.shortest_key <= self.longest_key or self.longest_value < 1:
            raise DataError(
                f"config.data.options: keys of {self.shortest_key} to {self.longest_key} symbols "
                f"and values of 1 to {self.longest_value}; each must be possible"
            )

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        longest = self.longest_key + self.longest_value
        require(length >= 2 * longest, length, f"two pairs need {2 * longest} or more")
        half, padding = (self.vocab_size - 1) // 2, self.vocab_size - 1

        def word(first: int, after: int, shortest: int, longest: int) -> tuple[int, ...]:
            size = rng.integers(shortest, longest + 1)
            return tuple((first + rng.choice(after - first, size, replace=False)).tolist())

        value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
        tokens: list[int] = []
        counts: list[int] = []  # 1 for tokens of an answer, else 0

        def add(key: tuple[int, ...]) -> None:
            value = value_of.get(key)
            counts.extend([0] * len(key))
            if value is None:
                value = value_of[key] = word(half, padding, 1, self.longest_value)
                counts.extend([0] * len(value))
            else:
                counts.extend([1] * len(value))
            tokens.extend(key + value)

        while len(tokens) + longest <= length - longest or not tokens:
            add(word(0, half, self.shortest_key, self.longest_key))
        seen = list(value_of)
        add(seen[rng.integers(len(seen))])

        inputs, targets = np.full(length, padding, np.int32), np.zeros(length, np.int32)
        weights = np.zeros(length, np.float32)
        inputs[-len(tokens) :] = tokens
        targets[:-1] = inputs[1:]
        weights[-len(tokens) : -1] = counts[1:]
        return inputs, targets, weights


@dataclasses.dataclass(frozen=True)
class Memorization(Generator):
    """Facts to memorize: `k ? k ? ...`; the target at each `?` is the value of the key before it.

    The map from keys to values is the same in all sequences and is never shown.  Without the last
    token `?`, keys are the lower half of the vocabulary; each has a distinct value in the upper.
    """

    vocab_size: int = 256

    def __post_init__(self):
        if self.vocab_size < 3:
            raise DataError(f"config.data.options.vocab_size = {self.vocab_size}: less than 3")

    @functools.cached_property
    def values(self) -> Int[np.ndarray, " K"]:
        """Value of each key."""
        keys = (self.vocab_size - 1) // 2
        return np.random.default_rng(_MAP_SEED).permutation(np.arange(keys, 2 * keys))

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        require(length % 2 == 0, length, "memorization needs an even number")
        keys = rng.integers(0, self.values.size, length // 2)
        inputs = np.full(length, self.vocab_size - 1, np.int32)
        targets, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
        inputs[::2] = keys
        targets[1::2], weights[1::2] = self.values[keys], 1
        return inputs, targets, weights

    def answers(self, length: int) -> int:
        return length // 2


@dataclasses.dataclass(frozen=True)
class Compression(Generator):
    """Random symbols and a fixed last token, to be reconstructed from the last output vector.

    The model is `models.compressor.Compressor`.  As in MAD, the fixed last token counts as well.
    """

    vocab_size: int = 16

    def __post_init__(self):
        if self.vocab_size < 2:
            raise DataError(f"config.data.options.vocab_size = {self.vocab_size}: less than 2")

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        require(length >= 2, length, "compression needs 2 or more")
        tokens = rng.integers(0, self.vocab_size - 1, length).astype(np.int32)
        tokens[-1] = self.vocab_size - 1
        return tokens, tokens, np.ones(length, np.float32)
