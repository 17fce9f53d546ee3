"""`flops_per_token` of every mixer against the compiler's count."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from linear_transformer.compile import compiled_program
from linear_transformer.nn.layers.linear import flops_of_weights
from linear_transformer.nn.mixers.registry import MIXERS, make_mixer
from tests.layers import slow_except

WIDTH, HEADS = 256, 4

# The compiler counts elementwise arithmetic too; the formula has the state's products alone.
STATE = (0.95, 1.75)
# Here it is as much as the state's products: gates, exponentials, complex numbers, log space.
MORE = {
    "mamba": (1, 3.1),
    "lru": (1, 6),
    "slstm": (1, 20),
    "rg_lru": (1, 45),  # two gates, a power, a root and GELU for one number of the state
    "efficient": (1, 2.7),
    "delta_product": (1, 2.3),
    "mamba3": (1, 2.8),  # rotations, and two writes that are weighted
    "log_linear": (1, 40),
    "log_linear_mamba2": (1, 40),  # a step computes all levels, which a context of 1 does not need
    "rwkv7": (1, 2.2),
}
# Quadratic in tokens: matmuls of a forward pass over the formula.  With a mask the formula has the
# half that counts.  Sorting by hash has a share of its own.
QUADRATIC = {
    "softmax": ({}, 2),
    "fox": ({}, 2),
    "rela": ({}, 2),
    "flash_quad": ({}, 2),
    "diag": ({"block_size": 64}, 2),
    "flash": ({"chunk_size": 64}, 1.13),  # half of a chunk's part, which is an eighth
    "lsh": ({"buckets": 16, "chunk_size": 32}, 1),
    "synthesizer": ({"length": 128}, 2),
    "sparse": ({"block_size": 16, "summary": 16}, 2),
    # 63 keys, of which 32 count, and the products with the distances, which have no mask.
    "transformer_xl": ({"window": 32}, 1.39),
    "adaptive_span": ({"window": 32}, 1.64),
    # Four blocks of 16 keys, of which 35 count.
    "longformer": ({"direction": "bidirectional", "window": 32}, 64 / 35),
    "bigbird": ({"direction": "bidirectional", "block_size": 16}, 1),
    "nystromformer": ({"direction": "bidirectional", "landmarks": 32}, 1),
    "sinkhorn": ({"direction": "bidirectional", "length": 128, "block_size": 32}, 1),
    "linformer": ({"direction": "bidirectional", "length": 128, "compressed": 32}, 1),
}
LINEAR = tuple(n for n in MIXERS if n not in (*QUADRATIC, "parallel", "convolution"))
QUICK = ("linear", "cosformer", "retnet", "gla", "delta_net", "softmax", "flash_quad")


def make(name, options):
    given = {"output_scale": 1.0, "dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0)}
    return make_mixer(name, WIDTH, HEADS, depth=0.0, **given, **options)


@functools.cache
def weights_and_program(name, time, state):
    """The mixer, the FLOPs of its weights for a token, and its compiled call on `time` tokens."""
    options = QUADRATIC.get(name, ({},))[0]
    mixer = nnx.eval_shape(lambda: make(name, options))
    graphdef, parameters = nnx.split(mixer)
    before = jax.eval_shape(lambda: mixer.init_state(1)) if state else None
    x_BTD = jax.ShapeDtypeStruct((1, time, WIDTH), jnp.float32)
    positions_BT = jax.ShapeDtypeStruct((1, time), jnp.int32)

    def call(parameters, x_BTD, before, positions_BT):
        return nnx.merge(graphdef, parameters)(x_BTD, before, positions=positions_BT)

    program = jax.jit(call).lower(parameters, x_BTD, before, positions_BT).compile()
    return mixer, flops_of_weights(mixer), program


def within(band, count, formula):
    return band[0] * formula <= count <= band[1] * formula


@pytest.mark.parametrize("name", slow_except(QUICK, LINEAR))
def test_a_step_of_the_recurrence(name):
    """A decoding step is the recurrence itself, without a chunk's detours and without a loop."""
    mixer, weights, program = weights_and_program(name, 1, True)
    count = program.cost_analysis()["flops"] - weights
    formula = mixer.flops_per_token(1)
    band = MORE.get(name, STATE)
    assert within(band, count, formula), count / formula
    if name not in MORE:  # control: an error of a factor of two shows
        assert not within(band, count, 2 * formula)
        assert not within(band, count, formula / 2)


@pytest.mark.parametrize("name", slow_except(QUICK, QUADRATIC))
def test_attention_over_tokens(name):
    mixer, weights, program = weights_and_program(name, 128, False)
    count = compiled_program.cost(program.as_text()).flops / 128 - weights
    assert count / mixer.flops_per_token(128) == pytest.approx(QUADRATIC[name][1], rel=0.05)


def test_a_convolution_has_weights_alone():
    options = {"direction": "bidirectional"}
    mixer = nnx.eval_shape(lambda: make("convolution", options))
    assert mixer.flops_per_token(128) == 0
