"""The batch norm: its formula and gradients, and running moments from step to evaluation.

Moments of several devices are in `tests/training/mesh_cases.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import nnx

from linear_transformer.data import sequence_batches
from linear_transformer.inference.evaluation import Run, evaluate
from linear_transformer.models.classifier import Classifier, ClassifierConfig
from linear_transformer.nn.layers.batch_norm import BatchNorm
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.tasks.classification import classification_loss
from linear_transformer.training.build import Experiment, make_train_step
from linear_transformer.training.loop import train
from linear_transformer.training.state import init_state
from tests.ops.contract import relative_rms
from tests.tasks import sequence_classification_test
from tests.training import runs

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
    graphdef, parameters, statistics = nnx.split(norm, nnx.Param, nnx.BatchStat)
    x = jnp.asarray(X, jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=X.shape), jnp.float32)

    def actual(parameters, x):
        norm = nnx.merge(graphdef, parameters, nnx.to_pure_dict(statistics))
        return jnp.sum(weights * norm(x, training=True)), norm.moments[...]

    def expected(scale, bias, x):
        return jnp.sum(weights * formula(x, scale, bias))

    (of_parameters, of_x), moments = jax.grad(actual, (0, 1), has_aux=True)(parameters, x)
    scale, bias, expected_x = jax.grad(expected, (0, 1, 2))(*of(norm), x)
    assert relative_rms(of_parameters.scale[...], scale) < 1e-5
    assert relative_rms(of_parameters.bias[...], bias) < 1e-5
    assert relative_rms(of_x, expected_x) < 1e-5
    expected_moments = np.stack([np.full(D, 20.0), X.sum((0, 1)), (X**2).sum((0, 1))])
    assert relative_rms(moments, expected_moments) < 1e-6
    for calls in (1, 2):
        assert relative_rms(norm(x, training=True), formula(X, *of(norm))) < 1e-6
        assert relative_rms(norm.moments[...], calls * expected_moments) < 1e-6


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


def make_step(optimizer, accumulate_steps=1, ema_decay=0.0, **options):
    config = ClassifierConfig(**(CONFIG | options))

    def make_model(rngs):
        return Classifier(config, rngs=rngs)

    def loss(model, batch, key):
        logits = model(batch["inputs"], dropout_key=key)
        return classification_loss(logits, batch["labels"], jnp.ones(len(logits)))

    model = nnx.eval_shape(lambda: make_model(ParameterRngs(0)))
    given = {"seed": 0, "ema_decay": ema_decay}
    state = init_state(make_model, optimizer, **given)
    step = make_train_step(model, loss, optimizer, accumulate_steps=accumulate_steps, **given)
    return model, state, step


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    return {"inputs": rng.integers(11, size=(6, 9)), "labels": rng.integers(3, size=6)}


def final_moments(state):
    return np.asarray(state.statistics["encoder"]["trunk"]["final_norm"]["moments"])


def test_steps_average_the_moments_of_their_batches():
    """Of tokens that an optimizer of rate 0 leaves alone: the average is known."""
    model, state, step = make_step(optax.sgd(0.0))
    expected = np.zeros((3, 8))

    @jax.jit
    def entering_last_norm(evaluated, tokens):
        entering = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BatchNorm, "__call__", spy(entering))
            model_with = nnx.merge(nnx.graphdef(model), evaluated)
            model_with(tokens, dropout_key=jax.random.key(0))
        return entering[-1]

    for seed in range(3):
        batch = make_batch(seed)
        x = np.asarray(entering_last_norm(state.evaluated, batch["inputs"]), np.float64)
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
    for layer, expected in blocks(plain).items():
        for norm in ("mixer_norm", "feed_forward_norm"):
            scanned = blocks(state)[0][norm]["moments"][layer]
            assert relative_rms(scanned, expected[norm]["moments"]) < 1e-5


def blocks(state):
    return state.statistics["encoder"]["trunk"]["stack"]["blocks"]


def test_accumulated_parts_add_up():
    """Each part is normed by itself; what enters the first norm does not depend on that."""
    found = []
    for parts, options in ((1, {}), (3, {}), (3, {"scan_layers": True, "remat": "full"})):
        _, state, step = make_step(optax.sgd(0.0), accumulate_steps=parts, num_layers=1, **options)
        state, _ = step(state, make_batch())
        found.append(np.asarray(blocks(state)[0]["mixer_norm"]["moments"]).reshape(3, 8))
    assert found[0][0, 0] == pytest.approx(0.1 * 54)
    assert relative_rms(found[1], found[0]) < 1e-6
    assert relative_rms(found[2], found[0]) < 1e-6


def names(tree):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def test_only_statistics_hold_moments():
    """Neither optimizer, average nor number of parameters sees them; evaluation does."""
    model, state, step = make_step(optax.adamw(1e-2), ema_decay=0.5)
    before = jax.tree.map(np.asarray, state)
    state, metrics = step(state, make_batch())
    assert 0 < metrics["gradient_norm"][0] < 10 < np.abs(final_moments(state)).max()
    assert not any("moments" in name for name in names(state._replace(statistics={})))
    assert len(names(state.statistics)) == 5
    assert set(names(state.evaluated)) == {*names(state.average), *names(state.statistics)}
    assert model.num_parameters == sum(x.size for x in jax.tree.leaves(state.parameters))
    assert np.any(before.parameters["head"]["kernel"] != state.parameters["head"]["kernel"])


@pytest.mark.parametrize(("norm", "statistics"), [("layernorm", 0), ("batchnorm", 5)])
def test_step_of_a_model_without_statistics_has_none(norm, statistics):
    """Its program reads and writes step, parameters and optimizer, and nothing else."""
    _, state, step = make_step(optax.sgd(0.1, momentum=0.9), norm=norm)
    batch = make_batch()
    program = jax.make_jaxpr(step)(state, batch)
    _, metrics = jax.eval_shape(step, state, batch)
    others = 1 + 2 * len(jax.tree.leaves(state.parameters)) + statistics
    assert len(program.in_avals) == others + len(batch)
    assert len(program.out_avals) == others + 2 * len(metrics)


@pytest.mark.slow
def test_evaluation_after_a_resume(tmp_path, monkeypatch):
    """A run in two parts is the whole run, and evaluates from its checkpoint as it reported."""
    made = sequence_classification_test.Made()
    monkeypatch.setitem(sequence_batches.DATASETS, "made", lambda _: made)
    config = sequence_classification_test.make_config(
        model__norm="batchnorm", ema_decay=0.5, optimizer__schedule="constant"
    )
    whole = train(config, epath.Path(tmp_path / "whole"))
    config.num_steps = 4
    train(config, epath.Path(tmp_path / "parts"))
    config.num_steps = 6
    runs.assert_same_state(train(config, epath.Path(tmp_path / "parts")), whole)
    run = Run.load(epath.Path(tmp_path / "parts"))
    metrics = evaluate(run, "validation", stateful=False)
    assert metrics == {n: runs.curve(tmp_path / "whole", "validation")[-1][n] for n in metrics}
    assert Experiment(config).metric_names() == list(metrics)
    zeros = jax.tree.map(jnp.zeros_like, whole.statistics)
    without = whole._replace(statistics=zeros).evaluated
    other = run.task.evaluate(run.graphdef, without, "validation")
    assert abs(other["loss"] - metrics["loss"]) > 1e-3
