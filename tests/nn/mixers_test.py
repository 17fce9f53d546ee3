"""Every mixer of the table: one function whether called whole, in parts, or token by token.

Every causal mechanism of `MIXERS` is tested here with its default options; options worth a test of
their own go in OPTIONS.  Compiling is all that these tests cost, so a case has few programs that
each prove as much as they can.  Data are of one shape: segment ids are always given, except where
their absence is what is tested.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from linear_transformer.nn.mixers.base import reset_rows
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer
from linear_transformer.nn.mixers.registry import MIXERS
from tests.ops.contract import assert_agree, relative_rms

B, T, D, H = 3, 21, 8, 2
STEP = 7  # tokens of a call in the middle of a sequence: more than a window, a block or a chunk
WINDOW = 5
# fp32 rounds sums of 20 terms to a few 1e-7, and divides by sums that are never near 0.
TOLERANCE = 1e-5

OPTIONS = {
    "linear": {
        "chunks": {"chunk_size": 4},
        "rotary": {"rotary": True, "chunk_size": 4},
        "convolution": {"convolution": 4},
        "convolution rotary": {"convolution": 2, "rotary": True},
        "unnormalized": {"normalize": False, "feature_map": "identity"},
        "unnormalized rotary": {"normalize": False, "rotary": True},
        "recurrent": {"form": "recurrent", "key_width": 6},
        "parallel": {"form": "parallel", "bias": False},
        "associative": {"form": "associative"},
        "relu": {"feature_map": "relu", "epsilon": 1e-2},
        "squared_relu": {"feature_map": "squared_relu", "epsilon": 1e-2},
        "softmax": {"feature_map": "softmax"},
        "exp": {"feature_map": "exp"},
        "dpfp": {"feature_map": "dpfp", "nu": 2, "epsilon": 1e-2, "chunk_size": 4},
        "lrpe": {"lrpe": True, "chunk_size": 4},
        "output norm": {"output_norm": "rmsnorm"},
    },
    "based": {
        "chunks": {"chunk_size": 4, "key_width": 3},
        "recurrent": {"form": "recurrent"},
    },
    "rebased": {"chunks": {"chunk_size": 4, "key_width": 3, "epsilon": 1e-2}},  # weights near 0
    "hedgehog": {"chunks": {"chunk_size": 4, "key_width": 3}},
    # Enough features that no key is dead to a query.
    "t2r": {"chunks": {"chunk_size": 4, "features": 24}},
    "diag": {
        "relu": {"block_size": 6, "output_norm": "simplermsnorm", "lrpe": True},
        "softmax block": {"block_size": 6, "scores": "softmax", "lrpe": True},
        "relu without norm": {"block_size": 6, "bias": False},
        "blocks of 3": {"block_size": 3, "scores": "softmax"},
        "one block": {"scores": "softmax"},
    },
    "parallel": {
        "block": {"branches": {"diag": {"block_size": 6, "scores": "softmax"}, "norm": {}}}
    },
    "softmax": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "window of 1": {"window": 1},
        "rotary": {"rotary": True, "cache_capacity": 3 * T},
        "window rotary": {"rotary": True, "window": WINDOW, "bias": False},
        "blockwise": {"form": "blockwise", "window": WINDOW},
        "grouped": {"key_value_heads": 1, "cache_capacity": T},
        "qk norm": {
            "qk_norm": True,
            "key_value_heads": 1,
            "rotary": True,
            "cache_capacity": T,
        },
        "output gate": {"output_gate": True, "cache_capacity": T},
        "sinks": {"sinks": True, "key_value_heads": 1, "cache_capacity": T},
        "partly rotary": {"rotary": True, "rotary_fraction": 0.5, "sinks": True, "window": WINDOW},
        "grouped window": {"key_value_heads": 1, "form": "blockwise", "window": WINDOW},
    },
    "fox": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "all": {
            "key_value_heads": 1,
            "qk_norm": True,
            "output_gate": True,
            "rotary": True,
            "form": "blockwise",
            "cache_capacity": T,
        },
    },
    "sparse": {
        "cache": {"block_size": 4, "summary": 2, "cache_capacity": T},
        "strided": {
            "pattern": "strided",
            "block_size": 4,
            "summary": 1,
            "cache_capacity": T,
            "rotary": True,
            "bias": False,
        },
    },
    "synthesizer": {
        "cache": {"length": 2 * T},
        "random": {"variant": "random", "length": T},
    },
    "transformer_xl": {"window": {"window": WINDOW}},
    "adaptive_span": {"window": {"window": WINDOW, "ramp": 8}},  # no mask of 0
    "flash": {
        "chunks": {"chunk_size": 4, "key_width": 6, "bias": False},
        "one chunk": {"key_width": 6, "expansion": 1},
        "chunks of 1": {"chunk_size": 1, "key_width": 6, "rotary": False},
    },
    "flash_quad": {
        "cache": {"key_width": 6, "divisor": 1, "cache_capacity": T, "bias": False},
        "no rotary": {"key_width": 4, "divisor": 2, "rotary": False, "bias": False},
    },
    "rela": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "window of 1": {"window": 1},
        "window rotary": {"window": WINDOW, "rotary": True},
    },
    "efficient": {
        "chunks": {"chunk_size": 4},
        "recurrent": {"form": "recurrent", "key_width": 6, "bias": False},
    },
    "performer": {
        "chunks": {"chunk_size": 4, "features": 12},
        "relu kernel": {"kernel": "relu", "features": 12},
    },
    "cosformer": {
        # Enough features that no key is dead to a query.
        "chunks": {"chunk_size": 4, "max_length": 2 * T, "key_width": 16},
    },
    "rfa": {
        "chunks": {"chunk_size": 4},
        "gate": {"gate": True, "chunk_size": 4, "learn_scale": False},
    },
    "retnet": {
        "chunks": {"chunk_size": 4},
        "plain": {"rotary": False, "normalize": False, "value_expansion": 1},
    },
    "lightning": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "lightning_lrpe": {"lrpe": {"depth": 0.9}},
    "mamba2": {
        "chunks": {"chunk_size": 4, "state_width": 6},
        "groups": {"groups": 2, "state_width": 3, "convolution": 2, "expansion": 1},
    },
    "log_linear": {"chunks": {"max_length": 2 * T, "chunk_size": 4}},
    "log_linear_mamba2": {"chunks": {"max_length": 2 * T, "state_width": 6, "chunk_size": 4}},
    "mamba3": {
        "chunks": {"chunk_size": 4, "state_width": 8},
        "real": {"rotary_fraction": 0.0, "state_width": 6, "groups": 2},
        "rank": {"rank": 3, "chunk_size": 4, "state_width": 4, "groups": 2},
    },
    "mlstm": {"chunks": {"chunk_size": 4}},
    "gla": {"chunks": {"chunk_size": 4}},
    "gsa": {"chunks": {"chunk_size": 4, "slots": 6}},
    "hgrn2": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "rwkv6": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "lion": {
        "chunks": {"chunk_size": 4},
        "scalar": {"gate": "scalar"},
    },
    "mamba": {
        "chunks": {"chunk_size": 4, "state_width": 3, "dt_rank": 2},
        "negative": {"negative_eigenvalues": True, "state_width": 3},
    },
    "lru": {"chunks": {"chunk_size": 4, "state_width": 6}},
    "rg_lru": {"chunks": {"chunk_size": 4, "state_width": 6}},
    "lsh": {
        "cache": {"rounds": 2, "buckets": 4, "chunk_size": 3, "cache_capacity": T},
        "one round": {"rounds": 1, "buckets": 2, "chunk_size": T},
    },
    "delta_net": {
        "chunks": {"chunk_size": 4, "key_width": 6},
        "recurrent": {"form": "recurrent", "negative_eigenvalues": True},
        "associative": {"form": "associative", "convolution": 2},
    },
    "gated_delta_net": {
        "chunks": {"chunk_size": 4, "negative_eigenvalues": True},
        "one key head": {"key_heads": 1, "key_width": 6},
    },
    "delta_product": {"chunks": {"chunk_size": 8, "steps": 3}},
    "kda": {
        "chunks": {"chunk_size": 4, "key_width": 6},
        "bounded": {"lower_bound": -5.0, "negative_eigenvalues": True},
        "one key head": {"key_heads": 1, "chunk_size": 4},
    },
    "gdn2": {"chunks": {"chunk_size": 4, "key_width": 6, "negative_eigenvalues": True}},
    "rwkv7": {
        "chunks": {"chunk_size": 8, "depth": 0.5},
        "value residual": {"value_residual": True, "value_rank": 3},
    },
}
CASES = [
    (name, label)
    for name, mechanism in MIXERS.items()
    for label in OPTIONS.get(name, {"default": {}})
    if mechanism.causal
]
# Options that act on each token by itself, after a projection or before one.
POINTWISE = (
    *(("linear", label) for label in ("relu", "squared_relu", "softmax", "exp", "output norm")),
    *(("softmax", label) for label in ("qk norm", "output gate")),
    ("kda", "bounded"),
)
# The options that change how a state is kept; the others are pointwise or only change the form.
CORE = [
    case
    for case in CASES
    if case[0] not in OPTIONS
    or case[1] in ("chunks", "convolution", "cache", "window", "softmax block", "block")
    or case in (("linear", "rotary"), ("diag", "relu"), ("softmax", "grouped"), ("mamba3", "rank"))
]
# `RecurrentMixer` carries the state of its subclasses, which see the recurrent state of one segment
# only.  So one of them is enough for each kind of that state and of the layers with their own one.
SUBCLASSES = ("efficient", "gla", "gsa", "mamba2", "delta_net", "rwkv7", "mlstm", "lru")


def carries_its_state(name):
    return getattr(MIXERS[name].mixer, "_forward", None) is not RecurrentMixer._forward


CARRIERS = [c for c in CORE if c[0] in SUBCLASSES or c[1] != "chunks" or carries_its_state(c[0])]
# Mixers in which a token may have no influence at all, since a weight may be exactly 0.
SPARSE = ("flash", "flash_quad", "rela", "lsh", "sparse")
# Compiling is all that these tests cost, and optimising would double it.
QUICK = {"xla_backend_optimization_level": 0}

# A boundary at 7 and none after it, no boundary at all, and documents of 4 tokens and of 1.
LENGTHS = ((7, 14), (21,), (4, 1, 8, 8))
SEGMENTS = np.stack([np.repeat(np.arange(1, 1 + len(n)), n) for n in LENGTHS]).astype(np.int32)
PACKED_POSITIONS = np.stack([np.concatenate([np.arange(n) for n in row]) for row in LENGTHS])
PACKED_POSITIONS = PACKED_POSITIONS.astype(np.int32)
ONE_SEGMENT = np.zeros((B, T), np.int32)  # as a state without a token has it
POSITIONS = np.tile(np.arange(T, dtype=np.int32), (B, 1))


def options_of(name, label):
    return OPTIONS.get(name, {}).get(label, {})


@functools.cache
def build(name, label):
    """The mixer with every parameter, biases too, away from its initial value, and one jit."""
    options = options_of(name, label)
    graphdef, parameters = nnx.split(MIXERS[name](D, H, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda p: jnp.asarray(np.asarray(p) + 0.2 * rng.normal(size=p.shape), "f4"), parameters
    )
    mixer = nnx.merge(graphdef, parameters)

    def apply(x, state, segment_ids, positions):
        return nnx.merge(graphdef, parameters)(
            x, state, segment_ids=segment_ids, positions=positions
        )

    return mixer, jax.jit(apply)


def inputs(packed=False, seed=1):
    x = np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)
    return (x, SEGMENTS, PACKED_POSITIONS) if packed else (x, ONE_SEGMENT, POSITIONS)


def cut(data, start, stop):
    return [None if a is None else a[:, start:stop] for a in data]


def call(apply, data, state=None):
    x, segment_ids, positions = data
    return apply(x, state, segment_ids, positions)


def time_first(tree, size=1):
    """(T / size, B, size, ...) of arrays (B, T, ...), for a scan."""
    return jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(B, -1, size, *a.shape[2:]), 1, 0), tuple(tree)
    )


def time_second(y):
    """The inverse, of outputs."""
    return jnp.moveaxis(y, 0, 1).reshape(B, -1, D)


def in_steps(apply, data, state, size):
    """Outputs of a scan over calls on `size` tokens, and the states after each."""

    def step(state, tokens):
        y, state = call(apply, tokens, state)
        return state, (y, state)

    _, (y, states) = lax.scan(step, state, time_first(data, size))
    return time_second(y), states


def reach_of(pullback):
    """(B, T, T): whether outputs at t depend on inputs at s, by gradients of random combinations.

    These are the blocks (t, s) of the Jacobian, times one random vector each.
    """
    v_BD = jnp.asarray(np.random.default_rng(2).normal(size=(B, D)), jnp.float32)

    def of_token(t):
        (dx,) = pullback(jnp.zeros((B, T, D)).at[:, t].set(v_BD))
        return jnp.any(dx != 0, axis=-1)

    return jnp.moveaxis(lax.map(of_token, jnp.arange(T)), 0, 1)


@functools.cache
def whole_program(name, label):
    """One call on all tokens without a state; in the core cases with its Jacobian."""
    _, apply = build(name, label)

    def run(x, segment_ids, positions):
        def outputs(x):
            y, state = apply(x, None, segment_ids, positions)
            assert state is None
            return y

        if (name, label) not in CORE:
            return outputs(x), None
        y, pullback = jax.vjp(outputs, x)
        return y, reach_of(pullback)

    return jax.jit(run, compiler_options=QUICK)


@functools.cache
def whole(name, label, packed):
    """Outputs and reach."""
    return jax.device_get(whole_program(name, label)(*inputs(packed)))


@functools.cache
def steps(name, label):
    """Outputs and reach of packed calls on STEP tokens: the Jacobian through the states."""
    mixer, apply = build(name, label)
    x, *rest = inputs(packed=True)

    def run(x):
        state = mixer.init_state(B)
        y, pullback = jax.vjp(lambda x: in_steps(apply, (x, *rest), state, STEP)[0], x)
        return y, reach_of(pullback)

    return jax.device_get(jax.jit(run, compiler_options=QUICK)(x))


def parts_program(mixer, apply):
    """Token by token, and from the state before each token a call on STEP tokens."""

    def run(*data):
        state = mixer.init_state(B)
        y, states = in_steps(apply, data, state, 1)
        before = jax.tree.map(lambda s, all_: jnp.concatenate([s[None], all_]), state, states)

        def window(t):
            tokens = [lax.dynamic_slice_in_dim(jnp.asarray(a), t, STEP, axis=1) for a in data]
            return call(apply, tokens, jax.tree.map(lambda s: s[t], before))

        return y, before, lax.map(window, jnp.arange(T - STEP + 1))

    return jax.jit(run, compiler_options=QUICK)


@functools.cache
def intact_parts(name, label):
    return parts_program(*build(name, label))


@functools.cache
def parts(name, label, packed):
    """Outputs token by token, the states before each token and at the end, and the windows."""
    return jax.device_get(intact_parts(name, label)(*inputs(packed)))


def state_after(name, label, packed, tokens):
    return jax.tree.map(lambda s: s[tokens], parts(name, label, packed)[1])


def assert_rows_agree(y, expected):
    """Row by row: a fault in a short row must not hide in the mean."""
    for actual, row in zip(y, expected, strict=True):
        assert_agree({"y": actual}, {"y": row}, TOLERANCE)


def assert_states_agree(state, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    for actual, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert_agree({"state": actual}, {"state": leaf}, TOLERANCE)


def assert_parts_are_whole(parts, full):
    """A sequence may be split before any token, however it is called before and after."""
    y, states, (windows, ends) = parts
    assert_rows_agree(y, full)
    for t, window in enumerate(windows):
        assert_rows_agree(window, full[:, t : t + STEP])
        end, expected = (
            jax.tree.map(lambda s, i=i: s[i], tree) for tree, i in ((ends, t), (states, t + STEP))
        )
        assert_states_agree(end, expected)


def marked(cases):
    slow = pytest.mark.slow
    return [pytest.param(*case, marks=slow) if case in POINTWISE else case for case in cases]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "label"), marked(CASES))
def test_split_anywhere(name, label, packed):
    """Token by token, in calls on several tokens from any of these states, and whole: all one."""
    full, _ = whole(name, label, packed)
    assert_parts_are_whole(parts(name, label, packed), full)


@pytest.mark.parametrize(
    ("name", "label"),
    [case if case in CARRIERS else pytest.param(*case, marks=pytest.mark.slow) for case in CORE],
)
def test_steps_of_several_tokens_are_whole(name, label):
    """In value, and in what a token sees through the states of earlier calls."""
    full, _ = whole(name, label, packed=True)
    y, reach = steps(name, label)  # split at a boundary and inside of segments
    assert_rows_agree(y, full)
    assert_reach(name, label, packed=True, reach=reach)


@pytest.mark.parametrize(("name", "label"), CORE)
def test_no_ids_are_one_document(name, label):
    """Whole, and as a prompt of any number of tokens, after a token too."""
    mixer, apply = build(name, label)
    x, _, positions = inputs()
    full, _ = whole(name, label, packed=False)
    assert_rows_agree(apply(x, None, None, positions)[0], full)
    start = mixer.init_state(B), state_after(name, label, False, 1)
    for first, state in enumerate(start):
        last = first + T - 1
        y, state = apply(x[:, first:last], state, None, positions[:, first:last])
        assert_rows_agree(y, full[:, first:last])
        assert_states_agree(state, state_after(name, label, False, last))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "label"), CASES)
def test_every_length_of_both_parts(name, label, packed):
    """Prefill to the split, the rest in one call: equal outputs, and one state at the end."""
    mixer, apply = build(name, label)
    data = inputs(packed)
    full, _ = whole(name, label, packed)
    for split in range(1, T):
        head, state = call(apply, cut(data, 0, split), mixer.init_state(B))
        tail, state = call(apply, cut(data, split, T), state)
        assert_rows_agree(np.concatenate([head, tail], axis=1), full)
        assert_states_agree(state, state_after(name, label, packed, T))


@pytest.mark.parametrize("fault", ["dropped state", "no segments", "shifted state", "one row"])
@pytest.mark.parametrize(("name", "label"), [("linear", "convolution"), ("softmax", "cache")])
def test_negative_control(name, label, fault):
    """The check that the mixers pass is one that a broken mixer fails."""
    mixer, apply = build(name, label)

    def broken(x, state, segment_ids, positions):
        if fault == "no segments":
            return apply(x, state, jnp.ones_like(segment_ids), positions)
        y, state = apply(x, state, segment_ids, positions)
        if fault == "dropped state":
            state = mixer.init_state(B)
        elif fault == "shifted state":
            state = jax.tree.map(lambda s: jnp.roll(s, 1, axis=0), state)
        else:
            state = reset_rows(state, jnp.array([False, False, True]))
        return y, state

    found = jax.device_get(parts_program(mixer, broken)(*inputs(packed=True)))
    with pytest.raises(AssertionError, match="relative RMS"):
        assert_parts_are_whole(found, whole(name, label, packed=True)[0])


def assert_reach(name, label, packed, reach):
    """Exactly 0 from later tokens and other segments, and from no other tokens."""
    mixer, _ = build(name, label)
    ids = inputs(packed)[1]
    t, s = np.arange(T)[:, None], np.arange(T)
    visible = (s <= t) & (ids[:, :, None] == ids[:, None])
    window = getattr(mixer, "window", None)
    if window is not None:
        visible = visible & (t - s < window)
    if name == "diag":
        visible = visible & (t // mixer.block_size == s // mixer.block_size)
    if name in SPARSE or label == "relu":
        assert not np.any(reach & ~visible) and np.mean(reach[visible]) > 0.3
    else:
        assert np.array_equal(reach, visible)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "label"), CORE)
def test_what_a_token_sees(name, label, packed):
    """The Jacobian of one call without a state."""
    assert_reach(name, label, packed, whole(name, label, packed)[1])


@pytest.mark.parametrize(
    ("name", "label"),
    [case for case in CORE if MIXERS[case[0]].needs_no_positions(options_of(*case))],
)
def test_the_order_of_tokens_counts_without_positions(name, label):
    """The last output depends on the order of the tokens before, all at position 0."""
    x, ids, positions = inputs()
    turned = np.concatenate([x[:, -2::-1], x[:, -1:]], axis=1)
    last, other = (
        whole_program(name, label)(a, ids, np.zeros_like(positions))[0][:, -1] for a in (x, turned)
    )
    assert relative_rms(last, other) > 1e-3


@functools.cache
def decoding(name, label):
    """(x, positions, state) -> outputs of tokens without ids, one at a time."""
    _, apply = build(name, label)

    def run(x, positions, state):
        def step(state, token):
            y, state = apply(token[0], state, None, token[1])
            return state, y

        return time_second(lax.scan(step, state, time_first((x, positions)))[1])

    return jax.jit(run, compiler_options=QUICK)


def decode(name, label, firsts, state, x=None, tokens=5):
    """As many tokens of each row from its own first one on."""
    x = inputs()[0] if x is None else x
    arrays = [
        np.stack([a[b, n : n + tokens] for b, n in enumerate(firsts)])
        for a in (x, PACKED_POSITIONS)
    ]
    return np.asarray(decoding(name, label)(*arrays, state))


# The last documents have 1, 8 and 3 tokens so far; or a batch of rows that have read as many tokens
# as each is given here.  The next 5 are of the same documents.
@pytest.mark.parametrize("firsts", [(8, 8, 8), (10, 3, 6)])
@pytest.mark.parametrize(("name", "label"), CORE)
def test_rows_go_on_where_they_are(name, label, firsts):
    """A packed prompt, then tokens without ids: they belong to the last document of their row."""
    _, states, _ = parts(name, label, packed=True)
    state = jax.tree.map(lambda s: np.stack([s[n, b] for b, n in enumerate(firsts)]), states)
    full, _ = whole(name, label, packed=True)
    expected = np.stack([full[b, n : n + 5] for b, n in enumerate(firsts)])
    assert_rows_agree(decode(name, label, firsts, state), expected)


@pytest.mark.parametrize(("name", "label"), marked(CASES))
def test_state_is_zeros_of_constant_size(name, label):
    """And no two arrays of it are one, or it could not be donated."""
    mixer, _ = build(name, label)
    state = mixer.init_state(B)
    for x in jax.tree.leaves(state):
        assert len(x) == B and not np.any(x)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)
    _, _, (_, ends) = parts(name, label, packed=True)  # one token at a time it is carried by a scan
    end = jax.tree.map(lambda s: s[0], ends)
    chex.assert_trees_all_equal_shapes_and_dtypes(end, state)


@pytest.mark.parametrize(("name", "label"), CORE)
def test_reset_rows_is_a_fresh_start(name, label):
    mixer, _ = build(name, label)
    x = inputs(seed=2)[0]
    state = state_after(name, label, False, 4)
    rows = np.array([True, False, True])
    fresh, carried, y = (
        decode(name, label, (0, 0, 0), s, x)
        for s in (mixer.init_state(B), state, reset_rows(state, jnp.asarray(rows)))
    )
    assert np.array_equal(y[rows], fresh[rows])
    assert np.array_equal(y[~rows], carried[~rows])
    if label != "window of 1":  # which has nothing to carry
        assert relative_rms(carried[rows], fresh[rows]) > 1e-2


# --- Transcriptions of the papers, in NumPy float64, from the module's own weights ---------------


def dense(layer, x):
    y = x @ np.asarray(layer.kernel[...], np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias[...], np.float64)


def heads(x):
    return x.reshape(B, T, H, -1)


def turned(x, positions):
    """Rotary positions as complex numbers: pair i is multiplied by exp(1j * m * theta_i)."""
    half = x.shape[-1] // 2
    theta = 10_000.0 ** (-2 * np.arange(half) / x.shape[-1])
    z = x[..., :half] + 1j * x[..., half:]
    z = z * np.exp(1j * positions[:, :, None, None] * theta)
    return np.concatenate([z.real, z.imag], axis=-1)


def linear_oracle(mixer, x, segment_ids, positions):
    """Katharopoulos et al. 2020, equations 7 and 10-12, and RoFormer's equation 19."""
    q, k, v = (heads(dense(layer, x)) for layer in (mixer.query, mixer.key, mixer.value))
    q, k = (np.where(a > 0, a + 1, np.exp(a)) for a in (q, k))
    rotated = [turned(a, positions) if mixer.rotary else a for a in (q, k)]
    o = np.zeros(v.shape)
    for b, h in np.ndindex(B, H):
        for i in range(T):
            if i == 0 or segment_ids[b, i] != segment_ids[b, i - 1]:
                s = np.zeros((k.shape[-1], v.shape[-1]))
                z = np.zeros(k.shape[-1])
            s = s + np.outer(rotated[1][b, i, h], v[b, i, h])
            z = z + k[b, i, h]
            o[b, i, h] = s.T @ rotated[0][b, i, h] / (z @ q[b, i, h])
    return dense(mixer.output, o.reshape(B, T, D))


