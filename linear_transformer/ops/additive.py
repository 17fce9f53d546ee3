"""Linear attention: the additive recurrence of "Transformers are RNNs".

Katharopoulos, Vyas, Pappas and Fleuret, 2020 (arXiv:2006.16236), equations 8-20.  With feature maps
already applied to queries and keys,

    S_i = S_{i-1} + k_i v_i^T        (10)
    Z_i = Z_{i-1} + k_i              (11)
    o_i = S_i^T q_i / (Z_i^T q_i)    (12)

The normaliser Z is one more column of S: with v' = [v, 1] both sums are one recurrence with one
state of shape (K, V + 1).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.ops import (
    block_loop,
    checks,
    feature_maps,
    pallas,
    recurrence,
    segments,
    sequence_parallel,
)
from linear_transformer.ops.blocks import entering_states, leaving_gradients, matmul
from linear_transformer.ops.feature_maps import FeatureMap, elu_plus_one, feature_width, identity
from linear_transformer.ops.non_finite import keep, stop_non_finite_gradient
from linear_transformer.ops.normalizer import append_ones
from linear_transformer.ops.pallas.choice import prefers_kernel
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import (
    FeatureState,
    KeyMask,
    Keys,
    Outputs,
    Queries,
    SegmentIds,
    Values,
)

# With C = 64 the quadratic part (4 C V FLOPs per token) costs as much as the state part (4 K V at
# K = 64).
CHUNK_SIZE = 64
DIRECTIONS = ("causal", "anticausal", "bidirectional")


def linear_attention(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    *,
    direction: str = "causal",
    feature_map: FeatureMap | None = elu_plus_one,
    normalize: bool = True,
    epsilon: float = 1e-6,
    initial_state: FeatureState | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BS: KeyMask | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, FeatureState]:
    """Computes attention with weights phi(q)^T phi(k) in time and memory linear in T.

    Args:
      q_BTHK: queries (not scaled: the normaliser cancels any scale).
      k_BSHK: keys.
      v_BSHV: values.
      direction: "causal" (keys up to the query), "anticausal" (keys from the query on) or
        "bidirectional" (all keys; S may differ from T, which is cross attention).
      feature_map: phi, applied to queries and keys.  None if queries and keys are features already;
        their products must then not sum to 0, or the division by the normaliser has no meaning.
        The chunk form applies the map block by block and never stores the features.
      normalize: divides by the sum of the weights (equation 12); False returns the numerator alone.
      epsilon: added to the denominator.
      initial_state: (B, H, M, V + 1), or (B, H, M, V) without normaliser, for M features; zeros if
        None.  The state before the first token (after the last token if anticausal), in the segment
        of that token.
      segment_ids_BT: packed segments; each token sees only its own segment.
      key_mask_BS: False drops a key exactly.
      form: "recurrent", "parallel", "associative", "chunk", "pallas" (the chunk form as a TPU
        kernel), or "auto": "recurrent" for T = 1, else "pallas" where `ops.pallas.choice` expects
        it to be faster, else "chunk".
      chunk_size: tokens per chunk of the chunk form; the kernel rounds up to a power of two.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the final state in the accumulation dtype.

    Raises:
      ValueError: an argument has a wrong type, shape or value, or segment ids are given for cross
        attention.
    """
    checks.choice("direction", direction, DIRECTIONS)
    checks.choice("form", form, recurrence.FORMS)
    checks.counts(chunk_size=chunk_size)
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BSHK=k_BSHK, v_BSHV=v_BSHV)
    feature_maps.check(feature_map, normalize, q_BTHK=q_BTHK, k_BSHK=k_BSHK)
    sizes |= {"M": feature_width(feature_map, sizes["K"]), "W": sizes["V"] + normalize}
    checks.arrays(sizes, initial_state=(initial_state, "BHMW"))
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT, key_mask_BS=key_mask_BS)
    if sizes["S"] != sizes["T"] and (direction != "bidirectional" or segment_ids_BT is not None):
        raise ValueError(
            f"{sizes['T']} queries and {sizes['S']} keys: only unpacked bidirectional can differ"
        )
    dtype = accumulation_dtype(q_BTHK, k_BSHK, v_BSHV)
    form = _resolve(form, q_BTHK, v_BSHV)
    if feature_map is not None and not (
        direction != "bidirectional" and form in ("chunk", "pallas") and key_mask_BS is None
    ):
        q_BTHK, k_BSHK = feature_map(q_BTHK), feature_map(k_BSHK)
        feature_map = None
    if key_mask_BS is not None:
        k_BSHK, v_BSHV = keep(key_mask_BS, k_BSHK), keep(key_mask_BS, v_BSHV)
    shape = tuple(sizes[axis] for axis in "BHMW")
    initial_state = recurrence.initial_state(initial_state, shape, dtype)
    if direction != "bidirectional" and q_BTHK.size == 0:  # an empty batch, or no tokens
        return jnp.zeros(v_BSHV.shape, v_BSHV.dtype), initial_state
    attend = functools.partial(
        _sharded,
        feature_map=feature_map,
        normalize=normalize,
        epsilon=epsilon,
        form=form,
        chunk_size=chunk_size,
    )
    tokens, start = (q_BTHK, k_BSHK, v_BSHV), (initial_state, segment_ids_BT)
    if direction == "causal":
        o, state = attend(*tokens, *start)
    elif direction == "anticausal":
        o, state = recurrence.backwards(attend, *tokens, *start)
    elif segment_ids_BT is None:
        o, state = _bidirectional(*tokens, initial_state, normalize, epsilon)
    else:
        run_BT = sequence_parallel.segment_index(segment_ids_BT)
        options = {"normalize": normalize, "epsilon": epsilon}
        o, state = lax.cond(
            sequence_parallel.largest(jnp.max(run_BT)) < 2,
            functools.partial(_bidirectional_padded, **options),
            functools.partial(_bidirectional_packed, attend=attend, **options),
            *tokens,
            initial_state,
            run_BT,
        )
    if not normalize and (form not in ("chunk", "pallas") or direction == "bidirectional"):
        o = stop_non_finite_gradient(o)  # like the chunk form and the division by the normaliser
    return o.astype(v_BSHV.dtype), state


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _divide(o_BTHW: Float[Array, "B T H W"], epsilon: float) -> Outputs:
    """Divides by the sum of the weights, the last column; no gradient passes a non-finite row."""
    return o_BTHW[..., :-1] / (o_BTHW[..., -1:] + epsilon)


@_divide.defjvp
def _(epsilon, primals, tangents):
    (o,), (do,) = primals, tangents
    x = _divide(o, epsilon)
    is_finite = jnp.all(jnp.isfinite(x), axis=-1, keepdims=True)
    dx = do[..., :-1] - jnp.where(is_finite, x, 0) * do[..., -1:]
    denominator = jnp.where(is_finite, o[..., -1:] + epsilon, 1)
    return x, jnp.where(is_finite, dx / denominator, 0)


def _resolve(form: str, q_BTHK: Queries, v_BTHV: Values) -> str:
    if form != "auto":
        return form
    if q_BTHK.shape[1] == 1:
        return "recurrent"
    return "pallas" if prefers_kernel(q_BTHK, v_BTHV) else "chunk"


def _sharded(q, k, v, state, segment_ids_BT, *, reverse=False, **options):
    """Runs `_causal` from the state that enters this shard of the sequence."""
    if sequence_parallel.shards() == 1:
        return _causal(q, k, v, state, segment_ids_BT, **options)
    dtype = accumulation_dtype(q, k, v)
    keys = k if options["feature_map"] is None else options["feature_map"](k)
    values = append_ones(v) if options["normalize"] else v
    passes = None  # no segment starts here: the entering state passes unchanged
    if segment_ids_BT is not None:
        last_BT, passes_B = segments.leaving(segment_ids_BT)
        keys, values = keep(last_BT, keys), keep(last_BT, values)
        passes = passes_B[:, None, None, None].astype(dtype)
    update = jnp.einsum("bthk,bthv->bhkv", keys, values, preferred_element_type=dtype)
    state = sequence_parallel.entering_state(passes, update, state, segment_ids_BT, reverse=reverse)
    o, state = _causal(q, k, v, state, segment_ids_BT, **options)
    return o, sequence_parallel.of_last(state, reverse=reverse)


def _causal(q, k, v, state, segment_ids_BT, *, feature_map, normalize, epsilon, form, chunk_size):
    state = state.astype(accumulation_dtype(q, k, v))
    if form in ("chunk", "pallas"):
        compute = _chunk_form if form == "chunk" else pallas.additive.pallas_form
        with checks.reverse_mode(form):
            return compute(
                q, k, v, state, segment_ids_BT, feature_map, normalize, epsilon, chunk_size
            )
    values = append_ones(v) if normalize else v
    if form == "parallel":
        o, state = _parallel(q, k, values, state, segment_ids_BT)
    else:
        if segment_ids_BT is None:
            retention_BT = jnp.ones(q.shape[:2], state.dtype)
        else:
            retention_BT = 1 - segments.starts(segment_ids_BT).astype(state.dtype)
        scan = recurrence.recurrent if form == "recurrent" else recurrence.associative
        o, state = scan(q, k, values, retention_BT[..., None, None, None], state)
    return (_divide(o, epsilon) if normalize else o), state


def _parallel(q, k, v, state, segment_ids_BT):
    """Computes the masked quadratic form, equations 8-9, and the final state of equation 10."""
    dtype = state.dtype
    time = q.shape[1]
    weights = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=dtype)
    visible = jnp.tril(jnp.ones((time, time), bool))
    first, last = jnp.ones((1, time), bool), jnp.ones((1, time), bool)  # first, last segment
    if segment_ids_BT is not None:
        run_BT = segments.segment_index(segment_ids_BT)
        visible = visible & (run_BT[:, :, None] == run_BT[:, None, :])[:, None]
        first, last = run_BT == 0, run_BT == run_BT[:, -1:]
    o = jnp.einsum(
        "bhts,bshv->bthv", jnp.where(visible, weights, 0), v, preferred_element_type=dtype
    )
    read = jnp.einsum("bthk,bhkv->bthv", q, state, preferred_element_type=dtype)
    o += jnp.where(first[..., None, None], read, 0)
    k_last, v_last = (jnp.where(last[..., None, None], x, 0) for x in (k, v))
    state = jnp.where(first[:, -1, None, None, None], state, 0)
    state += jnp.einsum("bthk,bthv->bhkv", k_last, v_last, preferred_element_type=dtype)
    return o, state


def _bidirectional(q, k, v, state, normalize, epsilon):
    """Computes phi(Q) (phi(K)^T V), equation 6."""
    dtype = state.dtype
    values = append_ones(v) if normalize else v
    update = jnp.einsum("bshk,bshv->bhkv", k, values, preferred_element_type=dtype)
    state = state + sequence_parallel.total(update)
    o = jnp.einsum("bthk,bhkv->bthv", q, state, preferred_element_type=dtype)
    return (_divide(o, epsilon) if normalize else o), state


def _bidirectional_padded(q, k, v, state, run_BT, normalize, epsilon):
    """Attends to each of at most two segments, as padding makes them, and selects by query."""

    values = append_ones(v) if normalize else v

    def alone(run, state):
        """Returns the outputs of all queries for the keys of one segment, and its state."""
        k_run, v_run = keep(run_BT == run, k), keep(run_BT == run, values)
        return _bidirectional(q, k_run, v_run, state, False, epsilon)

    first, second = alone(0, state), alone(1, jnp.zeros_like(state))
    last_B = sequence_parallel.of_last(run_BT[:, -1])
    o = jnp.where((run_BT == 0)[..., None, None], first[0], second[0])
    state = jnp.where((last_B == 0)[:, None, None, None], first[1], second[1])
    return (_divide(o, epsilon) if normalize else o), state


def _bidirectional_packed(q, k, v, state, segment_ids_BT, normalize, epsilon, attend):
    """Adds two passes within each segment: keys up to the query, and later keys in reverse."""
    values = append_ones(v) if normalize else v
    numerator = functools.partial(attend, normalize=False)
    forward, state_out = numerator(q, k, values, state, segment_ids_BT)
    k_next, v_next, next_BT = (
        sequence_parallel.halo(x, after=1)[:, 1:] for x in (k, values, segment_ids_BT)
    )
    same_BT = next_BT == segment_ids_BT
    k_next, v_next = keep(same_BT, k_next), keep(same_BT, v_next)
    later = (q, k_next, v_next, jnp.zeros_like(state), segment_ids_BT)
    o = forward + recurrence.backwards(numerator, *later)[0]
    return (_divide(o, epsilon) if normalize else o), state_out


# The chunk form.  Time is cut into blocks of G chunks of C tokens; one loop runs over the blocks.
# Within a block, with A = (Q K^T) masked to j <= i, states S_g entering the chunks and v' = [v, 1]:
#
#     o = A v' + Q S_g                              S_{g+1} = S_g + K_g^T v'_g
#
# and, given G = dL/d(A v' + Q S), with the reversed sum R_g of Q^T G over the later chunks
# (equations 13-15 are the case C = 1):
#
#     dQ = (G v'^T masked) K + G S_g^T
#     dK = (G v'^T masked)^T Q + v' R_g^T
#     dv' = A^T G + K R_g
#
# Segments only change which terms of the sums are kept: pairs within a chunk, queries in the
# entering state's segment, keys in the leaving state's segment.  Only the states at block borders
# are stored.  Masked products may spread a non-finite token within its own chunk; outside of it,
# earlier tokens and other segments keep their outputs and gradients.


def _chunk_form(q, k, v, state, segment_ids_BT, feature_map, normalize, epsilon, chunk_size):
    phi = identity if feature_map is None else feature_map
    narrow = jnp.result_type(*(jax.eval_shape(phi, x) for x in (q, k)), v)
    blocking = block_loop.Blocking.of(v, chunk_size or CHUNK_SIZE)
    phi = _Features(feature_map, blocking.time if blocking.padding else None)
    rule = _Additive(phi, normalize, epsilon, narrow, state.dtype if normalize else bool)
    return block_loop.attend_in_blocks(rule, blocking, (q, k, v), state, segment_ids_BT)


class _Features(NamedTuple):
    """Feature map on a block; sets the features of keys beyond the end of the sequence to 0."""

    feature_map: FeatureMap | None
    end: int | None

    def queries(self, q_BHGCK: Array) -> Array:
        return q_BHGCK if self.feature_map is None else self.feature_map(q_BHGCK)

    def keys(self, k_BHGCK: Array, n: Array) -> Array:
        if self.feature_map is None:
            return k_BHGCK
        k_BHGCK = self.feature_map(k_BHGCK)
        if self.end is None:
            return k_BHGCK
        chunks, chunk = k_BHGCK.shape[2:4]
        place = n * chunks * chunk + jnp.arange(chunks * chunk).reshape(chunks, chunk, 1)
        return jnp.where(place < self.end, k_BHGCK, 0)


@dataclasses.dataclass(frozen=True)
class _Additive:
    """Linear attention on one block, see `block_loop.BlockRule`.

    What is saved is the normaliser of each token, NaN if its output is not finite, or without a
    normaliser whether the output is finite.  The gradients of a query and of a key are differences,
    of values and outputs, that are smaller than their terms.  Therefore the normaliser is a sum of
    weights that are not rounded, and its gradients have fp32 operands where one is not a token.
    """

    phi: _Features
    normalize: bool
    epsilon: float
    narrow: jnp.dtype
    saved: DTypeLike

    def forward(self, tokens, state, masks, n):
        q, k, v, narrow, dtype = *tokens, self.narrow, state.dtype
        q, k = self.phi.queries(q), self.phi.keys(k, n)
        values = append_ones(v) if self.normalize else v
        entering, state = entering_states(k, values, state, masks, narrow)
        weights = masks.within(matmul(q, k.mT, narrow, dtype))
        o = matmul(weights, values, narrow, dtype)
        o += masks.reads(matmul(q, entering, narrow, dtype))
        if not self.normalize:
            return state, o, jnp.all(jnp.isfinite(o), axis=-1, keepdims=True)
        z = o[..., -1:]
        if narrow != dtype:
            z = _sum(weights) + masks.reads(_sum(q * entering[..., -1:].mT))
        z += self.epsilon
        o = o[..., :-1] / z
        return state, o, jnp.where(jnp.all(jnp.isfinite(o), axis=-1, keepdims=True), z, jnp.nan)

    def backward(self, tokens, state, masks, n, saved, g, dstate):
        raw_q, raw_k, v = tokens
        narrow, dtype = self.narrow, state.dtype
        q, to_queries = jax.vjp(self.phi.queries, raw_q)
        k, to_keys = jax.vjp(lambda x: self.phi.keys(x, n), raw_k)
        is_finite = jnp.isfinite(saved) if self.normalize else saved
        z = jnp.where(is_finite, saved, 1) if self.normalize else 1
        g = (jnp.where(is_finite, g, 0) / z).astype(narrow)  # non-finite outputs get no gradient
        weights = masks.within(matmul(q, k.mT, narrow, dtype))
        dweights = masks.within(matmul(g, v.mT, narrow, dtype))
        values = append_ones(v) if self.normalize else v
        wide = dtype if self.normalize else narrow
        entering, _ = entering_states(k, values, state, masks, narrow)
        dread = masks.reads(matmul(g, entering[..., : v.shape[-1]].mT, wide, dtype))
        if self.normalize:  # o = x / z for the columns [x, z] of A v' + Q S
            do_o = _sum(weights * dweights) + _sum(q * dread)
            do_o = jnp.where(is_finite, do_o / z, 0)
            dweights = masks.within(dweights - do_o)
            dread -= do_o * masks.reads(entering[..., -1:].mT)
            g = jnp.concatenate([g.astype(dtype), -do_o], axis=-1)
        leaving, dstate = leaving_gradients(q, g, dstate, masks, wide)
        dq = matmul(dweights, k, narrow, dtype) + dread
        dk = matmul(dweights.mT, q, narrow, dtype)
        dk += masks.reaches(matmul(values, leaving.mT, wide, dtype))
        g, leaving = g[..., : v.shape[-1]], leaving[..., : v.shape[-1]]
        dv = matmul(weights.mT, g, narrow, dtype)
        dv += masks.reaches(matmul(k, leaving, narrow, dtype))
        (dq,) = to_queries(dq.astype(q.dtype))
        (dk,) = to_keys(dk.astype(k.dtype))
        return dstate, (dq, dk, dv)


def _sum(x: Array) -> Array:
    return jnp.sum(x, axis=-1, keepdims=True)
