"""The local convolution: a sum over neighbours, padding is zero, nothing beyond its reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers.local_convolution import LocalConvolution, convolve
from tests.ops.contract import relative_rms

B, T, D = 2, 9, 6


@pytest.mark.parametrize("size", [1, 3, 5, 25])
def test_convolve(size):
    """Against the sum; fp32 transforms of a few dozen numbers round to some 1e-7."""
    rng = np.random.default_rng(0)
    x, taps = rng.normal(size=(B, T, D)), rng.normal(size=(size, D))
    expected = np.zeros_like(x)
    for t in range(T):
        for i in range(size):
            if 0 <= t + i - size // 2 < T:
                expected[:, t] += taps[i] * x[:, t + i - size // 2]
    y = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(taps, jnp.float32))
    assert relative_rms(np.asarray(y), expected) < 2e-6


def test_reach_and_padding():
    mixer = LocalConvolution(D, 2, direction="bidirectional", size=3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    reach = jnp.linalg.norm(jax.jacobian(lambda x: mixer(x)[0][0, 4].sum())(x)[0], axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(reach > 1e-5), [3, 4, 5])
    mask = jnp.arange(T) < jnp.array([[4], [9]])
    padded, state = mixer(x, segment_ids=mask.astype(jnp.int32))
    assert state is None
    assert relative_rms(np.asarray(padded[:1, :4]), np.asarray(mixer(x[:1, :4])[0])) < 2e-6
    assert relative_rms(np.asarray(padded[1]), np.asarray(mixer(x)[0][1])) < 2e-6


def test_misuse_names_the_argument():
    for options, message in (
        ({}, "direction is 'causal'; convolution is 'bidirectional' only"),
        ({"direction": "bidirectional", "size": 4}, "size is 4; it must be odd"),
    ):
        with pytest.raises(ValueError, match=message):
            LocalConvolution(D, 2, rngs=nnx.Rngs(0), **options)
    mixer = LocalConvolution(D, 2, direction="bidirectional", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="only a causal mixer has a state"):
        mixer.init_state(B)
