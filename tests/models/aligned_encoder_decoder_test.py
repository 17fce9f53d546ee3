"""The aligned encoder-decoder: its size, its equations in NumPy, and what each output may know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.papers.hadjeres2021 import chorales, piano, piano_small
from linear_transformer.compile import compiled_program
from linear_transformer.errors import ConfigError
from linear_transformer.models.aligned_encoder_decoder import (
    AlignedEncoderDecoder,
    AlignedEncoderDecoderConfig,
)
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.training.build import make_task
from tests.layers import slow_except
from tests.ops.contract import relative_rms

# Compiling is most of what these tests cost, and optimising would double it.
QUICK = {"xla_backend_optimization_level": 0}
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


def compiled(function):
    return jax.jit(function, compiler_options=QUICK)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    events = np.stack([rng.integers(n, size=(BATCH, EVENTS)) for n in VOCAB_SIZES], axis=-1)
    elapsed = np.cumsum(rng.integers(40, size=(BATCH, EVENTS)), axis=1)
    masked = rng.random((BATCH, EVENTS)) < 0.5
    return jnp.asarray(events, jnp.int32), jnp.asarray(elapsed, jnp.int32), jnp.asarray(masked)


def test_flops_per_token():
    """The formula against the compiled program's matmuls, whose chunks do a little more."""
    model = make_model(width=64, feed_forward_width=128)
    program = compiled(lambda *arrays: model(*arrays)).lower(*inputs()).compile()
    counted = compiled_program.cost(program.as_text()).flops / (BATCH * TIME)
    assert counted == pytest.approx(model.flops_per_token(TIME), rel=0.1)


def test_paper_size():
    """75.6 M parameters in the 4 + 8 layers, two thirds of them in the gates.

    Counted: attention, feed-forward, gates and norms of the layers.  Not counted: the embeddings,
    the vector of the start, the two norms after the last layers and the heads, 0.6 M together.
    """
    task = make_task(piano.get_config())
    model = nnx.eval_shape(lambda: task.make_model(ParameterRngs(0)))
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
    assert model.num_parameters - total == 563_285
    assert task.num_events == 1024
    assert model.source.projection.kernel.shape == (300, 512)
    assert [head.kernel.shape for head in model.heads] == [
        (512, n + 3) for n in (88, 128, 104, 105)
    ]


@pytest.mark.parametrize("config", [piano_small, chorales])
def test_small_configs(config):
    task = make_task(config.get_config())
    model = nnx.eval_shape(lambda: task.make_model(ParameterRngs(0)))
    assert model.num_parameters < 2e6


