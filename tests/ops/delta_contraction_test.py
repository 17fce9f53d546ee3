"""Steps of 2 along one key: an eigenvalue of -1 stays one in the arithmetic that is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from linear_transformer.nn.mixers.delta_net import DeltaNet
from linear_transformer.nn.mixers.gated_delta_net import GatedDeltaNet
from linear_transformer.nn.mixers.kimi_delta_attention import KimiDeltaAttention
from linear_transformer.nn.mixers.rwkv7 import RWKV7
from linear_transformer.ops.delta import delta_attention, delta_product, low_rank_delta_attention

WIDTH, HEADS, K = 64, 4, 16


def delta_mixer(cls, **options):
    """A mixer whose steps are 2 for the input that is returned too."""
    m = cls(
        WIDTH,
        HEADS,
        negative_eigenvalues=True,
        dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
        **options,
    )
    x = jax.random.normal(jax.random.key(0), (WIDTH,))
    m.step.kernel[...] = jnp.outer(12 * x / (x @ x), jnp.ones(m.step.kernel.shape[1]))
    return m, x


def rwkv7():
    """Rates and decays of 1, and kappa along the key."""
    m = RWKV7(WIDTH, HEADS, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    m.rate_bias[...] = jnp.full(WIDTH, 12.0)
    m.decay_bias[...] = jnp.full(WIDTH, -12.0)
    m.removal_scale[...] = jnp.ones(WIDTH)
    for layer in (m.key, m.value):  # inputs of unit variance
        weights = jax.random.normal(jax.random.key(layer is m.key), (WIDTH, WIDTH))
        layer.kernel[...] = weights / WIDTH**0.5
    return m, jax.random.normal(jax.random.key(0), (WIDTH,))


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (lambda: delta_mixer(DeltaNet), 2.6),
        (lambda: delta_mixer(DeltaNet, steps=2), 8),
        (lambda: delta_mixer(GatedDeltaNet), 2.6),
        (lambda: delta_mixer(KimiDeltaAttention), 4),
        (rwkv7, 20),
    ],
)
def test_mixers_in_bfloat16_stay_bounded(make, bound):
    """A whole sequence at once, and token by token: as in fp32, where norms reach 70 to 95 %."""
    m, x = make()
    _, whole = jax.jit(m)(jnp.broadcast_to(x, (1, 2048, WIDTH)), m.init_state(1))

    @jax.jit
    def decode(state):
        return lax.scan(lambda s, _: (m(x[None, None], s)[1], None), state, None, 256)[0]

    for state in (whole, decode(m.init_state(1))):
        norms = np.linalg.norm(np.asarray(state["sums"]), axis=(-2, -1))
        assert norms.max() < bound, norms


def growth(name, form, key_dtype):
    """The norm of the state, relative to the one at the start, after reflecting it many times."""
    time = 256 if form == "associative" else 1024
    rng = np.random.default_rng(0)
    key = rng.normal(size=(HEADS, K))
    key = jnp.asarray(key / np.linalg.norm(key, axis=-1, keepdims=True), key_dtype)
    k = jnp.broadcast_to(key, (1, time, HEADS, K))
    q = v = jnp.zeros(k.shape, jnp.bfloat16)
    two = jnp.full((1, time, HEADS), 2, jnp.bfloat16)
    start = key[None, :, :, None].astype(jnp.float32) * jnp.ones(K)
    options = {"initial_state": start, "form": form}
    if name == "product":
        k, v, two = (jnp.stack([x, x, x], axis=2) for x in (k, v, two))
        _, state = delta_product(q, k, v, None, two, **options)
    elif name == "low rank":
        gates = jnp.zeros((1, time, HEADS))
        write = two[..., None].astype(k.dtype) * k
        _, state = low_rank_delta_attention(q, k, v, gates, write, -k, **options)
    else:
        gates = jnp.zeros(k.shape) if name == "vector" else None
        _, state = delta_attention(q, k, v, gates, two, **options)
    return np.linalg.norm(state) / np.linalg.norm(start)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("delta", "recurrent"),
        pytest.param("delta", "associative", marks=pytest.mark.slow),
        ("delta", "chunk"),
        ("delta", "pallas"),
        ("vector", "chunk"),
        ("product", "chunk"),
        ("low rank", "chunk"),
    ],
)
def test_keys_in_float32_keep_the_length_of_a_state(name, form):
    assert abs(growth(name, form, jnp.float32) - 1) < 1e-3


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
def test_keys_in_bfloat16_do_not(form):
    """A rounded key is longer or shorter than 1, in any form."""
    assert growth("delta", form, jnp.bfloat16) > 2
