"""Recall and state tracking: every answer is checked against the sequence by other means."""

import itertools

import numpy as np
import pytest

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic.recall import (
    InductionHeads,
    MultiQueryRecall,
    SelectiveCopying,
)
from linear_transformer.data.synthetic.state_tracking import (
    ModularArithmetic,
    Words,
    multiplication_table,
)


def examples(generator, length, count=50):
    for index in range(count):
        yield generator(np.random.default_rng((0, index)), length)


@pytest.mark.parametrize("fill", [False, True])
def test_multi_query_recall(fill):
    """Each counted place holds a key of the context, and its answer is that key's value."""
    generator = MultiQueryRecall(vocab_size=32, pairs=4, fill=fill)
    for inputs, targets, weights in examples(generator, 24):
        keys, values = inputs[:8:2], inputs[1:8:2]
        assert len(set(keys)) == len(set(values)) == 4
        assert (keys >= 1).all() and (keys < 16).all() and (values >= 16).all()
        asked = np.flatnonzero(weights)
        assert sorted(inputs[asked]) == sorted(keys)
        value_of = dict(zip(keys, values, strict=True))
        assert [value_of[k] for k in inputs[asked]] == targets[asked].tolist()
        others = np.setdiff1d(np.arange(8, 24), asked)
        assert inputs[others].any() == fill


def test_multi_query_recall_prefers_short_gaps():
    """Power 0.01 is close to 1 / i: the first free slot is taken most often."""
    taken = np.zeros(12)
    generator = MultiQueryRecall(vocab_size=32, pairs=2)
    for _, _, weights in examples(generator, 28, 300):
        taken[(np.flatnonzero(weights) - 4) // 2] += 1
    assert taken[0] > taken[1] > taken[3:].max()


def test_selective_copying():
    for inputs, targets, weights in examples(SelectiveCopying(symbols=5, count=4), 20):
        word = inputs[inputs > 1]
        assert len(word) == 4
        assert (inputs[-4:] == 1).all()
        np.testing.assert_array_equal(np.flatnonzero(weights), np.arange(16, 20))
        np.testing.assert_array_equal(targets[-4:], word)


def test_induction_heads():
    for inputs, targets, weights in examples(InductionHeads(symbols=5), 12):
        places = np.flatnonzero(inputs == 0)
        assert len(places) == 2
        assert places[1] == 11
        assert np.flatnonzero(weights).tolist() == [11]
        assert targets[11] == inputs[places[0] + 1]


def test_parity():
    for letters, targets, weights in examples(Words("Z2", shortest=3), 40):
        count = int(weights.sum())
        assert 3 <= count <= 40
        np.testing.assert_array_equal(targets, np.cumsum(letters) % 2)
        assert not letters[count:].any()


@pytest.mark.parametrize(("group", "size"), [("Z60", 60), ("S4", 24), ("S5", 120), ("A5", 60)])
def test_groups(group, size):
    """Identity, inverses, associativity (of a sample); S and A do not commute."""
    table = multiplication_table(group)
    assert table.shape == (size, size)
    np.testing.assert_array_equal(table[0], np.arange(size))
    np.testing.assert_array_equal(table[:, 0], np.arange(size))
    assert all(sorted(row) == list(range(size)) for row in table)
    rng = np.random.default_rng(0)
    for a, b, c in rng.integers(0, size, (200, 3)):
        assert table[table[a, b], c] == table[a, table[b, c]]
    assert (table == table.T).all() == group.startswith("Z")


def test_words_of_permutations():
    """Composed as functions, each prefix anew."""
    permutations = list(itertools.permutations(range(3)))
    for letters, targets, weights in examples(Words("S3"), 9, 20):
        assert weights.all()
        for end in range(1, 10):
            product = (0, 1, 2)
            for letter in letters[:end]:
                product = tuple(product[i] for i in permutations[letter])
            assert permutations[targets[end - 1]] == product


@pytest.mark.parametrize(("modulus", "shortest"), [(5, 3), (5, 0), (7, 20)])
def test_modular_arithmetic(modulus, shortest):
    """Python evaluates the expression."""
    counts, operators = set(), set()
    for inputs, targets, weights in examples(ModularArithmetic(modulus, shortest), 40, 200):
        [end] = np.flatnonzero(weights)
        symbols = [*map(str, range(modulus)), "+", "-", "*", "="]
        text = "".join(symbols[token] for token in inputs)
        assert text[end] == "=" and end % 2 == 1
        assert targets[end] == eval(text[:end]) % modulus
        assert not inputs[end + 1 :].any()
        counts.add(end)
        operators |= set(text[:end]) - set(symbols[:modulus])
    assert operators == {"+", "-", "*"}
    assert (min(counts), max(counts)) == (shortest + 1 - shortest % 2 if shortest else 39, 39)


@pytest.mark.parametrize(
    ("make", "length", "message"),
    [
        (lambda: MultiQueryRecall(pairs=4), 15, "sequences of 15 tokens: 4 pairs need"),
        (lambda: MultiQueryRecall(vocab_size=8, pairs=4), 64, "4 pairs do not fit"),
        (lambda: MultiQueryRecall(power=float("nan")), 64, "config.data.options.power = nan"),
        (lambda: MultiQueryRecall(power=-1e3), 64, "config.data.options.power = -1000.0"),
        (SelectiveCopying, 31, "sequences of 31 tokens: 16 symbols need"),
        (InductionHeads, 2, "sequences of 2 tokens: induction heads"),
        (lambda: Words("Z2", shortest=4), 3, "sequences of 3 tokens: words have 4"),
        (lambda: ModularArithmetic(shortest=4), 5, "sequences of 5 tokens: .* have 6"),
        (lambda: ModularArithmetic(1), 8, "config.data.options.modulus = 1"),
        (lambda: Words("Q8"), 3, 'config.data.options.group = "Q8"'),
        (lambda: Words("S9"), 3, 'config.data.options.group = "S9"'),
    ],
)
def test_mistakes_name_the_key(make, length, message):
    with pytest.raises(DataError, match=message):
        make()(np.random.default_rng(0), length)
