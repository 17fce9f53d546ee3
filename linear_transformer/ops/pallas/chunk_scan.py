"""Loop over chunks that all kernels share, forward and backward, with the state in VMEM.

The grid is (batch, groups of heads, blocks of chunks), with the blocks in sequence.  All blocks of
a sequence write to the same block of the final state, so this block stays in VMEM and holds the
current state.  `layout` cuts the arrays into the blocks of the grid.

The forward kernel stores only the output and, if a gradient is needed, the state that enters every
block.  The backward kernel visits the blocks in reverse with the gradient of the state in VMEM;
within a block it recomputes the states between the chunks, also in VMEM, and differentiates the
mathematics of one chunk with `jax.vjp` inside the kernel.  So a chunk has one definition, no second
one for its gradient, and O(T / block) states are in HBM.  The gradient has no derivative.

A non-finite token affects no earlier chunk, and no other segment outside of its own chunk, neither
outputs nor gradients.

On a CPU the same kernels run in the interpreter of Pallas.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, Float

from linear_transformer.ops import checks
from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.ops.pallas.arithmetic import Masks, any_of
from linear_transformer.ops.pallas.layout import Layout
from linear_transformer.types import SegmentIds

_NO_MASKS = Masks(None, None)  # for counts of matmuls

Arrays = tuple[Array, ...]
# Maps one chunk of one head: tokens (C, width), gates (1, C), state (_, _) to o (C, V) and state.
Step = Callable[[Arrays, Arrays, Arrays, Masks], tuple[Array, Arrays]]


def chunk_scan(
    step: Step,
    tokens: tuple[Float[Array, "B T H _"], ...],
    gates: tuple[Float[Array, "B T H"], ...],
    state: tuple[Float[Array, "B H _ _"], ...],
    segment_ids_BT: SegmentIds | None,
    chunk: int,
) -> tuple[Float[Array, "B T H V"], tuple[Array, ...]]:
    """Applies `step` to the chunks of a sequence, from an initial state to the final one.

    Args:
      step: mathematics of a chunk, hashable, and equal to other steps that do the same.  Its inputs
        are in the accumulation dtype, with zeros in place of tokens beyond the end.
      tokens: arrays of vectors per token and head, the values last.
      gates: numbers per token and head; a step gets them as rows.
      state: the initial state, matrices per head in the accumulation dtype.
      segment_ids_BT: packed segments, see `Masks`.
      chunk: tokens per chunk, rounded up to a power of two; shorter sequences have shorter chunks.

    Returns:
      The output in the dtype of the values, and the final state.
    """
    layout = Layout.of(tokens, chunk)
    runs = () if segment_ids_BT is None else (layout.runs(segment_ids_BT, state[0].dtype),)
    by_head = tuple(layout.by_head(x.astype(state[0].dtype)) for x in gates)
    flat = tuple(x.reshape(*x.shape[:2], -1) for x in tokens)
    o, state = _scan(step, layout, flat, by_head, state, runs)
    return o.reshape(tokens[-1].shape), state


@custom_vjp(0, 1)
def _scan(step, layout, tokens, gates, state, runs):
    o, state, _ = _run_forward(step, layout, tokens, gates, state, runs, save=False)
    return o, state


def _scan_forward(step, layout, tokens, gates, state, runs):
    forward = functools.partial(_run_forward, step, layout, save=True)
    o, state, saved = checks.differentiable_once(forward)(tokens, gates, state, runs)
    return (o, state), (tokens, gates, saved, runs)


def _scan_backward(step, layout, residuals, cotangents):
    backward = checks.differentiable_once(functools.partial(_run_backward, step, layout))
    return *backward(*residuals, *cotangents), None


_scan.defvjp(_scan_forward, _scan_backward)


def _run_forward(step, layout, tokens, gates, state, runs, save):
    def at(n):
        return n

    saved_shape = [(layout.blocks, *x.shape) for x in state] if save else []
    saved_specs = layout.saved_specs(state, at) if save else ()
    flops = _flops(functools.partial(step, masks=_NO_MASKS), *_of_a_chunk(layout, gates, state))
    return _call(
        functools.partial(_forward_kernel, step, layout),
        layout,
        flops,
        (tokens, gates, runs, state),
        (
            layout.token_specs(at),
            layout.gate_specs(gates, at),
            layout.run_specs(runs, at),
            layout.state_specs(state),
        ),
        (
            _shape(tokens[-1]),
            tuple(_shape(x) for x in state),
            tuple(jax.ShapeDtypeStruct(shape, state[0].dtype) for shape in saved_shape),
        ),
        (layout.token_specs(at)[-1], layout.state_specs(state), saved_specs),
        scratch=_row_scratch(layout, gates),
    )


def _forward_kernel(step, layout, tokens, gates, runs, initial, o, state, saved, *rows):
    dtype = state[0].dtype
    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        _copy(initial, state)

    _copy(state, saved)
    layout.load_gates(gates, rows, block)

    def chunk(c, _):
        masks = layout.masks(runs, block, c)
        for h in range(layout.group):
            inputs = layout.load(tokens, c, h, masks, dtype)
            gates_h = tuple(row[h, c] for row in rows)
            o_h, state_h = step(inputs, gates_h, tuple(ref[h] for ref in state), masks)
            layout.store((o,), c, h, (o_h,))
            for ref, x in zip(state, state_h, strict=True):
                ref[h] = x

    lax.fori_loop(0, layout.chunks, chunk, None)


def _run_backward(step, layout, tokens, gates, saved, runs, do, dstate):
    def at(n):
        return layout.blocks - 1 - n

    token_specs = layout.token_specs(at)
    state_specs = layout.state_specs(dstate)
    forward, shapes = functools.partial(step, masks=_NO_MASKS), _of_a_chunk(layout, gates, dstate)

    def both(*inputs):
        outputs, pullback = jax.vjp(forward, *inputs)
        return pullback(outputs)

    # The states between the chunks of a block are computed first.
    again = _flops(forward, *shapes) * (layout.chunks - 1) // layout.chunks
    rows = tuple(
        jax.ShapeDtypeStruct((*x.shape[:2], 1, layout.blocks * layout.size), x.dtype) for x in gates
    )
    entering = tuple(
        pltpu.VMEM((layout.chunks, layout.group, *x.shape[2:]), x.dtype) for x in dstate
    )
    dtokens, drows, dstate = _call(
        functools.partial(_backward_kernel, step, layout),
        layout,
        again + _flops(both, *shapes),
        (tokens, gates, runs, saved, do, dstate),
        (
            token_specs,
            layout.gate_specs(gates, at),
            layout.run_specs(runs, at),
            layout.saved_specs(dstate, at),
            token_specs[-1],
            state_specs,
        ),
        (tuple(_shape(x) for x in tokens), rows, tuple(_shape(x) for x in dstate)),
        (token_specs, layout.row_specs(gates, at), state_specs),
        scratch=(*_row_scratch(layout, gates), *_row_scratch(layout, gates), *entering),
    )
    dgates = tuple(x[:, :, 0, : gate.shape[2]] for x, gate in zip(drows, gates, strict=True))
    return dtokens, dgates, dstate


def _backward_kernel(
    step, layout, tokens, gates, runs, saved, do, dfinal, dtokens, dgates, dstate, *scratch
):
    rows, drows = scratch[: len(gates)], scratch[len(gates) : 2 * len(gates)]
    entering = scratch[2 * len(gates) :]
    dtype = dstate[0].dtype
    block = layout.blocks - 1 - pl.program_id(2)

    @pl.when(pl.program_id(2) == 0)
    def _():
        _copy(dfinal, dstate)

    layout.load_gates(gates, rows, block)
    for ref, first in zip(entering, saved, strict=True):
        ref[0] = first[...]

    def inputs(c, h, masks):
        return layout.load(tokens, c, h, masks, dtype), tuple(row[h, c] for row in rows)

    def recompute(c, _):
        masks = layout.masks(runs, block, c)
        for h in range(layout.group):
            state = tuple(ref[c, h] for ref in entering)
            _, state = step(*inputs(c, h, masks), state, masks)
            for ref, x in zip(entering, state, strict=True):
                ref[c + 1, h] = x

    lax.fori_loop(0, layout.chunks - 1, recompute, None)

    def chunk(i, _):
        c = layout.chunks - 1 - i
        masks = layout.masks(runs, block, c)
        for h in range(layout.group):
            state = tuple(ref[c, h] for ref in entering)
            _, pullback = jax.vjp(functools.partial(step, masks=masks), *inputs(c, h, masks), state)
            (g,) = layout.load((do,), c, h, masks, dtype)
            leaving = tuple(ref[h] for ref in dstate)
            dtokens_h, drows_h, dstate_h = pullback((g, leaving))
            # If the chunk and all later chunks have a gradient of 0, the entering state has it too:
            # products of 0 with NaN tokens must not reach it.
            needs_gradient = any_of(g != 0)
            for x in leaving:
                needs_gradient |= any_of(masks.carried(x) != 0)
            layout.store(dtokens, c, h, dtokens_h)
            for ref, x in zip(drows, drows_h, strict=True):
                ref[h, c] = x
            for ref, x in zip(dstate, dstate_h, strict=True):
                ref[h] = jnp.where(needs_gradient, x, 0)

    lax.fori_loop(0, layout.chunks, chunk, None)
    layout.store_rows(drows, dgates)


def _copy(sources, targets):
    for source, target in zip(sources, targets, strict=bool(targets)):
        target[...] = source[...]


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _row_scratch(layout, gates):
    shape = (layout.group, layout.chunks, 1, layout.chunk)
    return tuple(pltpu.VMEM(shape, x.dtype) for x in gates)


def _of_a_chunk(layout, gates, state):
    """Shapes of the arguments of a step."""

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, state[0].dtype)

    return (
        tuple(shape(layout.chunk, width) for width in layout.widths),
        tuple(shape(1, layout.chunk) for _ in gates),
        tuple(shape(*x.shape[2:]) for x in state),
    )


def _flops(function, *shapes) -> int:
    """FLOPs of the matmuls, multiply-adds counted as two."""

    def count(jaxpr):
        flops = 0
        for equation in jaxpr.eqns:
            if equation.primitive is lax.dot_general_p:
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                size = math.prod(left[axis] for axis in contracted)
                flops += 2 * size * equation.outvars[0].aval.size
            flops += sum(map(count, jaxprs_in_params(equation.params)))
        return flops

    return count(jax.make_jaxpr(function)(*shapes).jaxpr)


def _call(kernel, layout, flops_of_a_chunk, operands, in_specs, out_shape, out_specs, scratch=()):
    """Calls the kernel, compiled on a TPU, interpreted on a CPU, as decided at lowering."""
    batch = operands[0][0].shape[0]
    arrays = jax.tree.leaves((operands, out_shape))
    estimate = pl.CostEstimate(
        flops=flops_of_a_chunk * batch * layout.heads * layout.blocks * layout.chunks,
        transcendentals=0,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    )

    def run(interpret):
        return pl.pallas_call(
            kernel,
            grid=(batch, layout.heads // layout.group, layout.blocks),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            scratch_shapes=scratch,
            cost_estimate=estimate,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            interpret=interpret,
        )

    return lax.platform_dependent(*operands, cpu=run(True), tpu=run(False))
