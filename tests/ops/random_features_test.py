"""Random features estimate their kernels; the attention over them is exact at any size."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.log_space import ScaledState
from linear_transformer.ops.random_features import (
    draw_projections,
    fourier_features,
    log_feature_attention,
    positive_log_features,
    relu_features,
)
from tests.ops import contract

B, H, K, V = 2, 2, 7, 5


@functools.cache
def op(form="auto", direction="causal", chunk_size=16):
    """The state as one array (B, H, K, V + 2), the scale repeated in its last column."""

    def call(q, k, v, initial_state=None, **constants):
        if initial_state is not None:
            initial_state = ScaledState(initial_state[..., :-1], initial_state[:, :, 0, -1])
        o, state = log_feature_attention(
            q,
            k,
            v,
            direction=direction,
            initial_state=initial_state,
            form=form,
            chunk_size=chunk_size,
            **constants,
        )
        scale = jnp.broadcast_to(state.log_scale[..., None, None], (*state.sums.shape[:3], 1))
        return o, jnp.concatenate([state.sums, scale], axis=-1)

    return call


def inputs(time, dtype, *, scale=1.0, state=True, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, time, H, width)) for width in (K, K, V))
    arrays = {"q": scale * q, "k": scale * k, "v": v}
    if state:
        sums = rng.normal(size=(B, H, K, V + 1))
        sums[..., -1] = rng.uniform(0.5, 1, size=(B, H, K))
        log_scale = np.broadcast_to(rng.normal(size=(B, H, 1, 1)), (B, H, K, 1))
        arrays["initial_state"] = np.concatenate([sums, log_scale], axis=-1)
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}, rng


definition = functools.partial(contract.defined_attention, naive.log_feature_attention)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_equations(direction, packed, masked):
    time = 50
    with jax.enable_x64(True):
        arrays, rng = inputs(time, jnp.float64, scale=3, state=False)
        i, j = np.arange(time)[:, None], np.arange(time)
        seen = np.broadcast_to(j <= i if direction == "causal" else True, (B, time, time))
        constants = {}
        if packed:
            ids = contract.random_segments(rng, B, time)
            seen = seen & (ids[:, :, None] == ids[:, None])
            constants["segment_ids_BT"] = jnp.asarray(ids)
        if masked:
            mask = (rng.random((B, time)) < 0.6) & (np.arange(time) > 2)
            seen = seen & mask[:, None]
            constants["key_mask_BS"] = jnp.asarray(mask)
        o, _ = jax.jit(op("auto", direction))(**arrays, **constants)
        assert contract.relative_rms(o, definition(*arrays.values(), visible_BTS=seen)) < 1e-12


def test_gradients_are_those_of_the_definition():
    """The scale gets no gradient, and none is missing: it cancels."""
    time = 30
    with jax.enable_x64(True):
        arrays, rng = inputs(time, jnp.float64, scale=3, state=False)
        pairs = np.tril(np.ones((B, time, time), bool))
        cotangent = jnp.asarray(rng.normal(size=arrays["v"].shape))

        def in_two_parts(q, k, v):
            head, state = op("chunk")(q[:, :13], k[:, :13], v[:, :13])
            tail, _ = op("chunk")(q[:, 13:], k[:, 13:], v[:, 13:], state)
            return jnp.concatenate([head, tail], axis=1)

        def gradient(f):
            return jax.jit(jax.grad(lambda a: jnp.sum(f(**a) * cotangent)))(arrays)

        expected = gradient(lambda q, k, v: definition(q, k, v, visible_BTS=pairs))
        contract.assert_agree(gradient(lambda **a: op("chunk")(**a)[0]), expected, 1e-11)
        contract.assert_agree(gradient(in_two_parts), expected, 1e-11)


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_features_of_any_size(direction):
    """Exponents of +-60 in fp32, and offsets of +-1000: plain exp would overflow."""
    time = 60
    arrays, _ = inputs(time, jnp.float32, scale=12, state=False)
    i, j = np.arange(time)[:, None], np.arange(time)
    pairs = (j <= i) | (direction == "bidirectional")
    with jax.enable_x64(True):
        wide = (x.astype(jnp.float64) for x in arrays.values())
        expected = definition(*wide, visible_BTS=np.broadcast_to(pairs, (B, time, time)))
    actual = contract.evaluate(op("auto", direction), arrays, {})
    # Exponents of size 60 are rounded to 2e-6.
    assert contract.relative_rms(actual["o"], expected) < 2e-5
    assert all(np.all(np.isfinite(x)) for x in actual.values())
    attend = jax.jit(op("auto", direction))
    for offset in (1000, -1000):
        o, _ = attend(**arrays | {"k": arrays["k"] + offset, "q": arrays["q"] - 3 * offset})
        assert contract.relative_rms(o, expected) < 5e-3  # 1000 + x rounds x to 6e-5 and 2e-4


@pytest.mark.parametrize("form", ["chunk", "parallel"])
def test_weak_weights_have_finite_gradients(form):
    """Queries whose best feature no key has, down to where the whole weight underflows."""
    offsets = np.linspace(0, 120, 16, dtype=np.float32)
    q = np.tile(np.array([0.0, -200.0], np.float32), (16, 1))
    q[:, 1] = -offsets
    k = np.tile(np.array([-200.0, 0.0], np.float32), (16, 1))
    v = np.random.default_rng(0).normal(size=(1, 16, 1, 3)).astype(np.float32)

    def total(q, k, v):
        o, _ = log_feature_attention(q[None, :, None], k[None, :, None], v, form=form)
        return jnp.sum(o**2)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.all(np.isfinite(x)) for x in gradients)
    assert np.any(gradients[2][0, :4])


def test_a_later_maximum_does_not_touch_the_past():
    """Bit for bit: the outputs before a key that is larger than all others."""
    arrays, _ = inputs(40, jnp.float32, state=False)
    attend = jax.jit(op())
    o, _ = attend(**arrays)
    later, _ = attend(**arrays | {"k": arrays["k"].at[:, 20:].add(50)})
    assert np.array_equal(o[:, :20], later[:, :20])
    assert not np.array_equal(o[:, 20:], later[:, 20:])


def pair_of_vectors(width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 1, 6, 1, width))


def positive_estimates(q, k, features, seeds, orthogonal):
    """phi(q)^T phi(k) for each seed, as the library computes it."""
    projections = [
        draw_projections(1, features, q.shape[-1], seed=seed, orthogonal=orthogonal)
        for seed in range(seeds)
    ]

    def estimate(w):
        log_q, log_k = (positive_log_features(x, w) for x in (q, k))
        return jnp.mean(jnp.exp(log_q + log_k), axis=-1)

    return np.asarray(jax.jit(jax.vmap(estimate))(jnp.asarray(np.stack(projections))))


def test_positive_features_are_unbiased_and_orthogonal_rows_are_better():
    """Lemma 1 and theorem 2 of FAVOR+, for the kernel exp(q^T k / sqrt(K))."""
    width, seeds = 16, 2000
    with jax.enable_x64(True):
        q, k = (jnp.asarray(0.7 * x) for x in pair_of_vectors(width))
        expected = np.exp(np.sum(np.asarray(q * k), axis=-1) / np.sqrt(width))
        errors = {}
        for orthogonal in (True, False):
            estimates = positive_estimates(q, k, width, seeds, orthogonal)
            deviation = estimates.std(axis=0) / np.sqrt(seeds)
            assert np.all(np.abs(estimates.mean(axis=0) - expected) < 4.5 * deviation)
            errors[orthogonal] = np.mean(((estimates - expected) / expected) ** 2)
        assert errors[True] < 0.95 * errors[False]


def test_positive_features_converge():
    """The relative variance is at most that of M independent rows, (exp(|q' + k'|^2) - 1) / M."""
    with jax.enable_x64(True):
        q, k = (jnp.asarray(0.5 * x) for x in pair_of_vectors(16))
        expected = np.exp(np.sum(np.asarray(q * k), axis=-1) / 4)
        row = np.exp(np.sum(np.asarray(q + k) ** 2, axis=-1) / 4) - 1
        errors = []
        for features in (64, 1024):
            estimates = positive_estimates(q, k, features, 200, orthogonal=True)
            errors.append(np.sqrt(np.mean((estimates / expected - 1) ** 2)))
            assert errors[-1] < 1.15 * np.sqrt(np.mean(row) / features)
        assert 3 < errors[0] / errors[1] < 5  # 16 times as many features: a quarter


def test_fourier_features_estimate_the_gaussian_kernel():
    """Theorem 1 of RFA: on unit vectors exp(-|x - y|^2 / 2), with any scale of the inputs."""
    with jax.enable_x64(True):
        q, k = pair_of_vectors(16)
        unit_q, unit_k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
        expected = np.exp(-np.sum((unit_q - unit_k) ** 2, axis=-1) / 2)
        w = jnp.asarray(draw_projections(1, 20_000, 16, seed=0))
        phi_q, phi_k = (np.asarray(fourier_features(jnp.asarray(3 * x), w)) for x in (q, k))
        # 20,000 cosines: a standard deviation of at most 1 / sqrt(40,000).
        assert np.all(np.abs(np.sum(phi_q * phi_k, axis=-1) - expected) < 0.02)
        assert np.allclose(np.sum(phi_q**2, axis=-1), 1)


def test_fourier_features_of_zero_have_a_finite_gradient():
    w = jnp.asarray(draw_projections(1, 8, 4, seed=0), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(fourier_features(x, w)))(jnp.zeros((1, 1, 1, 4)))
    assert np.all(np.isfinite(gradient))


def test_relu_features():
    w = draw_projections(1, 8, 4, seed=0)
    x = pair_of_vectors(4)[0]
    expected = np.maximum(np.einsum("bthk,hmk->bthm", x, w) / 4**0.25, 0) + 1e-3
    actual = relu_features(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32))
    assert contract.relative_rms(actual, expected) < 1e-6


def test_projections():
    """Orthogonal blocks, Gaussian lengths and entries, a function of the seed alone."""
    w = draw_projections(3, 40, 16, seed=5)
    assert w.shape == (3, 40, 16)
    for head, start in itertools.product(range(3), (0, 16, 32)):
        rows = w[head, start : start + 16]
        gram = rows @ rows.T
        assert np.allclose(gram, np.diag(np.diag(gram)), atol=1e-10)
    w = draw_projections(50, 64, 16, seed=5)
    for rows in (w, draw_projections(50, 64, 16, seed=5, orthogonal=False)):
        squares = np.sum(rows**2, axis=-1)  # chi^2 of 16 degrees of freedom
        assert abs(squares.mean() - 16) < 0.6
        assert abs(squares.var() - 32) < 4
        assert abs(rows.mean()) < 0.02
    assert not np.allclose(draw_projections(1, 8, 4, seed=0), draw_projections(1, 8, 4, seed=1))
    # NumPy's frozen generator, so that a model from a checkpoint is the same function.
    frozen = np.random.RandomState(0).standard_normal(3)
    first = draw_projections(1, 3, 1, seed=0, orthogonal=False)
    assert np.array_equal(first.ravel(), frozen)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"direction": "sideways"}, "direction is 'sideways'"), ({"form": "fast"}, "form is 'fast'")],
)
def test_misuse_names_the_argument(options, message):
    arrays, _ = inputs(4, jnp.float32, state=False)
    with pytest.raises(ValueError, match=message):
        log_feature_attention(*arrays.values(), **options)
