"""Every mixer at the edge of its inputs: NaN, ids that return, zeros, no tokens, misuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers.registry import MIXERS, mixer_options
from tests.layers import slow_except

B, T, D, H = 2, 20, 8, 2
CHUNK = 4
DOCUMENTS = np.array([7] * 6 + [0] * 7 + [7] * 7)  # an id that returns is another document
PLACE = 9  # of the NaN: inside the second document and inside a chunk
OPTIONS = {
    "diag": {"block_size": CHUNK},
    "parallel": {"branches": {"diag": {"block_size": CHUNK}, "norm": {"chunk_size": CHUNK}}},
    "flash": {"key_width": 4},
    "flash_quad": {"key_width": 4, "divisor": 1, "cache_capacity": T},
    "softmax": {"cache_capacity": T},
    "fox": {"cache_capacity": T},
    "rela": {"cache_capacity": T},
    "lsh": {"buckets": 4, "rounds": 2, "cache_capacity": T},
    "linformer": {"length": T, "compressed": 5},
    "convolution": {"size": 3},
    "cosformer": {"max_length": 2 * T, "key_width": 16},
    "t2r": {"features": 24},
    "sparse": {"block_size": CHUNK, "summary": 2, "cache_capacity": T},
    "synthesizer": {"length": 2 * T},
    "transformer_xl": {"window": 6},
    "adaptive_span": {"window": 6},
    "longformer": {"window": 4},
    "bigbird": {"block_size": 2, "random_blocks": 1},
    "nystromformer": {"landmarks": 4, "convolution": 3},
    "sinkhorn": {"length": T, "block_size": CHUNK},
}
CACHES = ("softmax", "fox", "sparse", "synthesizer", "transformer_xl", "diag", "flash")
CACHES += ("flash_quad", "rela", "lsh", "adaptive_span")
# Not only their chunk: nothing but the NaN itself and what depends on it.
EXACT = (*CACHES, "efficient", "mamba", "lru", "rg_lru", "slstm")
# One for each way to keep a state and to look back; compiling them all takes minutes.
QUICKER = ("linear", "softmax", "flash", "efficient", "mamba", "mlstm", "rwkv6", "gated_delta_net")
# Of their published epsilons, which the modules document: a head's output or a key near 0 is
# scaled to unit length.
STEEP = ("delta_net", "gated_delta_net", "delta_product", "kda", "gdn2", "rwkv7", "hgrn2", "slstm")
QUICK = {"xla_backend_optimization_level": 0}


CAUSAL = [name for name, mechanism in MIXERS.items() if mechanism.causal]


@functools.cache
def build(name, **options):
    options = OPTIONS.get(name, {}) | options
    if "chunk_size" in mixer_options(name):
        options["chunk_size"] = CHUNK
    if not MIXERS[name].causal:
        options = MIXERS[name].bidirectional_options(options)
    mixer = MIXERS[name](D, H, rngs=nnx.Rngs(0), **options)
    if name == "rwkv7":  # which starts with zeros there
        mixer.output.kernel[...] = jnp.eye(D)
    return mixer


@functools.cache
def compiled(name, **options):
    """Outputs, and the gradient of the input for a given one of the outputs."""
    graphdef, parameters = nnx.split(build(name, **options))
    positions = jnp.tile(jnp.arange(T), (B, 1))

    def run(x, ids, cotangent):
        mixer = nnx.merge(graphdef, parameters)
        y, pullback = jax.vjp(
            lambda x: mixer(x, segment_ids=ids, positions=positions)[0], jnp.asarray(x)
        )
        return y, pullback(cotangent)[0]

    return jax.jit(run, compiler_options=QUICK)


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)


def non_finite(value=np.nan):
    x = inputs()
    x[:, PLACE] = value
    return x


def local_reach(mixer):
    """Tokens that a convolution or a shift reads besides each token."""
    local = getattr(mixer, "local", None)
    return 0 if local is None else getattr(local, "size", 2) - 1


@pytest.mark.parametrize("documents", [np.zeros(T, int), DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("name", slow_except(QUICKER, CAUSAL))
def test_contained(name, documents):
    """A NaN changes no bit of what it has nothing to do with."""
    check_contained(name, documents, np.nan)


@pytest.mark.slow
def test_a_finite_key_that_overflows_is_contained():
    check_contained("linear", DOCUMENTS, 1e4, feature_map="exp")


@pytest.mark.slow
def test_several_inputs_and_outputs_are_contained():
    check_contained("mamba3", DOCUMENTS, np.nan, rank=2)


def check_contained(name, documents, value, **options):
    tokens, reach = np.arange(T), local_reach(build(name, **options))
    first, last = PLACE, PLACE + 1
    if name not in EXACT:  # the chunks of all tokens that a convolution makes of it
        first, last = PLACE // CHUNK * CHUNK, ((PLACE + reach) // CHUNK + 1) * CHUNK
    others = documents != documents[PLACE]
    untouched = (tokens < first) | ((tokens >= last) & others)
    cotangent = inputs(seed=1) * untouched[:, None]
    run = functools.partial(compiled(name, **options), ids=np.tile(documents, (B, 1)))
    clean, expected = run(inputs(), cotangent=cotangent)
    y, gradient = run(non_finite(value), cotangent=cotangent)
    tolerance = 1e-6 if name == "lsh" else 0  # whose sums are of sorted tokens, in another order
    np.testing.assert_allclose(y[:, untouched], clean[:, untouched], rtol=0, atol=tolerance)
    assert not np.isfinite(y[:, PLACE]).all()  # and it is not hidden
    assert np.isfinite(expected).all()
    kept = untouched & ((tokens < first - reach) | (tokens >= last))
    np.testing.assert_allclose(gradient[:, kept], expected[:, kept], atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MIXERS if name not in CAUSAL])
def test_padding_may_be_anything(name):
    """The tokens behind the first document are padding."""
    padded = DOCUMENTS != 7
    padded[padded.argmax() :] = True
    x = inputs()
    garbage = np.where(padded[:, None], np.nan, x)
    cotangent = inputs(seed=1) * ~padded[:, None]
    ids = np.tile(DOCUMENTS, (B, 1))
    expected = compiled(name)(x, ids, cotangent)
    actual = compiled(name)(garbage, ids, cotangent)
    for a, e in zip(actual, expected, strict=True):
        assert np.array_equal(a[:, ~padded], e[:, ~padded])


def test_a_convolution_keeps_a_nan_in_its_neighbourhood():
    ids, tokens = np.zeros((B, T), int), np.arange(T)
    clean, expected = compiled("convolution")(inputs(), ids, inputs(seed=1))
    far = abs(tokens - PLACE) > 1
    y, gradient = compiled("convolution")(non_finite(), ids, inputs(seed=1) * far[:, None])
    assert np.isnan(y[:, ~far]).all()
    np.testing.assert_allclose(y[:, far], clean[:, far], atol=1e-5)
    further = abs(tokens - PLACE) > 2
    np.testing.assert_allclose(gradient[:, further], expected[:, further], atol=1e-5)


@functools.cache
def stateful(name):
    mixer = build(name)

    def call(x, state, ids, positions):
        return mixer(x, state, segment_ids=ids, positions=positions)

    return mixer, jax.jit(call, compiler_options=QUICK)


def in_calls(name, x, ids, starts):
    """Outputs of calls that start at these tokens, one after the other."""
    mixer, call = stateful(name)
    state, outputs = mixer.init_state(B), []
    for start, stop in zip(starts, [*starts[1:], T], strict=True):
        part = slice(start, stop)
        own_ids, positions = (np.tile(a[part], (B, 1)) for a in (ids, np.arange(T)))
        y, state = call(x[:, part], state, own_ids, positions)
        outputs.append(y)
    return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize("name", slow_except(QUICKER, CACHES))
def test_a_cache_keeps_the_nan_of_another_document_apart(name):
    ids, garbage = (np.arange(T) >= 7).astype(int), inputs()
    garbage[:, 5] = np.nan
    starts = (0, 7, 14, 15, 16, 17, 18, 19)  # the first document, the next one, tokens alone
    clean, y = (in_calls(name, x, ids, starts) for x in (inputs(), garbage))
    assert np.isnan(y[:, 5]).any()
    untouched = np.r_[:5, 7:T]
    assert np.array_equal(y[:, untouched], clean[:, untouched])


@pytest.mark.parametrize("name", slow_except(QUICKER, [*CACHES, "linear", "mamba", "rwkv6"]))
def test_an_id_that_returns_to_a_state(name):
    returning, once = (np.repeat(ids, [5, 2, 8, 5]) for ids in ([7, 0, 7, 0], [1, 2, 3, 4]))
    starts = (0, 7, 14, 15, 16, 17, 18, 19)
    y, expected = (in_calls(name, inputs(), ids, starts) for ids in (returning, once))
    assert np.array_equal(y, expected)


@pytest.mark.parametrize("name", slow_except(QUICKER, MIXERS))
def test_a_segment_is_a_run_of_equal_ids(name):
    own = np.repeat([1, 2, 3], np.diff([0, *np.flatnonzero(np.diff(DOCUMENTS)) + 1, T]))
    returning, once = (np.tile(ids, (B, 1)) for ids in (DOCUMENTS, own))
    for actual, expected in zip(
        compiled(name)(inputs(), returning, inputs(seed=1)),
        compiled(name)(inputs(), once, inputs(seed=1)),
        strict=True,
    ):
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize(
    "name", slow_except(QUICKER, (name for name in MIXERS if name not in STEEP))
)
def test_a_token_of_zeros_has_usual_gradients(name):
    x = inputs()
    x[:, [0, PLACE]] = 0
    _, gradient = compiled(name)(x, np.zeros((B, T), int), inputs(seed=1))
    size = np.linalg.norm(gradient, axis=-1)
    assert size.max() <= 100 * np.median(size)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_no_tokens(name, shape):
    mixer = build(name)
    x, positions = jnp.ones((*shape, D)), jnp.zeros(shape, int)
    for ids in (None, positions):
        y, _ = mixer(x, segment_ids=ids, positions=positions)
        assert y.shape == x.shape
        if MIXERS[name].causal:
            state = jax.tree.map(lambda a: a + 1, mixer.init_state(shape[0]))
            y, after = mixer(x, state, segment_ids=ids, positions=positions)
            assert y.shape == x.shape
            jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("name", MIXERS)
def test_misuse_names_the_argument(name):
    mixer, x = build(name), jnp.asarray(inputs())
    ids = jnp.zeros((B, T), int)
    for call, message in (
        (lambda: mixer(x[0]), r"x_BTD is \(20, 8\)"),
        (lambda: mixer(ids), r"x_BTD is int32; it must be floating"),
        (lambda: mixer(x, segment_ids=ids[:, 1:]), "segment_ids is"),
        (lambda: mixer(x, segment_ids=ids * 1.0), "segment_ids is float32"),
        (lambda: mixer(x, positions=ids[:1]), "positions is"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    if MIXERS[name].causal:
        with pytest.raises(ValueError, match=r"state.*is \(3,.*init_state\(2\)"):
            mixer(x, mixer.init_state(3))
        with pytest.raises(ValueError, match="state is PyTreeDef"):
            mixer(x, {"other": x})


@pytest.mark.parametrize("name", ["linear", "softmax", "gla", "performer", "rwkv6"])
def test_heads_of_unequal_width(name):
    with pytest.raises(ValueError, match=r"width is 10; it must be a positive multiple of heads"):
        MIXERS[name](10, 4, rngs=nnx.Rngs(0))
