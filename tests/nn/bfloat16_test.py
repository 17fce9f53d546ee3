"""Layers with inputs in bf16: their sums are in fp32, and results are rounded once."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linear_transformer.nn.layers.short_convolution import ShortConvolution, silu_convolution
from linear_transformer.nn.mixers.log_linear import LogLinearAttention
from tests.ops.contract import assert_agree

D = 8
QUICK = {"xla_backend_optimization_level": 0}


def inputs(time):
    """Tokens with a mean, in bf16, and cotangents."""
    x, cotangent = np.random.default_rng(0).normal(size=(2, 1, time, D))
    return jnp.asarray(x + 2, jnp.bfloat16), jnp.asarray(cotangent, jnp.bfloat16)


def test_a_short_convolution_rounds_its_result_alone():
    x, _ = inputs(64)
    convolution = ShortConvolution(D, 4, dtype=x.dtype, rngs=nnx.Rngs(0))
    bias = nnx.Param(jnp.linspace(-1, 1, D))

    def apply(x):
        return convolution(x)[0], silu_convolution(convolution, bias, (x,), None, None)[0][0]

    narrow, wide = jax.jit(apply)(x), jax.jit(apply)(x.astype(jnp.float32))
    assert np.array_equal(narrow[0], wide[0].astype(x.dtype))
    assert_agree({"silu": narrow[1]}, {"silu": wide[1]}, 4e-3)


def test_log_linear_attention_divides_in_fp32():
    """With means in all tokens, the gradient of a query is a small part of each of its terms."""
    x, cotangent = inputs(64)

    def gradients(dtype):
        mixer = LogLinearAttention(D, 2, max_length=64, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
        graphdef, parameters = nnx.split(mixer)

        def product(parameters):
            y, _ = nnx.merge(graphdef, parameters)(x.astype(dtype))
            return jnp.vdot(y, cotangent.astype(dtype))

        found = jax.jit(jax.grad(product), compiler_options=QUICK)(parameters)
        return {name: found[name]["kernel"][...] for name in ("query", "key")}

    assert_agree(gradients("bfloat16"), gradients("float32"), 3e-2)
