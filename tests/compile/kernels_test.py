"""The kernels compile for every version of the TPU, by libtpu of requirements-dev.txt.

Nothing runs.  What is read is what the compiler says of memory.  Without libtpu these tests fail.
They are a layer of their own, `pytest -m tpu_compile`; every topology is in the slow sweep.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import kernels
from benchmarks.kernels import Sizes, measure
from linear_transformer.compile import compiled_program
from linear_transformer.ops.additive import linear_attention
from linear_transformer.runtime import accelerators
from tests.layers import slow_except

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux"),
    pytest.mark.tpu_compile,
]

PACKED = Sizes(1000, heads=4, width=64, packed=True)  # two heads fill the lanes; a block is cut off


@pytest.fixture(scope="module", autouse=True)
def _environment():
    accelerators.prepare_environment()


PROGRAMS = list(itertools.product(kernels.TOPOLOGIES, kernels.OPERATORS))


@pytest.mark.parametrize(
    ("topology", "operator"),
    slow_except([("v5e:1x1", name) for name in kernels.OPERATORS], PROGRAMS),
)
def test_forward_and_backward_compile(topology, operator):
    row = measure(topology, operator, "pallas", PACKED, backward=True)
    assert row["fits"] and row["kernels"] == 2


def test_the_xla_form_has_no_kernel():
    assert measure("v5e:1x1", "additive", "chunk", PACKED, backward=True)["kernels"] == 0


@pytest.mark.parametrize(
    ("operator", "dtype"),
    slow_except(
        [("kimi delta", "float32")], itertools.product(kernels.OPERATORS, ("bfloat16", "float32"))
    ),
)
def test_wide_heads_fit_the_vmem_of_the_oldest(operator, dtype):
    sizes = Sizes(1024, heads=2, width=256, dtype=dtype)
    assert measure("v4:2x2x1", operator, "pallas", sizes, backward=True)["kernels"] == 2


@pytest.mark.parametrize("operator", slow_except(["gated delta"], kernels.OPERATORS))
def test_memory_in_hbm(operator):
    """Forward keeps nothing that grows with the length, backward a state per 512 tokens.

    Beside the states there is one gradient of a gate, in the layout in which it is written.
    """
    time, heads, width = 131_072, 8, 128
    forward, backward = (
        measure("v5e:1x1", operator, "pallas", Sizes(time), backward=b)["temporaries MB"] * 1e6
        for b in (False, True)
    )
    gate = 4 * time * heads
    states = time // 512 * heads * width * width * 4
    assert forward <= 1e6
    assert 0.99 * states <= backward <= 1.02 * states + gate + 2e6


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["additive", "gated delta"])
def test_the_loop_of_xla_needs_more_memory(operator):
    pallas, loop = (
        measure("v5e:1x1", operator, form, Sizes(32_768), backward=True)["temporaries MB"]
        for form in ("pallas", "chunk")
    )
    assert loop > 5 * pallas


@pytest.mark.parametrize("backward", [False, True])
def test_work_is_told(backward):
    """Of additive attention: the products of a chunk, in the state, and out of it.

    Backward goes through the chunks of a block for their states, and again for the gradients, where
    each product has two more.
    """
    sizes = Sizes(1024, heads=2)
    device = jax.sharding.SingleDeviceSharding(accelerators.describe_devices("v5e:1x1")[0])
    function = kernels.program("additive", "pallas", sizes, backward)
    lowered = jax.jit(function).lower(*kernels.arguments("additive", sizes, backward, device))
    found = compiled_program.cost(lowered.compile().as_text())
    product = 2 * 1024 * 2 * 128 * 128  # chunks of 128 tokens, 128 keys and values
    assert found.kernels == 1 + backward
    states = 4 * 3 / 4  # of the four chunks of a block, all but the last
    assert found.flops == (4 + states + 4 + 8 if backward else 4) * product


def test_several_devices_need_shard_map():
    """By itself XLA cannot cut a kernel, and says so; in `shard_map` each device has its own."""
    mesh = Mesh(np.array(accelerators.describe_devices("v5e:2x2")), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((4, 256, 2, 128), jnp.bfloat16, sharding=sharding)

    def attend(q, k, v):
        return linear_attention(q, k, v, form="pallas")[0]

    with pytest.raises(Exception, match="cannot be automatically partitioned"):
        jax.jit(attend).lower(x, x, x).compile()
    mapped = jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )
    text = jax.jit(mapped).lower(x, x, x).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert "all-gather" not in text


def test_the_compiler_rejects_a_kernel_that_a_tpu_cannot_run():
    """The check checks: it finds a cumulative sum, and a block that is no multiple of a tile."""
    device = jax.sharding.SingleDeviceSharding(accelerators.describe_devices("v5e:1x1")[0])
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=device)

    def sums(x_ref, o_ref):
        o_ref[...] = jnp.cumsum(x_ref[...], axis=0)

    with pytest.raises(NotImplementedError, match="cumsum"):
        jax.jit(pl.pallas_call(sums, out_shape=x)).lower(x)

    def copy(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    block = pl.BlockSpec((5, 128), lambda i: (i, 0))
    with pytest.raises(ValueError, match="divisible by 8"):
        call = pl.pallas_call(copy, out_shape=x, grid=(12,), in_specs=[block], out_specs=block)
        jax.jit(call).lower(x)
