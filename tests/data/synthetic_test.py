"""Generated sequences: exact, never the same, always the same."""

from types import SimpleNamespace

import numpy as np
import pytest

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic.generators import (
    GENERATORS,
    evaluation_sequences,
    make_generator,
    require_length,
    training_sequences,
)
from linear_transformer.data.synthetic.recall import Copying

SHAPE = {"batch_size": 4, "sequence_length": 32}


def test_copying():
    """Each counted target is the separator or the token n + 1 places before it."""
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(200):
        inputs, targets, weights = Copying(symbols=10)(rng, 128)
        count = int(np.argmin(np.r_[inputs, targets[-1:]] > 0))
        lengths.add(count)
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        np.testing.assert_array_equal(np.flatnonzero(weights), np.arange(count - 1, 2 * count))
        assert targets[count - 1] == 0
        np.testing.assert_array_equal(targets[count : 2 * count], inputs[:count])
        assert inputs[:count].min() >= 1
        assert inputs.max() <= 10
        assert not targets[2 * count :].any()
    assert min(lengths) == 32
    assert max(lengths) == 62


def test_training_goes_on_where_its_state_says():
    data = training_sequences(Copying(), seed=1, **SHAPE)
    iterator = iter(data)
    next(iterator)
    state = iterator.get_state()
    second = next(iterator)
    other = iter(data)
    other.set_state(state)
    for name, array in next(other).items():
        np.testing.assert_array_equal(array, second[name])
    assert not np.array_equal(second["inputs"], next(iterator)["inputs"])


def test_processes_share_the_examples():
    """Two processes together see what one sees."""
    whole = next(iter(training_sequences(Copying(), seed=1, **SHAPE)))
    parts = [
        next(
            iter(
                training_sequences(
                    Copying(),
                    seed=1,
                    batch_size=2,
                    sequence_length=32,
                    process_index=index,
                    process_count=2,
                )
            )
        )
        for index in range(2)
    ]
    for name, array in whole.items():
        np.testing.assert_array_equal(array[0::2], parts[0][name])
        np.testing.assert_array_equal(array[1::2], parts[1][name])


def test_a_number_of_examples_is_seen_once_in_each_epoch():
    """Each epoch has the same examples in another order; with 0 no example comes again."""
    rows = []
    for batch, _ in zip(
        training_sequences(Copying(), seed=1, examples=8, **SHAPE), range(6), strict=False
    ):
        rows += [row.tobytes() for row in batch["inputs"]]
    epochs = [rows[i : i + 8] for i in (0, 8, 16)]
    assert len(set(epochs[0])) == 8
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1]
    endless = zip(training_sequences(Copying(), seed=1, **SHAPE), range(6), strict=False)
    assert len({row.tobytes() for batch, _ in endless for row in batch["inputs"]}) == 24


@pytest.mark.parametrize("name", GENERATORS)
def test_no_sequence_has_more_answers_than_it_says(name):
    generator, length = GENERATORS[name](), 256
    weights = [generator(np.random.default_rng((0, i)), length)[2] for i in range(20)]
    assert 0 < max(int(np.sum(w)) for w in weights) <= generator.answers(length) <= length


def test_evaluation_is_fixed_and_counts_each_example_once():
    batches = list(evaluation_sequences(Copying(), "test", examples=6, **SHAPE))
    again = list(evaluation_sequences(Copying(), "test", examples=6, **SHAPE))
    np.testing.assert_array_equal(batches[1]["inputs"], again[1]["inputs"])
    assert [int(np.sum(b["weights"].any(-1))) for b in batches] == [4, 2]
    other = next(evaluation_sequences(Copying(), "validation", examples=6, **SHAPE))
    assert not np.array_equal(batches[0]["inputs"], other["inputs"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_generator(config("sorting")), 'dataset = "sorting": unknown; use one of'),
        (lambda: make_generator(config("copying", symbol=3)), "config.data.options.symbol: "),
        (lambda: require_length(Copying(), 7, "KEY"), "KEY: sequences of 7 tokens: copying needs"),
        (lambda: require_length(Copying(), 0, "KEY"), "KEY: 0 is not a length"),
        (lambda: evaluate("train", 1), 'unknown split "train"'),
        (lambda: evaluate("test", 0), "config.data.evaluation_examples = 0"),
    ],
)
def test_mistakes_name_the_key(call, message):
    with pytest.raises(DataError, match=message):
        call()


def config(dataset, **options):
    return SimpleNamespace(dataset=dataset, options=options)


def evaluate(split, examples):
    return next(evaluation_sequences(Copying(), split, examples=examples, **SHAPE))
