"""The kernels of the delta rule, interpreted on the CPU, are the token scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops.pallas import decays, delta
from tests.layers import slow_except
from tests.ops import contract
from tests.ops.delta_test import inputs, op as delta_op
from tests.ops.pallas import interpreted
from tests.ops.pallas.interpreted import CHUNK, evaluate, first_head, packed

op = functools.cache(functools.partial(delta_op, chunk_size=CHUNK))

CASES = [
    ("scalar", 150, "mixed"),
    ("vector", 70, "mixed"),
    *[
        pytest.param(mechanism, time, kind, marks=pytest.mark.slow)
        for mechanism, time, kind in [
            ("delta", 1, "usual"),
            ("delta", 150, "usual"),
            ("fixed", 20, "usual"),
            ("scalar", 333, "usual"),
            ("vector", 150, "-100"),
            ("vector", 20, "none"),
            ("product", 40, "mixed"),
            ("low rank", 40, "mixed"),
        ]
    ],
]


@pytest.mark.parametrize(("mechanism", "time", "kind"), CASES)
def test_the_kernel_is_the_token_scan(mechanism, time, kind):
    arrays, rng = inputs(mechanism, time, jnp.float32, kind=kind)
    arrays = first_head(arrays)
    kernel, scan = op(mechanism, "pallas"), op(mechanism, "recurrent")
    interpreted.assert_is_the_token_scan(kernel, scan, arrays, packed(rng, arrays))


@pytest.mark.parametrize("mechanism", slow_except(("low rank",), ("delta", "product", "low rank")))
def test_other_mechanisms(mechanism):
    arrays, rng = inputs(mechanism, 30, jnp.float32)
    arrays = first_head(arrays)
    constants = packed(rng, arrays)
    o, state = op(mechanism, "pallas")(**arrays, **constants)
    o_expected, expected = op(mechanism, "recurrent")(**arrays, **constants)
    contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 2e-6)


def test_bfloat16():
    """Operands are bf16; decays, inverses, sums and states are not."""
    arrays, rng = inputs("scalar", 70, jnp.bfloat16)
    arrays = first_head(arrays)
    for name in ("initial_state", "log_decay", "beta"):
        arrays[name] = arrays[name].astype(jnp.float32)
    constants = packed(rng, arrays)
    wide = {name: x.astype(jnp.float32) for name, x in arrays.items()}
    actual = evaluate(op("scalar", "pallas"), arrays, constants)
    assert actual["o"].dtype == jnp.bfloat16 and actual["state"].dtype == jnp.float32
    expected = evaluate(op("scalar", "recurrent"), wide, constants)
    contract.assert_agree(actual, expected, 3e-2)


def test_the_inverse_is_stable():
    """Equal keys and steps of 2: powers of L reach 1e18, and its inverse has entries of 2."""
    low = jnp.tril(jnp.full((64, 64), 2.0), -1)
    inverse = np.asarray(delta._inverse(low))
    sign = (-1.0) ** (np.arange(64)[:, None] - np.arange(64))
    assert np.array_equal(inverse, np.tril(2 * sign, -1) + np.eye(64))


def test_the_gradient_of_the_solution():
    """Of L and x, against the gradient of jax.scipy's triangular solve."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        low = jnp.asarray(np.tril(rng.normal(size=(16, 16)), -1))
        x, g = (jnp.asarray(rng.normal(size=(16, 5))) for _ in range(2))

        def expected(low, x):
            return jax.scipy.linalg.solve_triangular(
                jnp.eye(16) + jnp.tril(low, -1), x, lower=True, unit_diagonal=True
            )

        def actual(low, x):
            return delta.solve(jnp.tril(low, -1), x, None)

        for solution in zip(
            (actual(low, x), *jax.vjp(actual, low, x)[1](g)),
            (expected(low, x), *jax.vjp(expected, low, x)[1](g)),
            strict=True,
        ):
            assert contract.relative_rms(*solution) < 1e-10


@pytest.mark.parametrize("broken", ["solve", "read_before"])
def test_a_broken_rule_is_found(broken, monkeypatch):
    """No inverse, which is additive attention with decay; and reads that see an undecayed state."""
    if broken == "solve":
        monkeypatch.setattr(delta, "solve", lambda low, x, runs: x)
    else:
        init = decays.ScalarDecays.__init__

        def undecayed(self, log_decay):
            init(self, log_decay)
            self.read_before = jnp.ones_like(self.read_before)

        monkeypatch.setattr(decays.ScalarDecays, "__init__", undecayed)
    arrays, _ = inputs("scalar", 40, jnp.float32)
    o, state = op("scalar", "pallas")(**first_head(arrays))
    o_expected, expected = op("scalar", "recurrent")(**first_head(arrays))
    with pytest.raises(AssertionError, match="relative RMS"):
        contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 1e-3)
