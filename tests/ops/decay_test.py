"""Attention with decay beside the contract of contract_test.py: strengths, directions, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from linear_transformer.ops import decay, naive
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.decay import decayed_attention
from tests.layers import slow_except
from tests.ops import contract

B, H, K, V = 2, 3, 8, 5
FORMS = ("recurrent", "parallel", "associative", "chunk")
# Arguments by gate.
GATES = {"scalar": "log_decay", "vector": "log_decay", "value": "log_value_decay_BTHV"}
# The plain forms share their code between gates, and the segments' masks with additive attention.
GATES_AND_FORMS = [(gate, "chunk") for gate in GATES] + [
    pytest.param(gate, form, marks=pytest.mark.slow) for gate in GATES for form in FORMS[:-1]
]


@functools.cache
def op(form, direction="causal", chunk_size=None):
    call = functools.partial(
        decayed_attention, form=form, direction=direction, chunk_size=chunk_size
    )
    return lambda q, k, v, log_decay=None, **kw: call(q, k, v, log_decay, **kw)


def gates(kind, normal):
    """Log decays from normal numbers (B, T, H, K or V)."""
    soft = -np.logaddexp(0, -(normal + 3))  # log sigmoid, of time scales from 1 to 500 tokens
    strong = np.random.default_rng(1).random(normal.shape) < 0.2
    return {
        "usual": soft,
        "none": 0 * soft,
        "-5": soft - 5,
        "-20": soft - 20,
        "-100": soft - 100,
        "resets": np.where(strong, -np.inf, soft),
        "mixed": np.where(strong, -100, soft / 100),
    }[kind]


def inputs(time, dtype, *, gate, kind="usual", seed=0):
    """Unit variance in queries, keys, values and state; the gate "both" is of keys and values."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, time, H, width)) for width in (K, K, V))
    log_decay = gates(kind, rng.normal(size=(B, time, H, K)))
    state = rng.normal(size=(B, H, K, V))
    of_keys = {"scalar": log_decay[..., 0], "fixed": log_decay[0, 0, :, 0]}
    arrays = {"q": q, "k": k, "v": v}
    if gate != "value":
        arrays["log_decay"] = of_keys.get(gate, log_decay)
    arrays["initial_state"] = state
    if gate in ("value", "both"):
        arrays["log_value_decay_BTHV"] = gates(kind, rng.normal(size=(B, time, H, V)))
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}, rng


def packed(rng, time):
    return {"segment_ids_BT": jnp.asarray(contract.random_segments(rng, B, time))}


def definition(q, k, v, log_decay=0.0, log_value_decay_BTHV=None, bonus=None, **start):
    time = q.shape[1]
    if np.ndim(log_decay) < 3:
        log_decay = np.broadcast_to(log_decay, (B, time, H))
    of_values = 0 * v if log_value_decay_BTHV is None else log_value_decay_BTHV
    tokens = (q, k, v, log_decay.reshape(B, time, H, -1), of_values)
    if bonus is None:
        return contract.defined_recurrence(naive.decayed_attention, *tokens, **start)

    def with_bonus(q, k, v, log_decay, of_values, bonus, **start):
        return naive.decayed_attention(q, k, v, log_decay, of_values, bonus[0], **start)

    tokens = (*tokens, np.broadcast_to(bonus, q.shape))
    return contract.defined_recurrence(with_bonus, *tokens, **start)


@pytest.mark.parametrize("kind", ["usual", "none", "-5", "-20", "mixed"])
@pytest.mark.parametrize("gate", GATES)
def test_chunk_form_is_accurate_at_any_strength(gate, kind):
    """Every gradient in fp32 to a few roundings, those of strong decays too, which are tiny."""
    narrow, _ = inputs(1000, jnp.float32, gate=gate, kind=kind)
    actual = contract.evaluate(op("chunk"), narrow, {})
    with jax.enable_x64(True):
        arrays = {name: x.astype(jnp.float64) for name, x in narrow.items()}
        expected = contract.evaluate(op("recurrent"), arrays, {})
    contract.assert_agree(actual, expected, 3e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["none", "-20", "-100", "resets", "mixed"])
