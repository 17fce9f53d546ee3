"""LSH attention against the algorithm of Reformer, token by token in NumPy float64.

Hash, sort by (bucket, position), cut into chunks, attend to one's own chunk and the one before,
combine the rounds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.hashing import SELF_PENALTY, buckets, lsh_attention
from tests.ops.contract import assert_agree, random_segments, relative_rms

B, H, K, V = 2, 2, 6, 5
# Scores next to a penalty of 1e5 keep 11 digits in fp64.
TOLERANCE = 1e-9
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def _fp64():
    with jax.enable_x64(True):
        yield


def inputs(T, rounds=2, num_buckets=4):
    rng = np.random.default_rng(T)
    shapes = ((B, T, H, K), (B, T, H, V), (rounds, K, num_buckets // 2))
    return [rng.standard_normal(s) for s in shapes]


def one_round(q, v, rotation, *, chunk, window, causal, run):
    """Outputs (T, V) and log-sum-exps (T,) of one row and head."""
    T = len(q)
    projected = q @ rotation
    hashes = np.argmax(np.concatenate([projected, -projected], 1), 1)
    order = sorted(range(T), key=lambda t: (run[t], hashes[t], t))
    keys = q / np.linalg.norm(q, axis=1, keepdims=True)
    o, lse = np.zeros((T, V)), np.zeros(T)
    for place, t in enumerate(order):
        if window:  # the chunk tokens of the bucket before, and the token itself
            near = order[max(0, place - chunk) : place + 1]
        else:  # its own chunk, whole, and the one before
            first = place // chunk * chunk
            near = order[max(0, first - chunk) : first + chunk]
        near = [s for s in near if hashes[s] == hashes[t] and run[s] == run[t]]
        near = [s for s in near if s <= t or not causal]
        scores = np.array([q[t] @ keys[s] / np.sqrt(K) for s in near])
        scores -= SELF_PENALTY * (np.array(near) == t)
        lse[t] = scores.max() + np.log(np.sum(np.exp(scores - scores.max())))
        o[t] = np.exp(scores - lse[t]) @ v[near]
    return o, lse


def oracle(q, v, rotations, *, segments=None, window=True, **options):
    T = q.shape[1]
    segments = np.zeros((B, T), int) if segments is None else segments
    run = np.cumsum(np.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0))), 1)
    o = np.zeros((B, T, H, V))
    for b, h in np.ndindex(B, H):
        rounds = [
            one_round(q[b, :, h], v[b, :, h], r, run=run[b], window=window, **options)
            for r in rotations
        ]
        outputs, lse = (np.stack(x) for x in zip(*rounds, strict=True))
        weights = np.exp(lse - lse.max(0))
        o[b, :, h] = np.sum((weights / weights.sum(0))[..., None] * outputs, 0)
    return o


@functools.cache
def compiled(**options):
    return jax.jit(functools.partial(lsh_attention, **options), compiler_options=QUICK)


CASES = [("window", "causal"), ("sorted", "causal"), ("sorted", "bidirectional")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("chunking", "direction"), CASES)
@pytest.mark.parametrize(("T", "rounds", "chunk"), [(1, 2, 4), (23, 1, 3), (24, 4, 4), (9, 2, 16)])
def test_algorithm(T, rounds, chunk, chunking, direction, packed):
    arrays = inputs(T, rounds)
    ids = random_segments(np.random.default_rng(0), B, T) if packed else np.zeros((B, T), np.int32)
    op = compiled(chunk_size=chunk, chunking=chunking, direction=direction)
    options = {"chunk": min(chunk, T), "causal": direction == "causal", "segments": ids}
    expected = oracle(*arrays, window=chunking == "window", **options)
    assert relative_rms(op(*arrays, segment_ids_BT=ids), expected) < TOLERANCE


def test_hash_is_by_angle():
    q, _, rotations = inputs(200, num_buckets=8)
    found = np.asarray(buckets(jnp.asarray(q), jnp.asarray(rotations[0])))
    assert np.array_equal(found, buckets(jnp.asarray(3 * q), jnp.asarray(rotations[0])))
    opposite = np.asarray(buckets(jnp.asarray(-q), jnp.asarray(rotations[0])))
    assert np.array_equal((found + 4) % 8, opposite)
    assert set(found.ravel()) == set(range(8))


def test_one_bucket_of_all_tokens_is_softmax():
    """With shared queries and keys, and no token that sees itself unless it is alone."""
    T = 12
    q, v, rotations = inputs(T, rounds=1)
    q = q[:1, :1] + 0.01 * q  # All of a head have one hash.
    o = compiled(chunk_size=T)(q, v, rotations)
    scores = np.einsum("bthk,bshk->bhts", q, q / np.linalg.norm(q, axis=-1, keepdims=True))
    scores = scores / np.sqrt(K) - 1e5 * np.eye(T) - np.where(np.tri(T) > 0, 0, np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    assert relative_rms(o, np.einsum("bhts,bshv->bthv", weights, v)) < TOLERANCE


def test_window_does_not_depend_on_what_follows_or_on_other_documents():
    """And the published chunks do, which is why they cannot decode."""
    T, cut = 24, 15
    q, v, rotations = inputs(T)
    part, rest = (q[:, :cut], v[:, :cut]), (q[:, cut:], v[:, cut:])
    ids = np.tile(np.repeat([0, 1], [cut, T - cut]), (B, 1))
    window, published = (compiled(chunk_size=3, chunking=c) for c in ("window", "sorted"))
    alone = window(*part, rotations)
    assert relative_rms(window(q, v, rotations)[:, :cut], alone) < TOLERANCE
    packed = window(q, v, rotations, segment_ids_BT=ids)
    expected = np.concatenate([alone, window(*rest, rotations)], axis=1)
    assert relative_rms(packed, expected) < TOLERANCE
    assert relative_rms(published(q, v, rotations)[:, :cut], published(*part, rotations)) > 0.01


def test_masked_tokens_are_as_if_absent():
    T = 20
    q, v, rotations = inputs(T)
    mask = np.tile(np.arange(T) >= 7, (B, 1))
    o = compiled(chunk_size=3)(q, v, rotations, key_mask_BS=mask)
    assert np.all(np.asarray(o[:, :7]) == 0)
    expected = compiled(chunk_size=3)(q[:, 7:], v[:, 7:], rotations)
    assert relative_rms(o[:, 7:], expected) < TOLERANCE


@pytest.mark.parametrize("T", [16, 23])
def test_segment_of_padding_behind_a_row_changes_nothing(T):
    """It sorts behind all of the row, whose chunks are cut from its start."""
    q, v, rotations = inputs(23)
    attend = compiled(chunk_size=4, chunking="sorted", direction="bidirectional")
    segments = np.tile(np.arange(T) < 13, (B, 1)).astype(np.int32)
    padded = attend(q[:, :T], v[:, :T], rotations, segment_ids_BT=segments)
    alone = attend(q[:, :13], v[:, :13], rotations)
    assert relative_rms(padded[:, :13], alone) < 1e-12
    without = attend(q[:, :T], v[:, :T], rotations)
    assert relative_rms(without[:, :13], alone) > 0.1  # negative control


def test_gradients():
    """Against those of the definition, by JAX."""
    T, chunk = 13, 3
    q, v, rotations = inputs(T)
    weights = np.random.default_rng(3).standard_normal((B, T, H, V))
    visible = np.tril(np.ones((T, T), bool))

    def defined(a):
        attend = functools.partial(naive.lsh_attention, visible_TT=visible, chunk_size=chunk)
        of_row = jax.vmap(lambda q, v: attend(q, v, constant), 1, 1)
        return jax.vmap(of_row)(a["q"], a["v"])

    def gradient(op):
        loss = lambda a: jnp.sum(op(a) * weights)  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK)({"q": q, "v": v})

    constant = jnp.asarray(rotations)
    found = gradient(lambda a: lsh_attention(a["q"], a["v"], constant, chunk_size=chunk))
    assert_agree(found, gradient(defined), TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunking": "fixed"}, "chunking is 'fixed'"),
        ({"direction": "left"}, "direction is 'left'"),
        ({"direction": "bidirectional"}, "needs 'sorted'"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_misuse_names_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        lsh_attention(*map(jnp.asarray, inputs(5)), **{"chunk_size": 2} | options)
