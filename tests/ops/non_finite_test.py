"""A token that is not finite changes no earlier chunk and no other document, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.decay import decayed_attention

B, T, H, K, V = 2, 100, 2, 4, 3
CHUNK = 4
DOCUMENTS = ((0, 30), (30, 62), (62, T))  # the last border is inside of a chunk
EXACT = ("recurrent", "associative")

OPS = {
    "additive": lambda q, k, v, g, **kw: linear_attention(q, k, v, **kw),
    "unnormalized": lambda q, k, v, g, **kw: linear_attention(
        q, k, v, feature_map=None, normalize=False, **kw
    ),
    "scalar": lambda q, k, v, g, **kw: decayed_attention(q, k, v, g[..., 0], **kw),
    "vector": decayed_attention,
    "value": lambda q, k, v, g, **kw: decayed_attention(
        q, k, v, None, log_value_decay_BTHV=g[..., :V], **kw
    ),
    "bonus": lambda q, k, v, g, **kw: decayed_attention(
        q, k, v, g, bonus_HK=jnp.ones((H, K)), **kw
    ),
}
CASES = [(name, form) for name in OPS for form in ("recurrent", "chunk")]
CASES += [(name, "associative") for name in ("additive", "vector")]


def inputs(array=np.asarray):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, H, n)).astype(np.float32) for n in (K, K, V))
    gates = -np.logaddexp(0, -rng.normal(size=(B, T, H, K))).astype(np.float32)
    return [array(x) for x in (q, k, v, gates)]


@functools.cache
def compiled(name, form):
    """Outputs, and the gradients of the inputs for given ones of the outputs."""

    def run(arrays, ids, cotangent):
        def attend(arrays):
            return OPS[name](*arrays, segment_ids_BT=ids, form=form, chunk_size=CHUNK)[0]

        o, pullback = jax.vjp(attend, arrays)
        return o, pullback(cotangent)[0]

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def ids(documents):
    return np.tile(np.repeat(np.arange(len(documents)), [b - a for a, b in documents]), (B, 1))


def non_finite(arrays, place, value, chosen=(0, 1, 2, 3)):
    arrays = [x.copy() for x in arrays]
    for i in chosen:
        arrays[i][:, place] = value
    return arrays


def assert_contained(name, form, documents, place, value, chosen=(0, 1, 2, 3)):
    """What the token at `place` has nothing to do with is the same bit for bit."""
    first = place if form in EXACT else place // CHUNK * CHUNK
    last = place + 1 if form in EXACT else first + CHUNK + (name == "bonus")
    mine = next((a, b) for a, b in documents if a <= place < b)
    tokens = np.arange(T)
    untouched = (tokens < first) | ((tokens >= last) & ((tokens < mine[0]) | (tokens >= mine[1])))
    cotangent = np.random.default_rng(1).normal(size=(B, T, H, V)) * untouched[:, None, None]
    run = functools.partial(compiled(name, form), ids=ids(documents), cotangent=cotangent)
    clean, clean_gradients = run(inputs())
    o, gradients = run(non_finite(inputs(), place, value, chosen))
    assert np.array_equal(o[:, untouched], clean[:, untouched])
    assert not np.isfinite(o[:, place]).all()  # and it is not hidden
    for gradient, expected in zip(gradients, clean_gradients, strict=True):
        assert np.isfinite(expected).all()
        assert np.array_equal(gradient[:, untouched], expected[:, untouched])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("documents", [((0, T),), DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize(("name", "form"), CASES)
def test_contained(name, form, documents, value):
    assert_contained(name, form, documents, 50, value)
    if len(documents) > 1:  # beside the start of the next document
        assert_contained(name, form, documents, 61, value)
        assert_contained(name, form, documents, 62, value)


@pytest.mark.parametrize(("name", "form"), [("vector", "recurrent"), ("vector", "chunk")])
@pytest.mark.parametrize("chosen", range(4))
def test_each_input_alone(name, form, chosen):
    assert_contained(name, form, DOCUMENTS, 50, np.nan, (chosen,))


def test_overflow_is_contained():
    """Finite keys whose sums are not."""
    assert_contained("unnormalized", "chunk", DOCUMENTS, 50, 1e38, (1, 2))
    assert_contained("unnormalized", "chunk", ((0, T),), 50, 1e38, (1, 2))


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_what_a_key_mask_drops_may_be_anything(direction):
    mask = np.arange(T) % 3 > 0
    q, k, v, g = inputs(jnp.asarray)
    garbage = [jnp.where(mask[:, None, None], x, np.nan) for x in (k, v)]
    for documents in (None, jnp.asarray(ids(DOCUMENTS))):
        options = {
            "key_mask_BS": jnp.asarray(np.tile(mask, (B, 1))),
            "segment_ids_BT": documents,
            "direction": direction,
        }
        for attend in (linear_attention, functools.partial(decayed_attention, log_decay=g)):
            expected, _ = attend(q, k, v, **options)
            actual, _ = attend(q, *garbage, **options)
            assert np.array_equal(actual, expected)


@pytest.mark.parametrize("length", [43, T])
def test_padding_is_a_document_of_its_own(length):
    """Bidirectional attention to a row and what lies behind it."""
    q, k, v, _ = inputs(jnp.asarray)
    rows = jnp.asarray(np.tile(np.arange(T) < length, (B, 1)).astype(np.int32))
    padded = jnp.where(np.arange(T)[:, None, None] < length, v, np.nan)
    attend = functools.partial(linear_attention, direction="bidirectional", segment_ids_BT=rows)
    assert np.array_equal(attend(q, k, padded)[0][:, :length], attend(q, k, v)[0][:, :length])


# --- Gradients of gates ---------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["scalar", "vector", "value"])
@pytest.mark.parametrize("form", ["recurrent", "associative", "parallel", "chunk"])
def test_gate_gradients_lose_nothing(form, gate):
    """Terms of 1 beside terms of 1e8 that do not contain the gate: 1, 9, 17, 25."""
    ones = jnp.ones((1, 64, 1, 1))
    q = k = jnp.ones((1, 64, 1, 2)) if gate == "vector" else ones
    v = ones.at[:, 32:].set(1e8)

    def last_output(g):
        gates = (None, g) if gate == "value" else (g, None)
        o, _ = decayed_attention(q, k, v, gates[0], log_value_decay_BTHV=gates[1], form=form)
        return o[0, -1, 0, 0]

    gradient = jax.jit(jax.grad(last_output))(
        jnp.zeros(q.shape if gate != "scalar" else (1, 64, 1))
    )
    for feature in gradient[0, 1:33:8].reshape(4, -1).T:
        assert feature.tolist() == [1, 9, 17, 25]


def test_one_strong_decay_among_weak_ones():
    """Its gradient is tiny beside those of its neighbours, and right to fp32 all the same."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 256, 2, 16)) for _ in range(3))
    g = np.full((1, 256, 2), -0.01)
    g[:, 100] = -20

    def gradient(form, dtype):
        arrays = [jnp.asarray(x, dtype) for x in (q, k, v, g)]
        loss = lambda g: jnp.sum(decayed_attention(*arrays[:3], g, form=form)[0] ** 2)  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(arrays[3]), np.float64)[:, 100]

    with jax.enable_x64(True):
        expected = gradient("recurrent", jnp.float64)
    for form in ("chunk", "parallel"):
        assert np.abs(gradient(form, jnp.float32) / expected - 1).max() < 1e-4


