"""Cases of `references_test`: our function for each fixture, and the forms that it has."""

from collections.abc import Callable
from typing import NamedTuple

CHUNK = 4  # of 14 tokens: three chunks and a part of one
TOLERANCE = 1e-10
SCAN = ("chunk", "recurrent")
ALL = ("chunk", "recurrent", "parallel")
SOFTMAX = ("blockwise", "softmax parallel")


class Case(NamedTuple):
    """An operation and its forms.

    Attributes:
      function: (options, **inputs) -> {name of an output: array}.
      forms: those compared with the fixture; the first one is differentiated too.
      tolerance: bound of the relative RMS errors.
    """

    function: Callable
    forms: tuple[str, ...]
    tolerance: float = TOLERANCE


CASES = {}


def case(name, *forms, **options):
    """Adds a function (options, **arrays) to the cases."""

    def add(function):
        CASES[name] = Case(function, forms or ("",), **options)
        return function

    return add
