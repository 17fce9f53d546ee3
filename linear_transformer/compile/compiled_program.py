"""Cost of a compiled program, read from its text: matmuls, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once, for any number of iterations, although most
of a model is in loops over layers and over chunks.  Here every instruction counts as often as it
runs.  The text is the result of `jax.stages.Compiled.as_text()`, after all optimizations of XLA.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "send",  # to another slice, over the data-centre network: part of a collective above
)
# They move no bytes themselves; the computations that they call may.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "optimization-barrier",
    "partition-id",
    "replica-id",
}
_SLICES = ("slice", "dynamic-slice", "gather")
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\](?:\{([^{}]*)\})?")
_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
# A collective of a TPU in steps, between other work: each step has the text of the whole.
_CHAIN = re.compile(r'chain_id="\d+"')
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """Array in the text: sizes, bytes, and whether it is in HBM rather than on the chip."""

    sizes: tuple[int, ...]
    bytes: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """Arrays of the result; the elements of a tuple one by one."""
        return [_array(*groups) for groups in _ARRAY.findall(self.type)]

    @property
    def hbm_bytes(self) -> int:
        return sum(a.bytes for a in self.arrays if a.in_hbm)

    def attribute(self, name: str) -> str:
        """Returns the text of an attribute; empty if the instruction has no such attribute."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
        return "" if found is None else found[1]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of a program on one device.

    Attributes:
      flops: FLOPs of matmuls and convolutions, multiply-adds counted as two.
      hbm_bytes: bytes read from and written to HBM by all instructions.
      collectives: number of runs and bytes of each kind; the larger of inputs and outputs counts.
      kernels: calls of Pallas kernels; `hbm_bytes` includes their operands, and `flops` their own
        estimates (`pl.CostEstimate`).
      unknown_loops: loops without a length in the text; they count once.
    """

    flops: float
    hbm_bytes: float
    collectives: dict[str, tuple[int, int]]
    kernels: int
    unknown_loops: int


def cost(text: str) -> Cost:
    """Reads the text of a compiled program; loops count as often as they run."""
    program = _Program(text)
    flops = hbm_bytes = 0.0
    kernels = 0
    collectives = {kind: [0, 0] for kind in COLLECTIVES}
    chains = set()
    for computation, times in program.runs.items():
        for instruction in program.computations[computation].values():
            flops += times * program.flops(computation, instruction)
            if computation not in program.fused:
                hbm_bytes += times * program.traffic(computation, instruction)
            if instruction.attribute("custom_call_target") == '"tpu_custom_call"':
                kernels += times
                estimate = _ESTIMATE.search(instruction.attributes)
                flops += times * int(estimate[1]) if estimate else 0
            kind = instruction.opcode.removesuffix("-start")
            chain = _CHAIN.search(instruction.attributes)
            if kind not in collectives or (chain and chain[0] in chains):
                continue
            if chain:
                chains.add(chain[0])
            collectives[kind][0] += times
            collectives[kind][1] += times * program.sent(computation, instruction)
    found = {kind: (runs, sent) for kind, (runs, sent) in collectives.items() if runs}
    return Cost(flops, hbm_bytes, found, kernels, program.unknown_loops)


class _Program:
    """Computations by name, each a dict of instructions by name in the order of the text."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.fused: set[str] = set()
        self.unknown_loops = 0
        entry = None
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line and not line[0].isspace() and line.endswith("{") and "->" in line:
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
                current = self.computations[name] = {}
                if line.startswith("ENTRY"):
                    entry = name
            elif " = " in line and line[0].isspace():
                instruction = _parse(line)
                current[instruction.name] = instruction
        if entry is None:
            raise ValueError("the text has no ENTRY computation")
        self.runs: dict[str, int] = collections.Counter()
        self._count(entry, 1)

    def _count(self, computation: str, times: int) -> None:
        self.runs[computation] += times
        for instruction in self.computations[computation].values():
            if instruction.opcode == "while":
                body = instruction.attribute("body").lstrip("%")
                self._count(body, times * self._length(instruction))
            elif instruction.opcode in ("reduce", "scatter", "sort", "map", "select-and-scatter"):
                continue  # the function that it applies to each element has no matmul
            elif instruction.opcode in COLLECTIVES or instruction.opcode.endswith("-start"):
                if instruction.opcode == "async-start":
                    self._count(_called(instruction)[0], times)
            else:
                for called in _called(instruction):
                    if instruction.opcode == "fusion" or computation in self.fused:
                        self.fused.add(called)
                    self._count(called, times)

    def _length(self, loop: Instruction) -> int:
        """Number of iterations of a loop that counts up from 0, as `lax.scan` does."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if found:
            return int(found[1])
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        *_, root = condition.values()
        bounds = [condition[name] for name in root.operands if name in condition]
        constants = [i for i in bounds if i.opcode == "constant"]
        if root.opcode == "compare" and "direction=LT" in root.attributes and constants:
            return int(constants[0].attributes.partition(")")[0])
        self.unknown_loops += 1
        return 1

    def flops(self, computation: str, instruction: Instruction) -> float:
        if instruction.opcode not in ("convolution", "dot"):
            return 0.0
        operands = self.computations[computation]
        left, right = (operands[name].arrays[0].sizes for name in instruction.operands[:2])
        out = instruction.arrays[0].sizes
        if instruction.opcode == "dot":
            contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
            return 2.0 * math.prod(out) * math.prod(left[int(i)] for i in contracted)
        return _convolution_flops(instruction, left, right, out)

    def sent(self, computation: str, instruction: Instruction) -> int:
        operands = self.computations[computation]
        given = sum(a.bytes for name in instruction.operands for a in operands[name].arrays)
        result = sum(a.bytes for a in instruction.arrays)
        if instruction.opcode.endswith("-start"):  # its type holds the operands too
            result -= given
        return max(given, result)

    def traffic(self, computation: str, instruction: Instruction) -> int:
        """Bytes to and from HBM of an instruction outside of fusions."""
        operands = self.computations[computation]
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-start"):
            return 0
        if opcode.endswith("-done"):  # the copy or slice that was started
            start = operands[instruction.operands[0]]
            sources = [operands[name] for name in start.operands[:1]]
            size = sum(a.bytes for a in instruction.arrays)
            return instruction.hbm_bytes + size * any(s.hbm_bytes for s in sources)
        if opcode == "fusion":
            called = _called(instruction)[0]
            read = sum(
                self.read(called, place) * bool(operands[name].hbm_bytes)
                for place, name in enumerate(instruction.operands)
            )
            return read + self.written(called, instruction)
        if opcode in _SLICES:
            return instruction.hbm_bytes + min(
                operands[instruction.operands[0]].hbm_bytes,
                sum(a.bytes for a in instruction.arrays),
            )
        if opcode == "dynamic-update-slice":
            update = operands[instruction.operands[1]]
            size = update.arrays[0].bytes
            return update.hbm_bytes + size * bool(instruction.hbm_bytes)
        return instruction.hbm_bytes + sum(operands[n].hbm_bytes for n in instruction.operands)

    @functools.cache  # noqa: B019 - a program lives as long as one call of `cost`
    def read(self, computation: str, place: int) -> int:
        """Bytes that a fusion reads of an operand: only the slices, if it only cuts slices."""
        instructions = self.computations[computation]
        parameter = next(
            i
            for i in instructions.values()
            if i.opcode == "parameter" and i.attributes.startswith(f"{place})")
        )
        whole = sum(a.bytes for a in parameter.arrays)
        *_, root = instructions.values()
        total, names = 0, [parameter.name]
        while names:
            name = names.pop()
            if name == root.name:
                return whole
            for user in instructions.values():
                if name not in user.operands:
                    continue
                if user.opcode == "bitcast" or self._is_view(user):
                    names.append(user.name)
                elif user.opcode in _SLICES and user.operands[0] == name:
                    total += user.arrays[0].bytes
                elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                    continue  # written in place
                elif user.opcode == "fusion":
                    inner = _called(user)[0]
                    total += sum(
                        self.read(inner, i) for i, n in enumerate(user.operands) if n == name
                    )
                else:
                    return whole
        return min(total, whole)

    def _is_view(self, instruction: Instruction) -> bool:
        """Returns whether a fusion only gives its one operand another shape."""
        if instruction.opcode != "fusion":
            return False
        inner = self.computations[_called(instruction)[0]].values()
        return {i.opcode for i in inner} == {"parameter", "bitcast"} and len(inner) == 2

    def written(self, computation: str, fusion: Instruction) -> int:
        """Bytes that a fusion writes: only the update, if its result is updated in place."""
        instructions = self.computations[computation]
        *_, root = instructions.values()
        roots = [instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]
        if len(roots) != len(fusion.arrays):
            return fusion.hbm_bytes
        total = 0
        for result, array in zip(roots, fusion.arrays, strict=True):
            while result.opcode == "bitcast":
                result = instructions[result.operands[0]]
            size = array.bytes
            if result.opcode == "dynamic-update-slice":
                size = instructions[result.operands[1]].arrays[0].bytes
            total += size * array.in_hbm
        return total


def _called(instruction: Instruction) -> list[str]:
    names = _CALLED.findall(instruction.attributes)
    for group in _BRANCHES.findall(instruction.attributes):
        names += re.findall(r"[\w.\-]+", group)
    return names


def _array(kind: str, sizes: str, layout: str) -> Array:
    shape = tuple(int(n) for n in sizes.split(",")) if sizes else ()
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    space = re.search(r"S\((\d+)\)", layout)
    return Array(shape, math.prod(shape) * bits // 8, space is None or space[1] == "0")


def _parse(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    operands = rest[opening + 1 : closing]
    opcode = rest[end:opening].strip()
    # The parentheses of constants and parameters hold a value.
    value = opcode in ("constant", "parameter")
    return Instruction(
        name.lstrip("%"),
        rest[:end],
        opcode,
        () if value else tuple(re.findall(r"%([\w.\-]+)", operands)),
        rest[opening + 1 :] if value else rest[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return opening + found.start()
    raise ValueError(f"no closing parenthesis: {text[:200]}")


def _window(instruction: Instruction, dimensions: int) -> Iterator[dict[str, list[int]]]:
    """Yields the size, stride, padding and dilation of each spatial dimension."""
    fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", instruction.attribute("window")))
    default = {"size": "1", "stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    for i in range(dimensions):
        yield {
            key: [
                int(n) for n in (fields[key].split("x")[i] if key in fields else value).split("_")
            ]
            for key, value in default.items()
        }


def _convolution_flops(instruction, left, right, out) -> float:
    """FLOPs of a convolution; only products with an element of the input count, none with padding.

    On a TPU every matmul is a convolution, and a batched matmul is a convolution in which the
    padding meets each pair once.
    """
    labels = instruction.attribute("dim_labels")
    left_labels, right_labels, out_labels = re.split(r"_|->", labels)
    total = 2.0 * left[left_labels.index("b")] * right[right_labels.index("o")]
    total *= right[right_labels.index("i")]
    total /= int(instruction.attribute("batch_group_count") or 1)
    spatial = sum(label.isdigit() for label in out_labels)
    for i, window in enumerate(_window(instruction, spatial)):
        size_in, size_out = left[left_labels.index(str(i))], out[out_labels.index(str(i))]
        (size,), (stride,) = window["size"], window["stride"]
        (hole,), (spread,) = window["lhs_dilate"], window["rhs_dilate"]
        place = np.arange(size_out)[:, None] * stride + np.arange(size) * spread - window["pad"][0]
        inside = (place >= 0) & (place <= (size_in - 1) * hole) & (place % hole == 0)
        total *= int(inside.sum())
    return total
