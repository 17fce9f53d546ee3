"""Needles: the text is one, and its answer is in it, once, at any depth."""

import re

import numpy as np
import pytest

from linear_transformer.data.errors import DataError
from linear_transformer.data.synthetic.needle import DEPTHS, Needle

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


@pytest.mark.parametrize("length", [256, 1000, 5000])
def test_needle(length):
    places = []
    for index in range(100):
        inputs, targets, weights = Needle()(np.random.default_rng((0, index)), length)
        assert inputs.shape == targets.shape == weights.shape == (length,)
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        text = bytes(np.append(inputs, targets[-1]).astype(np.uint8)).decode()
        answer = bytes(targets[weights > 0].astype(np.uint8)).decode()
        needles = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\. ", text)
        [(key, number)] = needles
        assert answer == number == text[-7:]
        assert text.endswith(f" number for {key} in this text? It is {number}")
        before, _, after = text.partition("One of the special")
        assert before == "" or before.endswith(". ")
        rest = before + after[after.index(". ") + 2 : after.index("What is")]
        assert rest in NOISE * (length // len(NOISE) + 2)
        places.append(len(before) / len(rest))
    assert min(places) == 0 and max(places) == 1
    if length == 5000:
        assert len({round(place * (DEPTHS - 1)) for place in places}) > DEPTHS // 2


def test_too_short():
    with pytest.raises(DataError, match="sequences of 255 tokens: needle and question need 256"):
        Needle()(np.random.default_rng(0), 255)
