"""Schedules, optimizers, clipping and weight decay against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linear_transformer.errors import ConfigError
from linear_transformer.nn.parameters import Declaration
from linear_transformer.training.optimizers import (
    OptimizerConfig,
    check_options,
    make_optimizer,
    make_schedule,
)

PEAK, STEPS, FINAL = 0.3, 100, 0.2
KERNEL = Declaration((None, None), "matrix", weight_decay=True, per_token=True)
EMBEDDING = Declaration((None, None), "embedding", weight_decay=True, per_token=False)
VECTOR = Declaration((None,), "vector", weight_decay=False, per_token=False)


def cosine(progress):
    return PEAK * (FINAL + (1 - FINAL) * (1 + math.cos(math.pi * min(progress, 1))) / 2)


FORMULAS = {
    "constant": lambda step, warmup: PEAK,
    "cosine": lambda step, warmup: cosine((step - warmup) / (STEPS - warmup)),
    "linear": lambda step, warmup: (
        PEAK * (1 - (1 - FINAL) * min((step - warmup) / (STEPS - warmup), 1))
    ),
    # Vaswani et al. 2017, section 5.3, with the peak in place of the width's power.
    "rsqrt": lambda step, warmup: (
        PEAK * (math.sqrt(warmup / step) if warmup else 1 / math.sqrt(1 + step))
    ),
    "step": lambda step, warmup: PEAK * 0.5 ** sum(step >= b for b in (30, 60)),
}


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("name", FORMULAS)
def test_schedule(name, warmup):
    config = OptimizerConfig(
        learning_rate=PEAK,
        schedule=name,
        warmup_steps=warmup,
        final_fraction=FINAL,
        step_boundaries=(30, 60),
        step_factor=0.5,
    )
    schedule = make_schedule(config, STEPS)
    for step in (0, 1, 5, 9, 10, 11, 29, 30, 31, 60, 99, 100, 150):
        expected = PEAK * step / warmup if step < warmup else FORMULAS[name](step, warmup)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step


def parameters():
    return {
        "dense": {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.full(4, 2.0)},
        "norm": {"scale": jnp.full(4, 2.0)},
        "embed": {"embedding": jnp.full((5, 4), 2.0)},
    }


DECLARED = {
    "dense": {"kernel": KERNEL, "bias": VECTOR},
    "norm": {"scale": VECTOR},
    "embed": {"embedding": EMBEDDING},
}


def update(config, gradients):
    optimizer = make_optimizer(config, STEPS, DECLARED)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(parameters()), parameters())
    return updates


def zeros():
    return jax.tree.map(jnp.zeros_like, parameters())


@pytest.mark.parametrize("name", ["adamw", "lion", "radam", "sgd"])
def test_weight_decay_is_for_kernels_and_embeddings_only(name):
    """With no gradient, the update is the decay alone: -rate * decay * weight."""
    decay = {"weight_decay": 0.1, "schedule": "constant", "learning_rate": 0.5}
    updates = update(OptimizerConfig(name=name, **decay), zeros())
    expected = -0.5 * 0.1 * 2.0
    np.testing.assert_allclose(updates["dense"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_allclose(updates["embed"]["embedding"], expected, rtol=1e-6)
    assert not np.any(updates["dense"]["bias"])
    assert not np.any(updates["norm"]["scale"])


@pytest.mark.parametrize("name", ["adamw", "lion", "nadamw", "lamb", "adam", "sgd"])
def test_no_weight_decay_is_none(name):
    """Some of optax's optimizers decay by default; a config that says 0 means 0."""
    updates = update(OptimizerConfig(name=name, schedule="constant"), zeros())
    assert not any(np.any(x) for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", ["adamw", "adam", "radam", "lion", "sgd"])
def test_every_optimizer_descends(name):
    """On |p - 1|^2 from p = 2, every parameter moves towards 1."""
    config = OptimizerConfig(name=name, schedule="constant", learning_rate=0.01)
    gradients = jax.grad(lambda p: sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(p)))
    optimizer = make_optimizer(config, STEPS, DECLARED)

    @jax.jit
    def step(values, state):
        updates, state = optimizer.update(gradients(values), state, values)
        return optax.apply_updates(values, updates), state

    values, state = parameters(), optimizer.init(parameters())
    for _ in range(20):
        values, state = step(values, state)
    assert all(np.all((x < 2) & (x > 0.5)) for x in jax.tree.leaves(values))


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_clipping(scale):
    """By the global norm: direction kept, length at most clip_norm."""
    gradients = jax.tree.map(lambda x: x * scale, parameters())
    norm = math.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradients)))
    sgd = {"name": "sgd", "schedule": "constant", "learning_rate": 1.0}
    updates = update(OptimizerConfig(clip_norm=3.0, **sgd), gradients)
    factor = min(1, 3.0 / norm)
    assert (factor < 1) == (scale == 10.0)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -factor * g, rtol=1e-6), updates, gradients
    )
    unclipped = update(OptimizerConfig(**sgd), gradients)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g, rtol=1e-6), unclipped, gradients)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adamm"}, r"config\.optimizer\.name is 'adamm'"),
        ({"name": "cosine_decay_schedule"}, r"config\.optimizer\.name is 'cosine_decay_schedule'"),
        ({"name": "scale"}, r"config\.optimizer\.name is 'scale'"),
        ({"schedule": "sine"}, r"config\.optimizer\.schedule is 'sine'; choose one of constant"),
        ({"options": {"b3": 0.5}}, r"config\.optimizer\.options\.b3: no such key"),
        ({"name": "sgd", "options": {"b1": 1}}, r"config\.optimizer\.options\.b1: no such key"),
    ],
)
def test_mistakes_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimizerConfig(**values), STEPS, DECLARED)


@pytest.mark.parametrize(
    ("option", "value"), [("preconditioning", "abc"), ("mu_dtype", "abc"), ("ns_coeffs", 1)]
)
def test_options_without_a_meaning(option, value):
    config = OptimizerConfig(name="muon", options={option: value})
    with pytest.raises(ConfigError, match=r"config\.optimizer\.options: optax\.muon") as error:
        check_options(config, STEPS, DECLARED, parameters())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_end_of_a_schedule(name):
    """At num_steps, or where schedule_steps says whatever num_steps is; then it stays."""
    options = {"schedule": name, "learning_rate": PEAK, "final_fraction": FINAL, "warmup_steps": 5}
    plain = make_schedule(OptimizerConfig(**options), 20)
    for num_steps in (20, 40):
        config = OptimizerConfig(**options, schedule_steps=20)
        schedule = make_schedule(config, num_steps)
        assert config.end(num_steps) == 20
        for step in (0, 4, 5, 12, 20):
            assert float(schedule(step)) == float(plain(step))
        assert float(schedule(39)) == pytest.approx(FINAL * PEAK, rel=1e-6)
    assert float(make_schedule(OptimizerConfig(**options), 40)(20)) > 2 * FINAL * PEAK


def test_schedules_without_an_end():
    for name in ("constant", "rsqrt", "step"):
        assert OptimizerConfig(schedule=name).end(20) is None
        with pytest.raises(ConfigError, match=rf"schedule_steps is 5; .* the {name} schedule"):
            OptimizerConfig(schedule=name, schedule_steps=5)
    assert OptimizerConfig(schedule="cosine", final_fraction=1.0).end(20) is None
    with pytest.raises(ConfigError, match=r"config\.optimizer\.schedule_steps is -1"):
        OptimizerConfig(schedule_steps=-1)
