"""The language model: one function however it is called, stacked, rematerialised or packed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.layers.positions import POSITIONS
from tests.layers import slow_except
from tests.ops.contract import assert_agree, relative_rms

B, VOCABULARY = 2, 17
# Compiling is most of what these tests cost, and optimising would double it.
QUICK = {"xla_backend_optimization_level": 0}
# A few layers of fp32 matmuls and norms: 1e-6 or so, with room for deeper sums.
TOLERANCE = 1e-5
BOTH = ("linear", "softmax")
MIXERS = {"linear": {"chunk_size": 4}, "softmax": {"cache_capacity": 20}}


def make(seed=0, **changes):
    """graphdef and parameters, every one of them (biases, scales) away from its initial value."""
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "feed_forward_width": 24}
    options = {"vocab_size": VOCABULARY, "mixers": MIXERS} | sizes | changes
    model = LanguageModel(LanguageModelConfig(**options), rngs=nnx.Rngs(seed))
    graphdef, parameters = nnx.split(model)
    rng = np.random.default_rng(seed)
    flat = {
        p: x + 0.2 * jnp.asarray(rng.normal(size=x.shape), x.dtype)
        for p, x in flat_of(parameters).items()
    }
    return graphdef, replace(parameters, flat)


def flat_of(state):
    """{path: array} of a state."""
    return {path: variable[...] for path, variable in nnx.to_flat_state(state)}


def replace(state, arrays):
    """The state with these arrays at its paths."""
    flat = nnx.to_flat_state(state)
    assert {path for path, _ in flat} == arrays.keys()
    return nnx.from_flat_state([(path, variable.replace(arrays[path])) for path, variable in flat])


def compiled(graphdef):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def apply(parameters, tokens, state=None, segment_ids=None, positions=None, key=None):
        return nnx.merge(graphdef, parameters)(
            tokens, state, segment_ids=segment_ids, positions=positions, dropout_key=key
        )

    return apply


def text(time, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, size=(B, time), dtype=np.int32)


def assert_cached_is_full(model, time, splits=None, drop_state=False):
    """With a call on all tokens but one before or after one, and token by token."""
    graphdef, parameters = model
    apply = compiled(graphdef)
    tokens = text(time)
    full, none = apply(parameters, tokens)
    assert none is None
    fresh = nnx.merge(graphdef, parameters).init_state(B)
    for split in splits or (1, time - 1):
        head, state = apply(parameters, tokens[:, :split], fresh)
        tail, state = apply(parameters, tokens[:, split:], fresh if drop_state else state)
        assert_agree({"head": head}, {"head": full[:, :split]}, TOLERANCE)
        assert_agree({"tail": tail}, {"tail": full[:, split:]}, TOLERANCE)
        assert np.all(np.asarray(state["position"]) == time)
    state = fresh
    for i in range(time):
        logits, state = apply(parameters, tokens[:, i : i + 1], state)
        assert relative_rms(logits[:, 0], full[:, i]) <= TOLERANCE


# Each mixer with each kind of positions; the other choices change along, so that all are met.
CHOICES = [
    {
        "pattern": (mixer,),
        "positions": positions,
        "norm_position": ("pre", "post")[i % 2],
        "gated": i % 3 == 0,
        "tied": i % 4 < 2,
        "norm": ("layernorm", "rmsnorm")[i // 2 % 2],
    }
    for i, (mixer, positions) in enumerate(itertools.product(BOTH, POSITIONS))
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: f"{c['pattern'][0]}-{c['positions']}")
def test_cached_is_full(choices):
    assert_cached_is_full(make(num_layers=1, **choices), 5)


def test_cached_is_full_through_the_scan():
    window = {"softmax": {"window": 3}, "linear": {"chunk_size": 4}}
    model = make(
        pattern=BOTH,
        num_layers=4,
        scan_layers=True,
        positions="rotary",
        mixers=window,
        remat="full",
    )
    assert_cached_is_full(model, 9)


@pytest.mark.parametrize("mixer", BOTH)
def test_negative_control(mixer):
    """The comparison above fails a model that forgets."""
    with pytest.raises(AssertionError, match="relative RMS"):
        assert_cached_is_full(make(num_layers=1, pattern=(mixer,)), 5, (4,), drop_state=True)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pattern", [("linear",), ("softmax",), BOTH])
def test_cached_is_full_in_all_choices(pattern, positions, norm_position, scan_layers):
    for gated in (False, True):
        model = make(
            pattern=pattern,
            positions=positions,
            norm_position=norm_position,
            scan_layers=scan_layers,
            gated=gated,
            tied=not gated,
        )
        assert_cached_is_full(model, 12, (1, 5, 11))


# --- Scanned and rematerialised stacks -----------------------------------------------------------


def restack(flat, period):
    """The arrays of separate layers as those of a scan over repetitions of the pattern."""
    layers = 1 + max(path[2] for path in flat if path[:2] == ("stack", "blocks"))
    stacked = {}
    for path, x in flat.items():
        if path[:2] != ("stack", "blocks"):
            stacked[path] = x
        elif path[2] < period:
            copies = [flat[(*path[:2], i, *path[3:])] for i in range(path[2], layers, period)]
            stacked[path] = jnp.stack(copies)
    return stacked


def value_and_gradients(graphdef, parameters, tokens, segment_ids, positions, key):
    """Logits, and {path: gradient} of a loss."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(parameters):
        def loss(parameters):
            logits, _ = nnx.merge(graphdef, parameters)(
                tokens, segment_ids=segment_ids, positions=positions, dropout_key=key
            )
            return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 3]), logits

        return jax.grad(loss, has_aux=True)(parameters)

    gradients, logits = run(parameters)
    return logits, flat_of(gradients)


