"""Softmax attention in blocks, with an online softmax: the blockwise form of `ops.softmax`.

Arrays are cut once into N contiguous blocks, [N, B, H, ...], of C queries or D keys.  Scores have
the keys first (DC): every product is then row-major, maxima and sums over keys run down columns,
and the statistics of a query broadcast along rows.  All of this vectorises.

Keys and values may have fewer heads than queries; a block of them is repeated for the query heads
that share it, and the gradients of these heads are added, block by block.

Scores may have a bias, the difference of a sum at the query and one at the key (`ops.forgetting`).
It is computed for one block at a time too.  Sinks are where the statistics start.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from linear_transformer.ops import checks
from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.ops.forgetting import difference
from linear_transformer.ops.non_finite import finite_tokens, keep, set_nan
from linear_transformer.ops.recurrence import accumulation_dtype

# Measured on 2 cores (AVX-512, 1 MiB of L2 each), fp32, K = V = 64: 2 heads per step over blocks of
# 512 x 512 (2 MiB of scores) stay in cache; 8 heads cost 5 %, 1 head 12 % more.
_CPU_SCORES_PER_STEP = 2 * 512 * 512


class Spec(NamedTuple):
    """Static options of one call; hashable, since jit and custom_vjp use them as keys."""

    causal: bool
    window: int | None
    scale: float
    ordered: bool  # Positions are 0, 1, 2, ...: block pairs can be excluded before tracing.
    masked: bool  # Segments or missing keys: even blocks below the diagonal need the mask.
    block_size: int


class Tags(NamedTuple):
    """Integers of each token, shaped like a head of q or k: positions, and segments if any."""

    queries: tuple[Array, ...]  # [B, T, 1, 1]
    keys: tuple[Array, ...]  # [B, S, 1, 1]


Sums = tuple[Array, Array] | None  # [B, T, H, 2] of queries and [B, S, H, 2] of keys
Sinks = Array | None  # [1, 1, H, 1], the score of a further key of each head, with value 0


def blockwise(
    q: Array, k: Array, v: Array, sums: Sums, sinks: Sinks, tags: Tags, spec: Spec
) -> Array:
    """Computes softmax attention with one block of scores in memory."""
    has = "it has one derivative, in reverse mode; form 'parallel' has all in any mode"
    with checks.no_forward_mode("form 'blockwise'", has):
        return _blockwise(*_vary_alike((q, k, v, sums, sinks, tags)), spec)


def allowed_pairs(tags: Tags, spec: Spec) -> Array:
    """Mask of visible keys, [B, 1, S, T], from tags of [B, 1, 1, T] and [B, 1, S, 1]."""
    query_positions, key_positions = tags.queries[0], tags.keys[0]
    allowed_BxST = key_positions >= 0
    if spec.causal:
        allowed_BxST &= key_positions <= query_positions
    if spec.window is not None:
        allowed_BxST &= key_positions > query_positions - spec.window
    for query_segments, key_segments in zip(tags.queries[1:], tags.keys[1:], strict=True):
        allowed_BxST &= key_segments == query_segments
    return allowed_BxST


def _even_block(length: int, block_size: int) -> tuple[int, int]:
    """Number and size of blocks: the least number for `block_size`, then the least size."""
    num_blocks = max(1, -(-length // block_size))
    size = -(-length // num_blocks)
    return num_blocks, min(block_size, -(-size // 16) * 16)


def _pairs(T: int, S: int, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query block, key block) to compute, [P, 2]: first unmasked pairs, then masked ones."""
    (num_q, C), (num_k, D) = (_even_block(length, spec.block_size) for length in (T, S))
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(num_q), np.arange(num_k), indexing="ij"))
    first_q, last_q, first_k, last_k = i * C, (i + 1) * C - 1, j * D, (j + 1) * D - 1
    needed = np.ones(i.shape, bool)
    unmasked = np.full(i.shape, not spec.masked) & (last_k < S)
    if spec.causal and spec.ordered:
        window = spec.window or 2**31
        needed &= (first_k <= last_q) & (last_k > first_q - window)
        unmasked &= (last_k <= first_q) & (first_k > last_q - window)
    pairs = np.stack([i, j], 1).astype(np.int32)
    return pairs[needed & unmasked], pairs[needed & ~unmasked]


