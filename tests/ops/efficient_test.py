"""Efficient attention: every direction and form against the definition, with keys of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.efficient import (
    efficient_attention,
    non_local_attention,
    scaled_efficient_attention,
)
from linear_transformer.ops.log_space import ScaledState
from tests.ops import contract

B, H, K, V = 2, 2, 6, 5


def unpack(state):
    """One array (B, H, K, V + 2), as the contract's checks take it, to a ScaledState."""
    return ScaledState(state[..., :-1], state[..., -1])


@functools.cache
def op(form="auto", direction="causal", chunk_size=16):
    def call(q, k, v, initial_state=None, **constants):
        initial_state = None if initial_state is None else unpack(initial_state)
        o, state = efficient_attention(
            q,
            k,
            v,
            direction=direction,
            initial_state=initial_state,
            form=form,
            chunk_size=chunk_size,
            **constants,
        )
        return o, jnp.concatenate([state.sums, state.log_scale[..., None]], axis=-1)

    return call


def inputs(time, dtype, *, scale=1.0, state=True, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, time, H, width)) for width in (K, K, V))
    arrays = {"q": q, "k": scale * k, "v": v}
    if state:
        arrays["initial_state"] = rng.normal(size=(B, H, K, V + 2))
        arrays["initial_state"][..., V] = rng.uniform(0.5, 2, size=(B, H, K))
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}, rng


definition = functools.partial(contract.defined_attention, naive.efficient_attention)


def visible(direction, time, ids=None, mask=None):
    i, j = np.arange(time)[:, None], np.arange(time)
    pairs = np.broadcast_to(j <= i if direction == "causal" else True, (B, time, time))
    if ids is not None:
        pairs = pairs & (ids[:, :, None] == ids[:, None, :])
    return pairs if mask is None else pairs & mask[:, None, :]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_equations(direction, packed, masked):
    time = 50
    with jax.enable_x64(True):
        arrays, rng = inputs(time, jnp.float64, state=False)
        constants = {}
        ids = contract.random_segments(rng, B, time) if packed else None
        mask = (rng.random((B, time)) < 0.6) & (np.arange(time) > 2) if masked else None
        if packed:
            constants["segment_ids_BT"] = jnp.asarray(ids)
        if masked:
            constants["key_mask_BS"] = jnp.asarray(mask)
        expected = definition(*arrays.values(), visible_BTS=visible(direction, time, ids, mask))
        o, _ = jax.jit(op("auto", direction))(**arrays, **constants)
        assert contract.relative_rms(o, expected) < 1e-12


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
def test_initial_state_is_what_came_before(form):
    """The state of 20 tokens is S = exp(log_scale) sums, and its last column z."""
    with jax.enable_x64(True):
        arrays, _ = inputs(50, jnp.float64, state=False)
        expected = definition(*arrays.values(), visible_BTS=visible("causal", 50))
        k, v = (np.asarray(arrays[name])[:, :20] for name in "kv")
        s = np.einsum(
            "bshk,bshv->bhkv", np.exp(k), np.concatenate([v, np.ones_like(k)[..., :1]], -1)
        )
        scale = np.full((B, H, K), 1.5)
        state = np.concatenate([s * np.exp(-1.5), scale[..., None]], axis=-1)
        tail = {name: x[:, 20:] for name, x in arrays.items()}
        o, state = jax.jit(op(form))(**tail, initial_state=jnp.asarray(state))
        assert contract.relative_rms(o, expected[:, 20:]) < 1e-12
        z = np.exp(np.asarray(arrays["k"])).sum(axis=1)
        assert contract.relative_rms(np.exp(state[..., -1]) * state[..., -2], z) < 1e-12


