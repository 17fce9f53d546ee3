"""The speech recognizers: padding changes no frame, sizes are the paper's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.papers.katharopoulos2020 import speech
from linear_transformer.compile import compiled_program
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.models.speech_recognizer import (
    BiLSTMConfig,
    SpeechRecognizer,
    TransformerConfig,
)
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.tasks.speech_recognition import ENCODERS
from tests.ops.contract import relative_rms

B, T, FEATURES, SYMBOLS = 3, 9, 5, 7
LENGTHS = np.array([5, 9, 1])
MASK = np.arange(T) < LENGTHS[:, None]
BOTH_WAYS = {
    "linear": {"direction": "bidirectional"},
    "softmax": {"direction": "bidirectional"},
}
SIZES = {
    "vocab_size": SYMBOLS,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_width": 24,
    "mixers": BOTH_WAYS,
}
QUICK = {"xla_backend_optimization_level": 0}
CONFIGS = {
    "linear": TransformerConfig(**SIZES, norm_position="post", positions="sinusoidal_concatenated"),
    "softmax": TransformerConfig(
        **SIZES, pattern=("softmax",), positions="learned", embedding_norm="layernorm"
    ),
    "bilstm": BiLSTMConfig(vocab_size=SYMBOLS, hidden=6, num_layers=2),
}


def make(name):
    return SpeechRecognizer(CONFIGS[name], FEATURES, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def apply(graphdef, parameters, frames, mask, key):
    return nnx.merge(graphdef, parameters)(frames, mask_BT=mask, dropout_key=key)


def call(model, frames, mask=None, key=None):
    return np.asarray(apply(*nnx.split(model), frames, mask, key))


def sound(seed=0):
    return np.random.default_rng(seed).normal(size=(B, T, FEATURES)).astype(np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_no_frame(name):
    """Rows of 5, 9 and 1 frames in one batch are as each alone, whatever is in the padding."""
    model, frames = make(name), sound()
    logits = call(model, frames, MASK)
    assert logits.shape == (B, T, SYMBOLS) and logits.dtype == np.float32
    other = call(model, np.where(MASK[..., None], frames, 100.0).astype(np.float32), MASK)
    assert np.array_equal(other[MASK], logits[MASK])
    for row, length in enumerate(LENGTHS):
        alone = call(model, frames[row : row + 1, :length])
        assert relative_rms(logits[row : row + 1, :length], alone) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_per_token(name):
    """The formula against the compiled program's matmuls, whose chunks do a little more."""
    model, frames = make(name), jnp.zeros((B, 64, FEATURES))
    program = jax.jit(lambda x: model(x), compiler_options=QUICK).lower(frames).compile()
    counted = compiled_program.cost(program.as_text()).flops / (B * 64)
    assert counted == pytest.approx(model.flops_per_token(64), rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_counts_without_the_mask(name):
    """Negative control: zeros behind a row are frames like others."""
    model, frames = make(name), sound() * MASK[..., None]
    alone = call(model, frames[:1, : LENGTHS[0]])
    assert relative_rms(call(model, frames)[:1, : LENGTHS[0]], alone) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_every_frame_sees_every_other(name):
    model, frames = make(name), sound()
    logits = call(model, frames)
    for changed in (0, T - 1):
        other = frames.copy()
        other[:, changed] += 1
        assert np.all(np.abs(call(model, other) - logits).max(axis=-1) > 0)


def paper_model(variant):
    config = speech.get_config(variant)
    model_config = configuration.build(
        ENCODERS[config.encoder], config.model, "model", vocab_size=40
    )
    return nnx.eval_shape(lambda: SpeechRecognizer(model_config, 40, rngs=ParameterRngs(0)))


def test_paper_sizes():
    """9 layers of width 192 and feed-forward 768, half the width for the frame; 39 phonemes."""
    width = 192
    layer = 4 * (width**2 + width) + 8 * width**2 + 5 * width + 4 * width
    ends = 41 * width // 2 + 40 * (width + 1)
    for name in ("linear", "softmax"):
        assert paper_model(name).num_parameters == 9 * layer + ends
    assert paper_model("lsh").num_parameters == 9 * (layer - width**2 - width) + ends
    lstm = sum(2 * 4 * 320 * (inputs + 320 + 1) for inputs in (40, 640, 640))
    assert paper_model("bilstm").num_parameters == lstm + 40 * 641


@pytest.mark.parametrize("variant", speech.NAMES)
def test_paper_sizes_have_outputs(variant):
    """By shape: two rows of 2,400 frames."""
    graphdef, parameters = nnx.split(paper_model(variant))
    frames = jax.ShapeDtypeStruct((2, 2_400, 40), np.float32)
    mask = jax.ShapeDtypeStruct((2, 2_400), bool)

    def logits(parameters, frames, mask):
        return nnx.merge(graphdef, parameters)(frames, mask_BT=mask)

    assert jax.eval_shape(logits, parameters, frames, mask).shape == (2, 2_400, 40)


def test_dropout_needs_a_key():
    config = TransformerConfig(**SIZES, dropout=0.3)
    model = SpeechRecognizer(config, FEATURES, rngs=nnx.Rngs(0))
    keyed = [call(model, sound(), key=jax.random.key(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(keyed[0], keyed[1]) and not np.array_equal(keyed[0], keyed[2])
    assert np.array_equal(call(model, sound()), call(model, sound()))


@pytest.mark.parametrize(
    ("make_config", "message"),
    [
        (lambda: TransformerConfig(**SIZES, tied=True), r"config\.model\.tied is True"),
        (lambda: TransformerConfig(**SIZES | {"width": 0}), r"config\.model\.width is 0"),
        (lambda: BiLSTMConfig(vocab_size=3, hidden=0), r"config\.model\.hidden is 0"),
        (lambda: BiLSTMConfig(vocab_size=3, dropout=1.0), r"config\.model\.dropout is 1\.0"),
        (lambda: BiLSTMConfig(vocab_size=3, dtype="int8"), r"config\.model\.dtype is 'int8'"),
    ],
)
def test_mistakes_name_the_key(make_config, message):
    with pytest.raises(ConfigError, match=message):
        make_config()


def test_unknown_variants_are_named():
    with pytest.raises(ConfigError, match=r"gru: the variants are linear, softmax, lsh, bilstm"):
        speech.get_config("gru")
