"""The kernels of scalar and vector decay, interpreted on the CPU, are the token scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.pallas import decays
from linear_transformer.ops.pallas.arithmetic import ROWS_BY_ROWS, matmul
from linear_transformer.ops.pallas.layout import Layout
from tests.layers import slow_except
from tests.ops import contract
from tests.ops.decay_test import B, inputs
from tests.ops.pallas import interpreted
from tests.ops.pallas.interpreted import CHUNK, evaluate, first_head, packed

GATES = ("scalar", "vector")
# From no decay to a complete one, with -inf: every gradient, to a few roundings in fp32 too.
CASES = [
    ("scalar", 150, "mixed"),
    ("vector", 150, "mixed"),
    *[
        pytest.param(gate, time, kind, marks=pytest.mark.slow)
        for gate in GATES
        for time, kind in [(1, "usual"), (20, "none"), (150, "-5"), (150, "-100"), (333, "usual")]
    ],
]


@functools.cache
def op(form):
    call = functools.partial(decayed_attention, form=form, chunk_size=CHUNK)
    return lambda q, k, v, log_decay, **kw: call(q, k, v, log_decay, **kw)


@pytest.mark.parametrize(("gate", "time", "kind"), CASES)
def test_the_kernel_is_the_token_scan(gate, time, kind):
    arrays, rng = inputs(time, jnp.float32, gate=gate, kind=kind)
    arrays = first_head(arrays)
    interpreted.assert_is_the_token_scan(op("pallas"), op("recurrent"), arrays, packed(rng, arrays))


def test_fixed_decay_per_head():
    arrays, _ = inputs(70, jnp.float32, gate="fixed")
    o, state = op("pallas")(**arrays)
    o_expected, expected = op("recurrent")(**arrays)
    contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 1e-6)


@pytest.mark.parametrize(
    ("heads", "width", "sharing"), [pytest.param(16, 128, 8, marks=pytest.mark.slow), (6, 64, 6)]
)
def test_programs_that_read_gates_together(heads, width, sharing):
    """Of 8 heads, one each; of all heads, as they are no multiple of 8, two that fill the lanes."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 100, heads, width)), jnp.float32) for _ in range(3))
    log_decay = jnp.asarray(-rng.exponential(size=(1, 100, heads)), jnp.float32)
    layout = Layout.of((q, k, v), CHUNK)
    assert (layout.group, layout.sharing, layout.blocks) == (128 // width, sharing, 2)
    arrays = {"q": q, "k": k, "v": v, "log_decay": log_decay}
    actual, expected = (evaluate(op(form), arrays, {}) for form in ("pallas", "recurrent"))
    contract.assert_agree(actual, expected, 5e-6)


@pytest.mark.parametrize("gate", GATES)
def test_resets_and_boundaries_are_exact(gate):
    """Gradients are finite, exactly 0 for decays of -inf, and for what is before a boundary."""
    arrays, _ = inputs(40, jnp.float32, gate=gate, kind="resets")
    arrays = first_head(arrays)
    reset = np.isneginf(np.asarray(arrays["log_decay"]))
    ids = jnp.asarray(np.repeat([[3, 5]], [21, 19], axis=1).repeat(B, 0))

    def second_document(arrays):
        return jnp.sum(op("pallas")(**arrays, segment_ids_BT=ids)[0][:, 21:] ** 2)

    gradients = jax.jit(jax.grad(second_document))(arrays)
    assert reset.any() and np.all(np.asarray(gradients["log_decay"])[reset] == 0)
    assert np.all(np.asarray(gradients.pop("initial_state")) == 0)
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(np.asarray(gradient)))
        assert np.all(np.asarray(gradient[:, :21]) == 0) and np.any(np.asarray(gradient[:, 22:]))
        assert name != "log_decay" or np.all(np.asarray(gradient[:, 21]) == 0)


@pytest.mark.parametrize("gate", slow_except(("vector",), GATES))
def test_bfloat16(gate):
    """Operands are bf16; decays, sums and states are not."""
    arrays, rng = inputs(70, jnp.bfloat16, gate=gate)
    arrays = first_head(arrays)
    for name in ("initial_state", "log_decay"):
        arrays[name] = arrays[name].astype(jnp.float32)
    constants = packed(rng, arrays)
    wide = {name: x.astype(jnp.float32) for name, x in arrays.items()}
    actual = evaluate(op("pallas"), arrays, constants)
    assert actual["o"].dtype == jnp.bfloat16 and actual["state"].dtype == jnp.float32
    contract.assert_agree(actual, evaluate(op("recurrent"), wide, constants), 1e-2)


@pytest.mark.parametrize("broken", ["read", "reach", "total", "weights"])
@pytest.mark.parametrize("gate", GATES)
def test_a_decay_that_is_left_out_is_found(gate, broken, monkeypatch):
    cls = {"scalar": decays.ScalarDecays, "vector": decays.VectorDecays}[gate]
    init = cls.__init__

    def without(self, log_decay):
        init(self, log_decay)
        if broken == "weights":
            self.weights = lambda q, k, narrow: matmul(q, k, narrow, ROWS_BY_ROWS)
        else:
            setattr(self, broken, jnp.ones_like(getattr(self, broken)))

    monkeypatch.setattr(cls, "__init__", without)
    arrays, _ = inputs(40, jnp.float32, gate=gate)
    o, state = op("pallas")(**first_head(arrays))
    o_expected, expected = op("recurrent")(**first_head(arrays))
    with pytest.raises(AssertionError, match="relative RMS"):
        contract.assert_agree({"o": o, "state": state}, {"o": o_expected, "state": expected}, 1e-3)
