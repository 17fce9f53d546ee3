"""Linear attention beside the contract of contract_test.py: feature maps, directions, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import additive, naive
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.feature_maps import FEATURE_MAPS, feature_width
from tests.ops import contract

B, H, K, V = 2, 3, 8, 5


@functools.cache
def op(form, normalize=True, direction="causal", chunk_size=None):
    call = functools.partial(
        linear_attention,
        form=form,
        normalize=normalize,
        direction=direction,
        feature_map=None,
        chunk_size=chunk_size,
    )
    return lambda q, k, v, **kw: call(q, k, v, **kw)


def inputs(time, dtype, *, normalize=True, positive=True, seed=0):
    """Unit-variance values; queries and keys through elu + 1, or raw when not normalised."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, time, H, width)) for width in (K, K, V))
    if positive:
        q, k = (np.where(x > 0, x + 1, np.exp(x)) for x in (q, k))
    state = rng.normal(size=(B, H, K, V + normalize))
    if normalize:
        state[..., -1] = np.abs(state[..., -1]) * 3
    arrays = {"q": q, "k": k, "v": v, "initial_state": state}
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}, rng


def definition(q, k, v, normalize, **start):
    attend = functools.partial(naive.linear_attention, normalize=normalize)
    return contract.defined_recurrence(attend, q, k, v, **start)


@pytest.mark.parametrize("time", [128, 100])
@pytest.mark.parametrize("name", ["elu_plus_one", "taylor"])
def test_feature_map_inside_the_chunk_form(name, time):
    """The map applied block by block is the map applied before: two blocks, whole or padded."""
    mapped = functools.partial(with_map, name)
    with jax.enable_x64(True):
        arrays, rng = inputs(time, jnp.float64, positive=False)
        width = feature_width(FEATURE_MAPS[name], K)
        arrays["initial_state"] = jnp.resize(arrays["initial_state"], (B, H, width, V + 1))
        given = {"segment_ids_BT": contract.random_segments(rng, B, time)}
        masks = [{"key_mask_BS": np.tile(np.arange(time) % 3 >= first, (B, 1))} for first in (0, 1)]
        expected = contract.evaluate(mapped("recurrent"), arrays, given | masks[0])
        contract.assert_agree(contract.evaluate(mapped("chunk"), arrays, given), expected, 1e-10)
        if time == 100:  # with a mask the map is applied before
            actual, expected = (
                contract.evaluate(mapped(form), arrays, given | masks[1])
                for form in ("chunk", "recurrent")
            )
            contract.assert_agree(actual, expected, 1e-10)


@functools.cache
def with_map(name, form):
    def call(q, k, v, **options):
        options |= {"feature_map": FEATURE_MAPS[name], "form": form, "chunk_size": 8}
        return linear_attention(q, k, v, **options)

    return call


@pytest.mark.parametrize("form", ["recurrent", "parallel", "associative", "chunk"])
def test_features_of_bfloat16_keep_their_precision(form):
    """Products of features that cancel need fp32, and all forms compute them so."""
    arrays, rng = inputs(77, jnp.bfloat16, positive=False)
    del arrays["initial_state"]
    constants = {"segment_ids_BT": contract.random_segments(rng, B, 77)}
    exact = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    expected = contract.evaluate(with_map("taylor", "recurrent"), exact, constants)
    actual = contract.evaluate(with_map("taylor", form), arrays, constants)
    assert actual["o"].dtype == actual["d_k"].dtype == jnp.bfloat16
    contract.assert_agree({"state": actual["state"]}, {"state": expected["state"]}, 1e-6)
    contract.assert_agree(actual, expected, 1e-2)  # outputs and gradients are rounded to bf16


def test_bfloat16_is_bounded():
    """bf16 operands carry 8 bits: each product is off by up to 2^-8, the sums are fp32."""
    arrays, rng = inputs(77, jnp.bfloat16)
    constants = {"segment_ids_BT": contract.random_segments(rng, B, 77)}
    exact = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    arrays["initial_state"] = exact["initial_state"]
    expected = contract.evaluate(op("recurrent"), exact, constants)
    for form in ("recurrent", "parallel", "associative", "chunk"):
        actual = contract.evaluate(op(form, chunk_size=8), arrays, constants)
        assert actual["o"].dtype == jnp.bfloat16
        assert actual["state"].dtype == jnp.float32
        # The cotangents are the same up to their own rounding to bf16.
        contract.assert_agree(actual, expected, 2e-2)