@pytest.mark.parametrize(("gate", "form"), GATES_AND_FORMS)
def test_extreme_gates_stay_finite(gate, form, kind, dtype):
    arrays, rng = inputs(77, dtype, gate=gate, kind=kind)
    results = contract.evaluate(op(form, chunk_size=16), arrays, packed(rng, 77))
    for name, x in results.items():
        assert np.all(np.isfinite(np.asarray(x, np.float32))), name
    gradient = np.asarray(results[f"d_{GATES[gate]}"], np.float32)
    if kind == "-100":
        assert np.max(np.abs(gradient)) < 1e-30
    if kind == "resets":
        reset = np.isneginf(np.asarray(arrays[GATES[gate]], np.float32))
        assert reset.any()
        assert np.all(gradient[reset] == 0)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
def test_a_decay_to_zero_is_a_boundary(form):
    with jax.enable_x64(True):
        arrays, rng = inputs(77, jnp.float64, gate="scalar")
        constants = packed(rng, 77)
        ids = np.asarray(constants["segment_ids_BT"])
        starts = np.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
        reset = np.where(starts[..., None], -np.inf, arrays["log_decay"])
        one = {"segment_ids_BT": np.zeros_like(ids)}
        expected = contract.evaluate(op(form), arrays, constants)
        actual = contract.evaluate(op(form), arrays | {"log_decay": reset}, one)
        contract.assert_agree(actual, expected, 1e-12)


def test_no_decay_is_additive_attention():
    with jax.enable_x64(True):
        arrays, rng = inputs(77, jnp.float64, gate="scalar", kind="none")
        constants = packed(rng, 77)
        o, state = jax.jit(op("chunk"))(**arrays, **constants)
        q, k, v, _, state_in = arrays.values()
        attend = jax.jit(functools.partial(linear_attention, feature_map=None, normalize=False))
        expected, expected_state = attend(q, k, v, initial_state=state_in, **constants)
        expected = {"o": expected, "state": expected_state}
        contract.assert_agree({"o": o, "state": state}, expected, 1e-13)


@pytest.mark.parametrize("gate", slow_except(("vector",), GATES))
def test_bfloat16_is_bounded(gate):
    """bf16 operands carry 8 bits: each product is off by up to 2^-8, the sums are fp32."""
    arrays, rng = inputs(77, jnp.bfloat16, gate=gate)
    constants = packed(rng, 77)
    exact = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    arrays |= {name: exact[name] for name in ("initial_state", GATES[gate])}
    expected = contract.evaluate(op("recurrent"), exact, constants)
    for form in ("recurrent", "chunk"):
        actual = contract.evaluate(op(form, chunk_size=8), arrays, constants)
        assert actual["o"].dtype == jnp.bfloat16
        assert actual["state"].dtype == jnp.float32
        # The cotangents are the same up to their own rounding to bf16.
        contract.assert_agree(actual, expected, 2e-2)


@pytest.mark.parametrize("gate", ["fixed", *GATES])
def test_anticausal_and_padding(gate):
    """Anticausal is causal backwards in time; a masked key is a key of zeros."""
    with jax.enable_x64(True):
        arrays, rng = inputs(70, jnp.float64, gate=gate)
        ids = contract.random_segments(rng, B, 70)
        mask = np.arange(70) < np.array([[50], [70]])
        constants = {"key_mask_BS": jnp.asarray(mask), "segment_ids_BT": jnp.asarray(ids)}
        masked = arrays | {"k": np.asarray(arrays["k"]) * mask[..., None, None]}
        for direction, order in (("causal", 1), ("anticausal", -1)):
            o, state = jax.jit(op("auto", direction=direction))(**arrays, **constants)
            timeless = ("initial_state", "log_decay") if gate == "fixed" else ("initial_state",)
            ordered = {n: x if n in timeless else x[:, ::order] for n, x in masked.items()}
            expected = definition(**ordered, segment_ids_BT=ids[:, ::order])
            expected["o"] = expected["o"][:, ::order]
            contract.assert_agree({"o": o, "state": state}, expected, 1e-12)


