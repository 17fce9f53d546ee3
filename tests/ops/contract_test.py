"""Every operation with a state is one function in all its forms: split, packed, masked, any length.

A case describes one operation; the test bodies are the same for all of them.  Compiling is
all that they cost, so each program proves as much as it can: a sequence in two parts is a test of
two lengths and of the gradient of a state too, and the gradients of each token by itself show what
causality, documents, masks and the initial state let through.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers import slow_except
from tests.ops import (
    additive_test,
    contract,
    decay_test,
    delta_test,
    efficient_test,
    random_features_test,
    selective_scan_test,
)

T, CHUNK = 77, 8  # two or three blocks of chunks, the last one cut off
SPLIT = 1
SHORT, SHORT_CHUNK = 11, 4


class Case(NamedTuple):
    """An operation with arrays by name, among them the initial state, and without a direction.

    Attributes:
      op: (form, chunk_size) to a cached function (**arrays, **constants) -> (o, state).
      inputs: (time, kind) to float64 arrays of unit variance.
      definition: that of ops/naive.py, where the module's own tests have none.
      forms: those beside the token scan.
      kinds: of decays.
      masks: whether keys can be masked.
      timeless: arrays without a time axis, beside the state.
      fp32: bound of the error in fp32, roundings of 6e-8 in sums over tokens.
    """

    op: Callable
    inputs: Callable
    definition: Callable | None = None
    forms: tuple[str, ...] = ("chunk",)
    kinds: tuple[str, ...] = ("usual",)
    masks: bool = True
    timeless: tuple[str, ...] = ()
    fp32: float = 5e-5


def additive(normalize, **options):
    def op(form, chunk_size):
        return additive_test.op(form, normalize, "causal", chunk_size)

    def inputs(time, kind):
        return additive_test.inputs(time, jnp.float64, normalize=normalize, positive=normalize)[0]

    definition = functools.partial(additive_test.definition, normalize=normalize)
    return Case(op, inputs, definition, ("parallel", "associative", "chunk"), fp32=2e-5, **options)


def decay(gate, **options):
    def op(form, chunk_size):
        return decay_test.op(form, "causal", chunk_size)

    def inputs(time, kind):
        return decay_test.inputs(time, jnp.float64, gate=gate, kind=kind)[0]

    forms = ("parallel", "associative", "chunk")
    return Case(op, inputs, decay_test.definition, forms, **options)


def bonus(gate, **options):
    def inputs(time, kind):
        return decay_test.with_bonus(*decay_test.inputs(time, jnp.float64, gate=gate, kind=kind))

    definition = decay_test.definition
    return Case(decay_test.bonus_op, inputs, definition, timeless=("bonus",), **options)


def delta(mechanism, forms=("chunk",), **options):
    def op(form, chunk_size):
        return delta_test.op(mechanism, form, chunk_size)

    def inputs(time, kind):
        return delta_test.inputs(mechanism, time, jnp.float64, kind=kind)[0]

    return Case(op, inputs, delta_test.definition, forms, masks=False, **options)


def diagonal(name, **options):
    def inputs(time, kind):
        arrays, _ = selective_scan_test.inputs(name, time, jnp.float64)
        if name != "diagonal":
            arrays["log_a"] = np.log(-selective_scan_test.A_ND)
        return arrays

    def definition(**arrays):
        if name != "diagonal":
            del arrays["log_a"]
        return selective_scan_test.definition(name, **arrays)

    forms = ("associative", "chunk")
    op = selective_scan_test.OPS[name]
    return Case(op, inputs, definition, forms, masks=False, fp32=5e-6, **options)


def exponential(module, **options):
    def op(form, chunk_size):
        return module.op(form, "causal", chunk_size)

    def inputs(time, kind):
        return module.inputs(time, jnp.float64)[0]

    return Case(op, inputs, **options)


CASES = {
    "additive": additive(True),
    "additive, no normaliser": additive(False),
    "fixed decay": decay("fixed", timeless=("log_decay",)),
    "scalar decay": decay("scalar", kinds=("usual", "resets", "mixed")),
    "vector decay": decay("vector", kinds=("usual", "resets", "mixed")),
    "decays of keys and values": decay("both", kinds=("usual", "resets", "mixed")),
    "scalar decay, bonus": bonus("scalar"),
    "vector decay, bonus": bonus("vector", kinds=("mixed",)),
    "delta": delta("delta"),
    "delta, fixed decay": delta("fixed", timeless=("log_decay",)),
    "delta, scalar decay": delta("scalar", kinds=("usual", "resets")),
    "delta, vector decay": delta("vector", ("associative", "chunk"), kinds=("usual", "resets")),
    "delta product": delta("product"),
    "delta, erase gates": delta("erase", kinds=("usual", "resets")),
    "low rank delta": delta("low rank"),
    "selective scan": diagonal("selective", timeless=("log_a",)),
    "selective scan, negative": diagonal("signed", timeless=("log_a",)),
    "diagonal scan": diagonal("diagonal"),
    "efficient": exponential(efficient_test, fp32=2e-5),
    "log features": exponential(random_features_test, fp32=1e-5),
}
FORMS = [(name, form) for name, case in CASES.items() for form in case.forms]
# Those of the decayed recurrence, and the maps of the delta rule without a vector decay.
MORE_FORMS = [
    *[(n, form) for n in ("efficient", "log features") for form in ("parallel", "associative")],
    *[(n, "associative") for n in CASES if "delta" in n and n != "delta, vector decay"],
]
# Each of these takes the path of another one, up to what its arrays are broadcast to.
LIKE_OTHERS = ("additive, no normaliser", "fixed decay", "delta, fixed decay")
UNLIKE = [name for name in CASES if name not in LIKE_OTHERS]
# Of each kind of recurrence and of gate; `test_gradients_of_each_token` has all.
KINDS = (
    "additive",
    "scalar decay",
    "decays of keys and values",
    "vector decay, bonus",
    "delta, scalar decay",
    "delta, vector decay",
    "low rank delta",
    "selective scan",
    "diagonal scan",
    "efficient",
    "log features",
)


def documents(time):
    """Starts in the middle of a chunk; at the split, and at a border of chunks and blocks after it.

    One document has one token, and the id before it is back after it.
    """
    first = np.where(np.arange(time) < time // 2, 1, 2)
    second = np.full(time, 3)
    second[:SPLIT] = 9
    second[SHORT_CHUNK : SHORT_CHUNK + 1] = 4
    second[SPLIT + 4 * CHUNK :] = 5
    return np.stack([first, second]).astype(np.int32)


def constants(case, time, *, packed=True):
    """Documents, and keys of which a tenth is masked; or one document of all keys."""
    given = {"segment_ids_BT": documents(time) if packed else np.zeros((2, time), np.int32)}
    if case.masks:
        shown = np.random.default_rng(5).random((2, time)) < 0.9
        given["key_mask_BS"] = shown if packed else np.ones_like(shown)
    return given


@functools.cache
def in_two_parts(name):
    """The chunk form in two calls; the state is dropped where a document starts between them."""
    case = CASES[name]
    op = case.op("chunk", CHUNK)

    def run(initial_state, **arguments):
        def part(tokens):
            return {n: x if n in case.timeless else x[:, tokens] for n, x in arguments.items()}

        o_head, state = op(initial_state=initial_state, **part(slice(SPLIT)))
        ids = arguments["segment_ids_BT"]
        same_B = ids[:, SPLIT] == ids[:, SPLIT - 1]
        state = jnp.where(same_B.reshape(-1, *[1] * (state.ndim - 1)), state, 0)
        o_tail, state = op(initial_state=state, **part(slice(SPLIT, None)))
        return jnp.concatenate([o_head, o_tail], axis=1), state

    return run


def scan(name, arrays, given):
    return contract.evaluate(CASES[name].op("recurrent", None), arrays, given)


@pytest.mark.parametrize("name", slow_except(KINDS, UNLIKE))
def test_chunks_in_two_parts_are_the_token_scan(name):
    """Value, final state and every gradient; one of the parts is a single token."""
    case = CASES[name]
    given = constants(case, T)
    with jax.enable_x64(True):
        for kind in case.kinds:
            arrays = case.inputs(T, kind)
            expected = scan(name, arrays, given)
            actual = contract.evaluate(in_two_parts(name), arrays, given)
            contract.assert_agree(actual, expected, 1e-10)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.definition])
def test_the_token_scan_is_the_definition(name):
    case = CASES[name]
    given = constants(case, T)
    with jax.enable_x64(True):
        for kind in case.kinds:
            arrays = {n: np.array(x) for n, x in case.inputs(T, kind).items()}
            found = scan(name, arrays, given)
            if case.masks:
                arrays["k"] *= given["key_mask_BS"][..., None, None]
            expected = case.definition(**arrays, segment_ids_BT=given["segment_ids_BT"])
            contract.assert_agree({n: found[n] for n in expected}, expected, 1e-12)


@pytest.mark.parametrize("name", slow_except(KINDS, UNLIKE))
def test_fp32_without_state_ids_and_masks(name):
    """Chunks of the default size; the fp64 scan has a state, ids and a mask that change nothing."""
    case = CASES[name]
    with jax.enable_x64(True):
        arrays = {n: np.asarray(x, np.float32) for n, x in case.inputs(T, "usual").items()}
        wide = {n: x.astype(np.float64) for n, x in arrays.items()}
        wide["initial_state"] *= 0
        expected = scan(name, wide, constants(case, T, packed=False))
    del arrays["initial_state"], expected["d_initial_state"]
    actual = contract.evaluate(case.op("chunk", None), arrays, {})
    contract.assert_agree(actual, expected, case.fp32)


@functools.cache
def token_gradients(name, form):
    """Values, and the gradients of a random combination of each output token and of the state.

    The latter have an axis of T + 1 in front.
    """
    case = CASES[name]
    op = case.op(form, None if form == "recurrent" else SHORT_CHUNK)
    rng = np.random.default_rng(1)

    @jax.jit
    def run(arrays, given):
        (o, state), pullback = jax.vjp(lambda arrays: op(**arrays, **given), arrays)
        of_token = jnp.asarray(rng.normal(size=(len(o), *o.shape[2:])), o.dtype)
        of_state = jnp.asarray(rng.normal(size=state.shape), state.dtype)

        def gradients(t):
            tokens = jnp.zeros_like(o).at[:, t].set(of_token, mode="drop")
            return pullback((tokens, jnp.where(t == SHORT, of_state, 0)))[0]

        return {"o": o, "state": state}, jax.lax.map(gradients, jnp.arange(SHORT + 1))

    with jax.enable_x64(True):
        return jax.device_get(run(case.inputs(SHORT, "usual"), constants(case, SHORT)))


@functools.cache
def allowed(name, argument):
    """(T + 1, B, T), or (T + 1, B) for the state: what may depend on which of its tokens."""
    given = constants(CASES[name], SHORT)
    ids = given["segment_ids_BT"]
    starts = np.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
    run = np.cumsum(starts, axis=1)
    run = np.concatenate([run, run[:, -1:]], axis=1)  # the final state is of the last document
    if argument == "initial_state":
        return (run == 0).T
    t, s = np.arange(SHORT + 1)[:, None], np.arange(SHORT)
    pairs = (run[:, :, None] == run[:, None, :-1]) & (s <= t)
    if argument in ("q", "c"):
        pairs &= s == t
    # These act on the state before the token.
    if argument in ("log_decay", "log_value_decay_BTHV", "log_a", "read", "write", "erase"):
        pairs &= ~starts[:, None]
    if argument in ("k", "v") and CASES[name].masks:
        pairs &= given["key_mask_BS"][:, None]
    return pairs.swapaxes(0, 1)


@pytest.mark.parametrize(
    ("name", "form"), [(name, "recurrent") for name in CASES if name not in LIKE_OTHERS] + FORMS
)
def test_gradients_of_each_token(name, form):
    """Exactly 0 from later tokens, other documents and masked keys; else those of the scan."""
    values, gradients = token_gradients(name, form)
    expected_values, expected = token_gradients(name, "recurrent")
    contract.assert_agree(values, expected_values, 1e-10)
    contract.assert_agree(gradients, expected, 1e-10)
    for argument in gradients.keys() - set(CASES[name].timeless):
        may = allowed(name, argument)
        gradient = gradients[argument]
        does = np.any(gradient != 0, axis=tuple(range(may.ndim, gradient.ndim)))
        assert not np.any(does & ~may), argument
        assert np.mean(does[may]) > 0.5, argument  # a first token may cancel with its normaliser


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 2, 33, 64, 257])
@pytest.mark.parametrize(("name", "form"), [*FORMS, *MORE_FORMS])
def test_any_length(name, form, time):
    """In fp64 and fp32; the forms by pairs have T x T x K numbers a head."""
    case = CASES[name]
    given = constants(case, time)
    with jax.enable_x64(True):
        arrays = case.inputs(time, "usual")
        expected = scan(name, arrays, given)
        actual = contract.evaluate(case.op(form, None), arrays, given)
        contract.assert_agree(actual, expected, 1e-10)
    narrow = {n: np.asarray(x, np.float32) for n, x in arrays.items()}
    actual = contract.evaluate(case.op(form, None), narrow, given)
    contract.assert_agree(actual, expected, case.fp32)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 2, 16, 50, 128])
@pytest.mark.parametrize("name", CASES)
def test_any_chunk_size(name, chunk_size):
    case = CASES[name]
    given = constants(case, T)
    with jax.enable_x64(True):
        arrays = case.inputs(T, "usual")
        actual = contract.evaluate(case.op("chunk", chunk_size), arrays, given)
        contract.assert_agree(actual, scan(name, arrays, given), 1e-10)
