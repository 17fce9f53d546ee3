"""sLSTM against its definition: in two parts, packed, with gates of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops import naive
from linear_transformer.ops.slstm import SLSTMState, slstm
from tests.ops import contract

B, T, H, K = 2, 23, 2, 3
SPLIT = 9


def inputs(scale=1.0):
    rng = np.random.default_rng(0)
    gates = scale * rng.normal(size=(B, T, H, 4 * K))
    kernel, ids = rng.normal(size=(H, K, 4 * K)), contract.random_segments(rng, B, T)
    return gates, kernel, jnp.asarray(ids)


def defined(gates, kernel, ids):
    """Every h, and the last c, n and h, of the definition for every row and head."""

    def head(gates_TX, kernel_KX, ids_T):
        start = jnp.zeros((3, K), gates_TX.dtype)
        return naive.slstm(gates_TX, kernel_KX, initial_state=start, segment_ids_T=ids_T)

    rows = jax.vmap(jax.vmap(head, (1, 0, None), (1, 0)), (0, None, 0))
    return rows(gates, kernel, ids)


def in_two_parts(gates, kernel, ids):
    state = SLSTMState(*jnp.zeros((4, B, H, K), gates.dtype))
    head, state = slstm(
        gates[:, :SPLIT], kernel, initial_state=state, segment_ids_BT=ids[:, :SPLIT]
    )
    goes_on = (ids[:, SPLIT] == ids[:, SPLIT - 1])[:, None, None]
    state = SLSTMState(*(jnp.where(goes_on, leaf, 0) for leaf in state))
    tail, state = slstm(
        gates[:, SPLIT:], kernel, initial_state=state, segment_ids_BT=ids[:, SPLIT:]
    )
    scale = jnp.exp(state.log_scale)
    plain = (scale * state.cell, scale * state.normalizer, state.hidden)
    return jnp.concatenate([head, tail], axis=1), jnp.stack(plain, axis=2)


def test_two_parts_are_the_definition():
    """Value, state and gradients."""
    with jax.enable_x64(True):
        gates, kernel, ids = inputs()

        def evaluate(function):
            def loss(gates, kernel):
                h, state = function(gates, kernel, ids)
                return jnp.sum(jnp.sin(h)), {"h": h, "state": state}

            gradients, values = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(gates, kernel)
            return values | dict(zip(("d_gates", "d_kernel"), gradients, strict=True))

        contract.assert_agree(evaluate(in_two_parts), evaluate(defined), 1e-12)


def test_extreme_gates_stay_finite():
    """Input gates of exp(+-1000), where plain sums overflow and empty ones divide 0 by 0."""
    gates, kernel, ids = inputs(scale=300.0)

    def loss(gates, kernel):
        return jnp.sum(slstm(gates, kernel, segment_ids_BT=ids)[0] ** 2)

    arrays = jnp.asarray(gates, jnp.float32), jnp.asarray(kernel, jnp.float32)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays)
    assert all(np.all(np.isfinite(x)) for x in (value, *gradients))


@pytest.mark.parametrize("features", [4 * K - 4, 5 * K])
def test_misuse_names_the_argument(features):
    with pytest.raises(ValueError, match="gates_BTHX"):
        slstm(jnp.zeros((B, T, H, features)), jnp.zeros((H, K, features)))