PACKED = {
    "tokens": jnp.asarray(text(9)),
    "segment_ids": jnp.asarray([[1] * 4 + [2] * 5, [3] * 9], jnp.int32),
    "positions": jnp.asarray([np.r_[:4, :5], np.r_[:9]], jnp.int32),
}


@pytest.mark.parametrize("pattern", [pytest.param(("linear",), marks=pytest.mark.slow), BOTH])
def test_scan_is_the_same_function(pattern):
    """Values and every gradient, packed; dropout too, since layers get keys by their number."""
    options = {"pattern": pattern, "num_layers": 4, "dropout": 0.3}
    graphdef, parameters = make(**options)
    scanned_graphdef, initial = make(scan_layers=True, **options)
    stacked = replace(initial, restack(flat_of(parameters), len(pattern)))
    inputs = PACKED | {"key": jax.random.key(0)}
    logits, gradients = value_and_gradients(graphdef, parameters, **inputs)
    scanned_logits, scanned_gradients = value_and_gradients(scanned_graphdef, stacked, **inputs)
    assert_agree({"logits": scanned_logits}, {"logits": logits}, TOLERANCE)
    assert_gradients_agree(scanned_gradients, restack(gradients, len(pattern)))


def assert_gradients_agree(actual, expected):
    """Relative to the largest of all gradients: that of a key bias under softmax is exactly 0."""
    assert actual.keys() == expected.keys()
    scale = max(np.sqrt(np.mean(np.square(x))) for x in expected.values())
    assert scale > 1e-3
    for name, x in expected.items():
        error = np.sqrt(np.mean(np.square(np.asarray(actual[name]) - x)))
        assert error <= TOLERANCE * scale, f"{name}: {error} of {scale}"


def test_gradients_negative_control():
    gradients = {"a": np.ones(3), "b": np.full(3, 0.1)}
    with pytest.raises(AssertionError):
        assert_gradients_agree(gradients, gradients | {"b": np.full(3, 0.1001)})


def test_scan_starts_from_the_same_parameters():
    sizes = {"vocab_size": 5, "width": 8, "num_heads": 2, "feed_forward_width": 8}
    separate, scanned = (
        LanguageModel(
            LanguageModelConfig(pattern=BOTH, num_layers=4, scan_layers=scan, **sizes),
            rngs=nnx.Rngs(3),
        )
        for scan in (False, True)
    )
    expected = restack(flat_of(nnx.state(separate)), 2)
    actual = flat_of(nnx.state(scanned))
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[path], expected[path]) for path in expected)
    assert separate.num_parameters == scanned.num_parameters
    assert separate.flops_per_token(64) == scanned.flops_per_token(64)
    assert separate.capacity == scanned.capacity == 1024


