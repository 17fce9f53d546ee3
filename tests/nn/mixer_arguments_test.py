"""Dtypes of states, and options that a mixer cannot have."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from linear_transformer.nn.mixers.registry import MIXERS
from tests.nn.mixer_cases import CORE, STEP, B, D, H, options_of
from tests.nn.mixer_programs import POSITIONS


@pytest.mark.parametrize(("name", "label"), CORE)
def test_bfloat16_and_float64_states(name, label):
    """The state that comes out has the type of the one that goes in, so a scan can carry it."""
    options = options_of(name, label)

    def run(x):
        mixer = MIXERS[name](D, H, rngs=nnx.Rngs(0), dtype=x.dtype, **options)
        state = mixer.init_state(B)
        return state, *mixer(x, state, positions=jnp.asarray(POSITIONS[:, :STEP]))

    for dtype in ("bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            x = jax.ShapeDtypeStruct((B, STEP, D), dtype)
            state, y, after = jax.eval_shape(run, x)
            assert y.dtype == dtype
            chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"feature_map": "cosine"}, "feature_map is 'cosine'"),
        ("linear", {"nu": 2}, "nu is 2; only feature_map='dpfp' takes it, not 'elu_plus_one'"),
        ("linear", {"feature_map": "dpfp", "nu": 0}, "nu is 0"),
        ("linear", {"form": "fast"}, "form is 'fast'"),
        ("linear", {"chunk_size": 0}, "chunk_size is 0"),
        ("linear", {"key_width": 0}, "key_width is 0"),
        ("linear", {"convolution": 1}, "convolution is 1"),
        ("linear", {"key_width": 3, "rotary": True}, "even number of features, not 3"),
        ("softmax", {"key_width": 3, "rotary": True}, "need an even key width, not 3"),
        ("softmax", {"query_heads": 3, "key_value_heads": 2, "key_width": 4}, "does not divide"),
        ("delta_net", {"form": "parallel"}, "form is 'parallel'"),
        ("delta_net", {"convolution": 1}, "convolution is 1"),
        ("delta_net", {"key_width": 0}, "key_width is 0"),
        ("delta_product", {"steps": 0}, "steps is 0"),
        ("kda", {"lower_bound": 0.0}, "lower_bound is 0.0"),
        ("kda", {"key_heads": 3}, "key_heads is 3"),
        ("gated_delta_net", {"key_heads": 0}, "key_heads is 0"),
        ("rwkv7", {"rate_rank": 0}, "rate_rank is 0"),
        ("mamba3", {"rank": 0}, "rank is 0"),
        ("softmax", {"window": 0}, "window is 0"),
        ("softmax", {"cache_capacity": 0}, "cache_capacity is 0"),
        ("softmax", {"form": "fast"}, "form is 'fast'"),
        ("softmax", {"key_value_heads": 0}, "key_value_heads is 0"),
        ("softmax", {"key_value_heads": 3}, r"key_value_heads=3 does not divide heads \(2\)"),
    ],
)
def test_misuse_names_the_argument(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](D, H, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width is 0; it must be an integer of 1 or more"),
        ({"heads": 0}, "heads is 0"),
        ({"dtype": jnp.int32}, "dtype is int32; it must be a floating type"),
    ],
)
def test_sizes_and_types_of_every_mixer(arguments, message):
    for name in MIXERS:
        options = {"width": D, "heads": H} | arguments
        width, heads = options.pop("width"), options.pop("heads")
        if name != "parallel":  # no mixer of its own; its branches are
            with pytest.raises(ValueError, match=message):
                MIXERS[name](width, heads, rngs=nnx.Rngs(0), **options)


def test_a_state_has_a_number_of_rows():
    mixer = MIXERS["linear"](D, H, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="batch_size is -1"):
        mixer.init_state(-1)


@pytest.mark.parametrize("name", ["linear", "delta_net", "diag", "softmax"])
def test_types_of_segment_ids_and_states(name):
    """A state keeps its types for ids of any type, and other kinds of numbers are no state."""
    mixer = MIXERS[name](D, H, rngs=nnx.Rngs(0))
    x, state = jnp.ones((B, 1, D)), mixer.init_state(B)
    for dtype in ("uint32", "int8"):
        _, after = mixer(x, state, segment_ids=jnp.ones((B, 1), dtype))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    for dtype in ("int32", "complex64"):
        wrong = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), state)
        with pytest.raises(ValueError, match=rf"state\['\w+'\].* is {dtype}; it must be floating"):
            mixer(x, jax.tree.map(lambda a, b: a if a.dtype == jnp.int32 else b, state, wrong))


def test_a_key_width_need_not_come_from_the_heads():
    """3 heads of 8 features in a model that is 10 wide, with rotary positions."""
    mixer = MIXERS["softmax"](10, 3, key_width=8, rotary=True, rngs=nnx.Rngs(0))
    positions = jnp.tile(jnp.arange(4), (2, 1))
    y, state = mixer(jnp.ones((2, 4, 10)), mixer.init_state(2), positions=positions)
    assert y.shape == (2, 4, 10) and state["keys"].shape[2:] == (3, 8)