@pytest.mark.parametrize("gate", ["fixed", *GATES])
def test_bidirectional_is_both_directions_with_the_own_key_once(gate):
    with jax.enable_x64(True):
        arrays, rng = inputs(70, jnp.float64, gate=gate)
        ids = contract.random_segments(rng, B, 70)
        attend = jax.jit(op("auto", direction="bidirectional"))
        o, state = attend(**arrays, segment_ids_BT=ids)
        timeless = ("initial_state", "log_decay") if gate == "fixed" else ("initial_state",)
        ordered = {n: x if n in timeless else x[:, ::-1] for n, x in arrays.items()}
        ordered["initial_state"] = 0 * arrays["initial_state"]
        expected = definition(**arrays, segment_ids_BT=ids)
        expected["o"] += definition(**ordered, segment_ids_BT=ids[:, ::-1])["o"][:, ::-1]
        q, k, v = (np.asarray(arrays[name]) for name in "qkv")
        expected["o"] -= np.sum(q * k, axis=-1, keepdims=True) * v
        contract.assert_agree({"o": o, "state": state}, expected, 1e-12)


@functools.cache
def bonus_op(form, chunk_size=None):
    options = {"form": form, "chunk_size": chunk_size}
    return lambda bonus, **kw: decayed_attention(**named(kw), bonus_HK=bonus, **options)


def with_bonus(arrays, rng):
    return arrays | {"bonus": jnp.asarray(rng.normal(size=(H, K)), arrays["q"].dtype)}


def test_padding_keys_never_change_a_result():
    """Bit for bit: what lies under the mask is not read."""
    arrays, _ = inputs(70, jnp.float32, gate="vector")
    mask = jnp.asarray(np.arange(70) < np.array([[50], [69]]))
    attend = jax.jit(op("chunk"))
    first, _ = attend(**arrays, key_mask_BS=mask)
    other = arrays["k"] + jnp.where(mask[..., None, None], 0, 100.0)
    second, _ = attend(**arrays | {"k": other}, key_mask_BS=mask)
    assert np.array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
def test_long_sequences(gate):
    """65,536 tokens in fp32, with decays from none to complete, against the fp64 scan."""
    arrays, _ = inputs(65536, jnp.float32, gate=gate)
    rng = np.random.default_rng(3)
    # Time scales from one token to a million, and rows of one head and two features only.
    log_decay = -np.exp(rng.uniform(-14, 3, size=arrays[GATES[gate]].shape))
    arrays[GATES[gate]] = jnp.asarray(log_decay, jnp.float32)
    arrays = {n: x[:1] if n == "initial_state" else x[:1, :, :1] for n, x in arrays.items()}
    arrays["initial_state"] = arrays["initial_state"][:, :1]
    actual = contract.evaluate(op("chunk"), arrays, {})
    with jax.enable_x64(True):
        wide = {name: x.astype(jnp.float64) for name, x in arrays.items()}
        expected = contract.evaluate(op("recurrent"), wide, {})
    contract.assert_agree(actual, expected, 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "usual", "mixed"])
@pytest.mark.parametrize("gate", GATES)
def test_a_million_tokens(gate, kind):
    time = 2**20
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, time, 1, K)), jnp.float32) for _ in range(3))
    log_decay = gates(kind, rng.normal(size=(1, time, 1, K)))
    log_decay = jnp.asarray(log_decay[..., 0] if gate == "scalar" else log_decay, jnp.float32)
    arrays = {"q": q, "k": k, "v": v, GATES[gate]: log_decay}
    actual = contract.evaluate(op("chunk"), arrays, {})
    with jax.enable_x64(True):
        wide = {name: x.astype(jnp.float64) for name, x in arrays.items()}
        o, state = jax.jit(op("recurrent"))(**wide)
    for name, x in actual.items():
        assert np.all(np.isfinite(x)), name
    contract.assert_agree({n: actual[n] for n in ("o", "state")}, {"o": o, "state": state}, 5e-5)


