"""A token that is not finite changes no earlier chunk and no other document, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import block_loop
from linear_transformer.ops.delta import delta_attention, delta_product, low_rank_delta_attention

B, T, H, K, V, CHUNK = 1, 40, 1, 4, 3, 4
PACKED = ((0, 10), (10, 26), (26, T))  # borders are inside of chunks
EXACT = ("recurrent", "associative")
NAMES = ("q", "k", "v", "log_decay", "beta")
ONE = ((0, T),)
CASES = [
    ("vector", "recurrent", PACKED),
    ("vector", "associative", PACKED),
    ("vector", "chunk", ONE),
    ("vector", "chunk", PACKED),
    ("low rank", "chunk", PACKED),
    *[
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("vector", "recurrent", ONE),
            ("vector", "associative", ONE),
            ("scalar", "chunk", ONE),
            ("scalar", "chunk", PACKED),
            ("product", "chunk", PACKED),
        ]
    ],
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(block_loop, "MAX_CHUNKS", 2)


def _product(q, k, v, log_decay, beta, **options):
    k, v, beta = (jnp.stack([x, -x], axis=2) for x in (k, v, beta))
    return delta_product(q, k, v, log_decay[..., 0], beta, **options)


OPS = {
    "vector": delta_attention,
    "scalar": lambda q, k, v, g, beta, **kw: delta_attention(q, k, v, g[..., 0], beta, **kw),
    "product": _product,
    "low rank": lambda q, k, v, g, beta, **kw: low_rank_delta_attention(
        q, k, v, g, beta[..., None] * k, -k, **kw
    ),
}


def inputs():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, H, n)) for n in (K, K, V))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    log_decay = -np.logaddexp(0, -rng.normal(size=(B, T, H, K)))
    arrays = (q, k, v, log_decay, rng.random((B, T, H)))
    return dict(zip(NAMES, (x.astype(np.float32) for x in arrays), strict=True))


@functools.cache
def compiled(name, form):
    """Outputs, and the gradients of the inputs for given ones of the outputs."""

    def run(arrays, ids, cotangent):
        def attend(arrays):
            options = {"segment_ids_BT": ids, "form": form, "chunk_size": CHUNK}
            return OPS[name](*(arrays[n] for n in NAMES), **options)[0]

        o, pullback = jax.vjp(attend, arrays)
        return o, pullback(cotangent)[0]

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def assert_contained(name, form, documents, place, value, chosen=NAMES):
    """What the token at `place` has nothing to do with is the same bit for bit."""
    chunk = CHUNK // 2 if name in ("product", "low rank") else CHUNK  # of two steps a token
    first = place if form in EXACT else place // chunk * chunk
    last = place + 1 if form in EXACT else first + chunk
    start, end = next((a, b) for a, b in documents if a <= place < b)
    tokens = np.arange(T)
    untouched = (tokens < first) | ((tokens >= last) & ((tokens < start) | (tokens >= end)))
    cotangent = np.random.default_rng(1).normal(size=(B, T, H, V)) * untouched[:, None, None]
    ids = np.repeat(np.arange(len(documents)), [b - a for a, b in documents])[None]
    run = functools.partial(
        compiled(name, form), ids=ids if len(documents) > 1 else None, cotangent=cotangent
    )
    clean, expected = run(inputs())
    non_finite = inputs()
    for array in chosen:
        non_finite[array][:, place] = value
    o, gradients = run(non_finite)
    assert np.array_equal(o[:, untouched], clean[:, untouched])
    assert not np.isfinite(o[:, place]).any()  # and it is not hidden
    for array in NAMES:
        assert np.isfinite(expected[array]).all()
        equal = np.asarray(gradients[array] == expected[array])
        assert equal[:, untouched].all(), array


@pytest.mark.parametrize(("name", "form", "documents"), CASES)
def test_contained(name, form, documents):
    for value in (np.nan, np.inf):
        assert_contained(name, form, documents, 18, value)
    for array in NAMES:
        assert_contained(name, form, documents, 18, np.nan, (array,))
    if len(documents) > 1:  # beside the start of the next document
        for place in (24, 25, 26):
            assert_contained(name, form, documents, place, np.nan)


@pytest.mark.parametrize(("form", "documents"), [case[1:] for case in CASES[:4]])
def test_overflow_is_contained(form, documents):
    """Finite keys whose products are not."""
    assert_contained("vector", form, documents, 25, 1e30, ("k", "v"))
