"""Needle in a haystack, in bytes: one sentence with a number, surrounded by noise.

The task is the single-needle task with noise of RULER (Hsieh et al. 2024, arXiv:2404.06654), named
S-NIAH-1 in papers on linear recurrences, reduced for small models.
"""

import dataclasses

import numpy as np

from linear_transformer.data.synthetic.generator import Example, Generator, require

_NOISE = (
    b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
_NEEDLE = "One of the special magic numbers for {key} is: {number}. "
_QUESTION = "What is the special magic number for {key} in this text? It is {number}"
_ADJECTIVES = ("amber", "brave", "clear", "eager", "giant", "happy", "jolly", "kind", "lucky")
_NOUNS = ("anchor", "basket", "candle", "dragon", "forest", "hammer", "island", "lantern", "river")

DIGITS = 7
DEPTHS = 40
_SHORTEST = 256  # fits the longest needle and question, and some noise


@dataclasses.dataclass(frozen=True)
class Needle(Generator):
    """Bytes of noise with the needle between two of its sentences, then question and answer.

    The 7 digits of the answer count; each is predicted after the true digits before it.  The needle
    is before all noise at depth 0 and right before the question at depth 39; all depths are equally
    probable.  RULER generates the answer, and has a longer instruction and other words for keys.
    """

    vocab_size = 256

    def __call__(self, rng: np.random.Generator, length: int) -> Example:
        require(length >= _SHORTEST, length, f"needle and question need {_SHORTEST} or more")
        key = f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}"
        number = rng.integers(10 ** (DIGITS - 1), 10**DIGITS)
        needle = _NEEDLE.format(key=key, number=number).encode()
        question = _QUESTION.format(key=key, number=number).encode()

        size = length + 1 - len(needle) - len(question)
        noise = (_NOISE * (size // len(_NOISE) + 1))[-size:]
        hay = np.frombuffer(noise, np.uint8)
        sentence_ends = np.flatnonzero((hay[:-1] == ord(".")) & (hay[1:] == ord(" "))) + 2
        gaps = [0, *sentence_ends]
        gap = gaps[round(rng.integers(DEPTHS) / (DEPTHS - 1) * (len(gaps) - 1))]
        text = noise[:gap] + needle + noise[gap:] + question

        tokens = np.frombuffer(text, np.uint8).astype(np.int32)
        weights = np.zeros(length, np.float32)
        weights[-DIGITS:] = 1
        return tokens[:-1], tokens[1:], weights
