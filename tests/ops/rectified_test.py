"""Rectified attention against its definition, in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.rectified import rectified_attention
from tests.layers import slow_except
from tests.ops.contract import assert_agree, defined_attention, random_segments, relative_rms

B, H, K, V = 2, 2, 6, 5
# fp64 sums of 40 terms; a wrong mask, scale or block border is an error of order 1.
TOLERANCE = 1e-12
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def _fp64():
    with jax.enable_x64(True):
        yield


def inputs(T, S=None):
    rng = np.random.default_rng(T)
    S = T if S is None else S
    return [rng.standard_normal(s) for s in ((B, T, H, K), (B, S, H, K), (B, S, H, V))]


def definition(q, k, v, *, causal=True, bias=None, window=None, seen=True, **options):
    """`seen[b, t, s]` says which pairs may meet, apart from causality and the window."""
    (_, T, _, _), S = q.shape, k.shape[1]
    distance_TS = S - T + np.arange(T)[:, None] - np.arange(S)
    visible_BTS = np.broadcast_to(seen & (distance_TS >= (0 if causal else -S)), (B, T, S))
    if window is not None:
        visible_BTS = visible_BTS & (distance_TS < window)
    if bias is not None:
        options["bias_TS"] = bias[distance_TS + len(bias) - S]
    attend = functools.partial(naive.rectified_attention, **options)
    return defined_attention(attend, q, k, v, visible_BTS=visible_BTS)


@functools.cache
def compiled(**options):
    return jax.jit(functools.partial(rectified_attention, **options), compiler_options=QUICK)


DEFINED = list(itertools.product([(1, 1), (13, 13), (1, 9), (10, 17)], [None, 1, 5, 40], [4, 64]))
# Every window in several blocks; more keys than queries; one token, in one block.
QUICK_DEFINED = [
    *[((13, 13), window, 4) for window in (None, 1, 5, 40)],
    ((13, 13), None, 64),
    *[((10, 17), window, 4) for window in (None, 5)],
    *[((1, 9), window, 64) for window in (None, 5)],
    ((1, 1), None, 64),
]


@pytest.mark.parametrize(
    ("sizes", "window", "block_size"),
    slow_except(QUICK_DEFINED, DEFINED),
)
def test_definition(sizes, window, block_size):
    arrays = inputs(*sizes)
    o = compiled(window=window, block_size=block_size)(*arrays)
    assert relative_rms(o, definition(*arrays, window=window)) < TOLERANCE


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_power_scale_bias_segments_and_mask(direction):
    T, causal = 13, direction == "causal"
    arrays = inputs(T)
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(T if causal else 2 * T - 1)
    ids, mask = random_segments(rng, B, T), rng.random((B, T)) < 0.7
    o = compiled(direction=direction, power=2, scale=0.3, block_size=5)(
        *arrays, bias_E=bias, segment_ids_BT=ids, key_mask_BS=mask
    )
    seen = (ids[:, :, None] == ids[:, None]) & mask[:, None]
    expected = definition(*arrays, causal=causal, scale=0.3, power=2, bias=bias, seen=seen)
    assert relative_rms(o, expected) < TOLERANCE


@pytest.mark.parametrize("options", [{"window": 5}, {"power": 2}, {"direction": "bidirectional"}])
def test_gradients_of_blocks(options):
    """Against one block over everything, in which nothing is cut."""
    arrays = dict(zip(("q", "k", "v"), inputs(17), strict=True))

    def gradients(block_size):
        def loss(arrays):
            op = functools.partial(rectified_attention, block_size=block_size, **options)
            return jnp.sum(jnp.sin(op(*arrays.values())))

        return jax.jit(jax.grad(loss), compiler_options=QUICK)(arrays)

    assert_agree(gradients(4), gradients(17), TOLERANCE)


def test_memory_of_a_window_is_linear():
    """No array of the compiled gradient is as large as T x T."""
    T = 2048
    shapes = [jax.ShapeDtypeStruct((1, T, 1, 4), jnp.float32)] * 3
    loss = lambda *x: jnp.sum(rectified_attention(*x, window=32, block_size=64))  # noqa: E731
    analysis = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < T * T * 4 / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"power": 0}, "power is 0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"direction": "left"}, "direction is 'left'"),
        ({"direction": "bidirectional", "window": 2}, "window is causal"),
        ({"bias_E": jnp.zeros(4)}, "bias_E is"),
        ({"key_segment_ids_BS": jnp.zeros((B, 3), int)}, "without segment_ids_BT"),
    ],
)
def test_misuse_names_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        rectified_attention(*map(jnp.asarray, inputs(3)), **options)
