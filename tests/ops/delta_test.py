"""The delta rule beside the contract of contract_test.py: strengths, special cases, memory."""

import functools
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from linear_transformer.ops import delta_chunk, naive
from linear_transformer.ops.delta import (
    delta_attention,
    delta_product,
    erase_delta_attention,
    low_rank_delta_attention,
)
from tests.ops import contract

B, H, K, V, N = 2, 3, 8, 5, 3
# A program of every mechanism compiles for seconds: the rest is marked slow.
EXTREME = [
    ("scalar", "mixed", jnp.bfloat16),
    ("vector", "-100", jnp.float32),
    *[
        pytest.param(mechanism, kind, dtype, marks=pytest.mark.slow)
        for mechanism in ("scalar", "vector", "product", "low rank")
        for kind in ("none", "-20", "-100", "resets", "mixed")
        for dtype in (jnp.float32, jnp.bfloat16)
    ],
]


@functools.cache
def op(mechanism, form="chunk", chunk_size=None):
    """One signature for all: arrays by the names of `inputs`."""
    options = {"form": form, "chunk_size": chunk_size}
    if mechanism == "product":
        return lambda q, k, v, log_decay, beta, **kw: delta_product(
            q, k, v, log_decay, beta, **options, **kw
        )
    if mechanism == "low rank":
        return lambda q, k, v, log_decay, write, read, **kw: low_rank_delta_attention(
            q, k, v, log_decay, write, read, **options, **kw
        )
    if mechanism == "erase":
        return lambda q, k, v, log_decay, erase, **kw: erase_delta_attention(
            q, k, v, log_decay, erase, **options, **kw
        )
    return lambda q, k, v, beta, log_decay=None, **kw: delta_attention(
        q, k, v, log_decay, beta, **options, **kw
    )


def gates(kind, normal):
    """Log decays from normal numbers (B, T, H, K)."""
    soft = -np.logaddexp(0, -(normal + 3))  # log sigmoid, of time scales from 1 to 500 tokens
    strong = np.random.default_rng(1).random(normal.shape) < 0.2
    return {
        "usual": soft,
        "none": 0 * soft,
        "-20": soft - 20,
        "-100": soft - 100,
        "resets": np.where(strong, -np.inf, soft),
        "mixed": np.where(strong, -100, soft / 100),
    }[kind]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def inputs(mechanism, time, dtype, *, kind="usual", seed=0):
    """Unit variance in queries, values and state, unit length in keys, steps from 0 to 2."""
    rng = np.random.default_rng(seed)
    steps = (N,) if mechanism == "product" else ()
    q = rng.normal(size=(B, time, H, K))
    k = unit(rng.normal(size=(B, time, *steps, H, K)))
    v = rng.normal(size=(B, time, *steps, H, V))
    arrays = {"q": q, "k": k, "v": v, "initial_state": rng.normal(size=(B, H, K, V))}
    log_decay = gates(kind, rng.normal(size=(B, time, H, K)))
    if mechanism == "fixed":
        log_decay = log_decay[0, 0, :, 0]
    elif mechanism in ("scalar", "product"):
        log_decay = log_decay[..., 0]
    if mechanism != "delta":
        arrays["log_decay"] = log_decay
    if mechanism == "low rank":
        kappa = unit(rng.normal(size=(B, time, H, K)))
        arrays |= {"write": rng.random((B, time, H, K)) * kappa, "read": -kappa}
    elif mechanism == "erase":
        arrays["erase"] = rng.random((B, time, H, K))
    else:
        arrays["beta"] = 2 * rng.random((B, time, *steps, H))
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}, rng


def packed(rng, time):
    return {"segment_ids_BT": jnp.asarray(contract.random_segments(rng, B, time))}


