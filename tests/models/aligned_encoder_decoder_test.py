"""The aligned encoder-decoder: its size, and what each output may know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.papers.hadjeres2021 import chorales, piano, piano_small
from linear_transformer.errors import ConfigError
from linear_transformer.models.aligned_encoder_decoder import (
    AlignedEncoderDecoder,
    AlignedEncoderDecoderConfig,
)
from linear_transformer.tasks.task import make_task

VOCAB_SIZES = (11, 7, 9)
BATCH, EVENTS, CHANNELS = 2, 6, 3
TIME = EVENTS * CHANNELS


def make_config(**changes):
    sizes = {
        "width": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "num_heads": 2,
        "feed_forward_width": 24,
        "token_width": 8,
        "index_width": 6,
        "channel_width": 4,
        "elapsed_width": 10,
    }
    return AlignedEncoderDecoderConfig(vocab_sizes=VOCAB_SIZES, **(sizes | changes))


def make_model(**changes):
    return AlignedEncoderDecoder(make_config(**changes), rngs=nnx.Rngs(0))


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    events = np.stack([rng.integers(n, size=(BATCH, EVENTS)) for n in VOCAB_SIZES], axis=-1)
    elapsed = np.cumsum(rng.integers(40, size=(BATCH, EVENTS)), axis=1)
    masked = rng.random((BATCH, EVENTS)) < 0.5
    return jnp.asarray(events, jnp.int32), jnp.asarray(elapsed, jnp.int32), jnp.asarray(masked)


def test_paper_size():
    """75.6 M parameters in the layers, two thirds of them in the gates."""
    task = make_task(piano.get_config())
    model = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(0)))
    layers = [
        (path, x.size)
        for stack in (model.encoder, model.decoder)
        for path, x in nnx.to_flat_state(nnx.state(stack, nnx.Param))
    ]
    width, hidden = 512, 1024
    attention = 4 * (width * width + width)
    feed_forward = 2 * width * hidden + width + hidden
    gate, norm = 6 * width * width + width, 2 * width
    encoder_layer = attention + feed_forward + 2 * (gate + norm)
    decoder_layer = attention + feed_forward + 3 * (gate + norm)
    total = sum(size for _, size in layers)
    assert total == 4 * encoder_layer + 8 * decoder_layer == 75_589_632
    gates = sum(size for path, size in layers if any("residual" in str(p) for p in path))
    assert gates == (2 * 4 + 3 * 8) * gate
    assert 0.65 < gates / total < 0.68
    assert task.num_events == 1024
    assert model.source.projection.kernel.shape == (300, 512)
    assert [head.kernel.shape for head in model.heads] == [
        (512, n + 3) for n in (88, 128, 104, 105)
    ]


@pytest.mark.parametrize("config", [piano_small, chorales])
def test_small_configs(config):
    task = make_task(config.get_config())
    model = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(0)))
    assert model.num_parameters < 2e6


def reach(jacobian):
    """(T, S): does any output at t depend on any input at s of the same row?"""
    return np.abs(np.asarray(jacobian)).max(axis=(0, 2, 3, 5)) > 0


def test_memory_looks_ahead_only():
    model = make_model()
    source_BTD = model.embed_source(*inputs())
    assert source_BTD.shape == (BATCH, TIME, 16)
    jacobian = jax.jacobian(lambda x: model.encode(x))(source_BTD)
    np.testing.assert_array_equal(reach(jacobian), np.triu(np.ones((TIME, TIME), bool)))


@pytest.mark.parametrize("layers", [1, 2])
def test_output_reach(layers):
    """Output i: the target before i; its own memory, and in deeper decoders those before it.

    One layer therefore knows the source from i on only.  Two know all of it, through the memory at
    earlier positions: what is not masked there, the target has said already.
    """
    model = make_model(decoder_layers=layers)
    events, elapsed, masked = inputs()
    memory_BTD = model.encode(model.embed_source(events, elapsed, masked))
    source_BTD = model.embed_source(events, elapsed, masked)
    target_BTD = model.embed_target(events, elapsed)

    def outputs(source_BTD, memory_BTD, target_BTD):
        first = model.first_input(BATCH)
        shifted = jnp.concatenate([first, target_BTD[:, :-1]], axis=1)
        if source_BTD is not None:
            memory_BTD = model.encode(source_BTD)
        return model.decode(shifted, memory_BTD)[0]

    square = np.ones((TIME, TIME), bool)
    from_target = jax.jacobian(outputs, argnums=2)(None, memory_BTD, target_BTD)
    np.testing.assert_array_equal(reach(from_target), np.tril(square, -1))
    from_memory = jax.jacobian(outputs, argnums=1)(None, memory_BTD, target_BTD)
    np.testing.assert_array_equal(
        reach(from_memory), np.eye(TIME, dtype=bool) if layers == 1 else np.tril(square)
    )
    from_source = jax.jacobian(outputs, argnums=0)(source_BTD, memory_BTD, target_BTD)
    np.testing.assert_array_equal(reach(from_source), np.triu(square) if layers == 1 else square)


def test_targets_do_not_leak():
    """The whole call, on integers: what is masked reaches later outputs only."""
    model = make_model()
    events, elapsed, _ = inputs()
    masked = jnp.zeros((BATCH, EVENTS), bool).at[:, 2:4].set(True)
    before = model(events, elapsed, masked)
    for event in (2, 3):
        for channel in range(CHANNELS):
            size = VOCAB_SIZES[channel]
            changed = events.at[:, event, channel].set((events[:, event, channel] + 1) % size)
            after = model(changed, elapsed, masked)
            position = event * CHANNELS + channel
            for c in range(CHANNELS):
                for n in range(EVENTS):
                    same = np.array_equal(before[c][:, n], after[c][:, n])
                    assert same == (n * CHANNELS + c <= position)
    # What is not masked reaches the outputs before it too, through the encoder.
    changed = events.at[:, 5, 0].set((events[:, 5, 0] + 1) % VOCAB_SIZES[0])
    after = model(changed, elapsed, masked)
    assert not np.array_equal(before[0][:, 0], after[0][:, 0])


def test_time_of_masked_events():
    """The encoder does not see it; without elapsed time nothing does."""
    model = make_model()
    events, elapsed, _ = inputs()
    masked = jnp.zeros((BATCH, EVENTS), bool).at[:, 2].set(True)
    moved = elapsed.at[:, 2].add(7)
    source = model.embed_source(events, elapsed, masked)
    np.testing.assert_array_equal(model.embed_source(events, moved, masked), source)
    assert not np.array_equal(
        model.embed_target(events, moved), model.embed_target(events, elapsed)
    )
    model = make_model(elapsed_width=0)
    np.testing.assert_array_equal(
        model.embed_target(events, moved), model.embed_target(events, elapsed)
    )
    assert len(model(events, elapsed, masked)) == CHANNELS


@pytest.mark.parametrize("changes", [{"scan_layers": True}, {"remat": "full"}])
def test_same_function(changes):
    """Scanned or rematerialised: values and gradients."""
    batch = inputs()

    def run(model):
        def loss(parameters):
            logits = nnx.merge(nnx.graphdef(model), parameters)(*batch)
            return sum(jnp.mean(jnp.sin(x)) for x in logits)

        value, gradient = jax.value_and_grad(loss)(nnx.state(model, nnx.Param))
        return value, sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

    expected, actual = run(make_model()), run(make_model(**changes))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_dropout_and_dtype():
    model = make_model(dropout=0.5, dtype="bfloat16")
    batch = inputs()
    logits = model(*batch)
    assert [x.shape for x in logits] == [(BATCH, EVENTS, n) for n in VOCAB_SIZES]
    assert all(x.dtype == jnp.float32 for x in logits)
    dropped = [model(*batch, dropout_key=jax.random.key(i))[0] for i in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.array_equal(dropped[0], dropped[2])
    assert not np.array_equal(dropped[0], logits[0])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"residual": "product"}, "residual"),
        ({"feature_map": "nope"}, "feature_map"),
        ({"width": 15}, "width"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"elapsed_width": -2}, "elapsed_width"),
        ({"index_width": 7}, "index_width"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_mistakes(changes, key):
    with pytest.raises(ConfigError, match=rf"config\.model\.{key}") as raised:
        make_config(**changes)
    assert "\n" not in str(raised.value)
