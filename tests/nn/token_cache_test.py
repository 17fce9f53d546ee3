"""Rings of past tokens, and the mixers that decode with them after the ring is full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.registry import make_mixer
from tests.ops.contract import relative_rms

SLOTS, T = 5, 17
SPLITS = ((1,) * T, (3, 1, 5, 4, 4), (7, 10), (17,), (5, 5, 5, 2))


def tokens(first, count):
    """Two rows; the second is 100 tokens ahead, so that the rows fill their rings unequally."""
    return jnp.arange(first, first + count)[None] + jnp.array([[0], [100]])


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("splits", SPLITS, ids=str)
def test_a_ring_holds_the_last_tokens(splits, window):
    state = token_cache.init_cache(2, SLOTS, {"token": ()}, jnp.dtype("int32"))
    state["length"] += jnp.array([0, 100])
    read = 0
    for time in splits:
        new = {"token": tokens(read, time)}
        held, state = token_cache.write(state, new, None, window=window)
        positions = np.asarray(held.positions_BS)
        shown = np.asarray(held.arrays["token"])
        full = (positions >= 0) & (positions >= np.array([[0], [100]]))
        np.testing.assert_array_equal(shown[full], positions[full])
        np.testing.assert_array_equal(held.positions_BT, tokens(read, time))
        first = read - SLOTS + 1 if window else min(read, read + time - SLOTS)
        for row, start in enumerate((0, 100)):
            wanted = range(start + max(first, 0), start + read + time)
            assert set(wanted) <= set(positions[row].tolist())
        in_order = token_cache.in_order(held).positions_BS
        np.testing.assert_array_equal(in_order, np.sort(positions, axis=1))
        read += time
    last = np.sort(np.asarray(state["token"]), axis=1)
    np.testing.assert_array_equal(last, tokens(T - SLOTS, SLOTS))


@pytest.mark.parametrize("splits", [(1,) * T, (4, 13), (4, 4, 4, 4, 1), (13, 4)], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("softmax", {}),
        ("softmax", {"rotary": True, "key_value_heads": 1}),
        ("fox", {}),
        ("rela", {"window": None}),
        ("flash_quad", {"key_width": 4, "divisor": 1}),
        ("lsh", {"buckets": 2, "rounds": 2, "chunk_size": 2}),
    ],
)
def test_a_full_cache_drops_the_oldest_tokens(name, options, splits):
    """The last token sees the last tokens, as many as the cache holds."""
    with jax.enable_x64(True):
        options = {**options, "cache_capacity": SLOTS, "dtype": jnp.float64}
        mixer = make_mixer(name, 8, 2, depth=0.5, rngs=nnx.Rngs(0), **options)
        graphdef, parameters = nnx.split(mixer)
        parameters = jax.tree.map(lambda x: x.astype(jnp.float64), parameters)

        @jax.jit
        def apply(x, state, positions):
            return nnx.merge(graphdef, parameters)(x, state=state, positions=positions)

        x_BTD = jax.random.normal(jax.random.key(1), (2, T, 8), jnp.float64)
        state, read, o = mixer.init_state(2), 0, None
        for time in splits:
            positions = jnp.broadcast_to(jnp.arange(read, read + time), (2, time))
            o, state = apply(x_BTD[:, read : read + time], state, positions)
            read += time
        seen = max(SLOTS, splits[-1])  # a call never drops its own tokens
        positions = jnp.broadcast_to(jnp.arange(T - seen, T), (2, seen))
        last, _ = apply(x_BTD[:, -seen:], mixer.init_state(2), positions)
        assert relative_rms(o[:, -1], last[:, -1]) < 1e-10
