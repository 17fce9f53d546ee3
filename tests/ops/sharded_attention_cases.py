"""Attention, convolutions and shifts on a sequence over several devices equal those on one.

`sequence_parallel_test.py` runs this where there are 8 devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from linear_transformer.nn.layers.short_convolution import ShortConvolution
from linear_transformer.nn.layers.token_shift import TokenShift
from linear_transformer.nn.mixers.local_convolution import LocalConvolution
from linear_transformer.ops import sequence_parallel
from linear_transformer.ops.block_local import block_local_attention
from linear_transformer.ops.efficient import scaled_efficient_attention
from linear_transformer.ops.forgetting import log_sums
from linear_transformer.ops.hashing import lsh_attention
from linear_transformer.ops.mixed_chunk import mixed_chunk_attention
from linear_transformer.ops.rectified import rectified_attention
from linear_transformer.ops.softmax import softmax_attention
from tests.layers import slow_except
from tests.ops import contract

B, T, H, K, SHARDS = 2, 24, 2, 4, 4  # 6 tokens a shard
TOLERANCE = 1e-10
DTYPE = jnp.dtype("float64")


def attention(function, **options):
    def run(x, segment_ids):
        q, k, v = jnp.split(x, 3, axis=-1)
        return function(q, k, v, segment_ids_BT=segment_ids, **options)

    return run


def grouped(x, segment_ids):
    """Softmax attention of two heads to the keys and values of the first."""
    q, k, v = jnp.split(x, 3, axis=-1)
    return softmax_attention(q, k[:, :, :1], v[:, :, :1], segment_ids_BT=segment_ids)


def forgetting(**options):
    def run(x, segment_ids):
        log_forget = jax.nn.log_sigmoid(x[..., 0])
        sums = log_sums(log_forget, segment_ids)
        sums = {"query_log_sums_BTHX": sums, "key_log_sums_BSHX": sums}
        return attention(softmax_attention, **sums, **options)(x, segment_ids)

    return run


def layer(make):
    """A layer on tokens without heads."""

    def run(x, segment_ids):
        module = make(3 * K * H)
        y, _ = module(x.reshape(B, -1, 3 * K * H), segment_ids=segment_ids)
        return y

    return run


def efficient(mask):
    """Divided by the number of tokens, or of those that are not masked; documents do not count."""

    def run(x, segment_ids):
        q, k, v = jnp.split(x, 3, axis=-1)
        del segment_ids
        return scaled_efficient_attention(q, k, v, k[..., 0, 0] > 0 if mask else None)

    return run


def convolution(size):
    return lambda features: ShortConvolution(features, size, dtype=DTYPE, rngs=nnx.Rngs(0))


def local_convolution(features):
    options = {"direction": "bidirectional", "size": 15, "dtype": DTYPE}
    return LocalConvolution(features, 1, **options, rngs=nnx.Rngs(0))


def mixed_chunks(size, direction="causal"):
    distances = size if direction == "causal" else 2 * size - 1

    def run(x, segment_ids):
        return mixed_chunk_attention(
            *(x[:, :, 0, i * K : (i + 1) * K] for i in (0, 1)),
            *(x[:, :, 1, i * K : (i + 1) * K] for i in (0, 1)),
            x[..., 2 * K :].reshape(B, -1, H * K),
            jnp.sin(jnp.arange(distances, dtype=DTYPE)),
            chunk_size=size,
            direction=direction,
            segment_ids_BT=segment_ids,
        )[0]

    return run


def hashed(chunking):
    rotations = np.random.default_rng(0).normal(size=(2, K, 2))

    def run(x, segment_ids):
        options = {"chunk_size": 3, "chunking": chunking, "segment_ids_BT": segment_ids}
        return lsh_attention(x[..., :K], x[..., 2 * K :], jnp.asarray(rotations), **options)

    return run


def rectified(distances=0, **options):
    def run(x, segment_ids):
        bias_E = jnp.sin(jnp.arange(distances, dtype=DTYPE)) if distances else None
        return attention(rectified_attention, bias_E=bias_E, **options)(x, segment_ids)

    return run


softmax = functools.partial(attention, softmax_attention)
blocks = functools.partial(attention, block_local_attention)
CASES = {
    "softmax": softmax(),
    "softmax_bidirectional": softmax(direction="bidirectional"),
    "softmax_blockwise": softmax(form="blockwise"),
    "softmax_grouped": grouped,
    "forgetting": forgetting(),
    "forgetting_window": forgetting(window=11),
    "window_of_a_shard": softmax(window=4),
    "window_of_two_shards": softmax(window=11),
    "window_of_more_than_all": softmax(window=40),
    "blocks_of_a_shard": blocks(block_size=6),
    "blocks_in_a_shard": blocks(block_size=4),
    "blocks_across_shards": blocks(block_size=9, direction="bidirectional"),
    "blocks_of_more_than_a_shard": blocks(block_size=16, scores="relu"),
    "blocks_of_more_than_all": blocks(block_size=64),
    "efficient_scaled": efficient(mask=False),
    "efficient_scaled_masked": efficient(mask=True),
    "convolution": layer(convolution(4)),
    "convolution_of_two_shards": layer(convolution(9)),
    "local_convolution": layer(local_convolution),
    "rectified": rectified(T, block_size=4),
    "rectified_bidirectional": rectified(2 * T - 1, direction="bidirectional", power=2),
    "rectified_window_of_a_shard": rectified(window=4, block_size=2),
    "rectified_window_of_two_shards": rectified(window=11),
    "chunks_of_a_shard": mixed_chunks(6),
    "chunks_in_a_shard": mixed_chunks(4),
    "chunks_across_shards": mixed_chunks(5, "bidirectional"),
    "chunks_of_more_than_a_shard": mixed_chunks(9),
    "chunks_of_more_than_two_shards": mixed_chunks(14, "bidirectional"),
    "chunks_of_most": mixed_chunks(20),
    "lsh_window": hashed("window"),
    "lsh_sorted": hashed("sorted"),
    "token_shift": layer(lambda features: TokenShift(features, dtype=DTYPE)),
}


def documents():
    ids = np.zeros((B, T), np.int32)
    ids[0, 9:] = 1
    ids[0, 20:] = 2
    ids[1, 6:] = 1
    return jnp.asarray(ids)


def evaluate(run, segment_ids):
    """Value and gradient."""

    @jax.jit
    def both(x):
        y, pullback = jax.vjp(lambda x: run(x, segment_ids), x)
        return {
            "y": y,
            "dx": pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0],
        }

    x = np.random.default_rng(0).normal(size=(B, T, H, 3 * K))
    return both(jnp.asarray(x, jnp.float64))


def sharded(run):
    mesh = jax.make_mesh(
        (SHARDS,), (sequence_parallel.AXIS,), (AxisType.Auto,), devices=jax.devices()[:SHARDS]
    )
    tokens = PartitionSpec(None, sequence_parallel.AXIS)
    return jax.shard_map(
        run, mesh=mesh, in_specs=(tokens, tokens), out_specs=tokens, check_vma=False
    )


# One of each function, with documents; the others take the same paths.
QUICK = (
    "window_of_two_shards",
    "blocks_across_shards",
    "efficient_scaled_masked",
    "convolution",
    "local_convolution",
    "rectified",
    "chunks_across_shards",
    "lsh_window",
    "token_shift",
)


@pytest.mark.parametrize(
    ("name", "packed"),
    slow_except([(n, True) for n in QUICK], [(n, p) for n in CASES for p in (False, True)]),
)
def test_several_devices_are_one(name, packed):
    with jax.enable_x64(True):
        ids = documents() if packed else None
        actual = evaluate(sharded(CASES[name]), ids)
        contract.assert_agree(actual, evaluate(CASES[name], ids), TOLERANCE)


NEEDS_NEIGHBOURS = (
    "window_of_a_shard",
    "blocks_in_a_shard",
    "convolution",
    "rectified_window_of_a_shard",
    "chunks_in_a_shard",
)


@pytest.mark.parametrize("name", slow_except(["convolution"], NEEDS_NEIGHBOURS))
def test_without_the_neighbours_it_fails(name, monkeypatch):
    monkeypatch.setattr(sequence_parallel, "_sent", lambda x, distance: jnp.zeros_like(x))
    with pytest.raises(AssertionError, match="relative RMS errors"):
        test_several_devices_are_one(name, False)
