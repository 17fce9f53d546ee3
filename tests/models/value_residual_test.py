"""Values of the first layer in the later layers of a stack (RWKV-7)."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from linear_transformer.errors import ConfigError
from linear_transformer.nn.mixers.registry import MIXERS
from tests.layers import slow_except
from tests.models.language_model_test import (
    PACKED,
    TOLERANCE,
    assert_cached_is_full,
    assert_gradients_agree,
    compiled,
    flat_of,
    make,
    replace,
    restack,
    value_and_gradients,
)
from tests.ops.contract import assert_agree

RWKV7 = {
    "pattern": ("rwkv7",),
    "mixers": {"rwkv7": {"value_residual": True}},
    "num_layers": 3,
    "positions": "none",
}
HYBRID = {
    **RWKV7,
    "pattern": ("rwkv7", "softmax"),
    "mixers": RWKV7["mixers"] | {"softmax": {"cache_capacity": 20}},
    "num_layers": 4,
}


@pytest.mark.parametrize("norm_position", slow_except(("pre",), ("pre", "post")))
def test_layers_take_the_values_of_the_first(norm_position):
    """A loop over the blocks, of which the first one is given no values."""
    graphdef, parameters = make(norm_position=norm_position, **RWKV7)
    stack = nnx.merge(graphdef, parameters).stack
    x = jax.random.normal(jax.random.key(0), (2, 9, 16))
    segment_ids = PACKED["segment_ids"]

    @jax.jit
    def loop(x):
        first = x if norm_position == "post" else stack.blocks[0].mixer_norm(x)
        first = stack.blocks[0].mixer.first_values(first, segment_ids=segment_ids)
        for i, block in enumerate(stack.blocks):
            given = {} if i == 0 else {"first_BTI": first}
            x, _ = block(x, segment_ids=segment_ids, **given)
        return x

    actual, _ = jax.jit(lambda x: stack(x, segment_ids=segment_ids))(x)
    assert_agree({"y": actual}, {"y": loop(x)}, TOLERANCE)


@pytest.mark.slow
def test_scan_and_recomputation_are_the_same_function():
    """Values and every gradient, packed, in layers of which every other one has the residual."""
    graphdef, parameters = make(**HYBRID)
    inputs = PACKED | {"key": None}
    logits, gradients = value_and_gradients(graphdef, parameters, **inputs)
    scanned_graphdef, initial = make(scan_layers=True, remat="full", **HYBRID)
    stacked = replace(initial, restack(flat_of(parameters), 2))
    scanned_logits, scanned_gradients = value_and_gradients(scanned_graphdef, stacked, **inputs)
    assert_agree({"logits": scanned_logits}, {"logits": logits}, TOLERANCE)
    assert_gradients_agree(scanned_gradients, restack(gradients, 2))
    residual = [name for name in gradients if "residual_bias" in name]
    first, *later = (jnp.abs(gradients[name]).max() for name in sorted(residual))
    assert first < 1e-6 and min(later) > 1e-5


@pytest.mark.parametrize(
    "layers", ["scan_layers", pytest.param("share_layers", marks=pytest.mark.slow)]
)
def test_cached_is_full(layers):
    assert_cached_is_full(make(**RWKV7, **{layers: True}), 9, splits=(4,))


def test_packed_is_separate():
    graphdef, parameters = make(**RWKV7)
    apply = compiled(graphdef)
    packed, _ = apply(parameters, **PACKED)
    for document in (slice(0, 4), slice(4, 9)):
        alone, _ = apply(parameters, PACKED["tokens"][:, document])
        assert_agree({"logits": packed[:1, document]}, {"logits": alone[:1]}, TOLERANCE)


def test_misuse():
    with pytest.raises(ConfigError, match="value_residual needs a first layer"):
        make(**HYBRID | {"pattern": ("softmax", "rwkv7")})
    with pytest.raises(ValueError, match="value_residual needs a mixer"):
        MIXERS["parallel"](8, 2, branches=RWKV7["mixers"], rngs=nnx.Rngs(0))
