"""Every mixer on a sequence over several devices is the mixer on one.

`tests/ops/sequence_parallel_test.py` runs this where there are 8 devices.  Every mechanism of
`MIXERS` is tested here, in all directions that it has.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from linear_transformer.nn.mixers.registry import MIXERS
from linear_transformer.ops import sequence_parallel
from tests.layers import slow_except
from tests.ops import contract

B, T, D, H, SHARDS = 2, 24, 8, 2, 4
TOLERANCE = 1e-8  # fp64, relative RMS: sums in another order, some of them divided by small ones
QUICK = {"xla_backend_optimization_level": 0}
CASES = [(name, "causal") for name, mechanism in MIXERS.items() if mechanism.causal]
CASES += [(n, "bidirectional") for n, m in MIXERS.items() if m.bidirectional is not None]
# Besides their defaults; blocks that lie across shards.
OPTIONS = {
    "flash": {"chunk_size": 4, "key_width": 4},
    "flash_quad": {"key_width": 4},
    "linformer": {"length": T, "compressed": 5},
    "lsh": {"buckets": 4, "chunk_size": 4},
    "mamba3": {"rank": 2},
    "t2r": {"features": 24},
    "sparse": {"block_size": 5, "summary": 2},
    "synthesizer": {"length": T},
    "transformer_xl": {"window": 9},
    "adaptive_span": {"window": 9, "ramp": 4},
    "longformer": {"window": 4},
    "bigbird": {"block_size": 5, "random_blocks": 1},
    "nystromformer": {"landmarks": 5, "convolution": 3},
    "sinkhorn": {"length": T, "block_size": 5},
}
# With documents: a running maximum, and the ends of documents.
QUICKER = [("mlstm", "causal"), ("efficient", "bidirectional")]
QUICKER += [("sparse", "causal")]  # whole rows on each device


@functools.cache
def build(name, direction):
    options = {"dtype": jnp.dtype("float64"), **OPTIONS.get(name, {})}
    if direction == "bidirectional":
        options = MIXERS[name].bidirectional_options(options)
    graphdef, parameters = nnx.split(MIXERS[name](D, H, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape), parameters)
    return graphdef, parameters


def documents():
    ids = np.zeros((B, T), np.int32)
    ids[0, 8:] = 1
    ids[0, 21:] = 2
    ids[1, 12:] = 1
    return jnp.asarray(ids)


def evaluate(name, direction, segment_ids, shards):
    """Output, and the gradients of input and parameters."""
    graphdef, parameters = build(name, direction)

    def run(parameters, x, ids, positions):
        return nnx.merge(graphdef, parameters)(x, segment_ids=ids, positions=positions)[0]

    if shards > 1:
        mesh = jax.make_mesh(
            (shards,), (sequence_parallel.AXIS,), (AxisType.Auto,), devices=jax.devices()[:shards]
        )
        tokens = PartitionSpec(None, sequence_parallel.AXIS)
        specs = (PartitionSpec(), tokens, tokens, tokens)
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(parameters, x):
        positions = jnp.tile(jnp.arange(T), (B, 1))
        y, pullback = jax.vjp(lambda p, x: run(p, x, segment_ids, positions), parameters, x)
        dparameters, dx = pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))
        return {"y": y, "dx": dx}, dparameters

    x = np.random.default_rng(1).normal(size=(B, T, D))
    values, dparameters = both(parameters, jnp.asarray(x))
    flat = jax.tree_util.tree_leaves_with_path(dparameters)
    return jax.device_get(values | {jax.tree_util.keystr(path): g for path, g in flat})


def names():
    every = [(*case, packed) for case in CASES for packed in (False, True)]
    quick = [(*case, True) for case in QUICKER]
    return slow_except(quick, every)


@pytest.mark.parametrize(("name", "direction", "packed"), names())
def test_several_devices_are_one(name, direction, packed):
    with jax.enable_x64(True):
        ids = documents() if packed else None
        expected = evaluate(name, direction, ids, 1)
        actual = evaluate(name, direction, ids, SHARDS)
    scale = max(float(np.sqrt(np.mean(x**2))) for x in expected.values())
    # What no gradient reaches has only rounding errors.
    small = [n for n, x in expected.items() if np.sqrt(np.mean(x**2)) < 1e-10 * scale]
    for n in small:
        assert np.abs(actual.pop(n)).max() <= 1e-9 * scale, n
        expected.pop(n)
    contract.assert_agree(actual, expected, TOLERANCE)
