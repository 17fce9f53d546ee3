"""Log-linear attention: forms against each other and the definition, split, packed, with NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.log_linear import log_linear_attention
from tests.layers import slow_except
from tests.ops.contract import assert_agree

B, H, K, V, M = 2, 2, 4, 3, 8
QUICK = {"xla_backend_optimization_level": 0}
NAMES = ("q", "k", "v", "scales", "log_decay")


def inputs(time, dtype=np.float64):
    rng = np.random.default_rng(0)
    widths = {"q": (H, K), "k": (H, K), "v": (H, V), "scales": (H, M), "log_decay": (H,)}
    arrays = {name: rng.normal(size=(B, time, *width)) for name, width in widths.items()}
    arrays["log_decay"] = -np.logaddexp(0, arrays["log_decay"])
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}


def attend(arrays, state=None, **options):
    q, k, v, scales, log_decay = (arrays[name] for name in NAMES)
    return log_linear_attention(
        q, k, v, scales, log_decay_BTH=log_decay, initial_state=state, **options
    )


evaluate = jax.jit(attend, static_argnames=("form", "chunk_size"), compiler_options=QUICK)


def value_and_gradients(function, arrays):
    def run(arrays):
        o, pullback = jax.vjp(function, arrays)
        return {"o": o} | pullback(jnp.cos(jnp.arange(o.size)).reshape(o.shape).astype(o.dtype))[0]

    return jax.jit(run, compiler_options=QUICK)(arrays)


def defined(arrays):
    of_row = jax.vmap(naive.log_linear_attention, 1, 1)
    return jax.vmap(of_row)(*(arrays[name] for name in NAMES))


@pytest.mark.parametrize("time", slow_except((45,), (1, 32, 45)))
@pytest.mark.parametrize(("form", "chunk_size"), [("recurrent", None), ("chunk", 4), ("chunk", 64)])
def test_forms_are_the_definition(form, chunk_size, time):
    with jax.enable_x64(True):
        arrays = inputs(time)
        options = {"form": form, "chunk_size": chunk_size}
        expected = value_and_gradients(defined, arrays)
        actual = value_and_gradients(lambda x: attend(x, **options)[0], arrays)
        assert_agree(actual, expected, 1e-10)
        states = [evaluate(arrays, form=name)[1] for name in ("recurrent", form)]
        assert_agree({"state": states[1][0]}, {"state": states[0][0]}, 1e-10)
        assert np.array_equal(states[1][1], np.full(B, time))


@pytest.mark.parametrize("split", slow_except((19,), (1, 8, 19)))
def test_split_anywhere(split):
    """The state has one level for each bit of the number of tokens."""
    with jax.enable_x64(True):
        arrays = inputs(45)
        head, tail = (
            {n: x[:, part] for n, x in arrays.items()}
            for part in (slice(split), slice(split, None))
        )
        first, state = evaluate(head)
        used = [bool(np.any(state[0][:, level])) for level in range(M - 1)]
        assert used == [bool(split >> level & 1) for level in range(M - 1)]
        second, state = evaluate(tail, state)
        o, expected = evaluate(arrays)
        assert_agree({"o": jnp.concatenate([first, second], 1)}, {"o": o}, 1e-10)
        assert_agree({"state": state[0]}, {"state": expected[0]}, 1e-10)


def test_packed_segments_are_alone():
    with jax.enable_x64(True):
        arrays, ids = inputs(45), np.tile(np.repeat([7, 0, 7], [13, 1, 31]), (B, 1))
        packed = value_and_gradients(
            lambda x: attend(x, segment_ids_BT=jnp.asarray(ids))[0], arrays
        )

        def alone(arrays):
            parts = [
                attend({n: x[:, a:b] for n, x in arrays.items()})[0]
                for a, b in ((0, 13), (13, 14), (14, 45))
            ]
            return jnp.concatenate(parts, axis=1)

        assert_agree(packed, value_and_gradients(alone, arrays), 1e-10)


def test_causality_is_bitwise():
    arrays = inputs(45, np.float32)
    changed = {n: x.at[:, 20:].set(9.0 if n != "log_decay" else -9.0) for n, x in arrays.items()}
    for form in ("recurrent", "chunk"):
        outputs = (evaluate(x, form=form)[0][:, :20] for x in (arrays, changed))
        assert np.array_equal(*outputs)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
def test_nan_stays_behind_its_token(form):
    arrays = inputs(45, np.float32)
    bad = arrays | {"k": arrays["k"].at[:, 20].set(np.nan)}
    clean = value_and_gradients(lambda x: attend(x, form=form)[0][:, :20], arrays)
    found = value_and_gradients(lambda x: attend(x, form=form)[0][:, :20], bad)
    assert np.array_equal(found["o"], clean["o"])
    assert np.isnan(evaluate(bad, form=form)[0][:, 20:]).any()
    for name in arrays:
        assert np.array_equal(found[name][:, :20], clean[name][:, :20])


def test_bfloat16_is_bounded():
    arrays = inputs(100, np.float32)
    arrays = arrays | {n: arrays[n].astype(jnp.bfloat16) for n in "qkv"}
    wide = {n: x.astype(jnp.float32) for n, x in arrays.items()}
    o, (state, _) = evaluate(arrays)
    assert o.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    assert_agree({"o": o}, {"o": evaluate(wide)[0]}, 4e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "parallel"}, "form is 'parallel'"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(inputs(20, np.float32), **options)


def test_more_tokens_than_the_levels_hold_are_an_error():
    with pytest.raises(ValueError, match="has 8 levels, too few for 128 tokens"):
        evaluate(inputs(128, np.float32))


def test_the_chunk_form_refuses_what_it_does_not_cover():
    arrays = inputs(20, np.float32)
    q, k, v, scales, _ = (arrays[name] for name in NAMES)
    ids = jnp.repeat(jnp.arange(2)[None], 10, 1).repeat(B, 0)
    with pytest.raises(ValueError, match="form is 'chunk'; it needs rows of one segment"):
        log_linear_attention(q, k, v, scales, segment_ids_BT=ids, form="chunk")