# --- Nothing, mixed types, and arguments that are wrong -------------------------------------------


@pytest.mark.parametrize("form", ["recurrent", "associative", "parallel", "chunk", "auto"])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_in_nothing_out(shape, form):
    q = jnp.ones((*shape, H, K))
    state = jnp.ones((shape[0], H, K, K + 1))
    for direction in ("causal", "anticausal", "bidirectional"):
        options = {"form": form, "direction": direction}
        o, after = linear_attention(q, q, q, initial_state=state, **options)
        assert o.shape == q.shape and np.array_equal(after, state)
        gates = jnp.zeros(q.shape[:3])
        o, after = decayed_attention(q, q, q, gates, initial_state=state[..., 1:], **options)
        assert o.shape == q.shape and np.array_equal(after, state[..., 1:])


@pytest.mark.parametrize("name", ["additive", "scalar", "vector"])
def test_mixed_types_follow_one_rule(name):
    """bf16 queries and keys with fp32 values: no product is rounded to bf16, in any form."""
    q, k, v, g = inputs(jnp.asarray)
    arrays = [q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), v, g]
    results = [OPS[name](*arrays, form=form)[0] for form in ("recurrent", "chunk", "parallel")]
    for o in results:
        assert o.dtype == np.float32
        assert np.linalg.norm(o - results[0]) < 2e-6 * np.linalg.norm(results[0])


@pytest.mark.parametrize(
    ("attend", "change", "message"),
    [
        (linear_attention, {"chunk_size": 0}, "chunk_size is 0"),
        (linear_attention, {"form": "quick"}, "form is 'quick'"),
        (linear_attention, {"feature_map": None}, "q_BTHK has negative entries"),
        (decayed_attention, {"log_decay": jnp.ones((B, T, H))}, "log_decay reaches 1"),
        (decayed_attention, {"chunk_size": -1, "log_decay": -jnp.ones(H)}, "chunk_size is -1"),
        (decayed_attention, {"log_decay": -jnp.ones((B, T))}, "log_decay"),
    ],
)
def test_what_is_wrong_is_named(attend, change, message):
    q, k, v, _ = inputs(jnp.asarray)
    with pytest.raises(Exception, match=message):
        attend(q, k, v, **change)
