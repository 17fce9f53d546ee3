"""Sequences made to be learned exactly: generators, and their batches.

Each example is a pure function of (seed, index): training never repeats one, and a split of the
evaluation is the same every time.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float, Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.stream import Batch, check_shape

Example = tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"], Float[np.ndarray, " T"]]

_EXAMPLES = 2**40  # as good as endless
_READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
# Evaluation draws from streams of their own, so that no seed of training repeats them.
_SPLITS = {"validation": 2**32 + 1, "test": 2**32 + 2}


@runtime_checkable
class Generator(Protocol):
    """A family of sequences.

    Attributes:
      vocab_size: number of tokens.
    """

    vocab_size: int

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        """Inputs, targets and weights of T = `length` tokens; only weighted targets count."""
        ...


@dataclasses.dataclass(frozen=True)
class Copying:
    """A sequence of symbols to be repeated (Katharopoulos et al. 2020, section 4.1.1).

    `w 0 w 0 0 ...` with w of n symbols from 1 to `symbols`, n from T / 4 to T / 2 - 2.  What
    counts are the separator after the first w and the n tokens of the second, as in the released
    code.
    """

    symbols: int = 10

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        if length < 8:
            raise DataError(f"config.data.sequence_length = {length}: copying needs 8 or more")
        count = int(rng.integers(length // 4, length // 2 - 1))
        word = rng.integers(1, self.symbols + 1, count)
        tokens = np.zeros(length + 1, np.int32)
        tokens[:count] = tokens[count + 1 : 2 * count + 1] = word
        weights = np.zeros(length, np.float32)
        weights[count - 1 : 2 * count] = 1
        return tokens[:-1], tokens[1:], weights


GENERATORS: dict[str, Callable[..., Generator]] = {"copying": Copying}


def make_generator(config: Any) -> Generator:
    """The generator `config.dataset` with its `config.options`.

    Raises:
      DataError: an unknown name or option.
    """
    if config.dataset not in GENERATORS:
        raise DataError(
            f'config.data.dataset = "{config.dataset}": unknown; use one of {", ".join(GENERATORS)}'
        )
    make = GENERATORS[config.dataset]
    for option in config.options:
        if option not in inspect.signature(make).parameters:
            raise DataError(f"config.data.options.{option}: {config.dataset} has no such option")
    return make(**config.options)


def training_sequences(
    generator: Generator,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Endless batches `inputs`, `targets` (B, T) int32 and `weights` (B, T) float32."""
    check_shape(batch_size, sequence_length)

    def make(index: int) -> Batch:
        return _example(generator, sequence_length, (seed, index))

    examples = grain.MapDataset.range(process_index, _EXAMPLES, process_count).map(make)
    return examples.batch(batch_size).to_iter_dataset(_READ_OPTIONS)


def evaluation_sequences(
    generator: Generator, split: str, *, batch_size: int, sequence_length: int, examples: int
) -> Iterator[Batch]:
    """The same examples every time; the last batch is filled up with rows of weight 0.

    Raises:
      DataError: an unknown split, or a value out of range.
    """
    check_shape(batch_size, sequence_length)
    if split not in _SPLITS:
        raise DataError(f'unknown split "{split}": use {", ".join(_SPLITS)}')
    if examples < 1:
        raise DataError(f"config.data.evaluation_examples = {examples}: must be positive")
    for first in range(0, examples, batch_size):
        indices = range(first, first + batch_size)
        rows = [_example(generator, sequence_length, (_SPLITS[split], i)) for i in indices]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch["weights"][examples - first :] = 0
        yield batch


def _example(generator: Generator, length: int, seed: tuple[int, int]) -> Batch:
    inputs, targets, weights = generator(np.random.default_rng(seed), length)
    return {
        "inputs": inputs.astype(np.int32),
        "targets": targets.astype(np.int32),
        "weights": weights.astype(np.float32),
    }
