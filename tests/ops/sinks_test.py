"""Sinks of softmax attention: a further key with value 0, in every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops.softmax import softmax_attention
from tests.ops.contract import assert_agree

B, T, H, K, V = 2, 37, 4, 8, 6
QUICK = {"xla_backend_optimization_level": 0}
SEGMENTS = np.stack([np.repeat([0, 1, 2], [13, 1, 23]), np.repeat([5, 0], [20, 17])])
NAMES = ("q", "k", "v", "sinks")
CASES = {
    "causal": {},
    "packed window": {"window": 9, "segment_ids_BT": jnp.asarray(SEGMENTS)},
    "bidirectional": {"direction": "bidirectional"},
    "grouped": {"heads": 2},
}


def inputs(heads=H, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = {"q": (B, T, H, K), "k": (B, T, heads, K), "v": (B, T, heads, V), "sinks": (H,)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def value_and_gradients(attend, **options):
    def run(arrays):
        o, pullback = jax.vjp(lambda x: attend(x, **options), arrays)
        return {"o": o} | pullback(jnp.cos(jnp.arange(o.size)).reshape(o.shape))[0]

    return jax.jit(run, compiler_options=QUICK)


def attention(arrays, **options):
    q, k, v, sinks = (arrays[name] for name in NAMES)
    return softmax_attention(q, k, v, sinks_H=sinks, **options)


def defined(arrays, window=T, direction="causal", segment_ids_BT=None):
    """The softmax over the visible keys and the sink, without what the sink gets."""
    q, k, v, sinks = (arrays[name] for name in NAMES)
    k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
    distance = np.arange(T)[:, None] - np.arange(T)
    seen = np.ones((B, 1, T, T), bool)
    if direction == "causal":
        seen = seen & (distance >= 0) & (distance < window)
    if segment_ids_BT is not None:
        seen = seen & (segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None])
    scores = jnp.where(seen, jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(K), -jnp.inf)
    sinks = jnp.broadcast_to(sinks[:, None, None], (B, H, T, 1))
    weights = jax.nn.softmax(jnp.concatenate([scores, sinks], axis=-1), axis=-1)
    return jnp.einsum("bhts,bshv->bthv", weights[..., :-1], v)


@pytest.mark.parametrize("form", ["parallel", "blockwise"])
@pytest.mark.parametrize("case", CASES)
def test_forms_are_the_definition(form, case):
    options = CASES[case] | {}
    with jax.enable_x64(True):
        arrays = inputs(options.pop("heads", H))
        expected = value_and_gradients(defined, **options)(arrays)
        blocks = {"block_size": 16} if form == "blockwise" else {}
        actual = value_and_gradients(attention, form=form, **blocks, **options)(arrays)
        assert_agree(actual, expected, 1e-10)


@pytest.mark.parametrize("form", ["parallel", "blockwise"])
def test_a_query_without_keys_is_zero(form):
    with jax.enable_x64(True):
        mask = jnp.asarray(np.arange(T) > 2)[None].repeat(B, 0)
        found = value_and_gradients(attention, form=form, key_mask_BS=mask)(inputs())
    assert np.array_equal(found["o"][:, :3], np.zeros((B, 3, H, V)))
    assert all(np.isfinite(x).all() for x in found.values())


def test_sinks_of_another_number_of_heads_are_an_error():
    q, k, v, sinks = (inputs(dtype=np.float32)[name] for name in NAMES)
    with pytest.raises(Exception, match="sinks_H"):  # the checks of types in tests come first
        softmax_attention(q, k, v, sinks_H=sinks[:3])
