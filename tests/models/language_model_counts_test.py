"""Numbers that a language model states of itself: capacity, parameters, FLOPs."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.models.language_model_test import BOTH, VOCABULARY, make


@pytest.mark.parametrize(
    ("changes", "capacity"),
    [
        ({"pattern": ("linear",)}, None),
        ({"pattern": ("softmax",)}, 20),
        ({"pattern": BOTH}, 20),
        ({"pattern": BOTH, "positions": "learned", "max_positions": 11}, 11),
        ({"pattern": BOTH, "positions": "learned", "max_positions": 30}, 20),
        ({"pattern": ("linear",), "positions": "learned", "max_positions": 30}, 30),
        ({"pattern": ("softmax",), "mixers": {"softmax": {"window": 3}}}, None),
    ],
)
def test_capacity(changes, capacity):
    assert nnx.merge(*make(**changes)).capacity == capacity


@pytest.mark.parametrize("mixer", BOTH)
@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({}, 0),
        ({"tied": False}, 17 * 16),
        ({"gated": True}, 2 * (16 * 24 + 24)),
        ({"norm_position": "post"}, -2 * 16),
        ({"positions": "learned", "max_positions": 9}, 9 * 16),
        ({"positions": "sinusoidal_concatenated"}, 17 * 8),  # half the table, and a head
    ],
)
def test_num_parameters(mixer, changes, extra):
    D, F, E, L = 16, 24, VOCABULARY, 2
    layer = 4 * (D * D + D) + 2 * D * F + F + D + 2 * 2 * D
    expected = E * D + L * layer + 2 * D + extra
    assert nnx.merge(*make(pattern=(mixer,), **changes)).num_parameters == expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mixer", BOTH)
def test_flops_per_token(mixer, tied):
    """The formula against the compiler's count, at a size where matmuls dominate.

    The parallel form at T = K = V = 64 costs what the recurrence costs, 4 K V a head and token.
    Softmax attention is counted at the mean causal context; the parallel form computes twice that.
    """
    T = 64
    graphdef, parameters = make(
        width=256,
        num_heads=4,
        feed_forward_width=512,
        vocab_size=512,
        tied=tied,
        pattern=(mixer,),
        mixers={mixer: {"form": "parallel"}},
    )
    tokens = jnp.zeros((1, T), jnp.int32)
    program = jax.jit(lambda p, t: nnx.merge(graphdef, p)(t)[0]).lower(parameters, tokens).compile()
    model = nnx.merge(graphdef, parameters)
    counted = model.flops_per_token(T)
    if mixer == "softmax":
        counted += sum(block.mixer.flops_per_token(T) for block in model.stack.blocks)
    assert counted == pytest.approx(program.cost_analysis()["flops"] / T, rel=0.15)
    matmuls = 2 * (2 * (4 * 256**2 + 2 * 256 * 512) + 256 * 512)
    assert counted - matmuls == pytest.approx(2 * 4 * 4 * 64 * 65, rel=0.01)


def test_flops_of_a_window():
    window = {"softmax": {"window": 8}}
    models = [nnx.merge(*make(pattern=("softmax",), mixers=m)) for m in (window, {})]
    windowed, whole = ([m.flops_per_token(t) for t in (7, 512, 4096)] for m in models)
    assert windowed[0] == whole[0]
    assert windowed[1] == windowed[2] < whole[1] < whole[2]
