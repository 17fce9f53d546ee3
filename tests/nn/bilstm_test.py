"""The bidirectional LSTM against its equations, one step at a time in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.layers.bilstm import BiLSTM
from tests.ops.contract import relative_rms

B, T, FEATURES, HIDDEN, LAYERS = 3, 9, 5, 4, 2
LENGTHS = np.array([9, 4, 1])
MASK = np.arange(T) < LENGTHS[:, None]


def build(**options):
    graphdef, parameters = nnx.split(BiLSTM(FEATURES, HIDDEN, LAYERS, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype("f4"), parameters)
    return nnx.merge(graphdef, parameters)


def inputs():
    return np.random.default_rng(1).normal(size=(B, T, FEATURES)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_oracle(lstm, x):
    """Graves et al. 2013, equations 3 to 7, without peepholes, over one sequence (T, I)."""
    w, u = (np.asarray(layer.kernel[...], np.float64) for layer in (lstm.input, lstm.recurrent))
    bias = np.asarray(lstm.input.bias[...], np.float64)
    h, c, outputs = np.zeros(HIDDEN), np.zeros(HIDDEN), []
    for x_t in x:
        i, f, g, o = np.split(x_t @ w + h @ u + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


def oracle(model, x, lengths):
    y = np.zeros((B, T, 2 * HIDDEN))
    for b, length in enumerate(lengths):
        row = x[b, :length].astype(np.float64)
        for forward, backward in model.layers:
            row = np.concatenate(
                [lstm_oracle(forward, row), lstm_oracle(backward, row[::-1])[::-1]], axis=1
            )
        y[b, :length] = row
    return y


@pytest.mark.parametrize("padded", [False, True])
def test_equations(padded):
    model, x = build(), inputs()
    y = jax.jit(model)(x, mask=MASK if padded else None)
    assert relative_rms(y, oracle(model, x, LENGTHS if padded else [T] * B)) < 2e-6


def test_padding_has_no_influence():
    """Exactly, on values and on gradients."""
    model, x = build(), inputs()

    @jax.jit
    def call(x):
        y, pullback = jax.vjp(lambda x: model(x, mask=jnp.asarray(MASK)), x)
        return y, pullback(2 * y)[0]

    y, gradient = map(np.asarray, call(x))
    changed, _ = call(np.where(MASK[..., None], x, np.float32(7)))
    assert np.array_equal(y, changed)
    assert np.all(y[~MASK] == 0)
    assert np.all(gradient[~MASK] == 0) and np.all(np.any(gradient[MASK] != 0, axis=-1))


def test_both_directions_see_everything():
    model, x = build(), jnp.asarray(inputs())
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(model(x)[:, 4] ** 2)))(x))
    assert np.all(np.any(gradient != 0, axis=-1))


def test_speech_baseline():
    """3 layers of 320 units (Katharopoulos et al. 2020, section 4.3); torch's count, one bias."""
    shapes = jax.eval_shape(lambda: nnx.state(BiLSTM(40, rngs=nnx.Rngs(0))))
    units = 4 * 320
    per_layer = [2 * units * (inputs + 320 + 1) for inputs in (40, 640, 640)]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == sum(per_layer)


def test_dropout_is_between_layers_and_needs_a_key():
    model, x = build(dropout=0.5), jnp.asarray(inputs())
    assert np.array_equal(model(x), model(x))
    key = jax.random.key(0)
    dropped = model(x, dropout_key=key)
    assert not np.array_equal(dropped, model(x))
    assert np.all(np.asarray(dropped) != 0)  # The last layer's outputs are whole.


@pytest.mark.parametrize("name", ["hidden", "num_layers"])
def test_misuse_names_the_argument(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        BiLSTM(FEATURES, **{name: 0}, rngs=nnx.Rngs(0))