def softmax_oracle(mixer, x, segment_ids, positions):
    """Vaswani et al. 2017, equation 1, one query at a time; Lin et al. 2025, section 3, for fox."""
    q, k, v = (dense(layer, x) for layer in (mixer.query, mixer.key, mixer.value))
    q, k, v = (a.reshape(B, T, -1, mixer.key_width) for a in (q, k, v))
    if mixer.query_norm is not None:
        q, k = (
            a / np.sqrt(np.mean(a**2, axis=-1, keepdims=True) + 1e-6) * norm.scale[...]
            for a, norm in ((q, mixer.query_norm), (k, mixer.key_norm))
        )
    k, v = (np.repeat(a, H // a.shape[2], axis=2) for a in (k, v))
    if mixer.rotary:
        q, k = turned(q, positions), turned(k, positions)
    gates = dense(mixer.forget, x) if hasattr(mixer, "forget") else np.full((B, T, H), np.inf)
    o = np.zeros(v.shape)
    for b, i, h in np.ndindex(B, T, H):
        first = 0 if mixer.window is None else max(0, i + 1 - mixer.window)
        seen = [j for j in range(first, i + 1) if segment_ids[b, j] == segment_ids[b, i]]
        decay = [np.prod(1 / (1 + np.exp(-gates[b, j + 1 : i + 1, h]))) for j in seen]
        weights = decay * np.exp(k[b, seen, h] @ q[b, i, h] / np.sqrt(q.shape[-1]))
        o[b, i, h] = weights @ v[b, seen, h] / weights.sum()
    o = o.reshape(B, T, D)
    if mixer.gate is not None:
        o = o / (1 + np.exp(-dense(mixer.gate, x)))
    return dense(mixer.output, o)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "label", "oracle"),
    [
        ("linear", "chunks", linear_oracle),
        ("linear", "rotary", linear_oracle),
        ("linear", "recurrent", linear_oracle),
        ("softmax", "cache", softmax_oracle),
        ("softmax", "rotary", softmax_oracle),
        ("softmax", "window rotary", softmax_oracle),
        ("softmax", "grouped", softmax_oracle),
        ("softmax", "qk norm", softmax_oracle),
        ("softmax", "output gate", softmax_oracle),
        ("fox", "cache", softmax_oracle),
        ("fox", "window", softmax_oracle),
        ("fox", "all", softmax_oracle),
    ],
)
def test_equations(name, label, oracle, packed):
    """fp32 rounding over projections, 20 terms and a division: a few 1e-7, so 3e-6 is ample."""
    mixer, _ = build(name, label)
    x, segment_ids, positions = inputs(packed)
    expected = oracle(mixer, x.astype(np.float64), segment_ids, positions)
    assert_agree({"y": whole(name, label, packed)[0]}, {"y": expected}, 3e-6)


