"""Mamba-3 against its equations, token by token in NumPy float64, and its sums of turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers.mamba3 import Mamba3
from linear_transformer.ops.recurrence import FORMS
from linear_transformer.ops.rotation import cumulative_turns
from tests.nn.baselines_test import SEGMENTS, B, D, H, T, build, call, inputs, weights_of
from tests.ops.contract import assert_agree, relative_rms

N, V = 8, 2 * D // H
QUICK = {"xla_backend_optimization_level": 0}


def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x, norm):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * weights_of(norm.scale)


def turned(x, angles):
    pairs = angles.shape[-1]
    z = (x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag, x[..., 2 * pairs :]], axis=-1)


def row(mixer, u, segments):
    """One row, token by token."""

    def linear(layer, x):
        return x @ weights_of(layer.kernel)

    rank = mixer.rank
    inputs, gates, outputs = (
        np.ones((H, rank, V)) if weights is None else weights_of(weights)
        for weights in (mixer.inputs, mixer.gates, mixer.outputs)
    )
    y = []
    for t in range(T):
        if t == 0 or segments[t] != segments[t - 1]:
            state = np.zeros((H, N, V))
            theta = np.zeros((H, mixer.angles))
            written_before = np.zeros((H, N, V))
        dt = softplus(linear(mixer.dt, u[t]) + weights_of(mixer.dt_bias))
        a = np.exp(-np.maximum(softplus(linear(mixer.decay, u[t])), 1e-4) * dt)
        share = sigmoid(linear(mixer.trapezoid, u[t]))
        b, c = np.split(linear(mixer.shared, u[t]), 2)
        k, q = (
            np.repeat(normed(x.reshape(mixer.groups, rank, N), norm), H // mixer.groups, axis=0)
            + weights_of(bias).reshape(H, rank, N)
            for x, norm, bias in (
                (b, mixer.key_norm, mixer.key_bias),
                (c, mixer.query_norm, mixer.query_bias),
            )
        )
        if mixer.angles:
            theta = theta + np.pi * np.tanh(linear(mixer.angle, u[t])) * dt[:, None]
            k, q = turned(k, theta[:, None]), turned(q, theta[:, None])
        x = linear(mixer.value, u[t]).reshape(H, 1, V) * inputs
        written = np.zeros((H, N, V))
        for h, r in np.ndindex(H, rank):
            written[h] += np.outer(k[h, r], x[h, r])
        state = a[:, None, None] * state
        state += ((1 - share) * dt * a)[:, None, None] * written_before
        state += (share * dt)[:, None, None] * written
        o = np.einsum("hnv,hrn->hrv", state, q) + weights_of(mixer.skip)[:, None, None] * x
        z = linear(mixer.gate, u[t]).reshape(H, 1, V) * gates
        y.append(linear(mixer.output, np.sum(o * z * sigmoid(z) * outputs, axis=1).reshape(-1)))
        written_before = written
    return np.stack(y)


@pytest.mark.parametrize("segments", [np.zeros((B, T), np.int32), SEGMENTS], ids=["one", "packed"])
@pytest.mark.parametrize(
    ("fraction", "options"),
    [
        (0.0, {}),
        (0.5, {}),
        (1.0, {}),
        *((0.5, {"rank": 3, "form": form, "chunk_size": 4}) for form in FORMS),
    ],
)
def test_equations(fraction, options, segments):
    """In every form too, with several inputs and outputs."""
    options = {"groups": 1 + (fraction == 0.5)} | options
    mixer = build(Mamba3, state_width=N, rotary_fraction=fraction, **options)
    x = inputs().astype(np.float64)
    expected = np.stack([row(mixer, x[b], segments[b]) for b in range(B)])
    assert relative_rms(call(mixer, inputs(), segments), expected) < 1e-5


def test_sums_of_turns_keep_their_digits():
    """A million tokens: the plain sum in fp32 would have lost most digits after the point."""
    time = 2**20
    turns = jnp.asarray(np.random.default_rng(0).uniform(0, 0.5, size=(1, time, 1, 1)), jnp.float32)
    expected = np.cumsum(np.asarray(turns, np.float64), axis=1)

    def error(actual):
        return np.abs(np.angle(np.exp(2j * np.pi * (np.asarray(actual) - expected)))).max()

    assert error(jax.jit(cumulative_turns)(turns)) < 1e-3
    assert error(jnp.cumsum(turns, axis=1)) > 1e-2


def test_turns_of_segments_and_halves():
    with jax.enable_x64(True):
        turns = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, H, 3)))
        whole = cumulative_turns(turns, segment_ids_BT=jnp.asarray(SEGMENTS))

        def cosines(x):
            return {"cosines": np.cos(2 * np.pi * np.asarray(x))}

        for b in range(B):
            ids = SEGMENTS[b]
            parts = [np.cumsum(turns[b][ids == n], axis=0) for n in dict.fromkeys(ids.tolist())]
            assert_agree(cosines(whole[b]), cosines(np.concatenate(parts)), 1e-12)
        head = cumulative_turns(turns[:, :4])
        tail = cumulative_turns(turns[:, 4:], head[:, -1])
        joined = jnp.concatenate([head, tail], axis=1)
        assert_agree(cosines(joined), cosines(cumulative_turns(turns)), 1e-12)


@pytest.mark.slow
def test_bfloat16_gradients_of_angles_are_bounded():
    """The rounding errors of all later tokens do not add up in the gradient of an angle."""
    x = np.random.default_rng(0).normal(size=(2, 1, 512, D))
    x[0] += 2

    def gradients(dtype):
        mixer = Mamba3(D, H, state_width=N, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
        graphdef, parameters = nnx.split(mixer)
        inputs, cotangent = (jnp.asarray(a, jnp.bfloat16).astype(dtype) for a in x)

        def product(parameters):
            return jnp.vdot(nnx.merge(graphdef, parameters)(inputs)[0], cotangent)

        found = jax.jit(jax.grad(product), compiler_options=QUICK)(parameters)
        return {name: found[name]["kernel"][...] for name in ("dt", "angle")}

    assert_agree(gradients("bfloat16"), gradients("float32"), 5e-2)
