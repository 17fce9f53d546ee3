"""Attention and scans at the edge of their inputs: NaN, mixed types, ids that return, no tokens."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.block_local import block_local_attention
from linear_transformer.ops.cosformer import cosine_features
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.efficient import (
    efficient_attention,
    non_local_attention,
    scaled_efficient_attention,
)
from linear_transformer.ops.hashing import lsh_attention
from linear_transformer.ops.log_linear import log_linear_attention
from linear_transformer.ops.mixed_chunk import MixedChunkState, mixed_chunk_attention
from linear_transformer.ops.random_features import fourier_features, log_feature_attention
from linear_transformer.ops.rectified import rectified_attention
from linear_transformer.ops.selective_scan import diagonal_scan, selective_scan
from linear_transformer.ops.slstm import slstm
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.ops.sparse_softmax import block_sparse_attention
from tests.layers import slow_except

B, T, H, K = 2, 16, 2, 4
CHUNK, PLACE = 4, 9
IDS = np.tile(np.repeat([7, 0, 7], [6, 7, 3]), (B, 1))
QUICK = {"xla_backend_optimization_level": 0}


def softmax(q, k, v, ids=None, mask=None, **options):
    return softmax_attention(q, k, v, segment_ids_BT=ids, key_mask_BS=mask, **options)


def rectified(q, k, v, ids=None, mask=None, **options):
    return rectified_attention(q, k, v, segment_ids_BT=ids, key_mask_BS=mask, **options)


def block_local(q, k, v, ids=None, mask=None, **options):
    options = {"block_size": 6, "segment_ids_BT": ids, "key_mask_BT": mask} | options
    return block_local_attention(q, k, v, **options)


def lsh(q, k, v, ids=None, mask=None, **options):
    del k  # the queries are the keys
    rotations = np.random.default_rng(5).normal(size=(2, K, 2)).astype(np.float32)
    options = {"chunk_size": 3, "segment_ids_BT": ids, "key_mask_BS": mask} | options
    return lsh_attention(q, v, jnp.asarray(rotations), **options)


def mixed_chunk(q, k, v, ids=None, **options):
    q, k, v = (x[:, :, 0] for x in (q, k, v))
    options = {"chunk_size": CHUNK, "segment_ids_BT": ids} | options
    bias = jnp.zeros(CHUNK if options.get("direction") is None else 2 * CHUNK - 1)
    return mixed_chunk_attention(q, k, q, k, v, bias, **options)[0][:, :, None]


def efficient(q, k, v, ids=None, mask=None, **options):
    return efficient_attention(q, k, v, segment_ids_BT=ids, key_mask_BS=mask, **options)[0]


def log_features(q, k, v, ids=None, mask=None, **options):
    options = {"segment_ids_BT": ids, "key_mask_BS": mask, "chunk_size": CHUNK} | options
    return log_feature_attention(q, k, v, **options)[0]


def scan(q, k, v, ids=None, **options):
    """C, B and x; the steps are those of the values."""
    a = -jnp.arange(1.0, K + 1)[:, None] * jnp.ones(K, q.dtype)
    x, dt = v[:, :, 0], jax.nn.softplus(v[:, :, 1])
    options = {"segment_ids_BT": ids, "chunk_size": CHUNK} | options
    return selective_scan(x, dt, a, k[:, :, 0], q[:, :, 0], **options)[0][:, :, None]


OPS = {
    "parallel": functools.partial(softmax, form="parallel"),
    "blockwise": functools.partial(softmax, form="blockwise", block_size=5),
    "blockwise window": functools.partial(softmax, form="blockwise", block_size=5, window=6),
    "rectified": functools.partial(rectified, block_size=5),
    "rectified window": functools.partial(rectified, block_size=5, window=3, power=2),
    "block local": block_local,
    "block local relu": functools.partial(block_local, scores="relu"),
    "lsh": lsh,
    "lsh sorted": functools.partial(lsh, chunking="sorted"),
    "mixed chunk": mixed_chunk,
    "efficient": functools.partial(efficient, chunk_size=CHUNK),
    "efficient scan": functools.partial(efficient, form="recurrent"),
    "scan recurrent": functools.partial(scan, form="recurrent"),
    "scan associative": functools.partial(scan, form="associative"),
    "scan chunk": functools.partial(scan, form="chunk"),
}
BIDIRECTIONAL = {
    name: functools.partial(op, direction="bidirectional")
    for name, op in OPS.items()
    if name in ("parallel", "blockwise", "rectified", "block local", "lsh sorted", "efficient")
}
MASKED = {n: op for n, op in OPS.items() if n != "mixed chunk" and not n.startswith("scan")}
MASKED |= {"log features": log_features} | {f"{n} both": op for n, op in BIDIRECTIONAL.items()}


QUICKER = ("parallel", "blockwise", "rectified window", "block local", "lsh", "mixed chunk")
QUICKER += ("efficient", "scan chunk")


def inputs():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, T, H, K)).astype(np.float32) for _ in range(3)]


@functools.cache
def compiled(name, both=False):
    op = (BIDIRECTIONAL if both else OPS)[name]

    def run(arrays, ids, cotangent):
        o, pullback = jax.vjp(lambda arrays: op(*map(jnp.asarray, arrays), ids), arrays)
        return o, pullback(cotangent[:, :, : o.shape[2]])[0]

    return jax.jit(run, compiler_options=QUICK)


def check_contained(name, chosen, value, both=False):
    tokens = np.arange(T)
    mine = (tokens >= 6) & (tokens < 13)
    touched = mine & ((tokens >= PLACE) | both)
    if chosen == 0 and name != "lsh" and name != "lsh sorted":  # a query makes its own output NaN
        touched = tokens == PLACE
    cotangent = np.random.default_rng(1).normal(size=(B, T, H, K)).astype(np.float32)
    cotangent *= ~touched[:, None, None]
    non_finite = inputs()
    non_finite[chosen][:, PLACE] = value
    clean, expected = compiled(name, both)(inputs(), IDS, cotangent)
    o, gradients = compiled(name, both)(non_finite, IDS, cotangent)
    assert np.array_equal(o[:, ~touched], clean[:, ~touched])
    if not (name.startswith("lsh") and chosen == 1):
        assert not np.isfinite(o[:, PLACE]).all()  # and it is not hidden
    for gradient, e in zip(gradients, expected, strict=True):
        assert np.isfinite(e).all()
        # LSH sums over sorted tokens, which stand in another order.
        tolerance = 1e-6 if name.startswith("lsh") else 0
        np.testing.assert_allclose(gradient[:, ~touched], e[:, ~touched], atol=tolerance)


@pytest.mark.parametrize("chosen", range(3))
@pytest.mark.parametrize("name", slow_except(QUICKER, OPS))
def test_contained(name, chosen):
    check_contained(name, chosen, np.nan)
    if chosen == 2:
        check_contained(name, chosen, np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_contained_in_both_directions(name):
    check_contained(name, 1, np.nan, both=True)
    check_contained(name, 2, np.inf, both=True)


@pytest.mark.parametrize("name", slow_except(QUICKER, MASKED))
def test_what_a_key_mask_drops_may_be_anything(name):
    mask = np.tile(np.arange(T) % 3 > 0, (B, 1))
    q, k, v = inputs()
    k_bad, v_bad = (np.where(mask[..., None, None], x, np.nan) for x in (k, v))
    q_bad = np.where(mask[..., None, None], q, np.nan) if name.startswith("lsh") else q
    op = jax.jit(MASKED[name], compiler_options=QUICK)
    expected, actual = op(q, k, v, IDS, mask), op(q_bad, k_bad, v_bad, IDS, mask)
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize("name", slow_except(QUICKER, OPS))
def test_mixed_types_are_their_result_type(name):
    """Operands have one type, sums are fp32 or more, and outputs are of the values' type."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    op = jax.jit(OPS[name], compiler_options=QUICK)
    expected = op(*wide)
    if not name.startswith("scan"):  # whose steps are not rounded in the test
        assert np.array_equal(op(q, k, wide[2]), expected)
    o = op(wide[0], wide[1], v)
    assert o.dtype == jnp.bfloat16
    if not name.startswith("scan"):
        assert np.array_equal(o, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
@pytest.mark.parametrize("name", OPS)
def test_no_tokens(name, shape):
    x = jnp.ones((*shape, H, K))
    for ids in (None, jnp.zeros(shape, int)):
        o, pullback = jax.vjp(lambda x, ids=ids: OPS[name](x, x, x, ids), x)
        assert o.shape[:2] == shape
        assert pullback(o)[0].shape == x.shape


def test_no_tokens_leave_the_state():
    x, ones = jnp.ones((2, 0, K)), jnp.ones((2, K, 3))
    _, state = selective_scan(x[..., :3], x[..., :3], -ones[0], x, x, initial_state=ones)
    assert np.array_equal(state, ones)
    state = MixedChunkState.zeros(2, CHUNK, K, K, jnp.dtype("float32"))
    state = state._replace(length=ones[:, 0, 0].astype(int))
    _, after = mixed_chunk_attention(x, x, x, x, x, jnp.zeros(CHUNK), chunk_size=CHUNK, state=state)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    x = jnp.ones((2, 0, H, K))
    for attention in (efficient_attention, log_feature_attention):
        _, state = attention(x, x, x)
        assert all(not np.any(np.asarray(leaf) > 0) for leaf in jax.tree.leaves(state))
        state = jax.tree.map(lambda leaf: leaf + 1, state)
        _, after = attention(x, x, x, initial_state=state)
        jax.tree.map(np.testing.assert_array_equal, after, state)


def test_no_keys():
    q, k = jnp.ones((2, 3, H, K)), jnp.ones((2, 0, H, K))
    o = softmax_attention(q, k, k, direction="bidirectional")
    assert np.array_equal(o, jnp.zeros((2, 3, H, K)))


@pytest.mark.parametrize(
    ("op", "name"), [(OPS["blockwise"], "form 'blockwise'"), (OPS["scan chunk"], "form 'chunk'")]
)
def test_forward_mode_says_that_reverse_mode_is_what_there_is(op, name):
    x = jnp.asarray(inputs()[0])
    with pytest.raises(TypeError, match=f"{name} has no forward mode.*reverse mode"):
        jax.jvp(lambda v: op(x, x, v), (x,), (x,))


@pytest.mark.parametrize("form", ["chunk", "pallas"])
@pytest.mark.parametrize("operator", [linear_attention, decayed_attention])
def test_forward_mode_of_sums(operator, form):
    x = jnp.ones((1, 4, 1, 2))
    op = functools.partial(operator, x, x, form=form)
    options = {"log_decay": jnp.zeros(1)} if operator is decayed_attention else {}
    with pytest.raises(TypeError, match=f"form '{form}' has no forward mode.*reverse mode"):
        jax.jvp(lambda v: op(v, **options)[0], (x,), (x,))


X = jnp.ones((B, T, H, K))
IDS_BT = jnp.zeros((B, T), int)
SCALES = jnp.ones((B, T, H, 6))
LEVELS = jnp.zeros((B, 5, H, K, K))
BLOCKS = np.zeros((1, 4, 1), int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(softmax_attention)(X[0], X, X), r"q_BTHK is \(16, 2, 4\)"),
        (lambda f: f(softmax_attention)(X.astype(int), X, X), "q_BTHK is int32"),
        (lambda f: f(softmax_attention)(X, X[:, :3], X), "v_BSJV is"),
        (lambda f: f(softmax_attention)(X, X, X, segment_ids_BT=IDS_BT * 1.0), "segment_ids_BT is"),
        (lambda f: f(softmax_attention)(X, X, X, key_mask_BS=IDS_BT), "key_mask_BS is int32"),
        (lambda f: f(softmax_attention)(X, X, X, key_mask_BS=IDS_BT[:1] > 0), "key_mask_BS is"),
        (lambda f: f(softmax_attention)(X, X, X, window=1.5), "window is 1.5; it must be an int"),
        (lambda f: f(softmax_attention)(X, X, X, scale="1"), "scale is '1'; it must be a positive"),
        (lambda f: f(softmax_attention)(X, None, X), "k_BSJK is a NoneType; it must be an array"),
        (lambda f: f(linear_attention)(None, X, X), "q_BTHK is a NoneType"),
        (lambda f: f(decayed_attention)(X, X, None, None), "v_BTHV is a NoneType"),
        (lambda f: f(diagonal_scan)(X[:, :, 0], None), "a is None; it must be an array"),
        (lambda f: f(block_sparse_attention)(X, X, X, None, block_size=4), "blocks_HGN is None"),
        (lambda f: f(linear_attention)(X, X, X, key_mask_BS=IDS_BT), "key_mask_BS is int32"),
        (lambda f: f(decayed_attention)(X, X, X, None, key_mask_BS=IDS_BT), "key_mask_BS is int32"),
        (
            lambda f: f(decayed_attention)(X, X, X, None, key_mask_BS=IDS_BT[:, 1:] > 0),
            r"key_mask_BS is \(2, 15\)",
        ),
        (lambda f: f(rectified_attention)(X[..., 0], X, X), "q_BTHK is"),
        (lambda f: f(rectified_attention)(X, X, X, block_size="4"), "block_size is '4'"),
        (lambda f: f(rectified_attention)(X, X, X, bias_E=X), r"bias_E is \(2, 16, 2, 4\)"),
        (lambda f: f(rectified_attention)(X, X[:, 1:], X[:, 1:]), "16 queries and 15 keys"),
        (lambda f: f(block_local_attention)(X, X, X.astype(int), block_size=2), "v_BTHV is int32"),
        (lambda f: f(block_local_attention)(X, X, X, block_size=0), "block_size is 0"),
        (lambda f: f(block_sparse_attention)(X, X, X, BLOCKS * 1.0, block_size=4), "blocks_HGN is"),
        (lambda f: f(block_sparse_attention)(X, X, X, BLOCKS[0], block_size=4), "blocks_HGN is"),
        (
            lambda f: f(block_sparse_attention)(X, X, X, BLOCKS, block_size=4, reach=-1),
            "reach is -1; it must be an integer of 0 or more",
        ),
        (lambda f: f(lsh_attention)(X, X, jnp.ones((1, 3, 2)), chunk_size=2), "rotations_RKE is"),
        (lambda f: f(efficient_attention)(X, X, X, chunk_size=0), "chunk_size is 0"),
        (lambda f: f(efficient_attention)(X, X, X[..., 0]), "v_BSHV is"),
        (lambda f: f(log_feature_attention)(X, X[:1], X), "k_BSHK is"),
        (
            lambda f: f(efficient_attention)(X, X, X, initial_state=X),
            "initial_state is a ArrayImpl; it must be a ScaledState",
        ),
        (lambda f: f(log_feature_attention)(X, X, X, initial_state=(X, X)), "is a tuple; it must"),
        (
            lambda f: f(log_linear_attention)(X, X, X, SCALES, initial_state=LEVELS),
            "initial_state must be a pair",
        ),
        (
            lambda f: f(log_linear_attention)(
                X, X, X, SCALES, initial_state=(LEVELS, jnp.zeros(3, int))
            ),
            r"initial_state\[1\] is \(3,\)",
        ),
        (
            lambda f: f(slstm)(jnp.tile(X, 4), jnp.ones((H, K, 4 * K)), initial_state=(X,) * 4),
            "initial_state is a tuple; it must be a SLSTMState",
        ),
        (lambda f: f(scaled_efficient_attention)(X, X, X.astype(int)), "v_BSHV is int32"),
        (lambda f: f(non_local_attention)(X, X[0], X), "k_BSHK is"),
        (lambda f: f(fourier_features)(X, X[0]), "w_HMK is"),
        (lambda f: f(cosine_features)(X, IDS_BT * 1.0, 9), "positions_BT is float32"),
        (lambda f: f(diagonal_scan)(X[:, :, 0], X[0, :, 0]), "a is"),
        (lambda f: f(diagonal_scan)(X[:, :, 0], X[0, 0, 0], chunk_size=0), "chunk_size is 0"),
        (
            lambda f: f(mixed_chunk_attention)(
                *[X[:, :, 0]] * 4, X, jnp.zeros(CHUNK), chunk_size=CHUNK
            ),
            "v_BTV is",
        ),
        (
            lambda f: f(mixed_chunk_attention)(
                *[X[:, :, 0]] * 5, jnp.zeros(CHUNK), chunk_size=CHUNK, state=X
            ),
            "state is a ArrayImpl; it must be a MixedChunkState",
        ),
        (
            lambda f: f(mixed_chunk_attention)(
                *[X[:, :, 0]] * 5,
                jnp.zeros(CHUNK),
                chunk_size=CHUNK,
                state=MixedChunkState.zeros(B, CHUNK + 1, K, K, X.dtype),
            ),
            r"state\.keys is \(2, 5, 4\)",
        ),
    ],
)
def test_misuse_names_the_argument(call, message):
    # Unwrapped: run-time type checks, where the tests turn them on, would come first.
    with pytest.raises(ValueError, match=message):
        call(inspect.unwrap)
