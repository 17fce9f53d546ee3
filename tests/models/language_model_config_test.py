"""Every mistake in a model's config is one line that names its key."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig

SIZES = {"vocab_size": 7, "width": 12, "num_layers": 2, "num_heads": 2, "feed_forward_width": 8}


def test_the_base_is_no_mistake():
    """Else every case below would pass for the wrong reason."""
    LanguageModel(LanguageModelConfig(**SIZES), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "sin"}, r"config\.model\.activation is 'sin'.*relu"),
        ({"positions": "alibi"}, r"config\.model\.positions is 'alibi'.*rotary"),
        ({"norm": "groupnorm"}, r"config\.model\.norm is 'groupnorm'.*rmsnorm"),
        ({"norm_position": "middle"}, r"config\.model\.norm_position is 'middle'.*post"),
        ({"remat": "some"}, r"config\.model\.remat is 'some'.*dots"),
        ({"dtype": "float8"}, r"config\.model\.dtype is 'float8'.*bfloat16"),
        ({"vocab_size": 0}, r"config\.model\.vocab_size is 0"),
        ({"width": 0}, r"config\.model\.width is 0"),
        ({"num_layers": 0}, r"config\.model\.num_layers is 0"),
        ({"num_heads": -1}, r"config\.model\.num_heads is -1"),
        ({"feed_forward_width": -1}, r"config\.model\.feed_forward_width is -1"),
        ({"max_positions": 0}, r"config\.model\.max_positions is 0"),
        ({"dropout": 1.0}, r"config\.model\.dropout is 1\.0"),
        ({"dropout": -0.1}, r"config\.model\.dropout is -0\.1"),
        ({"pattern": ()}, r"config\.model\.pattern is empty"),
        ({"pattern": ("linear", "conv")}, r"config\.model\.pattern names 'conv'.*softmax"),
        ({"num_heads": 5}, r"config\.model\.width \(12\).*config\.model\.num_heads \(5\)"),
        ({"width": 15, "num_heads": 3}, r"config\.model\.width \(15\).*model\.positions"),
        ({"width": 14, "positions": "sinusoidal_concatenated"}, r"config\.model\.width \(14\)"),
        (
            {"scan_layers": True, "pattern": ("linear", "softmax"), "num_layers": 3},
            r"config\.model\.num_layers \(3\).*config\.model\.pattern",
        ),
        ({"mixers": {"conv": {}}}, r"config\.model\.mixers names 'conv'.*linear"),
        ({"mixers": {"linear": {"window": 3}}}, r"config\.model\.mixers\.linear\.window"),
        ({"mixers": {"linear": {"width": 3}}}, r"config\.model\.mixers\.linear\.width"),
        ({"mixers": {"softmax": {"rngs": 3}}}, r"config\.model\.mixers\.softmax\.rngs"),
    ],
)
def test_mistakes_name_the_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        LanguageModelConfig(**SIZES | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixers": {"linear": {"feature_map": "cosine"}}}, "feature_map is 'cosine'"),
        ({"mixers": {"linear": {"form": "fast"}}}, "form is 'fast'"),
        ({"mixers": {"softmax": {"window": 0}}, "pattern": ("softmax",)}, "window is 0"),
        ({"positions": "rotary", "num_heads": 4}, "even number of features, not 3"),
    ],
)
def test_mistakes_that_a_mixer_finds(changes, message):
    """When the model is made, which is before anything is trained."""
    mixer = changes.get("pattern", ("linear",))[0]
    with pytest.raises(ConfigError, match=rf"config\.model\.mixers\.{mixer}.*{message}"):
        LanguageModel(LanguageModelConfig(**SIZES | changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("positions", ["none", "rotary", "learned"])
def test_odd_widths_where_they_are_allowed(positions):
    """Widths are refused for a reason: without sinusoids an odd one works."""
    sizes = SIZES | {"width": 15, "num_heads": 3}
    options = {"linear": {"key_width": 4}}  # rotary turns pairs of features
    config = LanguageModelConfig(**sizes, positions=positions, mixers=options)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    logits = jax.eval_shape(lambda tokens: model(tokens)[0], jnp.zeros((1, 3), jnp.int32))
    assert logits.shape == (1, 3, 7)


def test_a_mixer_that_bounds_the_length_is_named():
    """By its option or by the default of it; other mixers take any length."""
    for mixers, bound in (({}, 1024), ({"cosformer": {"max_length": 50}}, 50)):
        config = LanguageModelConfig(**SIZES, pattern=("linear", "cosformer"), mixers=mixers)
        config.require_positions("config.data.sequence_length", bound)
        message = rf"cosformer\.max_length \({bound}\) is less than config\.data\.sequence_length"
        with pytest.raises(ConfigError, match=message):
            config.require_positions("config.data.sequence_length", bound + 1)
    LanguageModelConfig(**SIZES).require_positions("config.data.sequence_length", 10**6)