def weights_oracle(q, k, v, visible_BTS, epsilon=1e-6):
    """Equation 3 with sim(q, k) = q^T k over the visible pairs."""
    weights = np.einsum("bthk,bshk->bhts", *(np.asarray(x, np.float64) for x in (q, k)))
    weights = weights * visible_BTS[:, None]
    o = np.einsum("bhts,bshv->bthv", weights, np.asarray(v, np.float64))
    return o / (weights.sum(-1).transpose(0, 2, 1)[..., None] + epsilon)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "anticausal", "bidirectional"])
def test_directions_and_padding(direction, packed):
    time = 70
    with jax.enable_x64(True):
        arrays, rng = inputs(time, jnp.float64)
        del arrays["initial_state"]
        mask = np.arange(time) < np.array([[50], [70]])
        i, j = np.arange(time)[:, None], np.arange(time)
        visible = {"causal": j <= i, "anticausal": j >= i, "bidirectional": j == j}[direction]
        visible = np.broadcast_to(visible, (B, time, time)) & mask[:, None, :]
        constants = {"key_mask_BS": jnp.asarray(mask)}
        if packed:
            ids = contract.random_segments(rng, B, time)
            visible = visible & (ids[:, :, None] == ids[:, None, :])
            constants["segment_ids_BT"] = jnp.asarray(ids)
        actual, _ = jax.jit(op("auto", direction=direction))(**arrays, **constants)
        expected = weights_oracle(**arrays, visible_BTS=visible)
        assert contract.relative_rms(actual, expected) < 1e-11


def test_cross_attention_and_its_state():
    with jax.enable_x64(True):
        arrays, _ = inputs(70, jnp.float64)
        q = arrays["q"][:, :9]
        k, v, state = arrays["k"], arrays["v"], arrays["initial_state"]
        attend = jax.jit(
            functools.partial(linear_attention, feature_map=None, direction="bidirectional")
        )
        actual, total = attend(q, k, v)
        expected = weights_oracle(q, k, v, np.ones((B, 9, 70)))
        assert contract.relative_rms(actual, expected) < 1e-11
        # Keys may arrive in parts: the state of the first part is where the second one starts.
        whole, total = attend(q, k, v, initial_state=state)
        _, part = attend(q, k[:, :30], v[:, :30], initial_state=state)
        rest, total_of_parts = attend(q, k[:, 30:], v[:, 30:], initial_state=part)
        contract.assert_agree(
            {"o": rest, "state": total_of_parts}, {"o": whole, "state": total}, 1e-12
        )


@pytest.mark.parametrize("normalize", [False, True])
def test_a_sequence_and_its_padding_are_two_calls(normalize):
    """At most two segments a row: value, state and every gradient of each alone, in both orders."""
    time = 70
    with jax.enable_x64(True):
        arrays, _ = inputs(time, jnp.float64)
        if not normalize:
            arrays["initial_state"] = arrays["initial_state"][..., :-1]
        ids = np.where(np.arange(time) < np.array([[43], [time]]), 1, 0)
        attend = functools.partial(
            linear_attention, feature_map=None, direction="bidirectional", normalize=normalize
        )

        def together(arrays):
            q, k, v, state = (arrays[name] for name in ("q", "k", "v", "initial_state"))
            o, state = attend(q, k, v, initial_state=state, segment_ids_BT=jnp.asarray(ids))
            return (jnp.sum(o**3) + jnp.sum(state**3)), (o, state)

        def alone(arrays):
            q, k, v, state = (arrays[name] for name in ("q", "k", "v", "initial_state"))
            rows, states = [], []
            for row, length in enumerate((43, time)):
                parts, last = [], state[row : row + 1]
                for cut in (slice(0, length), slice(length, time)):
                    if cut.start < time:
                        part = [x[row : row + 1, cut] for x in (q, k, v)]
                        o, last = attend(*part, initial_state=last if cut.start == 0 else None)
                        parts.append(o)
                rows.append(jnp.concatenate(parts, axis=1))
                states.append(last)
            o, state = jnp.concatenate(rows), jnp.concatenate(states)
            return (jnp.sum(o**3) + jnp.sum(state**3)), (o, state)

        results = []
        for function in (together, alone):
            gradients, (o, state) = jax.jit(jax.grad(function, has_aux=True))(arrays)
            results.append({"o": o, "state": state} | gradients)
        contract.assert_agree(results[0], results[1], 1e-11)


