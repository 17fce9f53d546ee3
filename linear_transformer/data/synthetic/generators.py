"""Generators of synthetic sequences, and their batches.

Each example is a pure function of (seed, index).  Training never repeats an example unless the
config has a number of them; a split of the evaluation is always the same.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import grain
import numpy as np

from linear_transformer.data.errors import DataError, lookup
from linear_transformer.data.share import Share, check_shape, own_examples, row_numbers
from linear_transformer.data.stream import Batch
from linear_transformer.data.synthetic import mad, needle, recall, state_tracking
from linear_transformer.data.synthetic.generator import Generator

_EXAMPLES = 2**40  # practically endless
_READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
# Evaluation has its own random streams, which no seed of training repeats.
_SPLITS = {"validation": 2**32 + 1, "test": 2**32 + 2}


GENERATORS: dict[str, Callable[..., Generator]] = {
    "copying": recall.Copying,
    "multi_query_recall": recall.MultiQueryRecall,
    "selective_copying": recall.SelectiveCopying,
    "induction_heads": recall.InductionHeads,
    "mad_in_context_recall": mad.InContextRecall,
    "mad_noisy_recall": functools.partial(
        mad.InContextRecall, vocab_size=32, noise_symbols=16, noise=0.2
    ),
    "mad_fuzzy_recall": mad.FuzzyRecall,
    "mad_memorization": mad.Memorization,
    "mad_compression": mad.Compression,
    "needle": needle.Needle,
    "words": state_tracking.Words,
    "modular_arithmetic": state_tracking.ModularArithmetic,
}


def make_generator(config: Any, **changes: Any) -> Generator:
    """Makes the generator `config.dataset` with `config.options`, updated by `changes`.

    Raises:
      DataError: the name or an option is unknown.
    """
    make = lookup(GENERATORS, config.dataset, "config.data.dataset")
    options = {**config.options, **changes}
    for option in options:
        if option not in inspect.signature(make).parameters:
            raise DataError(f"config.data.options.{option}: {config.dataset} has no such option")
    return make(**options)


def require_length(generator: Generator, length: int, key: str) -> None:
    """Raises a DataError, which names the config key, if the generator can't make this length."""
    if length < 1:
        raise DataError(f"{key}: {length} is not a length")
    try:
        generator(np.random.default_rng(0), length)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def training_sequences(
    generator: Generator,
    *,
    sequence_length: int,
    seed: int,
    examples: int = 0,
    **share: Unpack[Share],
) -> grain.IterDataset:
    """Makes endless batches: `inputs`, `targets` (B, T) int32 and `weights` (B, T) float32.

    Args:
      generator: generator of the examples.
      sequence_length: tokens T of a row.
      seed: seed of the examples and of their order.
      examples: number of different examples, each once in an epoch, in a new order for each epoch;
        0 never repeats an example.
      **share: rows of this process, see `data.share.Share`.
    """
    check_shape(share["batch_size"], sequence_length)

    def make(index: int) -> Batch:
        return _example(generator, sequence_length, (seed, index))

    numbers = grain.MapDataset.range(examples or _EXAMPLES)
    if examples:
        numbers = numbers.shuffle(seed=seed).repeat(_EXAMPLES // examples)
    rows = numbers[own_examples(share)].map(make)
    return rows.batch(share["batch_size"]).to_iter_dataset(_READ_OPTIONS)


def evaluation_sequences(
    generator: Generator,
    split: str,
    *,
    sequence_length: int,
    examples: int,
    **share: Unpack[Share],
) -> Iterator[Batch]:
    """Yields the same examples at every call; rows of weight 0 fill up the last batch.

    Args:
      generator: generator of the examples.
      split: "validation" or "test".
      sequence_length: tokens T of a row.
      examples: number of examples of all processes.
      **share: rows of this process, see `data.share.Share`.

    Raises:
      DataError: the split is unknown, or a value is out of range.
    """
    check_shape(share["batch_size"], sequence_length)
    if split not in _SPLITS:
        raise DataError(f'unknown split "{split}": use {", ".join(_SPLITS)}')
    if examples < 1:
        raise DataError(f"config.data.evaluation_examples = {examples}: must be positive")
    for numbers in row_numbers(examples, **share):
        rows = [_example(generator, sequence_length, (_SPLITS[split], int(i))) for i in numbers]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch["weights"][numbers >= examples] = 0
        yield batch


def _example(generator: Generator, length: int, seed: tuple[int, int]) -> Batch:
    inputs, targets, weights = generator(np.random.default_rng(seed), length)
    return {
        "inputs": inputs.astype(np.int32),
        "targets": targets.astype(np.int32),
        "weights": weights.astype(np.float32),
    }
