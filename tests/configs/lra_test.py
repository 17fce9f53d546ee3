"""Long Range Arena: every variant is a model of the published sizes, and looks both ways."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs.lra import image, listops, pathfinder, retrieval, text, variants
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.models.classifier import Classifier, ClassifierConfig
from linear_transformer.models.matcher import Matcher
from linear_transformer.nn.mixers.registry import MIXERS
from linear_transformer.nn.parameters import declarations
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.training import experiment
from linear_transformer.training.optimizers import (
    OptimizerConfig,
    make_optimizer,
    make_schedule,
)
from tests.layers import slow_except

MODULES = {
    "listops": listops,
    "text": text,
    "retrieval": retrieval,
    "image": image,
    "pathfinder": pathfinder,
}
SETTINGS = (
    "linear",
    "linear,small",
    "linear,quick",
    "transnormer_t2",
    "lion_s",
    "convolution",
    "softmax",
)
CASES = [
    *(("image", name + size) for name in variants.NAMES for size in ("", ",small")),
    *((task, name) for task in MODULES if task != "image" for name in SETTINGS),
    *(
        ("pathfinder", f"{name},{side}")
        for side in (64, 128, 256)
        for name in ("linear", "transnormer_t1", "lion_s", "hybrid")
    ),
    ("pathfinder", "performer"),
    ("pathfinder", "performer,256,small"),
]


def resolved(task, variant):
    return experiment.resolve(MODULES[task].get_config(variant))


def model_of(config, make=Classifier):
    model_config = configuration.build(
        ClassifierConfig, config.model, "model", vocab_size=20, num_classes=3
    )
    return nnx.eval_shape(lambda: make(model_config, rngs=ParameterRngs(0)))


# The variants are those of one list for all tasks, and a twin differs from its image by numbers.
QUICK = [c for c in CASES if c[0] == "text"]
QUICK += [c for c in CASES if c[1].split(",")[0] in ("linear", "transnormer_t2")]


@pytest.mark.parametrize(
    ("task", "variant"),
    slow_except(QUICK, CASES),
)
def test_every_variant_is_a_model(task, variant):
    """Shapes only: 70 tokens with their mask, and an optimizer."""
    config = resolved(task, variant)
    make, rows, mask = Classifier, (1, 70), "mask_BT"
    if task == "retrieval":
        make, rows, mask = Matcher, (1, 2, 70), "mask_B2T"
    model = model_of(config, make)
    graphdef, parameters = nnx.split(model)
    logits = jax.eval_shape(
        lambda p, t, m: nnx.merge(graphdef, p)(t, **{mask: m}),
        parameters,
        np.zeros(rows, np.int32),
        np.ones(rows, bool),
    )
    assert logits.shape == (1, 3)
    length = config.data.sequence_length
    made = configuration.build(
        ClassifierConfig, config.model, "model", vocab_size=20, num_classes=3, length=length
    )
    assert made.max_positions == length + 1
    optimizer = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
    make_optimizer(optimizer, config.num_steps, declarations(model))


def test_sizes_of_the_released_code():
    sizes = {
        "listops": (4, 512, 8, 1024, 32, 5_000, 2_000),
        "text": (4, 256, 4, 1024, 32, 20_000, 1_000),
        "retrieval": (4, 128, 4, 512, 32, 5_000, 4_000),
        "image": (1, 32, 1, 64, 256, 35_000, 1_024),
        "pathfinder": (1, 128, 2, 128, 512, 62_400, 1_024),
    }
    for task, expected in sizes.items():
        config = resolved(task, "linear")
        model, data = config.model, config.data
        assert expected == (
            model.num_layers,
            model.width,
            model.num_heads,
            model.feed_forward_width,
            data.batch_size,
            config.num_steps,
            data.sequence_length,
        ), task
    assert resolved("pathfinder", "linear,128").data.sequence_length == 128**2
    assert pathfinder.get_config("linear,128").optimizer.clip_norm == 1.0
    assert pathfinder.get_config("linear").data.side == 32


@pytest.mark.parametrize(
    ("task", "peak"), [("listops", 1.58e-3), ("text", 5.59e-4), ("retrieval", 3.49e-4)]
)
def test_peak_of_the_rate(task, peak):
    """0.05 / sqrt(warm-up); for retrieval the run ends within the warm-up."""
    config = MODULES[task].get_config("linear")
    optimizer = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
    schedule = make_schedule(optimizer, config.num_steps)
    assert max(float(schedule(s)) for s in range(0, config.num_steps + 1, 500)) == pytest.approx(
        peak, rel=5e-3
    )


def mixers_of(variant, task="image"):
    encoder = model_of(resolved(task, variant)).encoder
    return [block.mixer for block in encoder.trunk.stack.blocks]


def test_bidirectional_mechanisms():
    bidirectional = {
        name
        for name in variants.NAMES
        if {getattr(mixer, "direction", "causal") for mixer in mixers_of(f"{name},small")}
        == {"bidirectional"}
    }
    assert bidirectional == {
        *(name for name, mechanism in MIXERS.items() if mechanism.bidirectional is not None),
        *("katharopoulos", "lion_s", "local", "transnormer_t1", "transnormer_t2"),
    }
    assert {"linear", "softmax", "lsh", "linformer"} < bidirectional
    assert [mixer.direction for mixer in mixers_of("hybrid")] == ["causal"] * 3 + ["bidirectional"]
    for name in ("retnet", "gla"):  # whose first token would see itself alone
        assert resolved("image", name).model.pooling == "mean"
    assert resolved("image", "linear").model.pooling == "cls"


def test_mechanisms_fit_the_length():
    (cosformer,) = mixers_of("cosformer")
    assert cosformer.max_length == 1_025
    assert {mixer.length for mixer in mixers_of("linformer", "text")} == {1_001}
    assert {mixer.divisor for mixer in mixers_of("flash_quad", "text")} == {1_000}
    names = [type(mixer).__name__ for mixer in mixers_of("transnormer_t2")]
    assert names == ["DiagAttention"] * 6 + ["LinearAttention"] * 6
    assert {mixer.gate for mixer in mixers_of("lion_s", "text")} == {"vector"}


@pytest.mark.parametrize("variant", ["t3", "linear,tiny", "linear,128", "linear,small,small", ""])
def test_unknown_variants_are_named(variant):
    with pytest.raises(ConfigError, match=f"{variant}: the variants are .*, linear, ") as raised:
        image.get_config(variant)
    assert "\n" not in str(raised.value)


def test_sides_of_pathfinder():
    with pytest.raises(ConfigError, match=r"linear,48: .* then ,32 or ,64 or ,128 or ,256 if any"):
        pathfinder.get_config("linear,48")
    sides = [pathfinder.get_config(f"linear,{side}").data.side for side in pathfinder.SIDES]
    assert sides == list(pathfinder.SIDES)
