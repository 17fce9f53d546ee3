"""The gated recurrent mixers against the equations of their papers, token by token in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.mixers.registry import MIXERS
from tests.nn.mixer_cases import B, D, H, T
from tests.nn.transcriptions import (
    TOLERANCE,
    array,
    assert_equations,
    convolved,
    dense,
    heads,
    layer_norm,
    rms,
    sigmoid,
    silu,
    softplus,
    turned,
)
from tests.ops.contract import assert_agree


def retnet(mixer, x, history, s):
    """Sun et al. 2023, equations 5-8 and the retention normalisation; s holds S, K and decays."""
    q, k, v = (heads(dense(layer, x)) for layer in (mixer.query, mixer.key, mixer.value))
    if mixer.rotary:
        q, k = (turned(a[None, None], np.array([[len(history) - 1]]))[0, 0] for a in (q, k))
    s = s or [np.zeros((H, k.shape[1], v.shape[1])), np.zeros(k.shape), np.zeros(H)]
    gamma = 1 - 2.0 ** (-5 - np.arange(H))
    o = np.zeros(v.shape)
    for h in range(H):
        s[0][h] = gamma[h] * s[0][h] + np.outer(k[h], v[h])
        s[1][h] = gamma[h] * s[1][h] + k[h]
        s[2][h] = gamma[h] * s[2][h] + 1
        query = q[h] / np.sqrt(len(k[h]))
        o[h] = query @ s[0][h]
        if mixer.normalize:
            scale = np.sqrt(s[2][h])
            o[h] = o[h] / scale / max(abs(query @ s[1][h] / scale), 1)
    return dense(mixer.output, silu(dense(mixer.gate, x)) * rms(o, 1e-6).ravel()), s


def lightning(mixer, x, history, s):
    """Qin et al. 2024, section 3: decay exp(-8 h / H (1 - l / L))."""
    q, k = (heads(silu(dense(layer, x))) for layer in (mixer.query, mixer.key))
    v = heads(dense(mixer.value, x))
    if mixer.lrpe is not None:
        u = array(mixer.lrpe.reflection)
        u = u / np.linalg.norm(u)
        angles = (len(history) - 1) * array(mixer.lrpe.frequencies)
        q, k = (a - 2 * (a @ u)[:, None] * u for a in (q, k))
        q, k = (np.split(a, 2, axis=-1) for a in (q, k))
        q, k = (
            np.concatenate([(z := (a + 1j * b) * np.exp(1j * angles)).real, z.imag], axis=-1)
            for a, b in (q, k)
        )
    s = np.zeros((H, k.shape[1], v.shape[1])) if s is None else s
    decay = np.exp(np.minimum(array(mixer.log_decay), 0))
    s = decay[:, None, None] * s + k[:, :, None] * v[:, None]
    o = np.einsum("hk,hkv->hv", q, s).ravel()
    return dense(mixer.output, rms(o, 1e-16) * dense(mixer.gate, x)), s


def mamba2(mixer, x, history, s):
    """Dao and Gu 2024: the block of figure 6 (right) around equation 16."""
    inner, groups, n = mixer.inner, mixer.groups, mixer.key_width
    z, dt = dense(mixer.gate, x), dense(mixer.dt, x)
    projected = [(dense(mixer.value, a), dense(mixer.shared, a)) for a in history]
    u = convolved(mixer, [np.concatenate(a) for a in projected])
    v, b, c = u[:inner].reshape(H, -1), u[inner : -groups * n], u[-groups * n :]
    b, c = b.reshape(groups, n), c.reshape(groups, n)
    dt = softplus(dt + array(mixer.dt_bias))
    s = np.zeros((H, n, v.shape[1])) if s is None else s
    o = np.zeros(v.shape)
    for h in range(H):
        group = h // (H // groups)
        s[h] = np.exp(-dt[h] * np.exp(array(mixer.log_decay)[h])) * s[h]
        s[h] += dt[h] * np.outer(b[group], v[h])
        o[h] = c[group] @ s[h] + array(mixer.skip)[h] * v[h]
    by_group = np.split(o.ravel() * silu(z), groups)
    y = np.concatenate([rms(part, 1e-5) for part in by_group]) * array(mixer.norm_scale)
    return dense(mixer.output, y), s


def mlstm(mixer, x, history, s):
    """Beck et al. 2024, equations 19-27, without any stabiliser."""
    local = convolved(mixer, history)
    q, k = (heads(dense(layer, local)) for layer in (mixer.query, mixer.key))
    v = heads(dense(mixer.value, x))
    k = k / np.sqrt(k.shape[1])
    i, f = np.exp(dense(mixer.input_gate, x)), sigmoid(dense(mixer.forget_gate, x))
    s = s or [np.zeros((H, k.shape[1], v.shape[1])), np.zeros(k.shape)]
    s[0] = f[:, None, None] * s[0] + i[:, None, None] * k[:, :, None] * v[:, None]
    s[1] = f[:, None] * s[1] + i[:, None] * k
    o = np.einsum("hk,hkv->hv", q, s[0])
    o /= np.maximum(np.abs(np.sum(q * s[1], axis=-1)), 1)[:, None]
    return dense(mixer.output, sigmoid(dense(mixer.gate, x)) * layer_norm(o, mixer.norm).ravel()), s


def gla(mixer, x, history, s):
    """Yang et al. 2023, section 4.4."""
    q, k, v = (heads(dense(layer, x)) for layer in (mixer.query, mixer.key, mixer.value))
    a = heads(sigmoid(dense(mixer.forget.up, dense(mixer.forget.down, x))) ** (1 / 16))
    s = np.zeros((H, k.shape[1], v.shape[1])) if s is None else s
    s = a[:, :, None] * s + k[:, :, None] * v[:, None]
    o = np.einsum("hk,hkv->hv", q / np.sqrt(k.shape[1]), s)
    o = rms(o, 1e-5) * array(mixer.norm.scale)
    return dense(mixer.output, silu(dense(mixer.gate, x)) * o.ravel()), s


def gsa(mixer, x, history, s):
    """Zhang et al. 2024, section 3; s holds the keys and the values of the slots."""
    q, k, v = (heads(silu(dense(layer, x))) for layer in (mixer.query, mixer.key, mixer.value))
    a = heads(sigmoid(dense(mixer.forget, x)) ** (1 / 8))[:, :, None]
    s = s or [0, 0]
    s[0] = a * s[0] + (1 - a) * k[:, None]
    s[1] = a * s[1] + (1 - a) * v[:, None]
    weights = np.exp(np.einsum("hmk,hk->hm", s[0], q))
    weights /= weights.sum(axis=-1, keepdims=True)
    o = silu(np.einsum("hm,hmv->hv", weights, s[1]).ravel())
    return dense(mixer.output, rms(o, 1e-5) * array(mixer.norm.scale)), s


def hgrn2(mixer, x, history, s):
    """Qin et al. 2024, section 3.2."""
    q, f, v = (heads(dense(layer, x)) for layer in (mixer.query, mixer.forget, mixer.value))
    gamma = sigmoid(array(mixer.lower_bound))
    f = gamma + (1 - gamma) * sigmoid(f)
    s = np.zeros((H, f.shape[1], v.shape[1])) if s is None else s
    s = f[:, :, None] * s + (1 - f)[:, :, None] * v[:, None]
    o = np.einsum("hk,hkv->hv", silu(q), s).ravel()
    return dense(mixer.output, rms(o, mixer.norm.epsilon) * array(mixer.norm.scale)), s


def rwkv6(mixer, x, history, s):
    """Peng et al. 2024, section 4, data-dependent token shift and time mixing."""
    before = history[-2] if len(history) > 1 else 0 * x
    z = x + (before - x) * array(mixer.shift_of_mix)
    inputs = [
        x + (before - x) * (mu + dense(lora.up, np.tanh(dense(lora.down, z))))
        for mu, lora in zip(array(mixer.shift), mixer.mix, strict=True)
    ]
    r, k, v = (
        heads(dense(layer, a))
        for layer, a in zip((mixer.receptance, mixer.key, mixer.value), inputs, strict=False)
    )
    lora = dense(mixer.decay.up, np.tanh(dense(mixer.decay.down, inputs[4])))
    w = heads(np.exp(-np.exp(array(mixer.log_log_decay) + lora)))
    s = np.zeros((H, k.shape[1], v.shape[1])) if s is None else s
    own = k[:, :, None] * v[:, None]
    o = np.einsum("hk,hkv->hv", r, s + array(mixer.bonus)[:, :, None] * own)
    s = w[:, :, None] * s + own
    o = layer_norm(o, mixer.norm).ravel()
    return dense(mixer.output, silu(dense(mixer.gate, inputs[3])) * o), s


def lion_parts(mixer, x):
    q, k, v = (heads(dense(layer, x)) for layer in (mixer.query, mixer.key, mixer.value))
    q, k = (silu(a) + 0.5 for a in (q, k))
    q, k = (a / np.sqrt(np.sum(a**2, axis=-1, keepdims=True)) for a in (q, k))
    a = sigmoid(dense(mixer.decay, x))
    if mixer.gate == "scalar":
        return q, k, v, np.broadcast_to(a[..., None], k.shape)
    a = heads(a)
    return q, k * (a - 1) / np.log(a), v, a


def lion(mixer, x, history, s):
    """Afzal et al. 2025, the forward recurrence with scaling."""
    q, k, v, a = lion_parts(mixer, x)
    s = s or [np.zeros((H, k.shape[1], v.shape[1])), np.zeros(k.shape)]
    s[0] = a[:, :, None] * s[0] + k[:, :, None] * v[:, None]
    s[1] = a * s[1] + k
    o = np.einsum("hk,hkv->hv", q, s[0]) / np.sum(q * s[1], axis=-1, keepdims=True)
    return dense(mixer.output, o.ravel()), s


@pytest.mark.parametrize(
    ("name", "label", "step"),
    [
        ("retnet", "chunks", retnet),
        ("retnet", "plain", retnet),
        ("lightning", "chunks", lightning),
        ("lightning_lrpe", "lrpe", lightning),
        ("mamba2", "chunks", mamba2),
        ("mamba2", "groups", mamba2),
        ("mlstm", "chunks", mlstm),
        ("gla", "chunks", gla),
        ("gsa", "chunks", gsa),
        ("hgrn2", "chunks", hgrn2),
        ("rwkv6", "chunks", rwkv6),
        ("lion", "chunks", lion),
        ("lion", "scalar", lion),
    ],
)
def test_equations(name, label, step):
    """Packed documents: each starts with an empty state, an empty convolution and no last token."""
    assert_equations(name, label, step)


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_lion_is_masked_attention(gate):
    """Both directions as one masked, normalised quadratic form (Afzal et al. 2025, equation 8)."""
    mixer = MIXERS["lion"](D, H, gate=gate, direction="bidirectional", rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)
    q, k, v, a = lion_parts(mixer, x.astype(np.float64))
    o = np.zeros(v.shape)
    for b, h, i in np.ndindex(B, H, T):
        weights = []
        for j in range(T):
            # The product of the gates from the key's to the query's end, without the key's own.
            gates = a[b, j + 1 : i + 1, h] if j < i else a[b, i:j, h]
            weights.append(q[b, i, h] @ (np.prod(gates, axis=0) * k[b, j, h]))
        o[b, i, h] = np.array(weights) @ v[b, :, h] / np.sum(weights)
    expected = dense(mixer.output, o.reshape(B, T, D))
    y, state = jax.jit(lambda x: mixer(x))(x)
    assert state is None
    assert_agree({"y": y}, {"y": expected}, TOLERANCE)
    with pytest.raises(ValueError, match="only a causal mixer has a state"):
        mixer.init_state(B)


def test_mlstm_gates_may_be_extreme():
    """Input gates of exp(+-200), where the plain sums overflow, are finite and split exactly."""
    mixer = MIXERS["mlstm"](D, H, rngs=nnx.Rngs(0))
    mixer.input_gate.kernel[...] = 100 * mixer.input_gate.kernel[...]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)), jnp.float32)
    assert np.max(np.abs(mixer.input_gate(x))) > 200
    apply = jax.jit(lambda x, state: mixer(x, state))
    y, _ = apply(x, None)
    head, state = apply(x[:, :9], mixer.init_state(B))
    tail, _ = apply(x[:, 9:], state)
    assert np.all(np.isfinite(y))
    assert_agree({"y": jnp.concatenate([head, tail], 1)}, {"y": y}, 1e-5)
    gradients = jax.jit(jax.grad(lambda x: jnp.sum(mixer(x)[0] ** 2)))(x)
    assert np.all(np.isfinite(gradients))


def test_mlstm_output_does_not_depend_on_the_stabiliser():
    """The gradient is that of the plain equations, though the maximum has none."""
    with jax.enable_x64(True):
        mixer = MIXERS["mlstm"](D, H, dtype=jnp.dtype("float64"), rngs=nnx.Rngs(0))
        x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 6, D)))
        loss = jax.jit(lambda x: jnp.sum(jnp.sin(mixer(x)[0])))
        gradient = jax.jit(jax.grad(loss))(x)
        for place in ((0, 0, 0), (0, 2, 3), (0, 5, 7)):
            step = jnp.zeros_like(x).at[place].set(1e-5)
            numeric = (loss(x + step) - loss(x - step)) / 2e-5
            np.testing.assert_allclose(gradient[place], numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scan", [False, True])
def test_depth_comes_from_the_model(scan):
    """Layer l of L decays by exp(-8 h / H (1 - l / L)), in a scanned stack too."""
    config = LanguageModelConfig(
        vocab_size=8,
        width=8,
        num_layers=4,
        num_heads=2,
        feed_forward_width=8,
        pattern=("lightning",),
        scan_layers=scan,
    )
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    decays = [block.mixer.log_decay[...] for block in model.stack.blocks]
    expected = -np.outer(1 - np.arange(4) / 4, [4, 8])
    np.testing.assert_allclose(np.concatenate([np.atleast_2d(d) for d in decays]), expected)
    tokens = jnp.zeros((1, 5), jnp.int32)
    state = jax.eval_shape(model, tokens, model.init_state(1))[1]
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, model.init_state(1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retnet", {"key_width": 3}, "even key width"),
        ("retnet", {"value_expansion": 0}, "value_expansion is 0"),
        ("lightning", {"form": "fast"}, "form is 'fast'"),
        ("lightning", {"key_width": 0}, "key_width is 0"),
        ("mamba2", {"groups": 3}, "groups is 3"),
        ("mamba2", {"state_width": 0}, "state_width is 0"),
        ("mamba2", {"convolution": 1}, "convolution is 1"),
        ("mamba2", {"expansion": 0}, "expansion is 0"),
        ("mlstm", {"convolution": 1}, "convolution is 1"),
        ("mlstm", {"epsilon": 0.0}, "epsilon is 0"),
        ("slstm", {"convolution": 1}, "convolution is 1"),
        ("gla", {"gate_rank": 0}, "gate_rank is 0"),
        ("gla", {"temperature": 0.0}, "temperature is 0"),
        ("gsa", {"slots": 0}, "slots is 0"),
        ("gsa", {"temperature": 0.0}, "temperature is 0"),
        ("hgrn2", {"chunk_size": 0}, "chunk_size is 0"),
        ("rwkv6", {"mix_rank": 0}, "mix_rank is 0"),
        ("rwkv6", {"decay_rank": 0}, "decay_rank is 0"),
        ("mamba", {"form": "parallel"}, "form is 'parallel'"),
        ("mamba", {"dt_rank": 0}, "dt_rank is 0"),
        ("mamba", {"convolution": 1}, "convolution is 1"),
        ("lru", {"r_max": 1.0}, "r_max is 1.0"),
        ("lru", {"state_width": 0}, "state_width is 0"),
        ("rg_lru", {"state_width": 7}, "state_width is 7"),
        ("rg_lru", {"convolution": 1}, "convolution is 1"),
        ("lion", {"gate": "matrix"}, "gate is 'matrix'"),
        ("lion", {"direction": "sideways"}, "direction is 'sideways'"),
    ],
)
def test_misuse_names_the_argument(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](D, H, rngs=nnx.Rngs(0), **options)
