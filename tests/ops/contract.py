"""The contract of a recurrence, as checks that any mechanism can be put through.

Inputs have unit variance and every comparison is a relative RMS error, so that a form that returns
zeros, or one wrong in a small part of its output, can't pass.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from linear_transformer.ops import naive

SEQUENCES = ("q", "k", "v")  # inputs with a time axis in position 1, to be extended by gates


def relative_rms(actual, expected) -> float:
    """RMS(actual - expected) / RMS(expected), in float64."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    error = np.sqrt(np.mean((actual - expected) ** 2))
    scale = np.sqrt(np.mean(expected**2))
    return float(error / scale) if scale > 0 else float(error)


def assert_agree(actual: dict, expected: dict, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    errors = {name: relative_rms(actual[name], expected[name]) for name in expected}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"relative RMS errors above {tolerance}: {wrong}"


@functools.cache
def _compiled(op, quickly):
    """Value, final state and all gradients of one form, compiled once a shape."""

    def run(arrays, constants, cotangents):
        outputs, pullback = jax.vjp(lambda arrays: op(**arrays, **constants), arrays)
        return outputs, pullback(cotangents)[0]

    # Of a large program on small arrays, optimising is half the time of a test.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0} if quickly else {})


def evaluate(op, arrays: dict, constants: dict, seed: int = 1, *, quickly: bool = False) -> dict:
    """{"o": ..., "state": ..., "d_<input>": ...} of `op`, which must be a cached partial."""
    shapes = jax.eval_shape(lambda a, c: op(**a, **c), arrays, constants)
    rng = np.random.default_rng(seed)
    cotangents = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    (o, state), gradients = _compiled(op, quickly)(arrays, constants, cotangents)
    return {"o": o, "state": state} | {f"d_{name}": g for name, g in gradients.items()}


def defined_recurrence(definition, *tokens_BTH, initial_state, segment_ids_BT) -> dict:
    """A recurrence of `ops.naive`, for all rows and heads: {"o": ..., "state": ...}."""

    def of_head(tokens, state, ids):
        return definition(*tokens, initial_state=state, segment_ids_T=ids)

    of_row = jax.jit(jax.vmap(jax.vmap(of_head, (1, 0, None), (1, 0))))
    o, state = of_row(tokens_BTH, initial_state, jnp.asarray(segment_ids_BT))
    return {"o": o, "state": state}


def defined_attention(definition, *tokens_BTH, visible_BTS) -> jax.Array:
    """Attention over pairs of `ops.naive`, for all rows and heads; 0 without a key."""
    of_row = jax.vmap(definition, (1, 1, 1, None), 1)
    return jax.jit(jax.vmap(of_row))(*tokens_BTH, jnp.asarray(visible_BTS))


def visible_pairs(segment_ids_BT, *, causal: bool = True) -> jax.Array:
    """`naive.pairs` of every row."""
    return jax.vmap(functools.partial(naive.pairs, causal=causal))(jnp.asarray(segment_ids_BT))


def random_segments(rng: np.random.Generator, batch: int, time: int) -> np.ndarray:
    """A few documents a row, with lengths of one token among them."""
    ids = np.zeros((batch, time), np.int32)
    for row in ids:
        starts = np.unique(rng.integers(0, time, size=1 + time // 40))
        row[:] = np.searchsorted(starts, np.arange(time), side="right")
        if time > 3:
            row[time // 2 :] += 7
            row[time // 2 + 1 :] += 1
    return ids


def assert_splits(op, arrays: dict, constants: dict, split: int, tolerance: float) -> None:
    """op(x[:s]) then op(x[s:], initial_state) is op(x), with the state dropped at a boundary."""
    whole, state = op(**arrays, **constants)
    both = arrays | constants
    head = {n: x if n == "initial_state" else x[:, :split] for n, x in both.items()}
    tail = {n: x if n == "initial_state" else x[:, split:] for n, x in both.items()}
    o_head, carried = op(**head)
    if "segment_ids_BT" in both:
        same_B = both["segment_ids_BT"][:, split] == both["segment_ids_BT"][:, split - 1]
        carried = jax.tree.map(
            lambda s: jnp.where(same_B.reshape(-1, *[1] * (s.ndim - 1)), s, 0), carried
        )
    o_tail, state_tail = op(**tail | {"initial_state": carried})
    assert_agree(
        {"o": jnp.concatenate([o_head, o_tail], 1), "state": state_tail},
        {"o": whole, "state": state},
        tolerance,
    )
