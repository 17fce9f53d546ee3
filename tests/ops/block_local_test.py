"""Attention within blocks, against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.block_local import block_local_attention
from tests.ops.contract import (
    assert_agree,
    defined_attention,
    random_segments,
    relative_rms,
    visible_pairs,
)

B, T, H, K, V, W = 2, 23, 2, 4, 3, 5


def inputs(time=T, seed=0):
    rng = np.random.default_rng(seed)
    widths = {"q_BTHK": K, "k_BTHK": K, "v_BTHV": V}
    return {n: rng.normal(size=(B, time, H, w)).astype(np.float32) for n, w in widths.items()}


def definition(*tokens, scores, causal, ids, mask):
    attend = functools.partial(naive.block_local_attention, scores=scores, block_size=W)
    seen = visible_pairs(ids, causal=causal) & mask[:, None]
    return defined_attention(attend, *tokens, visible_BTS=seen)


@functools.cache
def compiled(**options):
    return jax.jit(functools.partial(block_local_attention, **{"block_size": W} | options))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("scores", ["relu", "softmax"])
def test_equations(scores, direction, masked, packed):
    rng = np.random.default_rng(1)
    ids = random_segments(rng, B, T) if packed else np.zeros((B, T), np.int32)
    mask = rng.random((B, T)) < 0.7 if masked else np.ones((B, T), bool)
    x = inputs()
    attend = compiled(scores=scores, direction=direction)
    o = attend(**x, segment_ids_BT=ids, key_mask_BT=mask)
    expected = definition(
        *x.values(), scores=scores, causal=direction == "causal", ids=ids, mask=mask
    )
    assert relative_rms(o, expected) < 1e-6  # sums of 5 terms in fp32


@pytest.mark.parametrize("time", [1, 4, 5, 6, 10])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_any_length(time, direction):
    """Without ids or a mask."""
    x = inputs(time)
    o = compiled(direction=direction)(**x)
    ids, mask = np.zeros((B, time), np.int32), np.ones((B, time), bool)
    causal = direction == "causal"
    expected = definition(*x.values(), scores="softmax", causal=causal, ids=ids, mask=mask)
    assert relative_rms(o, expected) < 1e-6


@pytest.mark.parametrize("scores", ["relu", "softmax"])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_gradients(scores, direction):
    """Against differences of the float64 function, and exactly 0 across blocks and segments."""
    ids = jnp.asarray(np.array([[1] * 7 + [2] * 16, [3] * T], np.int32))
    op = functools.partial(
        block_local_attention, block_size=W, scores=scores, direction=direction, segment_ids_BT=ids
    )
    with jax.enable_x64(True):
        x = {n: a.astype(np.float64) for n, a in inputs().items()}
        rng = np.random.default_rng(2)
        cotangent = rng.normal(size=(B, T, H, V))

        @jax.jit
        def loss_and_gradient(x, cotangent):
            return jax.value_and_grad(lambda x: jnp.sum(op(**x) * cotangent))(x)

        gradient = loss_and_gradient(x, cotangent)[1]
        for _ in range(3):
            direction_ = {n: rng.normal(size=a.shape) for n, a in x.items()}
            step = 1e-6
            moved = [{n: x[n] + s * direction_[n] for n in x} for s in (step, -step)]
            ends = [loss_and_gradient(x, cotangent)[0] for x in moved]
            slope = sum(np.sum(gradient[n] * direction_[n]) for n in x)
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-6)
        of_one = np.zeros_like(cotangent)
        of_one[0, 8] = cotangent[0, 8]
        _, one = loss_and_gradient(x, of_one)
        for name in ("k_BTHK", "v_BTHV"):
            seen = np.any(np.asarray(one[name][0]) != 0, axis=(1, 2))
            visible = range(7, 9 if direction == "causal" else 10)  # segment 2 begins at 7
            assert not np.any(np.delete(seen, visible))
            if scores == "softmax":  # a ReLU may hide a key
                assert np.all(seen[list(visible)])


def test_query_without_keys():
    """0 and no NaN, in value and gradient."""
    x = inputs()
    mask = jnp.asarray(np.zeros((B, T), bool))
    for scores in ("relu", "softmax"):
        op = functools.partial(block_local_attention, block_size=W, scores=scores, key_mask_BT=mask)

        def run(x, op=op):
            o, pullback = jax.vjp(lambda x: op(**x), x)
            return o, pullback(jnp.ones_like(o))

        for found in jax.tree.leaves(jax.jit(run)(x)):
            assert np.array_equal(found, np.zeros(found.shape))


def test_negative_control():
    """A block that is one token too long is found."""
    right, wrong = (compiled(block_size=w)(**inputs()) for w in (W, W + 1))
    with pytest.raises(AssertionError, match="relative RMS"):
        assert_agree({"o": wrong}, {"o": right}, 1e-2)


def test_bfloat16():
    x = inputs()
    for scores in ("relu", "softmax"):
        narrow = {n: a.astype(jnp.bfloat16) for n, a in x.items()}
        o = compiled(scores=scores)(**narrow)
        assert o.dtype == jnp.bfloat16
        assert relative_rms(o, compiled(scores=scores)(**x)) < 2e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"scores": "tanh"}, "scores is 'tanh'; choose one of softmax, relu"),
        ({"direction": "both"}, "direction is 'both'; choose one of causal, bidirectional"),
    ],
)
def test_misuse_names_the_argument(options, message):
    x = {n: jnp.asarray(a) for n, a in inputs().items()}
    with pytest.raises(ValueError, match=message):
        block_local_attention(**x, **{"block_size": W} | options)
