"""The messages of a compiled program, read from its HLO."""

import math
import re

KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
_MESSAGE = re.compile(rf"= (.+?) ({KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+))\[([\d,]*)\]")


def messages(hlo: str) -> list[tuple[str, int]]:
    """(kind, bytes of the result) of each collective, sorted."""
    found = []
    for result, kind in _MESSAGE.findall(hlo):
        size = 0
        for _, bits, shape in _ARRAY.findall(result):
            size += int(bits or 8) // 8 * math.prod(int(n) for n in shape.split(",") if n)
        found.append((kind, size))
    return sorted(found)
