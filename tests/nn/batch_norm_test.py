"""The batch norm: its formula and gradients, and running moments through a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linear_transformer.models.classifier import Classifier, ClassifierConfig
from linear_transformer.nn.layers.batch_norm import BatchNorm
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.tasks.classification import classification_loss
from linear_transformer.training.state import init_state, make_train_step
from tests.ops.contract import relative_rms

D, EPSILON, DECAY = 6, 1e-5, 0.9
X = 3 + 2 * np.random.default_rng(0).normal(size=(4, 5, D))


def make_norm():
    norm = BatchNorm(D, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    norm.scale[...] = jnp.asarray(rng.uniform(0.5, 2, D), jnp.float32)
    norm.bias[...] = jnp.asarray(rng.normal(size=D), jnp.float32)
    return norm


def formula(x, scale, bias):
    mean, variance = x.mean((0, 1)), ((x - x.mean((0, 1))) ** 2).mean((0, 1))
    return (x - mean) / (variance + EPSILON) ** 0.5 * scale + bias


def test_training_is_the_formula_with_its_gradients():
    norm = make_norm()
    graphdef, parameters = nnx.split(norm)
    x = jnp.asarray(X, jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=X.shape), jnp.float32)

    def actual(parameters, x):
        return jnp.sum(weights * nnx.merge(graphdef, parameters)(x, training=True))

    def expected(scale, bias, x):
        return jnp.sum(weights * formula(x, scale, bias))

    assert relative_rms(norm(x, training=True), formula(X, *of(norm))) < 1e-6
    of_parameters, of_x = jax.grad(actual, (0, 1))(parameters, x)
    scale, bias, expected_x = jax.grad(expected, (0, 1, 2))(*of(norm), x)
    assert relative_rms(of_parameters.scale[...], scale) < 1e-5
    assert relative_rms(of_parameters.bias[...], bias) < 1e-5
    assert relative_rms(of_x, expected_x) < 1e-5
    moments = [np.full(D, 20.0), X.sum((0, 1)), (X**2).sum((0, 1))]
    assert relative_rms(of_parameters.moments[...], np.stack(moments)) < 1e-6


def of(norm):
    return norm.scale[...], norm.bias[...]


def test_prediction_uses_the_running_moments_alone():
    norm = make_norm()
    assert relative_rms(norm(jnp.asarray(X)), X * norm.scale[...] + norm.bias[...]) < 1e-5
    mean, variance = np.linspace(-1, 1, D), np.linspace(0.5, 2, D)
    norm.moments[...] = jnp.asarray(7 * np.stack([np.ones(D), mean, variance + mean**2]))
    expected = (X - mean) / np.sqrt(variance + EPSILON) * norm.scale[...] + norm.bias[...]
    y = norm(jnp.asarray(X, jnp.float32))
    assert relative_rms(y, expected) < 1e-5
    np.testing.assert_array_equal(norm(jnp.asarray(X[:1, :2], jnp.float32)), y[:1, :2])


CONFIG = {
    "vocab_size": 11,
    "num_classes": 3,
    "width": 8,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_width": 16,
    "mixers": {"linear": {"direction": "bidirectional", "feature_map": "elu_plus_one"}},
    "norm": "batchnorm",
}


def make_step(optimizer, accumulate_steps=1, **options):
    config = ClassifierConfig(**(CONFIG | options))

    def make_model(rngs):
        return Classifier(config, rngs=rngs)

    def loss(model, batch, key):
        logits = model(batch["inputs"], dropout_key=key)
        return classification_loss(logits, batch["labels"], jnp.ones(len(logits)))

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_model(ParameterRngs(0))))
    given = {"seed": 0, "ema_decay": 0.0}
    state = init_state(make_model, optimizer, **given)
    step = make_train_step(graphdef, loss, optimizer, accumulate_steps=accumulate_steps, **given)
    return graphdef, state, step


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    return {"inputs": rng.integers(11, size=(6, 9)), "labels": rng.integers(3, size=6)}


def final_moments(state):
    return np.asarray(state.parameters["encoder"]["trunk"]["final_norm"]["moments"])


def test_steps_average_the_moments_of_their_batches():
    """Of tokens that an optimizer of rate 0 leaves alone: the average is known."""
    graphdef, state, step = make_step(optax.sgd(0.0))
    expected = np.zeros((3, 8))

    @jax.jit
    def entering_last_norm(parameters, tokens):
        entering = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BatchNorm, "__call__", spy(entering))
            nnx.merge(graphdef, parameters)(tokens, dropout_key=jax.random.key(0))
        return entering[-1]

    for seed in range(3):
        batch = make_batch(seed)
        x = np.asarray(entering_last_norm(state.parameters, batch["inputs"]), np.float64)
        new = np.stack([np.full(8, 54.0), x.sum((0, 1)), (x**2).sum((0, 1))])
        expected = DECAY * expected + (1 - DECAY) * new
        state, _ = step(state, batch)
    assert relative_rms(final_moments(state), expected) < 1e-5


def spy(entering):
    call = BatchNorm.__call__

    def recorded(self, x, *, training=False):
        entering.append(x)
        return call(self, x, training=training)

    return recorded


def test_through_scan_and_remat():
    _, plain, step = make_step(optax.sgd(0.1))
    plain, _ = step(plain, make_batch())
    _, state, step = make_step(optax.sgd(0.1), scan_layers=True, remat="full")
    state, _ = step(state, make_batch())
    assert relative_rms(final_moments(state), final_moments(plain)) < 1e-5


def test_accumulated_parts_add_up():
    """Each part is normed by itself; what enters the first norm does not depend on that."""
    found = []
    for parts in (1, 3):
        _, state, step = make_step(optax.sgd(0.0), accumulate_steps=parts, num_layers=1)
        state, _ = step(state, make_batch())
        stack = state.parameters["encoder"]["trunk"]["stack"]
        found.append(np.asarray(stack["blocks"][0]["mixer_norm"]["moments"]))
    assert found[0][0, 0] == pytest.approx(0.1 * 54)
    assert relative_rms(found[1], found[0]) < 1e-6


def test_optimizer_does_not_see_the_moments():
    """Inputs of any size leave the gradient's norm, and so the clipping, to real gradients."""
    _, state, step = make_step(optax.adamw(1e-2))
    before = jax.tree.map(np.asarray, state)
    state, metrics = step(state, make_batch())
    assert 0 < metrics["gradient_norm"][0] < 10 < np.abs(final_moments(state)).max()
    first = jax.tree_util.tree_leaves_with_path(state.optimizer)
    moments = [leaf for path, leaf in first if "moments" in str(path)]
    assert moments and not any(np.any(leaf) for leaf in moments)
    assert np.any(before.parameters["head"]["kernel"] != state.parameters["head"]["kernel"])