def definition(q, k, v, beta=None, log_decay=None, write=None, read=None, erase=None, **start):
    log_decay = np.zeros(H) if log_decay is None else log_decay
    log_decay = np.broadcast_to(log_decay, q.shape[:3]) if log_decay.ndim == 1 else log_decay
    log_decay = log_decay.reshape(*q.shape[:3], -1)
    if write is not None:
        tokens = (q, k, v, log_decay, write, read)
        return contract.defined_recurrence(naive.low_rank_delta_attention, *tokens, **start)
    if erase is not None:
        tokens = (q, k, v, log_decay, erase)
        return contract.defined_recurrence(naive.erase_delta_attention, *tokens, **start)
    if k.ndim == 4:
        tokens = (q, k, v, log_decay, beta)
        return contract.defined_recurrence(naive.delta_attention, *tokens, **start)
    k, v, beta = (x.swapaxes(2, 3) for x in (k, v, beta))
    return contract.defined_recurrence(naive.delta_product, q, k, v, log_decay, beta, **start)


@pytest.mark.parametrize(("mechanism", "kind", "dtype"), EXTREME)
def test_extreme_gates_stay_finite(mechanism, kind, dtype):
    arrays, rng = inputs(mechanism, 70, dtype, kind=kind)
    results = contract.evaluate(op(mechanism), arrays, packed(rng, 70))
    for name, x in results.items():
        assert np.all(np.isfinite(np.asarray(x, np.float32))), name
    if kind == "-100" and mechanism in ("scalar", "vector"):  # every token, with no steps between
        assert np.max(np.abs(np.asarray(results["d_log_decay"], np.float32))) < 1e-30


def test_accurate_in_float32_at_any_strength():
    """Decays from none to complete, every gradient, to a few roundings."""
    arrays, rng = inputs("vector", 130, jnp.float32, kind="mixed")
    constants = packed(rng, 130)
    actual = contract.evaluate(op("vector"), arrays, constants)
    with jax.enable_x64(True):
        wide = {name: x.astype(jnp.float64) for name, x in arrays.items()}
        expected = contract.evaluate(op("vector", "recurrent"), wide, constants)
    contract.assert_agree(actual, expected, 5e-6)


def test_the_inverse_is_stable():
    """Equal keys and steps of 2: powers of L reach 1e18, and its inverse has entries of 2."""
    low = jnp.tril(jnp.full((64, 64), 2.0), -1)
    inverse = np.asarray(delta_chunk._inverse(low))
    sign = (-1.0) ** (np.arange(64)[:, None] - np.arange(64))
    assert np.array_equal(inverse, np.tril(2 * sign, -1) + np.eye(64))


def test_bfloat16_is_bounded():
    """Operands carry 8 bits, states and sums are fp32."""
    arrays, rng = inputs("vector", 77, jnp.bfloat16)
    constants = packed(rng, 77)
    exact = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    arrays |= {name: exact[name] for name in ("initial_state", "log_decay", "beta")}
    expected = contract.evaluate(op("vector", "recurrent"), exact, constants)
    actual = contract.evaluate(op("vector"), arrays, constants)
    assert (actual["o"].dtype, actual["state"].dtype) == (jnp.bfloat16, jnp.float32)
    contract.assert_agree(actual, expected, 3e-2)


def test_special_cases_of_one_another():
    """One step of the product, and equal gates, are the delta rule: a diagonal plus rank one."""
    with jax.enable_x64(True):
        arrays, _ = inputs("vector", 33, jnp.float64)
        q, k, v, state, log_decay, beta = (
            arrays[n] for n in ("q", "k", "v", "initial_state", "log_decay", "beta")
        )
        o, end = op("vector", "recurrent")(**arrays)
        expected = {"o": o, "state": end}
        options = {"initial_state": state, "form": "recurrent"}
        step = (k[:, :, None], v[:, :, None], log_decay, beta[:, :, None])
        o, end = delta_product(q, *step, **options)
        contract.assert_agree({"o": o, "state": end}, expected, 1e-13)
        erase = jnp.broadcast_to(beta[..., None], k.shape)
        o, end = erase_delta_attention(q, k, beta[..., None] * v, log_decay, erase, **options)
        contract.assert_agree({"o": o, "state": end}, expected, 1e-13)
        write = beta[..., None] * k
        rank_one = (log_decay, -write, jnp.exp(log_decay) * k)
        o, end = low_rank_delta_attention(q, write, v, *rank_one, **options)
        contract.assert_agree({"o": o, "state": end}, expected, 1e-13)


