"""Cases of `references_test`: our function for each fixture, and the forms that it has."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FOLDER = pathlib.Path(__file__).parent
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


@functools.cache
def fixture(name):
    """Inputs, outputs, cotangents of outputs and gradients of inputs, in float64."""
    with np.load(FOLDER / "fixtures" / f"{name}.npz") as file:
        arrays = {key: x.astype(np.float64) for key, x in file.items()}
    outputs = {n: arrays.pop(n) for n in list(arrays) if f"c_{n}" in arrays}
    cotangents = {n: arrays.pop(f"c_{n}") for n in outputs}
    gradients = {n: arrays.pop(n) for n in list(arrays) if n.startswith("d_")}
    return arrays, outputs, cotangents, gradients
