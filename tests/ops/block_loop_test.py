"""Sizes of the blocks of the chunk forms."""

import jax.numpy as jnp
import pytest

from linear_transformer.ops.block_loop import MAX_CHUNKS, Blocking
from linear_transformer.ops.pallas.choice import compiling_for


@pytest.mark.parametrize(("batch", "chunks"), [(1, 8), (4, 2), (8, 1), (64, 1)])
def test_a_block_fits_the_cache_of_a_cpu_and_is_large_on_accelerators(batch, chunks):
    values = jnp.zeros((batch, 2048, 4, 64))
    with compiling_for("cpu", 1):
        assert Blocking.of(values, 64).block == 64 * chunks
    with compiling_for("tpu", 1):
        assert Blocking.of(values, 64).block == 64 * MAX_CHUNKS


@pytest.mark.parametrize(("time", "halved", "expected"), [(5, False, (5, 5)), (5, True, (8, 8))])
def test_a_chunk_is_not_longer_than_the_sequence(time, halved, expected):
    blocking = Blocking.of(jnp.zeros((1, time, 1, 4)), 64, halved=halved)
    assert (blocking.chunk, blocking.block) == expected
    assert blocking.padding == expected[1] - time
