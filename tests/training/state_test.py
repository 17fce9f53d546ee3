"""One training step: accumulation, averaging, dropout keys."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.training.build import make_train_step
from linear_transformer.training.state import init_state

ROWS, WIDTH = 8, 5


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = Linear(WIDTH, 1, axes=(None, None), rngs=rngs)


def loss(model, batch, key):
    """Weighted squares, and noise that only the bias's gradient sees, as the bias starts at 0."""
    error = jnp.square(model.dense(batch["x"])[:, 0] - batch["y"])
    error += batch["noise"] * model.dense.bias[0] * jax.random.normal(key, ())
    return {"loss": (jnp.sum(error * batch["weights"]), batch["weights"].sum())}


def make_batch(noise=0.0):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "y": rng.normal(size=ROWS).astype(np.float32),
        # Uneven: the second of four parts weighs nothing at all.
        "weights": np.array([5, 2, 0, 0, 1, 0.5, 3, 1], np.float32),
        "noise": np.full(ROWS, noise, np.float32),
    }


def make_step(accumulate_steps=1, ema_decay=0.0, seed=0, loss=loss):
    optimizer = optax.adamw(0.1, weight_decay=0.0)
    state = init_state(Model, optimizer, seed=3, ema_decay=ema_decay)
    return state, make_train_step(
        nnx.eval_shape(lambda: Model(ParameterRngs(0))),
        loss,
        optimizer,
        seed=seed,
        accumulate_steps=accumulate_steps,
        ema_decay=ema_decay,
    )


def assert_close(actual, expected, tolerance):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_is_the_whole_batch(parts):
    """Sums and counts add up, so parts of any weight give the same gradient."""
    batch = make_batch()
    whole, metrics = make_step()[1](make_step()[0], batch)
    state, step = make_step(accumulate_steps=parts)
    actual, actual_metrics = step(state, batch)
    assert_close(actual, whole, 1e-5)
    assert_close(actual_metrics, metrics, 1e-5)


def test_negative_control_of_accumulation():
    """Even weights have another gradient, so the parts' weights are not simply dropped."""
    state, step = make_step()
    _, uneven = step(state, make_batch())
    state, step = make_step(accumulate_steps=4)
    _, even = step(state, make_batch() | {"weights": np.ones(ROWS, np.float32)})
    assert abs(even["gradient_norm"][0] - uneven["gradient_norm"][0]) > 0.01


def test_gradient_norm_is_that_of_the_mean_loss():
    batch = make_batch()
    state, step = make_step()
    kernel, bias = (np.asarray(state.parameters["dense"][name]) for name in ("kernel", "bias"))
    _, metrics = step(state, batch)
    error = batch["x"] @ kernel[:, 0] + bias - batch["y"]
    slope = 2 * error * batch["weights"] / batch["weights"].sum()
    gradient = np.concatenate([batch["x"].T @ slope, [slope.sum()]])
    assert metrics["gradient_norm"][0] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def noise_norms(*, seed=0, accumulate_steps=1, steps=1):
    """Gradient norms in which the noise is all that counts."""
    state, step = make_step(accumulate_steps, seed=seed)
    norms = []
    for _ in range(steps):
        state, metrics = step(state, make_batch(noise=1e6))
        norms.append(float(metrics["gradient_norm"][0]))
    return norms


def test_dropout_keys_differ_by_step_seed_and_part():
    first, second = noise_norms(steps=2)
    assert noise_norms(steps=2) == [first, second]
    others = [second, *noise_norms(seed=1), *noise_norms(accumulate_steps=4)]
    for other in others:
        assert abs(other - first) > 1e-3 * first


def test_average():
    """average <- decay * average + (1 - decay) * parameters, from the initial parameters on."""
    decay = 0.9
    state, step = make_step(ema_decay=decay)
    expected = jax.tree.map(np.asarray, state.parameters)
    for _ in range(5):
        state, _ = step(state, make_batch())
        expected = jax.tree.map(
            lambda a, p: decay * a + (1 - decay) * np.asarray(p), expected, state.parameters
        )
        assert_close(state.average, expected, 1e-6)
    chex.assert_trees_all_equal(state.evaluated, state.average)
    assert not np.allclose(
        state.average["dense"]["kernel"], state.parameters["dense"]["kernel"], rtol=1e-3
    )


def test_without_an_average_the_parameters_are_evaluated():
    state, _ = make_step()
    assert state.average is None
    chex.assert_trees_all_equal(state.evaluated, state.parameters)


def test_weights_of_zero_change_nothing():
    """A batch of padding has no gradient, and no division by zero."""
    state, step = make_step()
    before = jax.tree.map(np.asarray, state.parameters)
    state, metrics = step(state, make_batch() | {"weights": np.zeros(ROWS, np.float32)})
    assert metrics["gradient_norm"][0] == 0
    chex.assert_trees_all_equal(state.parameters, before)


@pytest.mark.parametrize(("parts", "traces"), [(1, 1), (4, 2)])
def test_steps_are_one_program(parts, traces):
    """The loss is traced once; of a part of a batch, once more for its shapes."""
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(lambda *args: loss(*args), n=traces)
    state, step = make_step(accumulate_steps=parts, loss=counted)
    for _ in range(3):
        state, _ = step(state, make_batch())