@pytest.mark.parametrize(
    ("scan_layers", "policies"),
    slow_except([(True, ("dots",))], [(False, ("full",)), (True, ("full",)), (True, ("dots",))]),
)
def test_remat_changes_no_gradient(scan_layers, policies):
    options = {"num_layers": 2, "dropout": 0.2, "scan_layers": scan_layers}
    results, programs = {}, {}
    for remat in ("none", *policies):
        graphdef, parameters = make(remat=remat, **options)
        inputs = PACKED | {"key": jax.random.key(0)}
        results[remat] = value_and_gradients(graphdef, parameters, **inputs)
        programs[remat] = str(
            jax.make_jaxpr(lambda p, g=graphdef: nnx.merge(g, p)(PACKED["tokens"])[0])(parameters)
        )
    for remat in policies:
        assert relative_rms(results[remat][0], results["none"][0]) < 1e-6
        assert_gradients_agree(results[remat][1], results["none"][1])
        assert "prevent_cse" in programs[remat]  # the blocks really are checkpointed
    assert "prevent_cse" not in programs["none"]


# --- Dropout, precision, packing -----------------------------------------------------------------


def test_dropout_needs_a_key():
    graphdef, parameters = make(pattern=BOTH, dropout=0.3)
    apply = compiled(graphdef)
    keyed = [apply(parameters, text(6), key=jax.random.key(seed))[0] for seed in (0, 0, 1)]
    assert np.array_equal(keyed[0], keyed[1])
    assert relative_rms(keyed[2], keyed[0]) > 1e-2
    plain, _ = apply(parameters, text(6))
    assert np.array_equal(plain, apply(parameters, text(6))[0])
    without, same = make(pattern=BOTH)
    assert np.array_equal(plain, compiled(without)(same, text(6))[0])
    assert relative_rms(keyed[0], plain) > 1e-2


def test_bfloat16_is_bounded():
    """8 bits a number, 2^-9 a rounding: percents after two layers of perturbed weights."""
    graphdef, parameters = make(pattern=BOTH)
    narrow, same = make(pattern=BOTH, dtype="bfloat16")
    exact, _ = compiled(graphdef)(parameters, **PACKED)
    rough, gradients = value_and_gradients(narrow, same, **PACKED, key=None)
    for x in (rough, *flat_of(same).values(), *gradients.values()):
        assert x.dtype == jnp.float32
    assert 1e-4 < relative_rms(rough, exact) < 4e-2
    apply = compiled(narrow)
    full, _ = apply(same, text(6))
    state = nnx.merge(narrow, same).init_state(B)
    _, state = apply(same, text(6)[:, :5], state)
    last, _ = apply(same, text(6)[:, 5:], state)
    assert last.dtype == jnp.float32
    assert relative_rms(last[:, 0], full[:, 5]) < 4e-2


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_packed_is_separate(positions):
    graphdef, parameters = make(pattern=BOTH, positions=positions)
    apply = compiled(graphdef)
    tokens = text(12)
    lengths = (5, 1, 6)
    ids = np.tile(np.repeat([1, 2, 3], lengths), (B, 1)).astype(np.int32)
    numbers = np.tile(np.concatenate([np.arange(n) for n in lengths]), (B, 1)).astype(np.int32)
    packed, _ = apply(parameters, tokens, None, ids, numbers)
    start = 0
    for n in lengths:  # each alone at the start, with tokens after it that it does not see
        first = np.roll(tokens, -start, axis=1)
        alone, _ = apply(
            parameters, first, None, None, np.tile(np.arange(12, dtype=np.int32), (B, 1))
        )
        assert_agree({"o": packed[:, start : start + n]}, {"o": alone[:, :n]}, TOLERANCE)
        start += n
    leaking, _ = apply(parameters, tokens, None, None, numbers)
    assert relative_rms(leaking[:, 5:], packed[:, 5:]) > 1e-2
    # The state of a packed row is that of its last document.
    fresh = nnx.merge(graphdef, parameters).init_state(B)
    _, state = apply(parameters, tokens[:, :8], fresh, ids[:, :8], numbers[:, :8])
    rest, _ = apply(parameters, tokens[:, 8:], state)
    assert_agree({"o": rest}, {"o": packed[:, 8:]}, TOLERANCE)


def test_post_norm_and_pre_norm_differ_where_they_should():
    """Post-norm ends in a norm: rows of the stream have zero mean and unit variance."""
    for position, normed in (("post", True), ("pre", False)):
        config = LanguageModelConfig(
            vocab_size=5,
            width=16,
            num_layers=1,
            num_heads=2,
            feed_forward_width=8,
            norm_position=position,
        )
        model = LanguageModel(config, rngs=nnx.Rngs(0))
        assert (model.final_norm is None) == normed
        x = 3 * jax.random.normal(jax.random.key(0), (B, 4, 16))
        y, _ = jax.jit(model.stack)(x)
        assert np.allclose(np.std(y, -1), 1, atol=1e-3) == normed
