"""Operations on a sequence over several devices equal those on one, in fp64, gradients included.

`sequence_parallel_test.py` runs this where there are 8 devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from linear_transformer.ops import sequence_parallel
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.delta import (
    delta_attention,
    delta_product,
    erase_delta_attention,
    low_rank_delta_attention,
)
from linear_transformer.ops.selective_scan import diagonal_scan, selective_scan
from tests import collectives
from tests.layers import slow_except
from tests.ops import contract

B, H, K, V, N = 2, 2, 4, 3, 2
TOLERANCE = 1e-10  # fp64; sums in another order
WHOLE = ("initial_state", "log_decay_H", "a", "bonus_HK")  # arguments without a time axis


def selective(x, dt, b, c, a, **kw):
    return selective_scan(x, dt, -jnp.exp(a), b, c, **kw)


def diagonal(b, log_a, initial_state, **kw):
    """The complex scan with real arrays: the last axis is (real, imaginary)."""

    def to_complex(x):
        return jax.lax.complex(x[..., 0], x[..., 1])

    h, state = diagonal_scan(
        to_complex(b), jnp.exp(to_complex(log_a)), initial_state=to_complex(initial_state), **kw
    )
    return tuple(jnp.stack([z.real, z.imag], axis=-1) for z in (h, state))


def fixed(q, k, v, log_decay_H, **kw):
    return decayed_attention(q, k, v, log_decay_H, **kw)


additive = functools.partial(linear_attention, feature_map=None)

OPS = {
    "additive": additive,
    "additive_numerator": functools.partial(additive, normalize=False),
    "additive_anticausal": functools.partial(additive, direction="anticausal"),
    "additive_bidirectional": functools.partial(additive, direction="bidirectional"),
    "fixed": fixed,
    "scalar": functools.partial(decayed_attention),
    "vector": functools.partial(decayed_attention),
    "value": functools.partial(decayed_attention, log_decay=None),
    "anticausal": functools.partial(decayed_attention, direction="anticausal"),
    "bidirectional": functools.partial(decayed_attention, direction="bidirectional"),
    "bonus": functools.partial(decayed_attention),
    "delta": functools.partial(delta_attention, log_decay=None),
    "gated_delta": functools.partial(delta_attention),
    "kimi_delta": functools.partial(delta_attention),
    "product": functools.partial(delta_product),
    "erase": functools.partial(erase_delta_attention),
    "low_rank": functools.partial(low_rank_delta_attention),
    "selective": selective,
    "selective_anticausal": functools.partial(selective, direction="anticausal"),
    "selective_negative": functools.partial(selective, negative_eigenvalues=True),
    "diagonal": diagonal,
}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def inputs(name, time, seed=0):
    rng = np.random.default_rng(seed)

    def tokens(*shape):
        return rng.normal(size=(B, time, *shape))

    if name.startswith("selective"):
        arrays = {
            "x": tokens(V),
            "dt": np.exp(tokens(V) - 2),
            "b": tokens(K),
            "c": tokens(K),
            "a": rng.normal(size=(K, V)),
            "initial_state": rng.normal(size=(B, K, V)),
        }
    elif name == "diagonal":
        arrays = {
            "b": tokens(K, 2),
            "log_a": np.stack([-np.exp(tokens(K) - 2), tokens(K)], -1),
            "initial_state": rng.normal(size=(B, K, 2)),
        }
    else:
        steps = (N,) if name == "product" else ()
        q, k, v = tokens(H, K), tokens(*steps, H, K), tokens(*steps, H, V)
        state = rng.normal(size=(B, H, K, V))
        if name.startswith("additive") and name != "additive_numerator":
            q, k = np.exp(q), np.exp(k)
            state = np.concatenate([state, np.exp(state[..., :1]) * 3], -1)
        arrays = {"q": q, "k": k, "v": v, "initial_state": state}
        log_decay = -np.exp(tokens(H, K) - 2)
        if name == "fixed":
            arrays["log_decay_H"] = log_decay[0, 0, :, 0]
        elif name in ("vector", "bonus", "kimi_delta", "erase", "low_rank"):
            arrays["log_decay"] = log_decay
        elif name == "value":
            arrays["log_value_decay_BTHV"] = log_decay[..., :V]
        elif not name.startswith("additive") and name != "delta":
            arrays["log_decay"] = log_decay[..., 0]
        if name == "bonus":
            arrays["bonus_HK"] = rng.normal(size=(H, K))
        if name in ("delta", "gated_delta", "kimi_delta", "product", "erase", "low_rank"):
            arrays["k"] = unit(k)
        if name in ("delta", "gated_delta", "kimi_delta"):
            arrays["beta_BTH"] = 2 * rng.random((B, time, H))
        if name == "product":
            arrays["beta_BTNH"] = 2 * rng.random((B, time, N, H))
        if name == "erase":
            arrays["erase_BTHK"] = rng.random((B, time, H, K))
        if name == "low_rank":
            kappa = unit(tokens(H, K))
            arrays |= {"write_BTHK": rng.random((B, time, H, K)) * kappa, "read_BTHK": -kappa}
    renamed = {"product": {"k": "k_BTNHK", "v": "v_BTNHV", "q": "q_BTHK"}}
    source = "S" if name.startswith("additive") else "T"
    usual = {"q": "q_BTHK", "k": f"k_B{source}HK", "v": f"v_B{source}HV"}
    if name in ("fixed", "diagonal") or name.startswith("selective"):
        usual = {}
    renames = renamed.get(name, usual)
    return {renames.get(n, n): jnp.asarray(x, jnp.float64) for n, x in arrays.items()}


def documents(time, shards):
    """Two rows: documents over several shards and within one; one that ends where a shard does."""
    size = time // shards
    ids = np.zeros((B, time), np.int32)
    ids[0, size // 2 :] = 3
    ids[0, time - size // 2 - 1 :] = 4
    ids[0, time - 1 :] = 5
    ids[1, size:] = 1
    ids[1, size + 1 : size + 3] = 2
    return {"segment_ids_BT": jnp.asarray(ids)}


def padded(time):
    """The last two of these tokens are padding, a segment of their own."""
    ids = np.ones((B, time), np.int32)
    ids[:, -2:] = 0
    return {"segment_ids_BT": jnp.asarray(ids)}


@functools.cache
def mesh(shards):
    return jax.make_mesh(
        (shards,), (sequence_parallel.AXIS,), (AxisType.Auto,), devices=jax.devices()[:shards]
    )


@functools.cache
def sharded(name, shards):
    """The operation, with its tokens spread over devices."""
    tokens = PartitionSpec(None, sequence_parallel.AXIS)

    def run(**arguments):
        specs = {n: PartitionSpec() if n in WHOLE else tokens for n in arguments}
        return jax.shard_map(
            lambda arguments: OPS[name](**arguments),
            mesh=mesh(shards),
            in_specs=(specs,),
            out_specs=(tokens, PartitionSpec()),
            check_vma=False,
        )(arguments)

    return run


def check(name, shards, constants, time):
    with jax.enable_x64(True):
        arrays = inputs(name, time)
        expected = contract.evaluate(OPS[name], arrays, constants)
        actual = contract.evaluate(sharded(name, shards), arrays, constants)
        contract.assert_agree(actual, expected, TOLERANCE)


@pytest.mark.parametrize("name", slow_except(("additive_bidirectional", "bidirectional"), OPS))
def test_one_document(name):
    check(name, 8, {}, 8 * 5)


@pytest.mark.parametrize(
    "name", slow_except(("additive", "vector", "gated_delta", "selective"), OPS)
)
def test_packed_documents(name):
    check(name, 4, documents(24, 4), 24)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_not_finite_stays_in_its_document(packed):
    """NaN at token 10, in the second of four shards: outputs and gradients of what is beside it."""
    tokens, first = np.arange(24)[None], np.array([[3], [9]])
    last = np.array([[20], [24]])  # of the document of token 10 in either row
    untouched = (tokens < 6) | (packed & ((tokens < first) | (tokens >= last)))
    constants = documents(24, 4) if packed else {}
    with jax.enable_x64(True):
        arrays = {n: x.astype(jnp.float32) for n, x in inputs("gated_delta", 24).items()}

    def run(arrays):
        operation = functools.partial(sharded("gated_delta", 4), **constants)
        (o, _), pullback = jax.vjp(lambda arrays: operation(**arrays), arrays)
        cotangent = jnp.broadcast_to(untouched[..., None, None], o.shape).astype(o.dtype)
        return o, pullback((cotangent, jnp.zeros_like(arrays["initial_state"])))[0]

    run = jax.jit(run)
    expected, gradients = run(arrays)
    non_finite = {n: x if n in WHOLE else x.at[:, 10].set(jnp.nan) for n, x in arrays.items()}
    o, actual = run(non_finite)
    assert np.array_equal(o[untouched], expected[untouched]) and np.isnan(o[:, 10]).all()
    for name in set(arrays) - set(WHOLE):
        assert np.array_equal(actual[name][untouched], gradients[name][untouched]), name
    assert np.array_equal(actual["initial_state"], gradients["initial_state"])


def test_padding():
    """At most two segments a row have a form of their own."""
    check("additive_bidirectional", 4, padded(24), 24)


@pytest.mark.slow
def test_two_devices_and_one_token_each():
    check("vector", 2, {}, 2)


def wrong_scan(transition, update, compose, step):
    """The maps of the two shards before, whatever their number."""
    a, b = transition, update
    b = compose(a, sequence_parallel._sent(b, step)) + b
    return sequence_parallel._sent(b, step)


BROKEN = {
    "too few rounds": ("_scan", wrong_scan),
    "boundaries ignored": ("continues", lambda ids, reverse=False: jnp.ones(len(ids), bool)),
    "nothing sent": ("_sent", lambda x, distance: jnp.zeros_like(x)),
}


@pytest.mark.parametrize(
    "broken",
    [
        "too few rounds",
        pytest.param("boundaries ignored", marks=pytest.mark.slow),
        pytest.param("nothing sent", marks=pytest.mark.slow),
    ],
)
def test_a_broken_exchange_fails(broken, monkeypatch):
    attribute, function = BROKEN[broken]
    monkeypatch.setattr(sequence_parallel, attribute, function)
    sharded.cache_clear()
    with pytest.raises(AssertionError, match="relative RMS errors"):
        check("scalar", 4, documents(24, 4), 24)
    sharded.cache_clear()


def traffic(name, shards, time, constants=None):
    """(collective, bytes) of each message in the compiled gradient, but that of final states."""
    with jax.enable_x64(True):
        arrays = inputs(name, time) | (constants or {})
    arrays = {n: x if x.dtype == jnp.int32 else x.astype(jnp.float32) for n, x in arrays.items()}
    if name != "diagonal":
        arrays.pop("initial_state")

    def loss(arrays):
        return jnp.sum(jnp.sin(sharded(name, shards)(**arrays)[0]))

    floats = {n: x for n, x in arrays.items() if x.dtype == jnp.float32}
    rest = {n: x for n, x in arrays.items() if x.dtype != jnp.float32}
    gradient = jax.jit(jax.grad(lambda floats: loss(floats | rest)))
    return collectives.messages(gradient.lower(floats).compile().as_text())


@pytest.mark.parametrize("name", slow_except(("scalar",), OPS))
def test_messages_do_not_grow_with_the_sequence(name):
    """1 + log2 D messages of a map forward, and as many back; a sum for all keys at once."""
    short, long = (traffic(name, 8, time) for time in (64, 128))
    assert short == long
    kinds = [kind for kind, _ in short]
    passes = {"additive_bidirectional": 0, "bidirectional": 2}.get(name, 1)
    assert kinds.count("collective-permute") == passes * 2 * (1 + 3), short
    assert name != "additive_bidirectional" or kinds == ["all-reduce"] * 2