def test_gradients_are_those_of_the_definition():
    """The custom gradients against plain differentiation of the masked quadratic definition."""
    time = 30
    with jax.enable_x64(True):
        arrays, rng = inputs(time, jnp.float64, state=False)
        ids = contract.random_segments(rng, B, time)
        pairs = visible("causal", time, ids)
        cotangent = jnp.asarray(rng.normal(size=arrays["v"].shape))

        def loss(f):
            return lambda a: jnp.sum(f(**a) * cotangent)

        expected = jax.jit(jax.grad(loss(lambda q, k, v: definition(q, k, v, visible_BTS=pairs))))(
            arrays
        )
        packed = functools.partial(op("chunk"), segment_ids_BT=jnp.asarray(ids))
        actual = jax.jit(jax.grad(loss(lambda **a: packed(**a)[0])))(arrays)
        contract.assert_agree(actual, expected, 1e-11)


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("scale", [pytest.param(10.0, marks=pytest.mark.slow), 100.0])
def test_keys_of_any_size(direction, scale):
    """Keys up to +-300 in fp32: finite, and the fp64 result, gradients too.

    fp32 rounds L = 100 to 4e-6, and with it every weight.
    """
    time = 80
    arrays, _ = inputs(time, jnp.float32, scale=scale, state=False)
    actual = contract.evaluate(op("auto", direction), arrays, {})
    with jax.enable_x64(True):
        wide = {name: x.astype(jnp.float64) for name, x in arrays.items()}
        expected = definition(*wide.values(), visible_BTS=visible(direction, time))
        assert contract.relative_rms(actual["o"], expected) < 5e-5
        exact = contract.evaluate(op("recurrent", direction), wide, {})
        contract.assert_agree(actual, exact, 1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_all_keys_large(sign):
    """A common offset of the keys cancels, whatever its size."""
    arrays, _ = inputs(40, jnp.float32, state=False)
    # Multiples of 1/64 keep all their digits beside the offset.
    arrays["k"] = jnp.round(arrays["k"] * 64) / 64
    attend = jax.jit(op())
    expected, _ = attend(**arrays)
    o, _ = attend(**arrays | {"k": arrays["k"] + sign * 1000})
    assert contract.relative_rms(o, expected) < 1e-3
    assert np.all(np.isfinite(o))


def test_bfloat16_is_bounded():
    """bf16 weights and values carry 8 bits; the log-sums are fp32."""
    arrays, _ = inputs(100, jnp.bfloat16, state=False)
    expected, _ = jax.jit(op("recurrent"))(
        **{name: x.astype(jnp.float32) for name, x in arrays.items()}
    )
    o, state = jax.jit(op())(**arrays)
    assert o.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    assert contract.relative_rms(o.astype(jnp.float32), expected) < 2e-2


def test_cross_attention_and_its_state():
    with jax.enable_x64(True):
        arrays, _ = inputs(50, jnp.float64, state=False)
        q, k, v = arrays["q"][:, :9], arrays["k"], arrays["v"]
        attend = jax.jit(op("auto", "bidirectional"))
        expected = definition(q, k, v, visible_BTS=np.ones((B, 9, 50), bool))
        whole, state = attend(q, k, v)
        assert contract.relative_rms(whole, expected) < 1e-12
        # Keys may arrive in parts: the state of the first part is where the second one starts.
        _, part = attend(q, k[:, :20], v[:, :20])
        both, after = attend(q, k[:, 20:], v[:, 20:], initial_state=part)
        contract.assert_agree({"o": both, "s": after}, {"o": whole, "s": state}, 1e-12)


def test_the_last_causal_output_is_bidirectional():
    with jax.enable_x64(True):
        arrays, _ = inputs(50, jnp.float64, state=False)
        causal, state = jax.jit(op())(**arrays)
        bidirectional, total = jax.jit(op("auto", "bidirectional"))(**arrays)
        assert contract.relative_rms(causal[:, -1], bidirectional[:, -1]) < 1e-12
        assert contract.relative_rms(state, total) < 1e-12


@pytest.mark.parametrize("masked", [False, True])
def test_scaling_is_dot_product_attention(masked):
    """With scaling the two modules are one function, cross attention too."""
    with jax.enable_x64(True):
        arrays, rng = inputs(50, jnp.float64, state=False)
        q, k, v = arrays["q"][:, :9], arrays["k"], arrays["v"]
        mask = jnp.asarray(rng.random((B, 50)) < 0.6) if masked else None
        efficient = jax.jit(scaled_efficient_attention)(q, k, v, mask)
        attend = jax.jit(functools.partial(non_local_attention, normalization="scaling"))
        quadratic = attend(q, k, v, key_mask_BS=mask)
        assert contract.relative_rms(efficient, quadratic) < 1e-13
        kept = np.asarray(mask, float) if masked else np.ones((B, 50))
        weights = (
            np.einsum("bthk,bshk->bhts", q, k) * (kept / kept.sum(1, keepdims=True))[:, None, None]
        )
        assert contract.relative_rms(efficient, np.einsum("bhts,bshv->bthv", weights, v)) < 1e-13


def test_non_local_softmax():
    with jax.enable_x64(True):
        arrays, rng = inputs(30, jnp.float64, state=False)
        mask = rng.random((B, 30)) < 0.6
        actual = jax.jit(non_local_attention)(*arrays.values(), key_mask_BS=mask)
        softmax = functools.partial(naive.softmax_attention, scale=1)
        seen = np.broadcast_to(mask[:, None], (B, 30, 30))
        expected = contract.defined_attention(softmax, *arrays.values(), visible_BTS=seen)
        assert contract.relative_rms(actual, expected) < 1e-13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "sideways"}, "direction is 'sideways'"),
        ({"form": "fast"}, "form is 'fast'"),
        ({"initial_state": ScaledState(jnp.zeros((1, H, K, V)), jnp.zeros((1, H, K)))}, "initial"),
    ],
)
def test_misuse_names_the_argument(options, message):
    arrays, _ = inputs(4, jnp.float32, state=False)
    with pytest.raises(ValueError, match=message):
        efficient_attention(*arrays.values(), **options)


def test_shapes_that_do_not_fit():
    arrays, _ = inputs(4, jnp.float32, state=False)
    with pytest.raises(ValueError, match="only unpacked bidirectional"):
        op()(arrays["q"][:, :3], arrays["k"], arrays["v"])
    with pytest.raises(ValueError, match="normalization is 'l2'"):
        non_local_attention(*arrays.values(), normalization="l2")
