"""MAD's tasks: every answer is found again by reading the sequence."""

import numpy as np
import pytest

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic import mad
from linear_transformer.data.synthetic.generators import GENERATORS


def examples(generator, length, count=50):
    for index in range(count):
        yield generator(np.random.default_rng((0, index)), length)


@pytest.mark.parametrize(
    ("generator", "symbols"),
    [
        (mad.InContextRecall(vocab_size=16), 16),
        (GENERATORS["mad_noisy_recall"](), 16),
        (mad.InContextRecall(vocab_size=20, noise_symbols=8, noise=0.9), 12),
    ],
)
def test_recall(generator, symbols):
    """Read pair by pair: a key that was seen has its first value, and is asked."""
    noisy = total = 0
    for inputs, targets, weights in examples(generator, 64):
        value_of = {}
        for place in range(0, 64, 2):
            key, value = inputs[place], inputs[place + 1]
            assert weights[place + 1] == 0
            if key >= symbols:
                assert value >= symbols and weights[place] == 0
                noisy += 1
                continue
            assert key < symbols // 2 <= value < symbols
            assert weights[place] == (key in value_of)
            if key in value_of:
                assert targets[place] == value == value_of[key]
            value_of[key] = value
        assert weights[62] == 1
        assert inputs.max() < generator.vocab_size
        total += 31
    assert abs(noisy / total - generator.noise) < 0.05


@pytest.mark.parametrize("shortest", [1, 3])
def test_fuzzy_recall(shortest):
    """Parsed as runs of keys and values, which have no symbol in common."""
    sizes = set()
    for inputs, targets, weights in examples(mad.FuzzyRecall(16, shortest_key=shortest), 60):
        start = int(np.argmax(inputs != 15))
        assert not weights[:start].any() and 15 not in inputs[start:]
        np.testing.assert_array_equal(targets[:-1], inputs[1:])
        assert weights[-1] == 0
        place, value_of, asked = start, {}, np.zeros(60)
        while place < 60:
            words = []
            for is_value in (False, True):
                end = place
                while end < 60 and (inputs[end] >= 7) == is_value:
                    end += 1
                words.append(tuple(inputs[place:end]))
                place = end
            key, value = words
            assert len(set(key)) == len(key) and len(set(value)) == len(value) <= 3
            sizes.add(len(key))
            if key in value_of:
                assert value == value_of[key]
                asked[place - len(value) - 1 : place - 1] = 1
            value_of[key] = value
        np.testing.assert_array_equal(weights, asked)
        assert weights[58] == 1
    assert sizes == set(range(shortest, 4))


def test_memorization():
    """One map in all sequences, that gives each of the 127 keys another value."""
    value_of = {}
    for inputs, targets, weights in examples(mad.Memorization(256), 32, 100):
        assert (inputs[1::2] == 255).all()
        np.testing.assert_array_equal(weights, np.arange(32) % 2)
        for key, value in zip(inputs[::2], targets[1::2], strict=True):
            assert value_of.setdefault(key, value) == value
    assert set(value_of) == set(range(127))
    assert len(set(value_of.values())) == 127
    assert min(value_of.values()) >= 127 and max(value_of.values()) < 255


def test_compression():
    for inputs, targets, weights in examples(mad.Compression(16), 32, 5):
        np.testing.assert_array_equal(inputs, targets)
        assert inputs[-1] == 15 and 15 not in inputs[:-1]
        assert weights.all()


@pytest.mark.parametrize(
    ("make", "length", "message"),
    [
        (mad.InContextRecall, 63, "sequences of 63 tokens: MAD's recall needs an even"),
        (lambda: mad.InContextRecall(4, 4), 64, "4 has 0 symbols for keys, and 1"),
        (lambda: mad.InContextRecall(noise=0.5), 64, "config.data.options.noise = 0.5"),
        (mad.FuzzyRecall, 11, "sequences of 11 tokens: two pairs need 12"),
        (lambda: mad.FuzzyRecall(6), 64, "6 has 2 symbols for keys, and 3"),
        (lambda: mad.FuzzyRecall(shortest_key=4), 64, "keys of 4 to 3"),
        (mad.Memorization, 31, "sequences of 31 tokens: memorization needs an even"),
        (lambda: mad.Memorization(2), 32, "vocab_size = 2"),
        (lambda: mad.Compression(1), 32, "vocab_size = 1"),
        (mad.Compression, 1, "sequences of 1 tokens: compression needs 2"),
    ],
)
def test_mistakes(make, length, message):
    with pytest.raises(DataError, match=message):
        make()(np.random.default_rng(0), length)