@pytest.mark.parametrize(("name", "label"), CORE)
def test_bfloat16_and_float64_states(name, label):
    """The state that comes out has the type of the one that goes in, so a scan can carry it."""
    options = options_of(name, label)

    def run(x):
        mixer = MIXERS[name](D, H, rngs=nnx.Rngs(0), dtype=x.dtype, **options)
        state = mixer.init_state(B)
        return state, *mixer(x, state, positions=jnp.asarray(POSITIONS[:, :STEP]))

    for dtype in ("bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            x = jax.ShapeDtypeStruct((B, STEP, D), dtype)
            state, y, after = jax.eval_shape(run, x)
            assert y.dtype == dtype
            chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"feature_map": "cosine"}, "feature_map is 'cosine'"),
        ("linear", {"nu": 2}, "nu is 2; only feature_map='dpfp' takes it, not 'elu_plus_one'"),
        ("linear", {"feature_map": "dpfp", "nu": 0}, "nu is 0"),
        ("linear", {"form": "fast"}, "form is 'fast'"),
        ("linear", {"chunk_size": 0}, "chunk_size is 0"),
        ("linear", {"key_width": 0}, "key_width is 0"),
        ("linear", {"convolution": 1}, "convolution is 1"),
        ("linear", {"key_width": 3, "rotary": True}, "even number of features, not 3"),
        ("delta_net", {"form": "parallel"}, "form is 'parallel'"),
        ("delta_net", {"convolution": 1}, "convolution is 1"),
        ("delta_net", {"key_width": 0}, "key_width is 0"),
        ("delta_product", {"steps": 0}, "steps is 0"),
        ("kda", {"lower_bound": 0.0}, "lower_bound is 0.0"),
        ("kda", {"key_heads": 3}, "key_heads is 3"),
        ("gated_delta_net", {"key_heads": 0}, "key_heads is 0"),
        ("rwkv7", {"rate_rank": 0}, "rate_rank is 0"),
        ("mamba3", {"rank": 0}, "rank is 0"),
        ("softmax", {"window": 0}, "window is 0"),
        ("softmax", {"cache_capacity": 0}, "cache_capacity is 0"),
        ("softmax", {"form": "fast"}, "form is 'fast'"),
        ("softmax", {"key_value_heads": 0}, "key_value_heads is 0"),
        ("softmax", {"key_value_heads": 3}, r"key_value_heads=3 does not divide heads \(2\)"),
    ],
)
def test_misuse_names_the_argument(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](D, H, rngs=nnx.Rngs(0), **options)