@pytest.mark.parametrize("gate", slow_except(("vector",), GATES))
def test_memory_is_linear(gate):
    """The backward pass keeps one state a block, not one a token."""
    temporaries = {}
    for time in (4096, 16384):
        shape = jax.ShapeDtypeStruct((1, time, 2, 64), jnp.float32)
        log_decay = jax.ShapeDtypeStruct((1, time, 2), jnp.float32) if gate == "scalar" else shape
        arrays = {"q": shape, "k": shape, "v": shape, GATES[gate]: log_decay}
        loss = jax.grad(lambda arrays: op("auto")(**arrays)[0].sum())
        analysis = jax.jit(loss).lower(arrays).compile().memory_analysis()
        temporaries[time] = analysis.temp_size_in_bytes
    states_per_token = 2 * 64 * 64 * 4 * 16384
    assert temporaries[16384] < 4.5 * temporaries[4096]
    assert temporaries[16384] < states_per_token / 20


BROKEN = {
    "stale state": lambda q, k, v, a, state, ids: (q, k, v, a, jnp.zeros_like(state), ids),
    "late decay": lambda q, k, v, a, state, ids: (q, k, v, [jnp.roll(a[0], 1, 1)], state, ids),
    "one gradient": lambda q, k, v, a, state, ids: (
        *(q, k, v, [a[0].at[:, 55].set(lax.stop_gradient(a[0][:, 55]))]),
        *(state, ids),
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_negative_control(fault, monkeypatch):
    """The comparison that the forms pass is one that a broken form fails."""
    arrays, rng = inputs(77, jnp.float32, gate="scalar")
    constants = packed(rng, 77)
    expected = contract.evaluate(op("recurrent"), arrays, constants)
    intact = decay.chunk_form

    def broken(*args):
        return intact(*BROKEN[fault](*args[:6]), *args[6:])

    monkeypatch.setattr(decay, "chunk_form", broken)
    attend = functools.partial(decayed_attention, form="chunk", chunk_size=16)
    actual = contract.evaluate(lambda **kw: attend(**named(kw)), arrays, constants)
    with pytest.raises(AssertionError, match="relative RMS"):
        contract.assert_agree(actual, expected, 5e-5)


def named(arrays):
    names = {"q": "q_BTHK", "k": "k_BTHK", "v": "v_BTHV"}
    return {names.get(name, name): x for name, x in arrays.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "sideways"}, "direction is 'sideways'"),
        ({"direction": "anticausal", "bonus_HK": jnp.zeros((H, K))}, "a bonus needs causal"),
        ({"bonus_HK": jnp.zeros((H, K + 1))}, "bonus_HK"),
        ({"form": "fast"}, "form is 'fast'"),
        ({"initial_state": jnp.zeros((B, H, K, V + 1))}, "initial_state is"),
        ({"log_decay": jnp.zeros((B, 5, H, V))}, "log_decay"),
        ({"log_value_decay_BTHV": jnp.ones((B, 5, H, V))}, "log_value_decay_BTHV reaches 1"),
        (
            {"log_value_decay_BTHV": jnp.zeros((B, 5, H, V)), "form": "pallas"},
            "the kernel has no log_value_decay_BTHV",
        ),
        ({"k": jnp.zeros((B, 6, H, K)), "v": jnp.zeros((B, 6, H, V))}, "k_BTHK is"),
    ],
)
def test_misuse_names_the_argument(change, message):
    arrays, _ = inputs(5, jnp.float32, gate="scalar")
    with pytest.raises((ValueError, TypeError), match=message):
        decayed_attention(**{"form": "auto"} | named(arrays | change))
