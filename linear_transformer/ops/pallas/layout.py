"""Division of the arrays of a kernel into the blocks of its grid.

Queries, keys and values are read as (B, T, H K), the layout in which projections produce them, by
heads that fill 128 lanes, and gates as (B, H, T), which is how a TPU stores (B, T, H) of few heads:
nothing is transposed or padded in HBM.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from linear_transformer.ops import segments
from linear_transformer.ops.pallas.arithmetic import Masks

LANES = 128
SUBLANES = 16  # rows of a tile of bfloat16
GATE_SUBLANES = 8  # rows of a tile of float32
TOKENS_PER_BLOCK = 512  # one state is stored per block
# A block of each array is in VMEM twice, and so is its gradient: half of the VMEM of a v4; the rest
# is for states and for the temporaries of a chunk.
_MAX_BYTES = 2**23


class Layout(NamedTuple):
    """Division of the arrays of one call; methods make the specs of arrays and move chunks."""

    time: int
    heads: int
    group: int  # heads per program
    chunk: int
    chunks: int  # per block
    blocks: int
    widths: tuple[int, ...]  # per head, of every array of tokens

    @classmethod
    def of(cls, tokens, chunk):
        _, time, heads, _ = tokens[0].shape
        widths = tuple(x.shape[-1] for x in tokens)
        lanes = [LANES // math.gcd(LANES, width) for width in widths]
        group = math.lcm(*lanes)  # heads that fill whole lanes in every array
        chunk, least = (1 << (size - 1).bit_length() for size in (chunk, time))  # powers of two
        chunk = min(chunk, max(SUBLANES, least))
        group = heads if heads % group else group
        size = TOKENS_PER_BLOCK
        of_token = sum(x.shape[-1] * x.dtype.itemsize for x in (*tokens, *tokens, tokens[-1]))
        while 2 * group * of_token * size > _MAX_BYTES and size > max(chunk, LANES):
            size //= 2
        chunks = min(max(1, size // chunk), -(-time // chunk))
        blocks = -(-time // (chunk * chunks))
        return cls(time, heads, group, chunk, chunks, blocks, widths)

    @property
    def size(self):
        """Tokens of a block."""
        return self.chunk * self.chunks

    @property
    def sharing(self):
        """Number of heads with gates in one tile: tiles have 8 rows, or all that there are."""
        if self.group % GATE_SUBLANES and self.group < self.heads:
            return self.heads if self.heads % GATE_SUBLANES else GATE_SUBLANES
        return self.group

    def _padding(self, x):
        return ((0, 0),) * (x.ndim - 1) + ((0, self.blocks * self.size - self.time),)

    def by_head(self, x_BTH):
        """Transposes to (B, H, T); a single block is padded to whole lanes of 128."""
        x_BHT = jnp.swapaxes(x_BTH, 1, 2)
        return jnp.pad(x_BHT, self._padding(x_BHT)) if self.blocks == 1 else x_BHT

    def runs(self, segment_ids_BT, dtype):
        """Segment starts counted from the token before each chunk, (B, N, 1, C)."""
        runs = segments.segment_index(segment_ids_BT)
        runs = jnp.pad(runs, self._padding(runs), mode="edge")
        runs = runs.reshape(len(runs), self.blocks * self.chunks, 1, self.chunk)
        before = jnp.pad(runs[:, :-1, :, -1:], ((0, 0), (1, 0), (0, 0), (0, 0)))
        return (runs - before).astype(dtype)

    def token_specs(self, at):
        return tuple(
            pl.BlockSpec((None, self.size, self.group * width), lambda b, h, n: (b, at(n), h))
            for width in self.widths
        )

    def gate_specs(self, gates, at):
        block = (None, self.sharing, self.size)
        times = np.int32(self.sharing // self.group)
        return tuple(
            pl.BlockSpec(block, lambda b, h, n: (b, lax.div(h, times), at(n))) for _ in gates
        )

    def row_specs(self, gates, at):
        """Specs of (B, H, 1, T), gradients of the gates, which heads do not share."""
        block = (None, self.group, 1, self.size)
        return tuple(pl.BlockSpec(block, lambda b, h, n: (b, h, 0, at(n))) for _ in gates)

    def run_specs(self, runs, at):
        block = (None, self.chunks, 1, self.chunk)
        return tuple(pl.BlockSpec(block, lambda b, h, n: (b, at(n), 0, 0)) for _ in runs)

    def state_specs(self, state):
        return tuple(
            pl.BlockSpec((None, self.group, *x.shape[2:]), lambda b, h, n: (b, h, 0, 0))
            for x in state
        )

    def saved_specs(self, state, at):
        return tuple(
            pl.BlockSpec(
                (None, None, self.group, *x.shape[2:]), lambda b, h, n: (at(n), b, h, 0, 0)
            )
            for x in state
        )

    def lanes(self, head, width):
        return slice(head * width, (head + 1) * width)

    def load(self, refs, c, head, masks, dtype):
        """Loads the tokens of a chunk."""
        place = pl.ds(pl.multiple_of(c * self.chunk, self.chunk), self.chunk)
        return tuple(
            masks.exist(ref[place, self.lanes(head, ref.shape[-1] // self.group)].astype(dtype))
            for ref in refs
        )

    def store(self, refs, c, head, values):
        place = pl.ds(pl.multiple_of(c * self.chunk, self.chunk), self.chunk)
        for ref, x in zip(refs, values, strict=True):
            ref[place, self.lanes(head, x.shape[-1])] = x.astype(ref.dtype)

    def masks(self, runs, block, c):
        left = None
        if self.time % self.size:
            left = self.time - block * self.size - c * self.chunk
        return Masks(runs[0][c] if runs else None, left)

    def load_gates(self, gates, rows, block):
        """Cuts the gates of a block into the rows (group, chunks, 1, C)."""
        lane = lax.broadcasted_iota(jnp.int32, (1, self.size), 1)
        for ref, row in zip(gates, rows, strict=True):
            for h in range(self.group):
                head = lax.rem(pl.program_id(1) * self.group + h, np.int32(self.sharing))
                x = ref[pl.ds(head, 1), :]
                x = jnp.where(lane < self.time - block * self.size, x, 0)
                for c in range(self.chunks):
                    row[h, c] = x[:, self.lanes(c, self.chunk)]

    def store_rows(self, rows, targets):
        for row, ref in zip(rows, targets, strict=True):
            for h in range(self.group):
                for c in range(self.chunks):
                    ref[h, :, self.lanes(c, self.chunk)] = row[h, c]
