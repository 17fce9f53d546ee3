"""Diagonal recurrences beside the contract of contract_test.py: extremes, directions, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.selective_scan import diagonal_scan, selective_scan
from tests.ops import contract

B, D, N = 2, 5, 3
# The associative form compiles for seconds.
QUICK_FORMS = ("recurrent", "chunk", pytest.param("associative", marks=pytest.mark.slow))
A_ND = -np.exp(np.random.default_rng(5).normal(size=(N, D)))


@functools.cache
def selective(form, chunk_size=None, direction="causal", **options):
    options |= {"form": form, "chunk_size": chunk_size, "direction": direction}
    call = functools.partial(selective_scan, **options)

    def op(x, dt, b, c, log_a=None, **kw):
        a = jnp.asarray(A_ND, x.dtype) if log_a is None else -jnp.exp(log_a)
        return call(x, dt, a, b, c, **kw)

    return op


@functools.cache
def diagonal(form, chunk_size=None, direction="causal"):
    """The complex scan with real arrays: the last axis is (real, imaginary)."""
    call = functools.partial(diagonal_scan, form=form, chunk_size=chunk_size, direction=direction)

    def to_complex(x):
        return jax.lax.complex(x[..., 0], x[..., 1])

    def to_real(z):
        return jnp.stack([z.real, z.imag], axis=-1)

    def op(b, log_a, initial_state=None, **kw):
        a = jnp.exp(to_complex(log_a))
        if initial_state is not None:
            initial_state = to_complex(initial_state)
        h, state = call(to_complex(b), a, initial_state=initial_state, **kw)
        return to_real(h), to_real(state)

    return op


signed = functools.partial(selective, negative_eigenvalues=True)
OPS = {"selective": selective, "signed": signed, "diagonal": diagonal}


def inputs(name, time, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if name != "diagonal":
        arrays = {
            "x": rng.normal(size=(B, time, D)),
            "dt": np.exp(rng.normal(size=(B, time, D)) - 2),
            "b": rng.normal(size=(B, time, N)),
            "c": rng.normal(size=(B, time, N)),
            "initial_state": rng.normal(size=(B, N, D)),
        }
    else:
        arrays = {
            "b": rng.normal(size=(B, time, N, 2)),
            "log_a": np.stack(
                [-np.exp(rng.normal(size=(B, time, N)) - 2), rng.normal(size=(B, time, N))], -1
            ),
            "initial_state": rng.normal(size=(B, N, 2)),
        }
    return {key: jnp.asarray(x, dtype) for key, x in arrays.items()}, rng


def packed(rng, time):
    return {"segment_ids_BT": jnp.asarray(contract.random_segments(rng, B, time))}


def definition(name, initial_state, segment_ids_BT, **arrays):
    """The naive scan with the arrays of `inputs`, as the one head of its rows."""
    if name != "diagonal":
        options = {"negative_eigenvalues": name == "signed"}
        scan = lambda x, dt, b, c, **start: naive.selective_scan(  # noqa: E731
            x, dt, A_ND, b, c, **options, **start
        )
    else:
        scan = lambda b, log_a, **start: naive.diagonal_scan(b, jnp.exp(log_a), **start)  # noqa: E731
        arrays = {n: x[..., 0] + 1j * x[..., 1] for n, x in arrays.items()}
        initial_state = initial_state[..., 0] + 1j * initial_state[..., 1]
    tokens = (x[:, :, None] for x in arrays.values())
    start = {"initial_state": initial_state[:, None], "segment_ids_BT": segment_ids_BT}
    found = contract.defined_recurrence(scan, *tokens, **start)
    o, state = found["o"][:, :, 0], found["state"][:, 0]
    if name == "diagonal":
        o, state = (jnp.stack([z.real, z.imag], -1) for z in (o, state))
    return {"o": o, "state": state}


@pytest.mark.parametrize("form", QUICK_FORMS)
def test_extreme_steps_stay_finite(form):
    arrays, rng = inputs("selective", 100, jnp.float32)
    arrays["dt"] = jnp.asarray(10.0 ** rng.integers(-6, 4, size=(B, 100, D)), jnp.float32)
    for key, x in contract.evaluate(selective(form), arrays, packed(rng, 100)).items():
        assert np.all(np.isfinite(x)), key


@pytest.mark.parametrize("name", OPS)
def test_anticausal_is_causal_backwards(name):
    with jax.enable_x64(True):
        arrays, rng = inputs(name, 70, jnp.float64)
        ids = contract.random_segments(rng, B, 70)
        scan = jax.jit(OPS[name]("auto", None, "anticausal"))
        o, state = scan(**arrays, segment_ids_BT=ids)
        turned = {
            key: np.asarray(x) if key == "initial_state" else np.asarray(x)[:, ::-1]
            for key, x in arrays.items()
        }
        expected = definition(name, **turned, segment_ids_BT=ids[:, ::-1])
        expected["o"] = expected["o"][:, ::-1]
        contract.assert_agree({"o": o, "state": state}, expected, 1e-13)


def test_fixed_factors_are_factors_of_every_token():
    with jax.enable_x64(True):
        arrays, _ = inputs("diagonal", 40, jnp.float64)
        b = jax.lax.complex(arrays["b"][..., 0], arrays["b"][..., 1])
        a = jnp.array([0.9 + 0.2j, 0.5j, 0.99])
        fixed, _ = diagonal_scan(b, a)
        every, _ = diagonal_scan(b, jnp.broadcast_to(a, b.shape))
        np.testing.assert_array_equal(fixed, every)
        real, state = diagonal_scan(b.real, a.real)
        assert real.dtype == state.dtype == jnp.float64


def test_bfloat16_inputs_have_fp32_states():
    arrays, rng = inputs("selective", 100, jnp.bfloat16)
    arrays["initial_state"] = arrays["initial_state"].astype(jnp.float32)
    exact = {key: x.astype(jnp.float32) for key, x in arrays.items()}
    constants = packed(rng, 100)
    o, state = jax.jit(selective("chunk"))(**arrays, **constants)
    expected, expected_state = jax.jit(selective("recurrent"))(**exact, **constants)
    assert o.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    # Only the output, and A, are rounded to bf16.
    contract.assert_agree({"o": o, "state": state}, {"o": expected, "state": expected_state}, 2**-7)


def test_memory_is_a_state_per_chunk():
    temporaries = {}
    for time in (1024, 4096):
        x = jax.ShapeDtypeStruct((1, time, 64), jnp.float32)
        b = jax.ShapeDtypeStruct((1, time, 16), jnp.float32)
        a = jax.ShapeDtypeStruct((16, 64), jnp.float32)
        loss = jax.grad(lambda *arrays: selective_scan(*arrays)[0].sum(), argnums=(0, 1, 2, 3, 4))
        analysis = jax.jit(loss).lower(x, x, a, b, b).compile().memory_analysis()
        temporaries[time] = analysis.temp_size_in_bytes
    states_per_token = 64 * 16 * 4 * 4096
    assert temporaries[4096] < states_per_token / 2
    assert temporaries[4096] < 4.5 * temporaries[1024]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "parallel"}, "form is 'parallel'"),
        ({"direction": "bidirectional"}, "direction is 'bidirectional'"),
        ({"c": jnp.zeros((B, 5, N + 1))}, "C"),
        ({"initial_state": jnp.zeros((B, N + 1, D))}, "initial_state"),
    ],
)
def test_misuse_names_the_argument(options, message):
    arrays, _ = inputs("selective", 5, jnp.float32)
    call = {"form": "auto"} | arrays | options
    x, dt, b, c = (call.pop(key) for key in ("x", "dt", "b", "c"))
    with pytest.raises((ValueError, TypeError), match=message):
        selective_scan(x, dt, jnp.asarray(A_ND, jnp.float32), b, c, **call)
