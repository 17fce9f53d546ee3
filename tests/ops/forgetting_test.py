"""Forget gates of softmax attention: against the definition, in long sequences, and with NaN."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.forgetting import log_sums
from linear_transformer.ops.softmax import softmax_attention
from tests.layers import slow_except
from tests.ops.contract import assert_agree

B, T, H, K, V = 2, 50, 4, 8, 6
FORMS = ("parallel", "blockwise")
SEGMENTS = np.stack([np.repeat([0, 1, 2], [13, 1, 36]), np.repeat([5, 0], [32, 18])])
CASES = {
    "causal": {},
    "packed": {"packed": True},
    "window": {"packed": True, "window": 9},
    "grouped": {"packed": True, "key_heads": 2},
}


def make_inputs(time=T, key_heads=H, dtype=np.float64):
    rng = np.random.default_rng(0)
    widths = {"q": (H, K), "k": (key_heads, K), "v": (key_heads, V), "log_forget": (H,)}
    arrays = {name: rng.normal(size=(B, time, *width)) for name, width in widths.items()}
    arrays["log_forget"] = -np.logaddexp(0, arrays["log_forget"])
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}


def attention(q, k, v, log_forget, segment_ids=None, **options):
    sums = log_sums(log_forget, segment_ids)
    return softmax_attention(
        q,
        k,
        v,
        segment_ids_BT=segment_ids,
        query_log_sums_BTHX=sums,
        key_log_sums_BSHX=sums,
        **options,
    )


def defined(q, k, v, log_forget, segment_ids=None, window=None):
    k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
    t = jnp.arange(q.shape[1])
    visible = jnp.broadcast_to(t[:, None] >= t, (B, len(t), len(t)))
    if segment_ids is not None:
        visible &= segment_ids[:, :, None] == segment_ids[:, None]
    if window is not None:
        visible &= t[:, None] - t < window
    of_row = jax.vmap(naive.forgetting_attention, (1, 1, 1, 1, None), 1)
    return jax.vmap(of_row)(q, k, v, log_forget, visible)


def value_and_gradients(function, inputs):
    """Outputs, and the gradients of one random combination of them."""

    @jax.jit
    def both(inputs):
        o, pullback = jax.vjp(lambda inputs: function(**inputs), inputs)
        weights = np.random.default_rng(1).normal(size=o.shape)
        return {"o": o} | pullback(jnp.asarray(weights, o.dtype))[0]

    return both(inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_definition(case, form):
    """Outputs and all gradients, in fp64."""
    options = dict(CASES[case])
    with jax.enable_x64(True):
        inputs = make_inputs(key_heads=options.pop("key_heads", H))
        ids = jnp.asarray(SEGMENTS) if options.pop("packed", False) else None
        blocks = {"block_size": 16} if form == "blockwise" else {}
        run = functools.partial(attention, segment_ids=ids, form=form, **blocks, **options)
        expected = value_and_gradients(
            functools.partial(defined, segment_ids=ids, **options), inputs
        )
        assert_agree(value_and_gradients(run, inputs), expected, 1e-10)


def after_much_forgetting():
    """Gates of 0.999 after 600 tokens with gates of e^-30, so that fp32 sums round to 1e-3."""
    inputs = make_inputs(time=900, dtype=np.float32)
    forget = inputs["log_forget"].at[:, :600].set(-30.01).at[:, 600:].set(-1e-3)
    return inputs | {"log_forget": forget}


@pytest.mark.parametrize("form", slow_except(("blockwise",), FORMS))
def test_long_sums_lose_no_digits(form):
    """fp32 rounding of scores and of gradients of gates, which are sums of terms that cancel.

    The sum of the gates is 10^7 times the differences that the scores need.
    """
    inputs = after_much_forgetting()
    with jax.enable_x64(True):
        exact = {name: x.astype(np.float64) for name, x in inputs.items()}
        expected = value_and_gradients(defined, exact)
    actual = value_and_gradients(functools.partial(attention, form=form), inputs)
    assert_agree(actual, expected, 1e-5)


@pytest.mark.slow
def test_one_number_would_lose_digits():
    """Negative control: the high parts alone are the rounded sums."""
    inputs = after_much_forgetting()
    q, k, v, log_forget = inputs.values()
    sums = log_sums(log_forget)
    high = sums.at[..., 1].set(0)
    rounded = jax.jit(softmax_attention)(q, k, v, query_log_sums_BTHX=high, key_log_sums_BSHX=high)
    error = rounded - jax.jit(attention)(**inputs)
    assert np.sqrt(np.mean(error[:, 600:] ** 2)) > 1e-5


@pytest.mark.parametrize("form", slow_except(("blockwise",), FORMS))
def test_a_gate_that_is_not_finite(form):
    """Spoils the queries that see its token, and no other output or gradient."""
    place, window = 20, 9
    inputs = make_inputs(dtype=np.float32)
    wrong = inputs | {"log_forget": inputs["log_forget"].at[:, place, 1].set(jnp.nan)}
    ids = jnp.asarray(SEGMENTS)
    run = jax.jit(functools.partial(attention, segment_ids=ids, form=form, window=window))
    seen = np.zeros((B, T), bool)
    seen[:, place : place + window] = True
    good, bad = (np.asarray(run(**x)) for x in (inputs, wrong))
    assert np.all(np.isnan(bad[seen]))
    np.testing.assert_allclose(bad[~seen], good[~seen], rtol=1e-5, atol=1e-6)
    unseen = jax.grad(lambda x: jnp.sum(jnp.where(seen[..., None, None], 0, run(**x))))
    gradients = jax.jit(unseen)(wrong)
    assert all(np.all(np.isfinite(x)) for x in gradients.values())


def test_gradients_outside_of_the_window_and_the_document_are_zero():
    """Exactly: one query, whose gates have sums that cancel."""
    window, query = 9, 30
    ids = jnp.asarray(SEGMENTS)

    def output(log_forget, inputs):
        o = attention(**inputs | {"log_forget": log_forget}, segment_ids=ids, window=window)
        return jnp.sum(o[:, query])

    inputs = make_inputs(dtype=np.float32)
    gradient = np.asarray(jax.jit(jax.grad(output))(inputs["log_forget"], inputs))
    reached = np.any(gradient != 0, axis=2)
    t = np.arange(T)
    assert np.array_equal(reached, np.tile((t > query - window + 1) & (t <= query), (B, 1)))


@pytest.mark.parametrize("form", slow_except(("blockwise",), FORMS))
def test_bfloat16_gradients_of_gates_are_bounded(form):
    """The rounding errors of all later queries do not add up in the gradient of a gate."""
    exact = make_inputs(time=512, dtype=np.float32)
    exact |= {name: exact[name] + 1 for name in "qkv"}
    narrow = exact | {name: exact[name].astype(jnp.bfloat16) for name in "qkv"}
    exact |= {name: narrow[name].astype(jnp.float32) for name in "qkv"}
    actual = value_and_gradients(functools.partial(attention, form=form), narrow)
    expected = value_and_gradients(functools.partial(attention, form=form), exact)
    assert_agree(actual, expected, 3e-2)


def test_memory_is_linear():
    def compiled(time):
        arrays = make_inputs(time=1, dtype=np.float32)
        shapes = {
            name: jax.ShapeDtypeStruct((1, time, *x.shape[2:]), np.float32)
            for name, x in arrays.items()
        }

        def loss(inputs):
            return jnp.sum(attention(**inputs, form="blockwise", block_size=128))

        return jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis()

    memory, memory4 = compiled(2048), compiled(8192)
    assert memory4.temp_size_in_bytes < 4.1 * memory.temp_size_in_bytes
    assert memory4.temp_size_in_bytes < 8192 * 8192  # Scores: 16 times this.


def test_misuse_names_the_argument():
    q, k, v, log_forget = make_inputs(dtype=np.float32).values()
    sums = log_sums(log_forget)
    call = inspect.unwrap(softmax_attention)  # run-time type checks would come first
    with pytest.raises(ValueError, match="log sums of only queries or only keys"):
        call(q, k, v, query_log_sums_BTHX=sums)
    with pytest.raises(ValueError, match=r"key_log_sums_BSHX is \(2, 50, 4, 1\)"):
        call(q, k, v, query_log_sums_BTHX=sums, key_log_sums_BSHX=sums[..., :1])
