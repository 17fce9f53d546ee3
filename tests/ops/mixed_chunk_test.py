"""Mixed chunk attention against its definition, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.mixed_chunk import MixedChunkState, mixed_chunk_attention
from tests.layers import slow_except
from tests.ops.contract import assert_agree, random_segments, relative_rms, visible_pairs

B, K, V = 2, 6, 5
NAMES = ("q", "k", "linear_q", "linear_k", "v")
TOLERANCE = 1e-12  # fp64 sums of a few dozen terms
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def _fp64():
    with jax.enable_x64(True):
        yield


def inputs(T, chunk, causal=True):
    rng = np.random.default_rng(T)
    arrays = [rng.standard_normal((B, T, w)) for w in (K, K, K, K, V)]
    return arrays, rng.standard_normal(chunk if causal else 2 * chunk - 1)


def definition(*tokens, chunk, causal=True, segments=None):
    """Of q, k, linear q, linear k, v and the bias by distance."""
    T = tokens[0].shape[1]
    segments = np.zeros((B, T), int) if segments is None else segments
    visible = visible_pairs(segments, causal=causal)
    distance = np.arange(T)[:, None] - np.arange(T)

    def of_row(q, k, linear_q, linear_k, v, visible_TT, bias):
        options = {"bias_TT": bias[distance + len(bias) - chunk], "chunk_size": chunk}
        tokens = (q, k, linear_q, linear_k, v, visible_TT)
        return naive.mixed_chunk_attention(*tokens, **options, causal=causal)

    *tokens, bias = tokens
    return jax.vmap(of_row, (*[0] * 6, None))(*tokens, visible, jnp.asarray(bias))


@functools.cache
def compiled(chunk, direction="causal"):
    op = functools.partial(mixed_chunk_attention, chunk_size=chunk, direction=direction)
    return jax.jit(op, compiler_options=QUICK)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize(
    ("T", "chunk"), slow_except(((17, 4), (5, 1)), ((1, 4), (4, 4), (17, 4), (9, 16), (5, 1)))
)
def test_definition(T, chunk, direction, packed):
    causal = direction == "causal"
    arrays, bias = inputs(T, chunk, causal)
    ids = random_segments(np.random.default_rng(1), B, T) if packed else np.zeros((B, T), np.int32)
    o, _ = compiled(chunk, direction)(*arrays, bias, segment_ids_BT=ids)
    if T == 17 and not packed:
        without, _ = compiled(chunk, direction)(*arrays, bias)
        assert relative_rms(without, o) < TOLERANCE
    expected = definition(*arrays, bias, chunk=chunk, causal=causal, segments=ids)
    assert relative_rms(o, expected) < TOLERANCE


@pytest.mark.parametrize("split", [3, 8])
def test_split_anywhere(split):
    """Outputs and state of one call are those of two, packed; and the state's size is constant.

    Inside a chunk and at its border; at every token in nn/mixers_test.py.
    """
    T, chunk = 17, 4
    arrays, bias = inputs(T, chunk)
    ids = random_segments(np.random.default_rng(1), B, T)
    op = compiled(chunk)
    whole, end = op(*arrays, bias, segment_ids_BT=ids)
    head, state = op(*(x[:, :split] for x in arrays), bias, segment_ids_BT=ids[:, :split])
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(
        jnp.shape, MixedChunkState.zeros(B, chunk, K, V, jnp.dtype("float64"))
    )
    tail, state = op(
        *(x[:, split:] for x in arrays), bias, state=state, segment_ids_BT=ids[:, split:]
    )
    actual = {"o": jnp.concatenate([head, tail], 1)} | state._asdict()
    assert_agree(actual, {"o": whole} | end._asdict(), TOLERANCE)


def test_equal_ids_apart_are_different_segments():
    arrays, bias = inputs(9, 2)
    ids = np.array([[1, 1, 1, 2, 2, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 0, 0, 0]])
    o, _ = compiled(2)(*arrays, bias, segment_ids_BT=ids)
    assert relative_rms(o, definition(*arrays, bias, chunk=2, segments=ids)) < TOLERANCE


def test_gradients():
    """Against the definition written as one quadratic form, by JAX."""
    T, chunk = 11, 4
    arrays, bias = inputs(T, chunk)
    ids = random_segments(np.random.default_rng(1), B, T)
    weights = np.random.default_rng(2).standard_normal((B, T, V))

    def defined(a):
        return definition(*(a[name] for name in (*NAMES, "bias")), chunk=chunk, segments=ids)

    def ours(a):
        arrays = [a[name] for name in (*NAMES, "bias")]
        return mixed_chunk_attention(*arrays, chunk_size=chunk, segment_ids_BT=jnp.asarray(ids))[0]

    def gradient(op):
        loss = lambda a: jnp.sum(op(a) * weights)  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(given)

    given = dict(zip(NAMES, arrays, strict=True)) | {"bias": bias}
    assert_agree(gradient(ours), gradient(defined), TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "left"}, "direction is 'left'"),
        ({"chunk_size": 3}, "bias_E is"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        (
            {"state": MixedChunkState.zeros(B, 4, K, V + 1, jnp.dtype("float32"))},
            "state.sums is",
        ),
    ],
)
def test_misuse_names_the_argument(change, message):
    arrays, bias = inputs(5, 4)
    with pytest.raises(ValueError, match=message):
        mixed_chunk_attention(
            *map(jnp.asarray, arrays), jnp.asarray(bias), **{"chunk_size": 4} | change
        )
