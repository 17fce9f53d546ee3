"""Loop over the blocks of a chunk form, with a backward pass that stores O(T / C) states.

Time is cut into blocks of G chunks of C tokens (see `ops.blocks`).  A `BlockRule` has the
mathematics of one block; this file pads the tokens, slices and writes the blocks, stores the state
at the border of every block, and visits the blocks in reverse order for the gradients.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from linear_transformer.ops import segments
from linear_transformer.ops.blocks import Masks, read, write
from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.ops.pallas import choice
from linear_transformer.types import Outputs, SegmentIds, State

MAX_CHUNKS = 8  # chunks of a block
# On CPUs an array of a block should fit a core's cache.  2^17 numbers is the fastest power of two
# on 2 cores with 512 KiB each, for 4, 16 and 64 heads in all sequences together.
CACHED_NUMBERS = 1 << 17

Tokens = tuple[Array, ...]  # (B, T, H, ...) each, the values last; in a block (B, H, G, C, ...)


class Blocking(NamedTuple):
    """Division of `time` tokens into blocks of `block` tokens and chunks of `chunk` tokens."""

    time: int
    chunk: int
    block: int

    @classmethod
    def of(cls, values_BTHV: Array, chunk_size: int, *, halved: bool = False):
        """Makes chunks no longer than the sequence; `halved` rounds them up to a power of two."""
        batch, time, heads, width = values_BTHV.shape
        chunk = min(chunk_size, time)
        if halved:
            chunk = 1 << (chunk - 1).bit_length()
        chunks = MAX_CHUNKS
        if choice.target()[0] == "cpu":
            fitting = max(CACHED_NUMBERS // max(batch * heads * chunk * width, 1), 1)
            chunks = min(chunks, 1 << (fitting.bit_length() - 1))
        return cls(time, chunk, chunk * min(chunks, -(-time // chunk)))

    @property
    def padding(self) -> int:
        """Number of zero tokens after the sequence, which must add nothing and not decay."""
        return -self.time % self.block


@runtime_checkable
class BlockRule(Protocol):
    """Mathematics of one block; hashable, and without arrays.

    Attributes:
      saved: dtype of the number per token that `forward` saves for `backward`; None saves none.
    """

    @property
    def saved(self) -> DTypeLike | None: ...

    def forward(self, tokens, state, masks, n, /) -> tuple[State, Array, Array | None]:
        """Returns the leaving state, the outputs and (B, H, G, C, 1) to save, for block n."""
        ...

    def backward(self, tokens, state, masks, n, saved, do, dstate, /) -> tuple[State, Tokens]:
        """Returns the gradients of the entering state and of the tokens.

        Args:
          tokens, state, masks, n: the arguments of `forward`.
          saved: what `forward` saves; None if that is nothing.
          do, dstate: gradients of the outputs and of the leaving state.
        """
        ...


def attend_in_blocks(
    rule: BlockRule,
    blocking: Blocking,
    tokens: Tokens,
    state: State,
    segment_ids_BT: SegmentIds | None,
) -> tuple[Outputs, State]:
    """Returns outputs in the shape and dtype of the values, and the final state."""
    run_BT = None if segment_ids_BT is None else segments.segment_index(segment_ids_BT)
    if blocking.padding:  # padding belongs to the last segment
        pad = ((0, 0), (0, blocking.padding), (0, 0), (0, 0))
        tokens = tuple(jnp.pad(x, pad) for x in tokens)
        if run_BT is not None:
            run_BT = jnp.pad(run_BT, pad[:2], mode="edge")
    o, state = _loop(rule, blocking, tokens, state, run_BT)
    return o[:, : blocking.time], state


@custom_vjp(0, 1)
def _loop(rule, blocking, tokens, state, run_BT) -> tuple[Array, State]:
    return _forward(rule, blocking, tokens, state, run_BT)[0]


def _forward(rule, blocking, tokens, state, run_BT):
    values = tokens[-1]
    count = values.shape[1] // blocking.block

    def body(n, carry):
        state, o, saved, states = carry
        states = states.at[n].set(state)
        tokens_n = tuple(read(x, n, blocking.chunk, blocking.block) for x in tokens)
        masks = Masks.of_block(run_BT, n, blocking.chunk, blocking.block)
        state, o_n, saved_n = rule.forward(tokens_n, state, masks, n)
        saved = None if saved is None else write(saved, saved_n, n)
        return state, write(o, o_n, n), saved, states

    saved = None if rule.saved is None else jnp.zeros((*values.shape[:3], 1), rule.saved)
    states = jnp.zeros((count, *state.shape), state.dtype)
    carry = (state, jnp.zeros(values.shape, values.dtype), saved, states)
    state, o, saved, states = lax.fori_loop(0, count, body, carry)
    return (o, state), (tokens, run_BT, states, saved)


def _backward(rule, blocking, residuals, cotangents):
    tokens, run_BT, states, saved = residuals
    do, dstate = cotangents
    count = states.shape[0]

    def body(i, carry):
        dstate, dtokens = carry
        n = count - 1 - i
        *tokens_n, saved_n, do_n = (
            None if x is None else read(x, n, blocking.chunk, blocking.block)
            for x in (*tokens, saved, do)
        )
        masks = Masks.of_block(run_BT, n, blocking.chunk, blocking.block)
        dstate, dtokens_n = rule.backward(
            tuple(tokens_n), states[n], masks, n, saved_n, do_n, dstate
        )
        return dstate, tuple(write(x, x_n, n) for x, x_n in zip(dtokens, dtokens_n, strict=True))

    carry = (dstate, tuple(jnp.zeros_like(x) for x in tokens))
    dstate, dtokens = lax.fori_loop(0, count, body, carry)
    return dtokens, dstate, None


_loop.defvjp(_forward, _backward)