def test_a_state_of_orthogonal_keys_returns_its_values():
    """What the delta rule is for: with steps of 1 the last value of each key, exactly."""
    keys = np.random.default_rng(0).permuted(np.tile(np.arange(K), 9)).reshape(1, -1)
    k = jax.nn.one_hot(keys, K)[:, :, None]
    v = jnp.asarray(np.random.default_rng(1).normal(size=(1, 9 * K, 1, V)), jnp.float32)
    _, state = delta_attention(k, k, v, None, jnp.ones(k.shape[:3]))
    last = [np.flatnonzero(keys[0] == i)[-1] for i in range(K)]
    np.testing.assert_allclose(state[0, 0], v[0, last, 0], atol=1e-6)


def test_memory_is_linear():
    """The backward pass keeps a state a block, not one a token."""
    temporaries = {}
    for time in (4096, 16384):
        shape = jax.ShapeDtypeStruct((1, time, 2, 64), jnp.float32)
        gate = jax.ShapeDtypeStruct((1, time, 2), jnp.float32)

        def loss(q, k, v, log_decay, beta):
            return jnp.sum(delta_attention(q, k, v, log_decay, beta, form="chunk")[0] ** 2)

        program = jax.jit(jax.grad(loss, range(5))).lower(shape, shape, shape, gate, gate).compile()
        temporaries[time] = program.memory_analysis().temp_size_in_bytes
    a_state_a_token = 16384 * 2 * 64 * 64 * 4
    assert temporaries[16384] < 4.5 * temporaries[4096]
    assert temporaries[16384] < a_state_a_token / 5


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["delta", "scalar", "vector", "low rank"])
def test_a_million_tokens(mechanism):
    """fp32, with decays of every strength, against the fp64 scan."""
    rng = np.random.default_rng(3)
    time = 2**20
    arrays, _ = inputs(mechanism, time // 8, jnp.float32)
    arrays = {
        n: x[:1] if n == "initial_state" else jnp.tile(x[:1], (1, 8, *[1] * (x.ndim - 2)))
        for n, x in arrays.items()
    }
    if mechanism != "delta":  # time scales from one token to a million, and -20 per token
        strength = np.exp(rng.uniform(-14, 3, size=arrays["log_decay"].shape))
        arrays["log_decay"] = jnp.asarray(-strength, jnp.float32)
    actual = contract.evaluate(op(mechanism), arrays, {})
    for name, x in actual.items():
        assert np.all(np.isfinite(x)), name
    with jax.enable_x64(True):
        wide = {name: x.astype(jnp.float64) for name, x in arrays.items()}
        o, state = jax.jit(op(mechanism, "recurrent"))(**wide)
    contract.assert_agree({n: actual[n] for n in ("o", "state")}, {"o": o, "state": state}, 5e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"form": "parallel"},
            "form is 'parallel'; choose one of auto, recurrent, associative, ch",
        ),
        ({"chunk_size": 0}, "chunk_size is 0; it must be an integer of 1 or more"),
        ({"q": jnp.zeros((B, 4, K))}, "q_BTHK is (2, 4, 8); it must be (B, T, H, K)"),
        ({"q": jnp.zeros((B, 4, H, K), int)}, "q_BTHK is int32; it must be floating"),
        ({"k": jnp.zeros((B, 6, H, K))}, "k_BTHK is (2, 6, 3, 8); it must be (2, 4, 3, 8)"),
        ({"v": [1.0]}, "v_BTHV is a list; it must be an array"),
        ({"beta_BTH": jnp.zeros((B, 4, 1))}, "beta_BTH is (2, 4, 1); it must be (2, 4, 3)"),
        ({"log_decay": jnp.zeros((B, 4, H, 1))}, "log_decay is (2, 4, 3, 1); it must be (2, 4, 3,"),
        ({"log_decay": jnp.zeros((B, 4))}, "log_decay is (2, 4); it must be (2, 4, 3, 8)"),
        ({"log_decay": jnp.full(H, 0.5)}, "log_decay reaches 0.5; it must be at most 0"),
        (
            {"initial_state": jnp.zeros((1, H, K, V))},
            "initial_state is (1, 3, 8, 5); it must be (2",
        ),
        ({"initial_state": jnp.zeros((B, H, K, V), int)}, "initial_state is int32"),
        ({"segment_ids_BT": jnp.zeros((B, 3), int)}, "segment_ids_BT is (2, 3); it must be (2, 4)"),
        ({"segment_ids_BT": jnp.zeros((B, 4))}, "segment_ids_BT is float32; it must be an integer"),
    ],
)
def test_misuse_names_the_argument(change, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of the tests
    x = jnp.zeros((B, 4, H, K))
    arguments = {"q": x, "k": x, "v": jnp.zeros((B, 4, H, V)), "log_decay": None}
    arguments |= {"beta_BTH": jnp.zeros((B, 4, H))} | change
    q, k, v, log_decay = (arguments.pop(n) for n in ("q", "k", "v", "log_decay"))
    with pytest.raises(ValueError, match=re.escape(message)):
        delta_attention(q, k, v, log_decay, **arguments)


@pytest.mark.parametrize("mechanism", ["vector", "product", "low rank"])
@pytest.mark.parametrize("form", ["auto", "recurrent", "associative", "chunk", "pallas"])
def test_nothing_in_nothing_out(form, mechanism):
    arrays, _ = inputs(mechanism, 4, jnp.float32)
    state = arrays.pop("initial_state")
    no_rows = {name: x[:0] for name, x in arrays.items()}
    o, after = op(mechanism, form)(**no_rows, initial_state=state[:0])
    assert o.shape == (0, 4, H, V) and after.shape == (0, H, K, V)
    no_tokens = {name: x[:, :0] for name, x in arrays.items()}
    o, after = op(mechanism, form)(**no_tokens, initial_state=state)
    assert o.shape == (B, 0, H, V) and np.array_equal(after, state)


def test_mixed_types_follow_one_rule():
    """bf16 queries and keys with fp32 values: no product is rounded to bf16, in any form."""
    arrays, _ = inputs("scalar", 40, jnp.float32)
    arrays |= {name: arrays[name].astype(jnp.bfloat16) for name in ("q", "k")}
    expected = dict(enumerate(jax.jit(op("scalar", "recurrent"))(**arrays)))
    for form in ("associative", "chunk", "pallas"):
        actual = dict(enumerate(jax.jit(op("scalar", form))(**arrays)))
        contract.assert_agree(actual, expected, 2e-6)


def test_derivatives_that_a_form_lacks_are_named():
    arrays, _ = inputs("scalar", 4, jnp.float32)

    def loss(form, q):
        return jnp.sum(op("scalar", form)(**arrays | {"q": q})[0] ** 2)

    q = arrays["q"]
    for form in ("chunk", "pallas"):
        with pytest.raises(TypeError, match=f"form '{form}' has no forward mode"):
            jax.jvp(functools.partial(loss, form), (q,), (q,))
    with pytest.raises(NotImplementedError, match="form 'pallas' is differentiable once"):
        jax.grad(lambda q: jnp.sum(jax.grad(functools.partial(loss, "pallas"))(q)))(q)
    for form in ("recurrent", "associative"):
        second = jax.jvp(jax.grad(functools.partial(loss, form)), (q,), (q,))[1]
        assert np.any(second)  # (a loss that is quadratic in q)
