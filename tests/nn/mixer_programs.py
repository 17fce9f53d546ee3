"""Compiled programs of the cases of `mixer_cases`, and their inputs.

Compiling is all that these tests cost, so a case has few programs that each prove as much as they
can.  Data are of one shape: segment ids are always given, except where their absence is tested.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from linear_transformer.nn.mixers.registry import MIXERS
from tests.nn.mixer_cases import CORE, STEP, B, D, H, T, options_of
from tests.ops.contract import assert_agree

# fp32 rounds sums of 20 terms to a few 1e-7, and divides by sums that are never near 0.
TOLERANCE = 1e-5
# Compiling is all that these tests cost, and optimising would double it.
QUICK = {"xla_backend_optimization_level": 0}

# A boundary at 7 and none after it, no boundary at all, and documents of 4 tokens and of 1, after
# which the id of the one before returns.
LENGTHS = ((7, 14), (21,), (4, 1, 8, 8))
SEGMENTS = np.stack([np.repeat(np.arange(len(n)) % 2 + 1, n) for n in LENGTHS]).astype(np.int32)
PACKED_POSITIONS = np.stack([np.concatenate([np.arange(n) for n in row]) for row in LENGTHS])
PACKED_POSITIONS = PACKED_POSITIONS.astype(np.int32)
ONE_SEGMENT = np.zeros((B, T), np.int32)  # as a state without a token has it
POSITIONS = np.tile(np.arange(T, dtype=np.int32), (B, 1))


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


@functools.cache
def compiled(name, label):
    """A jit of its own: inside another one, compiler options are an error."""
    return jax.jit(build(name, label)[1], compiler_options=QUICK)


def inputs(packed=False, seed=1):
    x = np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)
    return (x, SEGMENTS, PACKED_POSITIONS) if packed else (x, ONE_SEGMENT, POSITIONS)


def runs(segment_ids):
    """The number of each token's segment; ids may return."""
    return np.cumsum(np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0, axis=1)


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


def jacobian_of(pullback):
    """(B, T, T, D): the blocks (t, s) of the Jacobian, times one random vector for each output."""
    v_BD = jnp.asarray(np.random.default_rng(2).normal(size=(B, D)), jnp.float32)

    def of_token(t):
        return pullback(jnp.zeros((B, T, D)).at[:, t].set(v_BD))[0]

    return jnp.moveaxis(lax.map(of_token, jnp.arange(T)), 0, 1)


def with_jacobian(outputs, x):
    y, pullback = jax.vjp(outputs, x)
    return y, jacobian_of(pullback)


@functools.cache
def whole_program(name, label):
    """One call on all tokens without a state; in the core cases with its Jacobian."""
    _, apply = build(name, label)

    def run(x, *rest):
        def outputs(x):
            y, state = call(apply, (x, *rest))
            assert state is None
            return y

        return with_jacobian(outputs, x) if (name, label) in CORE else (outputs(x), None)

    return jax.jit(run, compiler_options=QUICK)


@functools.cache
def whole(name, label, packed):
    """Outputs and Jacobian."""
    return jax.device_get(whole_program(name, label)(*inputs(packed)))


@functools.cache
def steps(name, label):
    """Outputs of packed calls on STEP tokens, and their Jacobian through the states."""
    mixer, apply = build(name, label)
    x, *rest = inputs(packed=True)

    def run(x):
        state = mixer.init_state(B)
        return with_jacobian(lambda x: in_steps(apply, (x, *rest), state, STEP)[0], x)

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
