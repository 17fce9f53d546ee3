"""Two layers of tests: the default suite, and `pytest -m slow` for what it leaves out.

The default suite proves each property once for each kind of thing that can break it; the slow layer
repeats the proof for the other sizes, options and tasks.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(kept: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrization: those that are not kept are marked slow.

    Raises:
      ValueError: no case is kept, so the default suite would prove nothing.
    """
    cases, slow = list(cases), pytest.mark.slow
    if not any(case in kept for case in cases):
        raise ValueError(f"none of {kept} is a case")
    return [
        case
        if case in kept
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=slow)
        for case in cases
    ]
