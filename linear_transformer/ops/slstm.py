"""sLSTM: a scalar memory per feature whose gates read the output of the token before.

    z, i, f, o = W x_t + R h_{t-1}
    c_t = sigmoid(f) c_{t-1} + exp(i) tanh(z)         n_t = sigmoid(f) n_{t-1} + exp(i)
    h_t = sigmoid(o) c_t / n_t

Beck et al. 2024 (arXiv:2405.04517, equations 8-18), with a sigmoid as the forget gate.  A head has
K features and one matrix R, so that features of one head read each other.

The recurrence is not linear in the state, so it is sequential over time: one `lax.scan` step per
token, the only form.  A sequence over several devices is computed as a whole on each of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import checks, recurrence, segments, sequence_parallel
from linear_transformer.ops.non_finite import stop_non_finite_gradient
from linear_transformer.types import SegmentIds


class SLSTMState(NamedTuple):
    """State after a token: c = exp(log_scale) cell, n = exp(log_scale) normalizer, and h = hidden.

    All zeros is the state before the first token.  The scale is the largest exponent so far, so
    that the normaliser is 1 or more after the first token.
    """

    cell: Float[Array, "B H K"]
    normalizer: Float[Array, "B H K"]
    hidden: Float[Array, "B H K"]
    log_scale: Float[Array, "B H K"]


def slstm(
    gates_BTHX: Float[Array, "B T H X"],
    kernel_HKX: Float[Array, "H K X"],
    *,
    initial_state: SLSTMState | None = None,
    segment_ids_BT: SegmentIds | None = None,
) -> tuple[Float[Array, "B T H K"], SLSTMState]:
    """Computes the recurrence from W x_t and R, token by token.

    A non-finite token affects only later outputs of its own segment and head, and no gradient
    passes through a non-finite output.

    Args:
      gates_BTHX: W x_t with biases, X = 4 K features per head: z, i, f and o, one after the other.
      kernel_HKX: R of each head, transposed.
      initial_state: the state before the first token, in its segment; zeros if None.
      segment_ids_BT: packed segments; each token sees only its own segment.

    Returns:
      All h_t in the dtype of the gates, and the final state in the accumulation dtype, in which all
      computations are.

    Raises:
      ValueError: an argument has a wrong type or shape.
    """
    checks.state("initial_state", initial_state, SLSTMState)
    leaves = {} if initial_state is None else initial_state._asdict()
    states: dict[str, Any] = {f"initial_state.{x}": (leaf, "BHK") for x, leaf in leaves.items()}
    sizes = checks.arrays(gates_BTHX=gates_BTHX, kernel_HKX=kernel_HKX, **states)
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT)
    batch, heads, width = (sizes[axis] for axis in "BHK")
    if sizes["X"] != 4 * width:
        raise ValueError(f"gates_BTHX has {sizes['X']} features; it must have {4 * width}")
    dtype = recurrence.accumulation_dtype(gates_BTHX, kernel_HKX)
    kernel_HKX = kernel_HKX.astype(dtype)
    before = [None] * 4 if initial_state is None else initial_state
    shape = (batch, heads, width)
    state = SLSTMState(*(recurrence.initial_state(leaf, shape, dtype) for leaf in before))

    def step(state, token):
        gates_BHX, start_B = token
        start = start_B[:, None, None]
        state = SLSTMState(*(jnp.where(start, 0, leaf) for leaf in state))
        return _step(state, gates_BHX, kernel_HKX)

    gates, ids = gates_BTHX, segment_ids_BT
    if sequence_parallel.shards() > 1:
        gates = sequence_parallel.gathered(gates)
        ids = None if ids is None else sequence_parallel.gathered(ids)
    starts_BT = jnp.zeros(gates.shape[:2], bool) if ids is None else segments.starts(ids)
    tokens = (jnp.moveaxis(gates.astype(dtype), 1, 0), starts_BT.T)
    state, h_TBHK = lax.scan(step, state, tokens)
    h_BTHK = jnp.moveaxis(h_TBHK, 0, 1)
    if sequence_parallel.shards() > 1:
        h_BTHK = sequence_parallel.own(h_BTHK)
    return stop_non_finite_gradient(h_BTHK).astype(gates_BTHX.dtype), state


def _step(
    state: SLSTMState, gates_BHX: Float[Array, "B H X"], kernel_HKX: Float[Array, "H K X"]
) -> tuple[SLSTMState, Float[Array, "B H K"]]:
    """Returns the state and the output after one token.

    A head with a non-finite gate or state is computed with zeros and then set to NaN, because a
    gradient of 0 times NaN would be NaN.
    """
    known = jnp.all(jnp.isfinite(jnp.stack(state)), axis=(0, -1))[..., None]
    cell, normalizer, hidden, log_scale = (jnp.where(known, leaf, 0) for leaf in state)
    gates_BHX = gates_BHX + jnp.einsum("bhk,hkx->bhx", hidden, kernel_HKX)
    known &= jnp.all(jnp.isfinite(gates_BHX), axis=-1, keepdims=True)
    z, i, f, o = jnp.split(jnp.where(known, gates_BHX, 0), 4, axis=-1)
    empty = normalizer == 0
    kept = log_scale + jax.nn.log_sigmoid(f)
    # No output depends on the scale, so it has no gradient.
    scale = lax.stop_gradient(jnp.where(empty, i, jnp.maximum(kept, i)))
    forget, write = jnp.exp(jnp.where(empty, 0, kept - scale)), jnp.exp(i - scale)
    cell = forget * cell + write * jnp.tanh(z)
    normalizer = forget * normalizer + write
    hidden = jax.nn.sigmoid(o) * cell / normalizer
    leaves = (cell, normalizer, hidden, scale)
    state = SLSTMState(*(jnp.where(known, leaf, jnp.nan) for leaf in leaves))
    return state, state.hidden