def array(parameter):
    return np.asarray(parameter[...], np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(layer, x_TD):
    y_TD = x_TD @ array(layer.kernel)
    return y_TD if layer.bias is None else y_TD + array(layer.bias)


def layer_norm(layer, x_TD):
    x_TD = x_TD - x_TD.mean(axis=-1, keepdims=True)
    x_TD = x_TD / np.sqrt((x_TD**2).mean(axis=-1, keepdims=True) + 1e-6)
    return x_TD * array(layer.scale) + array(layer.bias)


def gated(gate, x_TD, y_TD):
    w_r, w_z, w_g = np.split(array(gate.from_output.kernel), 3, axis=1)
    u_r, u_z = np.split(array(gate.from_stream.kernel), 2, axis=1)
    r = sigmoid(y_TD @ w_r + x_TD @ u_r)
    z = sigmoid(y_TD @ w_z + x_TD @ u_z - array(gate.bias))
    h = np.tanh(y_TD @ w_g + (r * x_TD) @ array(gate.from_reset.kernel))
    return (1 - z) * x_TD + z * h


def attention(mixer, x_TD, order):
    """Linear attention as an RNN that visits the tokens in this order."""

    def features(layer):
        x_THK = linear(layer, x_TD).reshape(TIME, mixer.heads, -1)
        return np.where(x_THK > 0, x_THK + 1, np.exp(np.minimum(x_THK, 0)))  # elu + 1

    q_THK, k_THK = features(mixer.query), features(mixer.key)
    v_THV = linear(mixer.value, x_TD).reshape(TIME, mixer.heads, -1)
    o_THV = np.zeros_like(v_THV)
    for h in range(mixer.heads):
        s_KV, z_K = 0.0, 0.0
        for i in order:
            s_KV = s_KV + np.outer(k_THK[i, h], v_THV[i, h])
            z_K = z_K + k_THK[i, h]
            o_THV[i, h] = q_THK[i, h] @ s_KV / (q_THK[i, h] @ z_K + 1e-6)
    return linear(mixer.output, o_THV.reshape(TIME, -1))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layers(stack, x_TD, memory_TD, order):
    for block in stack.blocks:
        h_TD = attention(block.mixer, layer_norm(block.mixer_norm, x_TD), order)
        x_TD = gated(block.mixer_residual, x_TD, h_TD)
        if memory_TD is not None:
            h_TD = layer_norm(block.memory_norm, memory_TD)
            x_TD = gated(block.memory_residual, x_TD, h_TD)
        h_TD = gelu(linear(block.feed_forward.up, layer_norm(block.feed_forward_norm, x_TD)))
        x_TD = gated(block.feed_forward_residual, x_TD, linear(block.feed_forward.down, h_TD))
    return x_TD


def embedded(embedding, events_NC, elapsed_N, masked_N):
    """Token by token; with `masks`, each channel's table has one row more, for the mask."""

    def sinusoids(position, width):
        angles = position / 10_000 ** (2 * np.arange(width // 2) / width)
        return np.concatenate([np.sin(angles), np.cos(angles)])

    tables = np.split(
        array(embedding.tokens.embedding),
        np.cumsum(np.array(VOCAB_SIZES) + embedding.masks)[:-1],
    )
    rows = []
    for n in range(EVENTS):
        for c in range(CHANNELS):
            hidden = embedding.masks and masked_N[n]
            token = tables[c][-1 if hidden else events_NC[n, c]]
            channel = array(embedding.channels.embedding)[c]
            time = array(embedding.masked_time) if hidden else sinusoids(elapsed_N[n], 10)
            rows.append(np.concatenate([token, sinusoids(n, 6), channel, time]))
    return linear(embedding.projection, np.stack(rows))


def test_equations():
    """Hadjeres & Crestel 2021 as released, in NumPy: GTrXL's gates, linear attention as an RNN that
    runs backwards in the encoder, and a decoder that each layer joins to the memory at its place.
    """
    model = make_model()
    rng = np.random.default_rng(0)
    # Biases and scales too must be away from 0 and 1.
    for _, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        moved = np.asarray(parameter[...]) + 0.2 * rng.normal(size=parameter.shape)
        parameter[...] = jnp.asarray(moved, parameter.dtype)
    actual = compiled(lambda *batch: model(*batch))(*inputs())
    backwards, forwards = range(TIME - 1, -1, -1), range(TIME)
    for row, example in enumerate(zip(*map(np.asarray, inputs()), strict=True)):
        memory_TD = layers(model.encoder, embedded(model.source, *example), None, backwards)
        memory_TD = layer_norm(model.encoder_norm, memory_TD)
        target_TD = embedded(model.target, *example)
        x_TD = np.concatenate([array(model.start)[None], target_TD[:-1]])
        x_TD = layers(model.decoder, x_TD, memory_TD, forwards)
        h_NCD = layer_norm(model.decoder_norm, x_TD).reshape(EVENTS, CHANNELS, -1)
        for c, head in enumerate(model.heads):
            expected = linear(head, h_NCD[:, c])
            assert expected.std() > 0.3
            assert relative_rms(actual[c][row], expected) < 1e-5


def reach(model, function, argument, *arrays):
    """(T, S): does any output at t of `function(model, *arrays)` depend on any input at s?

    The parameters are arguments of the program: with their values inside it, XLA for CPU (jax
    0.10.2) gets the jitted Jacobian of a layer norm of scale 1 wrong, though not its gradient.
    """
    graphdef, parameters = nnx.split(model)

    def jacobian(parameters, *arrays):
        model = nnx.merge(graphdef, parameters)
        return jax.jacobian(lambda *arrays: function(model, *arrays), argument)(*arrays)

    return np.abs(compiled(jacobian)(parameters, *arrays)).max(axis=(0, 2, 3, 5)) > 0


def test_memory_looks_ahead_only():
    model = make_model()
    source_BTD = model.embed_source(*inputs())
    assert source_BTD.shape == (BATCH, TIME, 16)
    seen = reach(model, lambda model, x: model.encode(x), 0, source_BTD)
    np.testing.assert_array_equal(seen, np.triu(np.ones((TIME, TIME), bool)))


@pytest.mark.parametrize("layers", slow_except((1,), (1, 2)))
def test_output_reach(layers):
    """Output i: the target before i; its own memory, and in deeper decoders those before it.

    One layer therefore knows the source from i on only.  Two know all of it, through the memory at
    earlier positions: what is not masked there, the target has said already.
    """
    model = make_model(decoder_layers=layers)
    events, elapsed, masked = inputs()
    source_BTD = model.embed_source(events, elapsed, masked)
    memory_BTD = model.encode(source_BTD)
    target_BTD = model.embed_target(events, elapsed)

    def outputs(model, source_BTD, memory_BTD, target_BTD):
        first = model.first_input(BATCH)
        shifted = jnp.concatenate([first, target_BTD[:, :-1]], axis=1)
        if source_BTD is not None:
            memory_BTD = model.encode(source_BTD)
        return model.decode(shifted, memory_BTD)[0]

    square = np.ones((TIME, TIME), bool)

    from_target = reach(model, outputs, 2, None, memory_BTD, target_BTD)
    np.testing.assert_array_equal(from_target, np.tril(square, -1))
    from_memory = reach(model, outputs, 1, None, memory_BTD, target_BTD)
    np.testing.assert_array_equal(
        from_memory, np.eye(TIME, dtype=bool) if layers == 1 else np.tril(square)
    )
    from_source = reach(model, outputs, 0, source_BTD, memory_BTD, target_BTD)
    np.testing.assert_array_equal(from_source, np.triu(square) if layers == 1 else square)


def test_targets_do_not_leak():
    """The whole call, on integers: what is masked reaches later outputs only."""
    model = make_model()
    call = compiled(lambda *batch: model(*batch))
    events, elapsed, _ = inputs()
    masked = jnp.zeros((BATCH, EVENTS), bool).at[:, 2:4].set(True)
    before = call(events, elapsed, masked)
    for event in (2, 3):
        for channel in range(CHANNELS):
            size = VOCAB_SIZES[channel]
            changed = events.at[:, event, channel].set((events[:, event, channel] + 1) % size)
            after = call(changed, elapsed, masked)
            position = event * CHANNELS + channel
            for c in range(CHANNELS):
                for n in range(EVENTS):
                    same = np.array_equal(before[c][:, n], after[c][:, n])
                    assert same == (n * CHANNELS + c <= position)
    # What is not masked reaches the outputs before it too, through the encoder.
    changed = events.at[:, 5, 0].set((events[:, 5, 0] + 1) % VOCAB_SIZES[0])
    after = call(changed, elapsed, masked)
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


def test_same_function():
    """Scanned and rematerialised: values and gradients."""
    batch = inputs()

    def run(model):
        def loss(parameters):
            logits = nnx.merge(nnx.graphdef(model), parameters)(*batch)
            return sum(jnp.mean(jnp.sin(x)) for x in logits)

        value, gradient = compiled(jax.value_and_grad(loss))(nnx.state(model, nnx.Param))
        return value, sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

    expected, actual = run(make_model()), run(make_model(scan_layers=True, remat="full"))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.slow
def test_dropout_and_dtype():
    model = make_model(dropout=0.5, dtype="bfloat16")
    batch = inputs()
    logits = compiled(lambda *batch: model(*batch))(*batch)
    assert [x.shape for x in logits] == [(BATCH, EVENTS, n) for n in VOCAB_SIZES]
    assert all(x.dtype == jnp.float32 for x in logits)
    drop = compiled(lambda key: model(*batch, dropout_key=key)[0])
    dropped = [drop(jax.random.key(i)) for i in (0, 0, 1)]
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