def _cut(x_BTHX: Array, blocks: tuple[int, int], *, transpose: bool, fill: int = 0) -> Array:
    """Cuts [B, T, H, X], padded with `fill`, to blocks [N, B, H, C, X] (or [N, B, H, X, C])."""
    (N, C), (B, T, H, X) = blocks, x_BTHX.shape
    x = jnp.pad(x_BTHX, ((0, 0), (0, N * C - T), (0, 0), (0, 0)), constant_values=fill)
    return x.reshape(B, N, C, H, X).transpose((1, 0, 3, 4, 2) if transpose else (1, 0, 3, 2, 4))


def _join(x_NBHCX: Array, length: int) -> Array:
    """Inverts `_cut`: returns [B, T, H, X]."""
    N, B, H, C, X = x_NBHCX.shape
    return x_NBHCX.transpose(1, 0, 3, 2, 4).reshape(B, N * C, H, X)[:, :length]


def _matmul(a: Array, b: Array, dtype: Any) -> Array:
    """Computes [b, h, m, n] @ [b, h, n, p]."""
    return lax.dot_general(a, b, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=dtype)


class _Grid:
    """Blocks of one call, and the loop over the pairs of blocks that must be computed."""

    def __init__(self, q_BTHK: Array, k_BSJK: Array, spec: Spec, cpu: bool):
        self.B, self.T, self.H, _ = q_BTHK.shape
        _, self.S, J, _ = k_BSJK.shape
        self.group = self.H // J
        self.spec = spec
        self.queries = _even_block(self.T, spec.block_size)
        self.keys = _even_block(self.S, spec.block_size)
        self.heads = (self.B, self.H)  # Per step: on a CPU as many as fit the cache, else all.
        if cpu:
            most = max(1, _CPU_SCORES_PER_STEP // (self.queries[1] * self.keys[1]))
            fits = [h for h in range(1, self.H + 1) if self.H % h == 0 and h <= most]
            # A step has whole groups, or heads of one group.
            self.heads = (1, max(h for h in fits if 0 in (h % self.group, self.group % h)))

    def _place(self, x: Array, at: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        """Index of a block of x, which may have fewer heads: tags have 1 and keys have J."""
        shared = self.H // x.shape[2]
        if shared > 1:
            at = (*at[:2], 0 if x.shape[2] == 1 else at[2] // shared)
        return *at, 0, 0

    def read(self, x: Array, at: tuple[Any, Any, Any]) -> Array:
        """Slices [N, B, H, ...] to [b, h, ...]: one block, with the heads of one step."""
        b, h = self.heads
        h = max(1, h * x.shape[2] // self.H)
        return lax.dynamic_slice(x, self._place(x, at), (1, b, h, *x.shape[3:]))[0]

    def read_keys(self, x: Array, at: tuple[Any, Any, Any]) -> Array:
        """Does as `read`, and repeats each head for the query heads that share it."""
        block = self.read(x, at)
        repeats = self.heads[1] // block.shape[1]
        return block if repeats == 1 else jnp.repeat(block, repeats, axis=1)

    def write(self, x: Array, at: tuple[Any, Any, Any], update: Array) -> Array:
        return lax.dynamic_update_slice(x, update[None], self._place(x, at))

    def sum_shared(self, x: Array) -> Array:
        """Adds the query heads of [b, h, ...] that share a head of the keys."""
        heads = max(1, self.heads[1] // self.group)
        if heads == x.shape[1]:
            return x
        return jnp.sum(x.reshape(x.shape[0], heads, -1, *x.shape[2:]), axis=2)

    def fold(self, step: Callable[..., Any], carry: tuple[Array, ...], tags: Tags) -> Any:
        """Runs `carry = step(carry, at_q, at_k, mask)` for all pairs of blocks and all heads."""
        # Two loops, without and with a mask, each compiled once for any T: masking all costs 5 %.
        queries = [_cut(x, self.queries, transpose=True) for x in tags.queries]
        keys = [_cut(x, self.keys, transpose=False, fill=-1) for x in tags.keys]
        groups_b, groups_h = self.B // self.heads[0], self.H // self.heads[1]
        for has_mask, table in enumerate(_pairs(self.T, self.S, self.spec)):

            def body(n, carry, has_mask=has_mask, table=table):
                group, pair = n // len(table), n % len(table)
                i, j = jnp.asarray(table)[pair].astype(int)  # the dtype of all indices
                head = (group // groups_h * self.heads[0], group % groups_h * self.heads[1])
                at_q, at_k = (i, *head), (j, *head)
                if not has_mask:
                    return step(carry, at_q, at_k, lambda scores: scores)
                blocks = ((queries, at_q), (keys, at_k))
                tile = Tags(*(tuple(self.read(x, at) for x in xs) for xs, at in blocks))
                allowed = allowed_pairs(tile, self.spec)
                return step(carry, at_q, at_k, lambda x: jnp.where(allowed, x, -jnp.inf))

            if len(table):
                carry = lax.fori_loop(0, len(table) * groups_b * groups_h, body, carry)
        return carry


class _Bias:
    """Bias of the scores of any block."""

    def __init__(self, sums: tuple[Array, Array], grid: _Grid):
        self.grid = grid
        self.queries_NBHxC = _cut(sums[0], grid.queries, transpose=True)
        self.keys_NBHDx = _cut(sums[1], grid.keys, transpose=False)

    def add(self, scores: Array, at_q: tuple[Any, Any, Any], at_k: tuple[Any, Any, Any]) -> Array:
        """Adds the bias to scores that are not yet multiplied by the scale."""
        query, key = self.grid.read(self.queries_NBHxC, at_q), self.grid.read(self.keys_NBHDx, at_k)
        pairs = (query[..., :1, :], query[..., 1:, :]), (key[..., :1], key[..., 1:])
        return scores + (difference(*pairs) * (1 / self.grid.spec.scale)).astype(scores.dtype)


def _forward(
    q: Array, k: Array, v: Array, sums: Sums, sinks: Sinks, tags: Tags, *, spec: Spec, cpu: bool
) -> Any:
    """Returns o_BTHV, and the log-sum-exp of the scores of each query, lse_NBHxC."""
    dtype, grid = accumulation_dtype(q, k, v), _Grid(q, k, spec, cpu)
    # A mask drops a NaN score exactly, but 0 times a NaN value is NaN: values are made finite.
    finite_BS = finite_tokens(k, v)
    q, k, v = set_nan(~finite_tokens(q), q), set_nan(~finite_BS, k), keep(finite_BS, v)
    qT_NBHKC = _cut(q, grid.queries, transpose=True)
    k_NBJDK = _cut(k, grid.keys, transpose=False)
    vT_NBJVD = _cut(v, grid.keys, transpose=True)
    bias = None if sums is None else _Bias(sums, grid)

    def step(carry, at_q, at_k, mask):
        # Every write to the carry depends on all reads from it, so XLA updates it in place; a third
        # array for the shift would be copied in every step.
        oT, statistics = grid.read(carry[0], at_q), grid.read(carry[1], at_q)
        shift, total = statistics[..., :1, :], statistics[..., 1:, :]
        scores = _matmul(grid.read_keys(k_NBJDK, at_k), grid.read(qT_NBHKC, at_q), dtype)
        scores = mask(scores if bias is None else bias.add(scores, at_q, at_k))
        new_shift = jnp.maximum(shift, jnp.max(scores, 2, keepdims=True))
        weights = jnp.exp((scores - new_shift) * spec.scale)
        decay = jnp.exp((shift - new_shift) * spec.scale)
        total = total * decay + jnp.sum(weights, 2, keepdims=True)
        oT = oT * decay + _matmul(grid.read_keys(vT_NBJVD, at_k), weights.astype(v.dtype), dtype)
        statistics = jnp.concatenate([new_shift, total], 2)
        return grid.write(carry[0], at_q, oT), grid.write(carry[1], at_q, statistics)

    # The first shift is finite, so a query without visible keys computes exp(-inf), not exp(nan).
    N, B, H, _, C = qT_NBHKC.shape
    shift = lax.full_like(qT_NBHKC, jnp.finfo(dtype).min, dtype, (N, B, H, 1, C))
    total = jnp.zeros_like(shift)
    if sinks is not None:
        shift = jnp.broadcast_to(_of_heads(sinks) / spec.scale, shift.shape).astype(dtype)
        total = jnp.ones_like(total)
    statistics = jnp.concatenate([shift, total], 3)
    oT = lax.full_like(qT_NBHKC, 0, dtype, (N, B, H, v.shape[3], C))
    oT, statistics = grid.fold(step, (oT, statistics), tags)
    shift, total = statistics[..., :1, :], statistics[..., 1:, :]
    total, empty = jnp.where(total == 0, 1, total), total == 0
    # lse = inf makes the backward pass compute weights of exp(-inf) = 0 for a query without keys.
    lse = jnp.where(empty, jnp.inf, shift * spec.scale + jnp.log(total))
    return _join((oT / total).astype(v.dtype).swapaxes(3, 4), grid.T), lse


def _backward(residuals: Any, do: Array, *, spec: Spec, cpu: bool) -> Any:
    """Returns the gradients of q, k, v, the sums and the sinks."""
    q, k, v, sums, sinks, tags, o, lse_NBHxC = residuals
    dtype, grid = accumulation_dtype(q, k, v), _Grid(q, k, spec, cpu)
    # No gradient passes through NaN outputs, nor through the tokens that cause them.
    affected_NBHxC = jnp.isnan(lse_NBHxC)
    lse_NBHxC = jnp.where(affected_NBHxC, jnp.inf, lse_NBHxC)
    finite_BS = finite_tokens(k, v)
    q, k, v = keep(finite_tokens(q), q), keep(finite_BS, k), keep(finite_BS, v)
    delta = jnp.sum(o.astype(dtype) * do.astype(dtype), 3, keepdims=True)
    delta_NBHxC = jnp.where(affected_NBHxC, 0, _cut(delta, grid.queries, transpose=True))
    qT_NBHKC = _cut(q, grid.queries, transpose=True)
    doT_NBHVC = _cut(do, grid.queries, transpose=True)
    k_NBJDK = _cut(k, grid.keys, transpose=False)
    v_NBJDV = _cut(v, grid.keys, transpose=False)
    bias = None if sums is None else _Bias(sums, grid)

    def step(carry, at_q, at_k, mask):
        dqT, dk, dv, *dbias = carry
        qT, doT = grid.read(qT_NBHKC, at_q), grid.read(doT_NBHVC, at_q)
        k_, v_ = grid.read_keys(k_NBJDK, at_k), grid.read_keys(v_NBJDV, at_k)
        scores = _matmul(k_, qT, dtype)
        scores = mask(scores if bias is None else bias.add(scores, at_q, at_k))
        weights = jnp.exp(scores * spec.scale - grid.read(lse_NBHxC, at_q))
        dweights = _matmul(v_, doT, dtype) - grid.read(delta_NBHxC, at_q)
        dscores = weights * dweights * spec.scale
        if bias is not None:
            dbias = [
                grid.write(x, at, grid.read(x, at) + jnp.sum(dscores, axis, keepdims=True))
                for x, at, axis in zip(dbias, (at_q, at_k), (2, 3), strict=True)
            ]
        weights, dscores = weights.astype(do.dtype), dscores.astype(q.dtype)
        dqT_ = grid.read(dqT, at_q) + _matmul(k_.swapaxes(2, 3), dscores, dtype)
        dk_ = grid.read(dk, at_k) + grid.sum_shared(_matmul(dscores, qT.swapaxes(2, 3), dtype))
        dv_ = grid.read(dv, at_k) + grid.sum_shared(_matmul(weights, doT.swapaxes(2, 3), dtype))
        dqT, dk = grid.write(dqT, at_q, dqT_), grid.write(dk, at_k, dk_)
        return dqT, dk, grid.write(dv, at_k, dv_), *dbias

    carry = tuple(lax.full_like(x, 0, dtype) for x in (qT_NBHKC, k_NBJDK, v_NBJDV))
    if bias is not None:  # of the query's low part and the key's high part, see `difference`
        parts = bias.queries_NBHxC[..., :1, :], bias.keys_NBHDx[..., :1]
        carry += tuple(lax.full_like(x, 0, dtype) for x in parts)
    dqT, dk, dv, *dbias = grid.fold(step, carry, tags)
    joined = _join(dqT.swapaxes(3, 4), grid.T), _join(dk, grid.S), _join(dv, grid.S)
    dq, dk, dv = (x.astype(y.dtype) for x, y in zip(joined, (q, k, v), strict=True))
    dsinks = None
    if sinks is not None:
        by_query_NBHxC = jnp.exp(_of_heads(sinks) - lse_NBHxC) * delta_NBHxC
        dsinks = -jnp.sum(by_query_NBHxC, (0, 1, 3, 4)).reshape(sinks.shape).astype(sinks.dtype)
    if sums is None:
        return dq, dk, dv, None, dsinks
    dqueries = _join(dbias[0].swapaxes(3, 4), grid.T) * (1 / spec.scale)
    dkeys = _join(dbias[1], grid.S) * (-1 / spec.scale)
    dqueries, dkeys = (
        jnp.pad(x, ((0, 0), (0, 0), (0, 0), part)).astype(sums[0].dtype)
        for x, part in ((dqueries, (1, 0)), (dkeys, (0, 1)))
    )
    return dq, dk, dv, (dqueries, dkeys), dsinks


def _of_heads(sinks_xxHx: Array) -> Array:
    """Returns [1, 1, H, 1, 1], which broadcasts with statistics [N, B, H, 1, C]."""
    return sinks_xxHx[..., None]


def _by_platform(function: Callable[..., Any], spec: Spec, *args: Any) -> Any:
    # Decided at lowering: a TPU program compiled on a CPU host needs the TPU's grouping of heads.
    function = functools.partial(function, spec=spec)
    cpu, default = (functools.partial(function, cpu=x) for x in (True, False))
    return lax.platform_dependent(*args, cpu=cpu, default=default)


@custom_vjp(6)
def _blockwise(
    q: Array, k: Array, v: Array, sums: Sums, sinks: Sinks, tags: Tags, spec: Spec
) -> Array:
    return _by_platform(_forward, spec, q, k, v, sums, sinks, tags)[0]


def _blockwise_fwd(
    q: Array, k: Array, v: Array, sums: Sums, sinks: Sinks, tags: Tags, spec: Spec
) -> Any:
    # `jax.checkpoint` recomputes only values that depend on parameters.  Masks do not depend on
    # them and would be stored for all pairs of blocks: a byte per query, key and head.
    q, tags = lax.optimization_barrier((q, tags))
    o_BTHV, lse_NBHxC = _by_platform(_forward, spec, q, k, v, sums, sinks, tags)
    return o_BTHV, (q, k, v, sums, sinks, tags, o_BTHV, lse_NBHxC)


def _blockwise_bwd(spec: Spec, residuals: Any, do: Array) -> Any:
    return *_by_platform(_backward, spec, residuals, do), None


_blockwise.defvjp(_blockwise_fwd, _blockwise_bwd)


def _vary_alike(arrays: Any) -> Any:
    """In shard_map, marks all arrays as varying over the mesh axes that any array varies over."""
    # Loops need equal types in and out, and the gradient of an unsharded array needs its sum.
    leaves, structure = jax.tree.flatten(arrays)
    varying = [jax.typeof(x).manual_axis_type.varying for x in leaves]
    missing = [tuple(frozenset().union(*varying) - axes) for axes in varying]
    cast = functools.partial(lax.pcast, to="varying")
    leaves = [cast(x, axes) if axes else x for x, axes in zip(leaves, missing, strict=True)]
    return jax.tree.unflatten(structure, leaves)
