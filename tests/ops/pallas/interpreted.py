"""Kernels in Pallas's interpreter: what their tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.ops import contract

CHUNK = 16

evaluate = functools.partial(contract.evaluate, quickly=True)


def first_head(arrays: dict) -> dict:
    """A program has a copy of the mathematics for every head: one compiles in a third of the time.

    Several heads are in the tests of the additive kernel.
    """

    def axis(name, x):
        if name == "initial_state":
            return 1
        gate = name == "beta" or (name == "log_decay" and x.ndim < 4)
        return x.ndim - (1 if gate else 2)

    return {name: jnp.take(x, jnp.arange(1), axis(name, x)) for name, x in arrays.items()}


def packed(rng, arrays: dict) -> dict:
    batch, time = arrays["q"].shape[:2]
    return {"segment_ids_BT": jnp.asarray(contract.random_segments(rng, batch, time))}


def assert_is_the_token_scan(kernel, scan, arrays: dict, constants: dict) -> None:
    """Value, state and every gradient: fp64 against fp64 to roundings, fp32 to a few of its own.

    Inputs are fp32 numbers, so that both types compute the same thing.
    """
    assert all(x.dtype == jnp.float32 for x in arrays.values())
    with jax.enable_x64(True):
        wide = {name: x.astype(jnp.float64) for name, x in arrays.items()}
        expected = evaluate(scan, wide, constants)
        contract.assert_agree(evaluate(kernel, wide, constants), expected, 1e-12)
    tiny = jnp.finfo(jnp.float32).tiny  # what is below is 0, or has few digits
    expected = {name: np.where(abs(np.asarray(x)) < tiny, 0, x) for name, x in expected.items()}
    contract.assert_agree(evaluate(kernel, arrays, constants), expected, 5e-6)
