"""Evaluation batches: every token of every document exactly once, in order where state is kept."""

import collections

import numpy as np
import pytest

from linear_transformer.data import DataError, evaluation_batches, stateful_batches
from linear_transformer.data.text.tokenizers import ByteTokenizer, WordTokenizer

BOS = 5000
TOKENIZER = WordTokenizer([str(i) for i in range(BOS)])
LENGTHS = (7, 1, 120, 0, 33, 64, 2, 250, 15, 16, 17, 90, 5)
DOCUMENTS = np.split(np.arange(1, sum(LENGTHS) + 1, dtype=np.uint16), np.cumsum(LENGTHS)[:-1])
FIRST_TOKENS = {int(d[0]) for d in DOCUMENTS if d.size}
SHAPES = [(1, 1), (3, 16), (4, 7), (64, 300), (5, 64)]


def _check(batches, batch_size, sequence_length):
    counts = collections.Counter()
    for batch in batches:
        for name in ("inputs", "targets", "weights"):
            assert batch[name].shape == (batch_size, sequence_length)
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
        assert batch["weights"].dtype == np.float32
        valid = batch["weights"] == 1
        assert not batch["inputs"][~valid].any() and not batch["targets"][~valid].any()
        for previous, token in zip(batch["inputs"][valid], batch["targets"][valid], strict=True):
            assert previous == (BOS if token in FIRST_TOKENS else token - 1)
        counts.update(batch["targets"][valid].tolist())
    assert counts == collections.Counter(range(1, sum(LENGTHS) + 1))


@pytest.mark.parametrize(("batch_size", "sequence_length"), SHAPES)
def test_evaluation_visits_every_token_once(batch_size, sequence_length):
    batches = list(
        evaluation_batches(
            DOCUMENTS, TOKENIZER, batch_size=batch_size, sequence_length=sequence_length
        )
    )
    _check(batches, batch_size, sequence_length)
    num_windows = sum(-(-n // sequence_length) for n in LENGTHS)
    assert len(batches) == -(-num_windows // batch_size)


@pytest.mark.parametrize(("batch_size", "sequence_length"), SHAPES)
def test_stateful_visits_every_token_once(batch_size, sequence_length):
    batches = list(
        stateful_batches(
            DOCUMENTS, TOKENIZER, batch_size=batch_size, sequence_length=sequence_length
        )
    )
    num_lanes = min(batch_size, len(FIRST_TOKENS))
    _check(batches, num_lanes, sequence_length)
    steps = [-(-n // sequence_length) for n in LENGTHS]
    # Longest first to the least loaded lane is within 4/3 of the best possible (Graham, 1969).
    assert len(batches) <= 4 / 3 * max(max(steps), -(-sum(steps) // num_lanes))


def _joined(read, processes, **options):
    """The batches of all processes, the rows of one process behind those of the one before."""
    parts = [
        list(read(DOCUMENTS, TOKENIZER, process_index=index, process_count=processes, **options))
        for index in range(processes)
    ]
    for batches in zip(*parts, strict=True):
        yield {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("sequence_length", [7, 64])
def test_processes_share_the_rows(sequence_length):
    """Three processes with 4 rows each have the batches of one with 12."""
    options = {"batch_size": 4, "sequence_length": sequence_length}
    whole = evaluation_batches(DOCUMENTS, TOKENIZER, **(options | {"batch_size": 12}))
    joined = _joined(evaluation_batches, 3, **options)
    for batch, expected in zip(joined, whole, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name], array)


def test_processes_share_the_lanes():
    """12 documents in 3 x 6 lanes, the last of which have none."""
    options = {"batch_size": 6, "sequence_length": 16, "multiple": 2}
    batches = list(_joined(stateful_batches, 3, **options))
    _check(batches, 12, 16)
    batches = list(_joined(stateful_batches, 3, **(options | {"multiple": 3})))
    _check(batches, 18, 16)
    assert not any(batch["weights"][12:].any() for batch in batches)


def test_stateful_lanes_read_in_order():
    position = np.full(4, -1)
    for batch in stateful_batches(DOCUMENTS, TOKENIZER, batch_size=4, sequence_length=16):
        assert batch["positions"].dtype == np.int32 and batch["reset"].dtype == bool
        for lane in range(4):
            valid = batch["weights"][lane] == 1
            begins = bool(valid[0]) and batch["inputs"][lane, 0] == BOS
            assert batch["reset"][lane] == begins
            if not valid.any():
                continue
            first = batch["positions"][lane, 0]
            assert first == (0 if begins else position[lane])
            np.testing.assert_array_equal(batch["positions"][lane], first + np.arange(16))
            # A document goes on only after a full step: nothing comes between its parts.
            position[lane] = first + 16 if valid.all() else -1
            tokens = batch["targets"][lane][valid]
            start = max(t for t in FIRST_TOKENS if t <= tokens[0])
            np.testing.assert_array_equal(tokens - start, first + np.arange(tokens.size))


@pytest.mark.parametrize("function", [evaluation_batches, stateful_batches])
def test_mistakes(function):
    for documents in ([], [np.zeros(0, np.uint8)]):
        with pytest.raises(DataError, match="no tokens"):
            next(function(documents, ByteTokenizer(), batch_size=2, sequence_length=4))
    with pytest.raises(DataError, match=r"config.data.batch_size = 0"):
        next(function(DOCUMENTS, TOKENIZER, batch_size=0, sequence_length=4))
