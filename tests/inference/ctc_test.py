"""CTC decoding against all paths, and edit distances against a table written out by hand."""

import itertools

import numpy as np
import pytest

from linear_transformer.inference import ctc


def log_probs(frames, symbols, seed=0, scale=2.0):
    logits = scale * np.random.default_rng(seed).normal(size=(frames, symbols))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def all_labellings(log_probs_TE):
    """Log probability of every labelling, summed over every path."""
    frames, symbols = log_probs_TE.shape
    found = {}
    for path in itertools.product(range(symbols), repeat=frames):
        labelling = tuple(s for s, _ in itertools.groupby(path) if s != ctc.BLANK)
        score = sum(log_probs_TE[t, s] for t, s in enumerate(path))
        found[labelling] = np.logaddexp(found.get(labelling, -np.inf), score)
    return found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([0, 0, 0], []),
        ([1, 1, 0, 1, 2, 2], [1, 1, 2]),
        ([3, 3, 3], [3]),
        ([0, 2, 0, 0, 2, 1, 0], [2, 2, 1]),
        ([], []),
    ],
)
def test_collapse(path, expected):
    assert ctc.collapse(np.array(path, int)).tolist() == expected


def test_greedy_takes_the_best_symbol_of_each_frame():
    one_hot = np.eye(3)[[0, 1, 1, 0, 1, 2, 0]]
    assert ctc.greedy(np.log(one_hot + 1e-9)).tolist() == [1, 1, 2]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("frames", "symbols"), [(1, 3), (4, 3), (5, 4), (6, 2)])
def test_a_wide_beam_is_exact(frames, symbols, seed):
    table = log_probs(frames, symbols, seed)
    expected = all_labellings(table)
    assert np.logaddexp.reduce([*expected.values()]) == pytest.approx(0, abs=1e-9)
    labelling, score = ctc.prefix_beam_search(table, 10_000)
    best = max(expected, key=expected.get)
    assert tuple(labelling.tolist()) == best
    assert score == pytest.approx(expected[best], abs=1e-9)


def test_a_beam_beats_the_best_path():
    """Two frames of blank 0.6 and unit 0.4: the best path is empty, the best labelling is not."""
    table = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert ctc.greedy(table).tolist() == []
    labelling, score = ctc.prefix_beam_search(table, 2)
    assert labelling.tolist() == [1]
    assert np.exp(score) == pytest.approx(1 - 0.36)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_narrow_beam_never_scores_more_than_there_is(width):
    for seed in range(10):
        table = log_probs(6, 4, seed)
        expected = all_labellings(table)
        labelling, score = ctc.prefix_beam_search(table, width)
        assert score <= expected[tuple(labelling.tolist())] + 1e-9


def test_impossible_symbols_and_no_frames():
    with np.errstate(divide="ignore"):
        table = np.log([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    labelling, score = ctc.prefix_beam_search(table, 4)
    assert labelling.tolist() == [1, 1] and score == 0
    labelling, score = ctc.prefix_beam_search(np.zeros((0, 3)), 4)
    assert labelling.tolist() == [] and score == 0


@pytest.mark.parametrize(
    ("found", "expected", "distance"),
    [
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "bcd", 2),
        ("ab", "xaxb", 2),
        (["the", "cat"], ["a", "cat", "sat"], 2),
        ([1, 2, 3], [3, 2, 1], 2),
    ],
)
def test_edit_distance(found, expected, distance):
    assert ctc.edit_distance(found, expected) == distance
    assert ctc.edit_distance(expected, found) == distance


def test_edit_distance_against_the_recursion():
    def recursion(a, b):
        if not a or not b:
            return len(a) + len(b)
        replaced = recursion(a[1:], b[1:]) + (a[0] != b[0])
        return min(replaced, recursion(a[1:], b) + 1, recursion(a, b[1:]) + 1)

    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = (rng.integers(3, size=rng.integers(6)).tolist() for _ in range(2))
        assert ctc.edit_distance(a, b) == recursion(a, b)
