"""The kernel of additive attention, interpreted on the CPU, is the token scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.feature_maps import elu_plus_one, taylor
from linear_transformer.ops.pallas import arithmetic
from linear_transformer.ops.pallas.choice import prefers_kernel
from linear_transformer.ops.pallas.layout import Layout
from tests.ops import contract
from tests.ops.additive_test import inputs
from tests.ops.pallas import interpreted
from tests.ops.pallas.interpreted import CHUNK, evaluate, first_head, packed

CASES = [
    # tokens, normalised, packed: blocks of 4 chunks, the last one broken off
    (150, True, True),
    pytest.param(150, False, False, marks=pytest.mark.slow),
    pytest.param(5, True, True, marks=pytest.mark.slow),  # one short chunk
    pytest.param(1, True, True, marks=pytest.mark.slow),
    pytest.param(128, True, False, marks=pytest.mark.slow),
    pytest.param(333, False, True, marks=pytest.mark.slow),
]


@functools.cache
def op(form, normalize=True, feature_map=None, direction="causal"):
    call = functools.partial(
        linear_attention,
        form=form,
        normalize=normalize,
        feature_map=feature_map,
        direction=direction,
        chunk_size=CHUNK,
    )
    return lambda q, k, v, **kw: call(q, k, v, **kw)


@pytest.mark.parametrize(("time", "normalize", "segments"), CASES)
def test_the_kernel_is_the_token_scan(time, normalize, segments):
    arrays, rng = inputs(time, jnp.float32, normalize=normalize, positive=normalize)
    constants = packed(rng, arrays) if segments else {}
    scan, kernel = (op(form, normalize) for form in ("recurrent", "pallas"))
    interpreted.assert_is_the_token_scan(kernel, scan, arrays, constants)


def test_feature_map_inside_the_kernel():
    """elu + 1 of a token that does not exist is 1, and must add nothing."""
    arrays, rng = inputs(70, jnp.float32, positive=False)
    arrays = first_head(arrays)
    constants = packed(rng, arrays)
    scan, kernel = (op(form, True, elu_plus_one) for form in ("recurrent", "pallas"))
    interpreted.assert_is_the_token_scan(kernel, scan, arrays, constants)


def test_feature_map_that_holds_an_array_is_applied_before_the_kernel():
    scale = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, 8), jnp.float32)

    def scaled(x):
        return elu_plus_one(x) * scale

    arrays, _ = inputs(20, jnp.float32, positive=False)
    o, state = op("pallas", True, scaled)(**first_head(arrays))
    o_expected, expected = op("recurrent", True, scaled)(**first_head(arrays))
    contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 1e-6)


def test_feature_map_of_another_width_is_applied_before_the_kernel():
    arrays, _ = inputs(20, jnp.float32, positive=False)
    arrays = first_head({name: x for name, x in arrays.items() if name != "initial_state"})
    o, state = op("pallas", True, taylor)(**arrays)
    o_expected, expected = op("recurrent", True, taylor)(**arrays)
    contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 1e-6)


def test_mixed_types_follow_the_rule_of_the_other_forms():
    """Features of bf16 tokens are bf16, and no product with fp32 values is rounded to bf16."""
    arrays, _ = inputs(70, jnp.float32, positive=False)
    arrays = first_head(arrays)
    arrays |= {name: arrays[name].astype(jnp.bfloat16) for name in "qk"}
    o, state = op("pallas", True, elu_plus_one)(**arrays)
    o_expected, expected = op("recurrent", True, elu_plus_one)(**arrays)
    assert o.dtype == jnp.float32
    contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 2e-6)


def test_groups_of_heads_that_fill_the_lanes():
    """4 heads of 64: two programs of two heads each."""
    rng = np.random.default_rng(0)
    arrays = {n: jnp.asarray(rng.normal(size=(1, 20, 4, 64)), jnp.float32) for n in "qkv"}
    layout = Layout.of(tuple(arrays.values()), CHUNK)
    assert (layout.group, layout.blocks) == (2, 1)
    actual = evaluate(op("pallas", False), arrays, {})
    contract.assert_agree(actual, evaluate(op("recurrent", False), arrays, {}), 2e-6)


@pytest.mark.parametrize("split", [1, 50])
def test_split_anywhere(split):
    with jax.enable_x64(True):
        arrays, rng = inputs(150, jnp.float64)
        arrays = first_head(arrays)
        contract.assert_splits(jax.jit(op("pallas")), arrays, packed(rng, arrays), split, 1e-12)


def test_bfloat16():
    """Operands are bf16, sums and states are not: errors of a few roundings of 2^-9."""
    arrays, rng = inputs(150, jnp.float32)
    arrays = first_head(arrays)
    constants = packed(rng, arrays)
    narrow = {n: x.astype(jnp.bfloat16) for n, x in arrays.items() if n != "initial_state"}
    narrow["initial_state"] = arrays["initial_state"]
    wide = {name: x.astype(jnp.float32) for name, x in narrow.items()}
    actual = evaluate(op("pallas"), narrow, constants)
    assert actual["o"].dtype == jnp.bfloat16 and actual["state"].dtype == jnp.float32
    contract.assert_agree(actual, evaluate(op("recurrent"), wide, constants), 1e-2)


def test_anticausal():
    arrays, rng = inputs(50, jnp.float32)
    arrays = first_head(arrays)
    constants = packed(rng, arrays)
    o, state = op("pallas", direction="anticausal")(**arrays, **constants)
    o_expected, expected = op("recurrent", direction="anticausal")(**arrays, **constants)
    contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 2e-6)


@pytest.mark.parametrize("broken", ["exist", "carried", "reads", "reaches"])
def test_broken_masks_are_found(broken, monkeypatch):
    """Without one of the masks the comparison with the token scan fails."""
    monkeypatch.setattr(arithmetic.Masks, broken, lambda self, x: x)
    arrays, rng = inputs(70, jnp.float32, positive=False)
    arrays = first_head(arrays)
    constants = packed(rng, arrays)
    o, state = op("pallas", True, elu_plus_one)(**arrays, **constants)
    o_expected, expected = op("recurrent", True, elu_plus_one)(**arrays, **constants)
    with pytest.raises(AssertionError, match="relative RMS"):
        contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 1e-3)


def test_auto_takes_the_kernel_where_nothing_splits_it(monkeypatch):
    q = jnp.zeros((1, 1024, 1, 128))
    assert not prefers_kernel(q, q)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert prefers_kernel(q, q)
    assert not prefers_kernel(q[:, :1023], q[:, :1023])
    assert not prefers_kernel(q[..., :64], q)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert not prefers_kernel(q, q)
    found = []
    mesh = jax.make_mesh((1, 1), ("data", "tensor"), (AxisType.Auto,) * 2)
    for by_hand in ({"data"}, {"data", "tensor"}):
        jax.eval_shape(
            jax.shard_map(
                lambda q: found.append(prefers_kernel(q, q)) or q,
                mesh=mesh,
                in_specs=PartitionSpec(),
                out_specs=PartitionSpec(),
                axis_names=by_hand,
                check_vma=False,
            ),
            q,
        )
    assert found == [False, True]
