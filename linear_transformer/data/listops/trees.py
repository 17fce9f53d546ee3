"""Trees of ListOps: nested lists of digits with operators, and the value of each tree.

The task is from Nangia and Bowman 2018 (arXiv:1804.06028).  The trees have the distribution of Long
Range Arena (Tay et al. 2021, arXiv:2011.04006, section 2.2.1).
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.processes import ordered_map

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
_P_OPERATOR = 0.25  # probability of an operator instead of a digit
_MAX_TRIES = 100_000  # for a tree of the right length, or for a new tree
_CHUNK = 200  # number of trees in a task of a process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Limits of the size of a tree.

    Attributes:
      min_length, max_length: limits of the number of tokens, both excluded, without parentheses.
      max_depth: limit of the number of operators on a path, plus one for the digit.
      max_args: largest number of arguments of an operator; the smallest number is 2.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10

    def __post_init__(self):
        for name, least in (("min_length", 0), ("max_depth", 1), ("max_args", 2)):
            if getattr(self, name) < least:
                raise DataError(f"--{name}={getattr(self, name)}: must be at least {least}")
        if self.max_length < self.min_length + 2:
            raise DataError(
                f"--max_length={self.max_length}: must be at least --min_length + 2, for lengths "
                "are between the two"
            )


class _TooLongError(Exception):
    """Signal that the current tree has too many tokens."""


def make_tree(shape: Shape, seed: int, index: int) -> tuple[str, int]:
    """Returns the text of tree `index`, and its value, a digit.

    Raises:
      DataError: no tree of this shape was found.
    """
    # Python guarantees that this seeding and random() give the same numbers in all versions.
    draw = random.Random(f"{seed} {index}").random
    for _ in range(_MAX_TRIES):
        with contextlib.suppress(_TooLongError):
            text, value, length = _subtree(shape, draw, 1, shape.max_length - 1)
            if length > shape.min_length:
                return text, value
    raise DataError(
        f"no tree of {shape.min_length + 1} to {shape.max_length - 1} tokens in {_MAX_TRIES} "
        "tries: choose other --min_length, --max_length, --max_depth or --max_args"
    )


def _subtree(
    shape: Shape, draw: Callable[[], float], depth: int, room: int
) -> tuple[str, int, int]:
    """Returns text, value and number of tokens of a subtree; it has at most `room` tokens."""
    if depth >= shape.max_depth or draw() >= _P_OPERATOR:
        digit = int(10 * draw())
        if room < 1:
            raise _TooLongError
        return str(digit), digit, 1
    texts, values, length = [], [], 2  # the operator and the closing bracket
    number = 2 + int((shape.max_args - 1) * draw())
    for _ in range(number):
        text, value, tokens = _subtree(shape, draw, depth + 1, room - length)
        texts.append(text)
        values.append(value)
        length += tokens
    if length > room:
        raise _TooLongError
    operator = OPERATORS[int(len(OPERATORS) * draw())]
    # A left-branching binary tree.
    text = f"{'( ' * (number + 1)}{operator} {' ) '.join(texts)} ) ] )"
    return text, _apply(operator, values), length


def _apply(operator: str, values: list[int]) -> int:
    if operator == "[SM":
        return sum(values) % 10
    ordered = sorted(values)
    if operator == "[MED":  # the mean of the two middle values, rounded down
        return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2
    return ordered[0 if operator == "[MIN" else -1]


def _make_chunk(shape: Shape, seed: int, first: int) -> list[tuple[str, int]]:
    return [make_tree(shape, seed, index) for index in range(first, first + _CHUNK)]


def distinct_trees(shape: Shape, seed: int, processes: int) -> Iterator[tuple[str, int]]:
    """Yields an endless sequence of distinct trees, in the order of their indices.

    The trees do not depend on the number of processes.

    Raises:
      DataError: no new tree of this shape was found.
    """
    chunks = ordered_map(
        functools.partial(_make_chunk, shape, seed), itertools.count(0, _CHUNK), processes
    )
    seen, repeated = set(), 0
    for text, value in itertools.chain.from_iterable(chunks):
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            repeated = 0
            yield text, value
            continue
        repeated += 1
        if repeated == _MAX_TRIES:
            raise DataError(
                f"only {len(seen)} different trees turn up: choose a larger --max_length, "
                "--max_depth or --max_args"
            )