def test_padding_keys_never_change_a_result():
    """Bit for bit: what lies under the mask is not read."""
    arrays, _ = inputs(70, jnp.float32)
    mask = jnp.asarray(np.arange(70) < np.array([[50], [69]]))
    for direction in ("causal", "bidirectional"):
        attend = jax.jit(op("auto", direction=direction))
        first, _ = attend(**arrays, key_mask_BS=mask)
        other = arrays["k"] + jnp.where(mask[..., None, None], 0, 100.0)
        second, _ = attend(**arrays | {"k": other}, key_mask_BS=mask)
        assert np.array_equal(first, second)


def test_long_sequences_stay_linear_in_memory():
    """The backward pass keeps one state a block, not one a token."""
    temporaries = {}
    for time in (4096, 16384):
        shape = jax.ShapeDtypeStruct((1, time, 2, 64), jnp.float32)
        loss = jax.grad(lambda q, k, v: linear_attention(q, k, v)[0].sum(), argnums=(0, 1, 2))
        analysis = jax.jit(loss).lower(shape, shape, shape).compile().memory_analysis()
        temporaries[time] = analysis.temp_size_in_bytes
    states_per_token = 2 * 64 * 65 * 4 * 16384
    assert temporaries[16384] < 4.5 * temporaries[4096]
    assert temporaries[16384] < states_per_token / 20


BROKEN = {
    "leak": lambda q, k, v, state, ids: (q, k, v, state, None),
    "one key": lambda q, k, v, state, ids: (q, k.at[:, 55].set(0), v, state, ids),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_negative_control(fault, monkeypatch):
    """The comparison that the forms pass is one that a broken form fails."""
    arrays, rng = inputs(77, jnp.float32)
    constants = {"segment_ids_BT": contract.random_segments(rng, B, 77)}
    expected = contract.evaluate(op("recurrent"), arrays, constants)
    intact = additive._chunk_form

    def broken(q, k, v, state, ids, *options):
        return intact(*BROKEN[fault](q, k, v, state, ids), *options)

    monkeypatch.setattr(additive, "_chunk_form", broken)
    actual = contract.evaluate(lambda **kw: linear_attention_chunk(**kw), arrays, constants)
    with pytest.raises(AssertionError, match="relative RMS"):
        contract.assert_agree(actual, expected, 2e-5)


def linear_attention_chunk(q, k, v, **kw):
    return linear_attention(q, k, v, feature_map=None, form="chunk", **kw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "sideways"}, "direction is 'sideways'"),
        ({"form": "fast"}, "form is 'fast'"),
        ({"initial_state": jnp.zeros((B, H, K, V))}, "initial_state is"),
        ({"k": jnp.zeros((B, 6, H, K)), "v": jnp.zeros((B, 6, H, V))}, "only unpacked"),
    ],
)
def test_misuse_names_the_argument(change, message):
    arrays, _ = inputs(5, jnp.float32)
    arrays = {**arrays, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        additive.linear_attention(arrays.pop("q"), arrays.pop("k"), arrays.pop("v"), **arrays)


@pytest.mark.parametrize("form", ["chunk", "pallas"])
def test_bfloat16_gradients_are_bounded_where_terms_cancel(form):
    """With means in all tokens, the gradient of a query is a small part of each of its terms."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(1, 256, 1, 8)) / 2 + rng.normal(size=8) for _ in range(3)]
    arrays = {name: jnp.asarray(a, jnp.bfloat16) for name, a in zip("qkv", x, strict=True)}
    wide = {name: a.astype(jnp.float32) for name, a in arrays.items()}
    expected = contract.evaluate(with_map("elu_plus_one", "recurrent"), wide, {})
    actual = contract.evaluate(with_map("elu_plus_one", form), arrays, {})
    contract.assert_agree(actual, expected, 2e-2)
