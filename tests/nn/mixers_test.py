"""Every mixer is one function, whether called whole, in parts, or token by token."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from linear_transformer.nn.mixers.base import reset_rows
from linear_transformer.nn.mixers.registry import MIXERS
from tests.layers import slow_except
from tests.nn.mixer_cases import (
    CARRIERS,
    CASES,
    CORE,
    DISTINCT,
    SPARSE,
    STEP,
    B,
    T,
    options_of,
)
from tests.nn.mixer_programs import (
    PACKED_POSITIONS,
    QUICK,
    assert_rows_agree,
    assert_states_agree,
    build,
    call,
    compiled,
    cut,
    inputs,
    parts,
    parts_program,
    runs,
    state_after,
    steps,
    time_first,
    time_second,
    whole,
    whole_program,
)
from tests.ops.contract import relative_rms

# The state is that of another case of the mechanism.
NO_OTHER_STATE = (("linear", "rotary"), ("diag", "relu"), ("parallel", "block"))

# --- Whole and in parts ---------------------------------------------------------------------------


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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "label"), slow_except(DISTINCT, CASES))
def test_split_anywhere(name, label, packed):
    """Token by token, in calls on several tokens from any of these states, and whole: all one."""
    full, _ = whole(name, label, packed)
    assert_parts_are_whole(parts(name, label, packed), full)


@pytest.mark.parametrize(("name", "label"), slow_except(CARRIERS, CORE))
def test_no_ids_are_one_document(name, label):
    """Whole, and as a prompt of any number of tokens, after a token too."""
    mixer, apply = build(name, label)[0], compiled(name, label)
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
    mixer, apply = build(name, label)[0], compiled(name, label)
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


@pytest.mark.parametrize(("name", "label"), slow_except(DISTINCT, CASES))
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


# --- What a token sees ----------------------------------------------------------------------------


def assert_reach(name, label, packed, jacobian):
    """Exactly 0 from later tokens and other segments, and from no other tokens."""
    reach = np.any(jacobian != 0, axis=-1)
    mixer, _ = build(name, label)
    run = runs(inputs(packed)[1])
    t, s = np.arange(T)[:, None], np.arange(T)
    visible = (s <= t) & (run[:, :, None] == run[:, None])
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


@pytest.mark.parametrize(
    ("name", "label"),
    slow_except([case for case in CARRIERS if case not in NO_OTHER_STATE], CORE),
)
def test_steps_of_several_tokens_are_whole(name, label):
    """In value, and in their gradients through the states of earlier calls."""
    full, full_jacobian = whole(name, label, packed=True)
    y, jacobian = steps(name, label)  # split at a boundary and inside of segments
    assert_rows_agree(y, full)
    assert_rows_agree(jacobian, full_jacobian)
    assert_reach(name, label, packed=True, jacobian=jacobian)
