"""Operations beside published code of others: fixtures of inputs, outputs and gradients.

README.md of this folder says how the fixtures were made; `sources.json` names the published code.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from linear_transformer.nn.mixers.forgetting_attention import ForgettingAttention
from linear_transformer.nn.mixers.gated_delta_net import GatedDeltaNet
from linear_transformer.nn.mixers.gated_delta_net_2 import GatedDeltaNet2
from linear_transformer.nn.mixers.gated_linear_attention import GatedLinearAttention
from linear_transformer.nn.mixers.gated_slot_attention import GatedSlotAttention
from linear_transformer.nn.mixers.hgrn2 import HGRN2
from linear_transformer.nn.mixers.kimi_delta_attention import KimiDeltaAttention
from linear_transformer.nn.mixers.linformer import Linformer
from linear_transformer.nn.mixers.longformer import Longformer
from linear_transformer.nn.mixers.lru import LRU
from linear_transformer.nn.mixers.mamba import Mamba
from linear_transformer.nn.mixers.mamba2 import Mamba2
from linear_transformer.nn.mixers.mamba3 import Mamba3
from linear_transformer.nn.mixers.mlstm import running_maximum
from linear_transformer.nn.mixers.nystromformer import Nystromformer
from linear_transformer.nn.mixers.retnet import Retention
from linear_transformer.nn.mixers.rg_lru import RGLRU
from linear_transformer.nn.mixers.rwkv6 import RWKV6
from linear_transformer.nn.mixers.rwkv7 import RWKV7
from linear_transformer.ops import feature_maps, forgetting
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.cosformer import cosine_features
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.delta import (
    delta_attention,
    delta_product,
    erase_delta_attention,
    low_rank_delta_attention,
)
from linear_transformer.ops.efficient import efficient_attention
from linear_transformer.ops.hashing import lsh_attention
from linear_transformer.ops.log_linear import log_linear_attention
from linear_transformer.ops.log_space import at_most_zero
from linear_transformer.ops.mixed_chunk import mixed_chunk_attention
from linear_transformer.ops.normalizer import append_ones, divide
from linear_transformer.ops.random_features import (
    fourier_features,
    log_feature_attention,
    positive_log_features,
    relu_features,
)
from linear_transformer.ops.rectified import rectified_attention
from linear_transformer.ops.relative import relative_attention
from linear_transformer.ops.selective_scan import diagonal_scan, selective_scan
from linear_transformer.ops.slstm import slstm
from linear_transformer.ops.softmax import softmax_attention
from tests.ops import contract

FOLDER = pathlib.Path(__file__).parent
CHUNK = 4  # of 14 tokens: three chunks and a part of one
TOLERANCE = 1e-10
SCAN = ("chunk", "recurrent")
ALL = ("chunk", "recurrent", "parallel")
SOFTMAX = ("blockwise", "softmax parallel")


class Case(NamedTuple):
    """An operation and its forms.

    Attributes:
      function: (options, **inputs) -> {name of an output: array}.
      forms: those compared with the fixture; the first one is differentiated too.
      tolerance: bound of the relative RMS errors.
    """

    function: Callable
    forms: tuple[str, ...]
    tolerance: float = TOLERANCE


CASES = {}


def case(name, *forms, **options):
    """Adds a function (options, **arrays) to the cases."""

    def add(function):
        CASES[name] = Case(function, forms or ("",), **options)
        return function

    return add


def both(o_and_state):
    return dict(zip(("o", "state"), o_and_state, strict=True))


def scaled(q):
    return q * q.shape[-1] ** -0.5


@case("additive", *SCAN)
def _additive(options, q, k, v, initial_state):
    given = {"feature_map": None, "normalize": False, "initial_state": initial_state}
    return both(linear_attention(q, k, v, **given, **options))


@case("additive_normalised", *ALL)
def _additive_normalised(options, q, k, v, initial_state):
    given = {"feature_map": None, "epsilon": 1e-10, "initial_state": initial_state}
    return both(linear_attention(q, k, v, **given, **options))


@case("elu_causal", *SCAN)
def _elu_causal(options, q, k, v):
    return both(linear_attention(q, k, v, **options))


@case("elu_bidirectional")
def _elu_bidirectional(options, q, k, v, key_mask):
    given = {"direction": "bidirectional", "key_mask_BS": key_mask != 0}
    return {"o": linear_attention(q, k, v, **given)[0]}


@case("taylor", *SCAN)
def _taylor(options, q, k, v):
    return {"o": linear_attention(q, k, v, feature_map=feature_maps.taylor, **options)[0]}


@case("quadratic", *SCAN)
def _quadratic(options, q, k, v):
    return {"o": linear_attention(q, k, v, feature_map=feature_maps.quadratic, **options)[0]}


def _cosine(options, q, k, v, **given):
    batch, time = q.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(time), (batch, time))
    q, k = (cosine_features(x, positions, time) for x in (q, k))
    return {"o": linear_attention(q, k, v, feature_map=None, epsilon=1e-12, **given, **options)[0]}


case("cosformer_causal", *SCAN)(_cosine)


@case("cosformer_bidirectional")
def _cosine_bidirectional(options, q, k, v):
    return _cosine(options, q, k, v, direction="bidirectional")


@case("retention", *SCAN)
def _retention(options, q, k, v):
    log_decay_H = jnp.log1p(-(2.0 ** (-5 - jnp.arange(q.shape[2], dtype=q.dtype))))
    return {"o": decayed_attention(scaled(q), k, v, log_decay_H, **options)[0]}


@case("lightning", *SCAN)
def _lightning(options, q, k, v, slopes):
    return {"o": decayed_attention(q, k, v, -slopes, **options)[0]}


def _decayed(options, q, k, v, log_decay, initial_state):
    return both(decayed_attention(q, k, v, log_decay, initial_state=initial_state, **options))


case("scalar_decay", *ALL)(_decayed)
case("mamba2", *SCAN)(_decayed)


@case("vector_decay", *ALL)
def _vector_decay(options, q, k, v, log_decay, initial_state):
    return _decayed(options, scaled(q), k, v, log_decay, initial_state)


@case("slots", *SCAN)
def _slots(options, q, k, v, s, log_decay, initial_keys, initial_values):
    given = {"log_value_decay_BTHV": log_decay, "initial_state": initial_keys}
    scores, keys = decayed_attention(scaled(q), k, s, None, **given, **options)
    weights = jax.nn.softmax(scores)
    given = {"initial_state": initial_values}
    o, values = decayed_attention(weights, s, v, log_decay, **given, **options)
    return {"o": o, "keys": keys, "values": values}


@case("rwkv6", *ALL)
def _rwkv6(options, q, k, v, log_decay, bonus, initial_state):
    given = {"bonus_HK": bonus, "initial_state": initial_state}
    return both(decayed_attention(q, k, v, log_decay, **given, **options))


@case("bidirectional_fixed_decay", "chunk", "parallel")
def _bidirectional_fixed_decay(options, q, k, v, logits):
    given = {"direction": "bidirectional"} | options
    return {"o": decayed_attention(q, k, v, jax.nn.log_sigmoid(logits), **given)[0]}


@case("bidirectional_scalar_decay", "chunk", "parallel")
def _bidirectional_scalar_decay(options, q, k, v, log_decay):
    # Between two tokens the published mask has the key's gate, and ours the query's.
    zero = jnp.zeros_like(log_decay[:, :1])
    before = jnp.concatenate([zero, log_decay[:, :-1]], axis=1)
    after = jnp.concatenate([log_decay[:, 1:], zero], axis=1)
    causal, _ = decayed_attention(q, k, v, before, **options)
    anticausal, _ = decayed_attention(q, k, v, after, direction="anticausal", **options)
    own = jnp.sum(q * k, axis=-1, keepdims=True) * v
    return {"o": causal + anticausal - own}


@case("mlstm", *SCAN)
def _mlstm(options, q, k, v, log_input, forget):
    log_forget = jax.nn.log_sigmoid(forget)
    zeros = jnp.zeros_like(log_forget[:, 0])
    before, maximum = running_maximum(log_forget, log_input, zeros, None)
    k = scaled(k) * jnp.exp(log_input - maximum)[..., None]
    log_decay = at_most_zero(log_forget + before - maximum)
    o, memory = decayed_attention(q, k, append_ones(v), log_decay, **options)
    divisor = jnp.maximum(jnp.abs(o[..., -1:]), jnp.exp(-maximum)[..., None])
    # The published state is that of keys without their factor, and has no gradient in the fixture.
    memory = lax.stop_gradient(memory) * k.shape[-1] ** 0.5
    return {"o": o[..., :-1] / divisor, "memory": memory, "maximum": maximum[:, -1]}


@case("delta", *SCAN)
def _delta(options, q, k, v, beta, initial_state):
    return both(
        delta_attention(scaled(q), k, v, None, beta, initial_state=initial_state, **options)
    )


def _gated_delta(options, q, k, v, log_decay, beta, initial_state):
    return both(delta_attention(q, k, v, log_decay, beta, initial_state=initial_state, **options))


case("gated_delta", *SCAN)(_gated_delta)
case("kda", *SCAN)(_gated_delta)


@case("delta_product", *SCAN)
def _delta_product(options, q, k, v, log_decay, beta, initial_state):
    return both(delta_product(q, k, v, log_decay, beta, initial_state=initial_state, **options))


@case("gated_delta_2", *SCAN)
def _gated_delta_2(options, q, k, v, log_decay, erase, write, initial_state):
    given = {"initial_state": initial_state}
    return both(erase_delta_attention(q, k, write * v, log_decay, erase, **given, **options))


@case("low_rank_delta", *SCAN)
def _low_rank_delta(options, q, k, v, log_decay, write, read, initial_state):
    arrays = (scaled(q), k, v, log_decay, write, read)
    return both(low_rank_delta_attention(*arrays, initial_state=initial_state, **options))


@case("selective_scan", *SCAN)
def _selective_scan(options, x, dt, a, b, c):
    return both(selective_scan(x, dt, a, b, c, **options))


@case("negative_scan", *SCAN)
def _negative_scan(options, x, dt, a, b, c):
    return {"o": selective_scan(x, dt, a, b, c, negative_eigenvalues=True, **options)[0]}


@case("diagonal_scan", *SCAN)
def _diagonal_scan(options, b, log_a, initial_state):
    return both(diagonal_scan(b, jnp.exp(log_a), initial_state=initial_state, **options))


@case("slstm")
def _slstm(options, gate_i, gate_f, gate_z, gate_o, kernel):
    # Gates are in the order i, f, z, o in the published code, and in the order z, i, f, o here.
    gates = jnp.concatenate([gate_z, gate_i, gate_f, gate_o], axis=-1)
    heads, _, width, _ = kernel.shape
    kernel = kernel[:, jnp.array([2, 0, 1, 3])].reshape(heads, 4 * width, width).swapaxes(1, 2)
    o, state = slstm(gates, kernel)
    scale = jnp.exp(state.log_scale)
    return {"o": o, "cell": scale * state.cell, "norm": scale * state.normalizer}


@case("log_linear", "chunk", "recurrent")
def _log_linear(options, q, k, v, log_decay, scales):
    return {"o": log_linear_attention(q, k, v, scales, log_decay_BTH=log_decay, **options)[0]}


@case("softmax_window", *SOFTMAX)
def _softmax_window(options, q, k, v):
    return {"o": softmax_attention(q, k, v, window=7, **options)}


@case("softmax_bidirectional", *SOFTMAX)
def _softmax_bidirectional(options, q, k, v):
    return {"o": softmax_attention(q, k, v, direction="bidirectional", **options)}


@case("softmax_sinks", *SOFTMAX)
def _softmax_sinks(options, q, k, v, sinks):
    return {"o": softmax_attention(q, k, v, window=7, sinks_H=sinks, **options)}


@case("forgetting", *SOFTMAX)
def _forgetting(options, q, k, v, log_forget):
    sums = forgetting.log_sums(log_forget)
    given = {"query_log_sums_BTHX": sums, "key_log_sums_BSHX": sums}
    return {"o": softmax_attention(q, k, v, **given, **options)}


@case("efficient")
def _efficient(options, q, k, v):
    return {"o": efficient_attention(q, k, v, direction="bidirectional")[0]}


@case("performer")
def _performer(options, q, k, v, projections):
    w = jnp.broadcast_to(projections, (q.shape[2], *projections.shape))
    q, k = (positive_log_features(x, w) for x in (q, k))
    return {"o": log_feature_attention(q, k, v, direction="bidirectional")[0]}


@case("performer_relu")
def _performer_relu(options, q, k, v, projections):
    w = jnp.broadcast_to(projections, (q.shape[2], *projections.shape))
    q, k = (relu_features(x, w) for x in (q, k))
    given = {"direction": "bidirectional", "feature_map": None, "epsilon": 1e-30}
    return {"o": linear_attention(q, k, v, **given)[0]}


# The published code adds 1e-3 to the length of queries and keys, which is 8e3 here.
@case("rfa", *SCAN, tolerance=1e-6)
def _rfa(options, q, k, v, projections):
    q, k = (fourier_features(x, projections) for x in (q, k))
    given = {"feature_map": None, "normalize": False}
    o, state = linear_attention(q, k, append_ones(v), **given, **options)
    # Published features are 0.1 sin and 0.1 cos, and the divisor is at least 1.
    ratio = 0.1 * projections.shape[1] ** 0.5
    return {"o": divide(o, ratio**-2), "state": ratio * state}


def _flash(options, q, k, linear_q, linear_k, v, bias, direction="causal"):
    given = {"chunk_size": CHUNK, "direction": direction}
    if direction == "bidirectional":  # published: divided by the tokens, not by those of a chunk
        linear_q = linear_q * CHUNK / q.shape[1]
    return {"o": mixed_chunk_attention(q, k, linear_q, linear_k, v, bias, **given)[0]}


case("flash_causal")(_flash)
case("flash_bidirectional")(functools.partial(_flash, direction="bidirectional"))


@case("gated_attention_unit")
def _gated_attention_unit(options, q, k, v, bias):
    time = q.shape[1]
    q, k, v = (x[:, :, None] for x in (q, k, v))
    # The published code divides the bias by the tokens too.
    given = {"power": 2, "scale": 1 / time, "bias_E": bias / time, "block_size": 5}
    return {"o": rectified_attention(q, k, v, **given)[:, :, 0]}


@case("relative")
def _relative(options, q, k, v, distances, content_bias, position_bias):
    given = {"content_bias_HK": content_bias, "position_bias_HK": position_bias}
    return {"o": relative_attention(q, k, v, distances, **given)}


def _lsh(options, q, v, rotations, direction="causal"):
    given = {"chunk_size": CHUNK, "chunking": "sorted", "direction": direction}
    q, v = (x[:, :, None] for x in (q, v))
    return {"o": lsh_attention(q, v, rotations.swapaxes(0, 1), **given)[:, :, 0]}


# The penalty of a token's own key is 5e4 in the published code, and rounded to 7e-12.
case("lsh_causal", tolerance=1e-9)(_lsh)
case("lsh_bidirectional", tolerance=1e-9)(functools.partial(_lsh, direction="bidirectional"))


@case("hedgehog")
def _hedgehog(options, x):
    return {"o": feature_maps.signed_softmax(x)}


@case("dpfp")
def _dpfp(options, x):
    return {"o": feature_maps.dpfp(x, nu=2)}


def assign(*pairs):
    """Sets parameters, given as (parameter, value, ...)."""
    for parameter, value in zip(pairs[::2], pairs[1::2], strict=True):
        assert parameter.shape == value.shape
        parameter.set_value(value)


def layer(mixer, heads, **options):
    """A mixer in float64 of the width that the fixture has."""
    return mixer(heads=heads, dtype=jnp.float64, rngs=nnx.Rngs(0), **options)


@case("nystromformer")
def _nystromformer(options, x, wq, wk, wv, taps):
    width, heads = x.shape[-1], taps.shape[0]
    given = {"width": width, "direction": "bidirectional", "bias": False}
    mixer = layer(Nystromformer, heads, **given, landmarks=4, convolution=5)
    assign(mixer.query.kernel, wq, mixer.key.kernel, wk, mixer.value.kernel, wv)
    assign(mixer.taps, taps.T, mixer.output.kernel, jnp.eye(width))
    return {"o": mixer(x)[0]}


@case("rg_lru", "chunk")
def _rg_lru(options, x, **given):
    heads, head, _ = given["rg_lru.a_gate.w"].shape
    mixer = layer(RGLRU, heads, width=x.shape[-1], state_width=heads * head, **options)
    for name, ours in (("x", mixer.value), ("y", mixer.gate), ("out", mixer.output)):
        weight, bias = (given[f"linear_{name}.{part}"] for part in ("weight", "bias"))
        assign(ours.kernel, weight.T, ours.bias, bias)
    for name, ours in (("a", mixer.decay_gate), ("input", mixer.input_gate)):
        weight, bias = (given[f"rg_lru.{name}_gate.{part}"] for part in "wb")
        assign(ours.kernel, weight, ours.bias, bias)
    assign(mixer.local.taps, given["conv_1d.w"][::-1], mixer.convolution_bias, given["conv_1d.b"])
    assign(mixer.decay, -given["rg_lru.a_param"].reshape(heads, head))
    o, state = mixer(x, mixer.init_state(x.shape[0]))
    return {"o": o, "state": state["sums"]}


@case("lru", "chunk")
def _lru(options, x, theta_log, nu_log, gamma_log, B_re, B_im, C_re, C_im, D):
    width = x.shape[-1]
    mixer = layer(LRU, 1, width=width, state_width=len(nu_log), **options)
    assign(mixer.nu, nu_log, mixer.theta, theta_log, mixer.log_gamma, gamma_log, mixer.skip, D)
    assign(mixer.input.kernel, jnp.concatenate([B_re, B_im]).T)
    assign(mixer.read.kernel, jnp.concatenate([C_re, C_im], axis=1).T)
    # Half of the output of the read, since sigmoid(0) gates it.
    assign(mixer.output.kernel, jnp.eye(width), mixer.output_gate.kernel, jnp.zeros((width, width)))
    return {"o": 2 * mixer(x)[0]}


# The published code has no epsilon at the length of a removal key, whose square is 1e3 here.
@case("rwkv7", "chunk", tolerance=1e-8)
def _rwkv7(options, x, **given):
    heads = given["r_k"].shape[0]
    ranks = {"decay_rank": 3, "rate_rank": 3, "gate_rank": 3}
    mixer = layer(RWKV7, heads, width=x.shape[-1], **ranks, **options)
    assign(mixer.shift, jnp.stack([given[f"m{name}"] for name in "rwkvag"]))
    assign(mixer.receptance.kernel, given["Wr"].T, mixer.key.kernel, given["Wk"].T)
    assign(mixer.value.kernel, given["Wv"].T, mixer.output.kernel, given["Wo"].T)
    for name, ours in (("w", mixer.decay), ("a", mixer.rate), ("g", mixer.gate)):
        assign(ours.down.kernel, given[f"W{name}1"], ours.up.kernel, given[f"W{name}2"])
    assign(mixer.decay_bias, given["w_bias"], mixer.rate_bias, given["a_bias"])
    assign(mixer.removal_scale, given["k_k"], mixer.replacement, given["k_a"])
    assign(mixer.bonus, given["r_k"])
    scale, bias = (given[f"ln_{name}"].reshape(heads, -1) for name in "wb")
    assign(mixer.norm.scale, scale, mixer.norm.bias, bias)
    o, state = mixer(x, mixer.init_state(x.shape[0]))
    return {"o": o, "state": state["sums"].swapaxes(2, 3)}  # published: values x keys


@case("mamba3", "chunk")
def _mamba3(options, x, **given):
    heads, _, states = given["B_bias"].shape
    mixer = layer(Mamba3, heads, width=x.shape[-1], expansion=1, state_width=states, **options)
    order = np.r_[0:4:2, 1:4:2, 4:states]  # published: the pairs that rotate are neighbours
    width = x.shape[-1]
    sizes = np.cumsum([width, width, states, states, heads, heads, heads])
    z, v, b, c, dt, decay, trapezoid, angle = jnp.split(given["in_proj.weight"].T, sizes, axis=1)
    assign(mixer.gate.kernel, z, mixer.value.kernel, v, mixer.dt.kernel, dt)
    assign(mixer.decay.kernel, decay, mixer.trapezoid.kernel, trapezoid, mixer.angle.kernel, angle)
    assign(mixer.shared.kernel, jnp.concatenate([b[:, order], c[:, order]], axis=1))
    assign(mixer.key_norm.scale, given["B_norm.weight"][order])
    assign(mixer.query_norm.scale, given["C_norm.weight"][order])
    assign(mixer.key_bias, given["B_bias"][:, 0, order])
    assign(mixer.query_bias, given["C_bias"][:, 0, order])
    assign(mixer.dt_bias, given["dt_bias"], mixer.skip, given["D"])
    assign(mixer.output.kernel, given["out_proj.weight"].T)
    return {"o": mixer(x)[0]}


def assign_linear(given, **layers):
    """Sets the kernels of linear layers, by their names in the published code."""
    for name, ours in layers.items():
        assign(ours.kernel, given[f"{name}.weight"].T)


def assign_low_rank(given, **layers):
    """Sets low-rank maps, which are a sequence of two linear layers in the published code."""
    for name, ours in layers.items():
        assign_linear(given, **{f"{name}.0": ours.down, f"{name}.1": ours.up})
        if f"{name}.1.bias" in given:
            assign(ours.up.bias, given[f"{name}.1.bias"])


def delta_layer(mixer, x, given, **options):
    """A delta-rule layer with all that the published ones have in common."""
    heads, keys = given["A_log"].shape[0], given["q_proj.weight"].shape[0]
    mixer = layer(mixer, heads, width=x.shape[-1], key_width=keys // heads, **options)
    names = {"q_proj": mixer.query, "k_proj": mixer.key, "v_proj": mixer.value}
    assign_linear(given, **names, o_proj=mixer.output)
    taps = jnp.concatenate([given[f"{name}_conv1d.weight"][:, 0] for name in "qkv"])
    assign(mixer.local.taps, taps[:, ::-1].T)
    assign(mixer.log_decay, given["A_log"].reshape(mixer.log_decay.shape))
    assign(mixer.dt_bias, given["dt_bias"])
    assign(mixer.norm.scale, jnp.tile(given["o_norm.weight"], (heads, 1)))
    # The published layer divides its queries by sqrt(K), so its epsilon weighs K times as much.
    mixer.norm.epsilon = mixer.key_width * 1e-5
    return mixer


@case("gated_delta_net_layer", "chunk")
def _gated_delta_net_layer(options, x, **given):
    mixer = delta_layer(GatedDeltaNet, x, given, negative_eigenvalues=True, **options)
    assign_linear(given, a_proj=mixer.dt, b_proj=mixer.step, g_proj=mixer.gate)
    return {"o": mixer(x)[0]}


@case("kda_layer", "chunk")
def _kda_layer(options, x, **given):
    mixer = delta_layer(KimiDeltaAttention, x, given, **options)
    assign_linear(given, b_proj=mixer.step)
    assign_low_rank(given, f_proj=mixer.dt, g_proj=mixer.gate)
    return {"o": mixer(x)[0]}


@case("gated_delta_net_2_layer", "chunk")
def _gated_delta_net_2_layer(options, x, **given):
    mixer = delta_layer(GatedDeltaNet2, x, given, negative_eigenvalues=True, **options)
    assign_linear(given, b_proj=mixer.erase, w_proj=mixer.write)
    assign_low_rank(given, f_proj=mixer.dt, g_proj=mixer.gate)
    return {"o": mixer(x)[0]}


@case("gla_layer", "chunk")
def _gla_layer(options, x, **given):
    mixer = layer(GatedLinearAttention, 2, width=x.shape[-1], gate_rank=3, **options)
    names = {"q_proj": mixer.query, "k_proj": mixer.key, "v_proj": mixer.value}
    assign_linear(given, **names, g_proj=mixer.gate, o_proj=mixer.output)
    assign_low_rank(given, gk_proj=mixer.forget)
    assign(mixer.norm.scale, jnp.tile(given["g_norm_swish_gate.weight"], (2, 1)))
    return {"o": mixer(x)[0]}


@case("gsa_layer", "chunk")
def _gsa_layer(options, x, **given):
    mixer = layer(GatedSlotAttention, 2, width=x.shape[-1], slots=5, **options)
    names = {"q_proj": mixer.query, "k_proj": mixer.key, "v_proj": mixer.value}
    assign_linear(given, **names, f_proj=mixer.forget, o_proj=mixer.output)
    assign(mixer.norm.scale, given["g_norm.weight"])
    return {"o": mixer(x)[0]}


@case("hgrn2_layer", "chunk")
def _hgrn2_layer(options, x, lower_bound, **given):
    mixer = layer(HGRN2, 2, width=x.shape[-1], **options)
    names = {"q_proj": mixer.query, "f_proj": mixer.forget, "i_proj": mixer.value}
    assign_linear(given, **names, o_proj=mixer.output)
    assign(mixer.norm.scale, given["g_norm.weight"])
    assign(mixer.lower_bound, jnp.log(lower_bound / (1 - lower_bound)).reshape(2, -1))
    mixer.norm.epsilon = mixer.key_width * 1e-5  # as in the delta layers
    return {"o": mixer(x)[0]}


@case("rwkv6_layer", "chunk")
def _rwkv6_layer(options, x, **given):
    width = x.shape[-1]
    mixer = layer(RWKV6, 2, width=width, mix_rank=3, decay_rank=3, **options)
    for name, ours in (("r", mixer.receptance), ("k", mixer.key), ("v", mixer.value)):
        assign_linear(given, **{f"{name}_proj.linear": ours})
    assign_linear(given, **{"g_proj.linear": mixer.gate, "o_proj": mixer.output})
    assign_linear(given, **{"w_proj.linear.lora.0": mixer.decay.down})
    assign_linear(given, **{"w_proj.linear.lora.2": mixer.decay.up})
    assign(mixer.log_log_decay, given["w_proj.linear.lora.2.bias"], mixer.bonus, given["bonus"])
    assign(mixer.shift_of_mix, given["x_proj.0.mu"])
    order = [0, 2, 3, 4, 1]  # published: r, w, k, v, g
    down = given["x_proj.0.linear.weight"].reshape(5, 3, width)
    up = given["x_proj.2.weight"].reshape(width, 5, 3)
    for ours, place in zip(mixer.mix, order, strict=True):
        assign(ours.down.kernel, down[place].T, ours.up.kernel, up[:, place].T)
    assign(mixer.shift, given["x_bias"][jnp.array(order)])
    scale, bias = (given[f"g_norm.{name}"].reshape(2, -1) for name in ("weight", "bias"))
    assign(mixer.norm.scale, scale, mixer.norm.bias, bias)
    return {"o": mixer(x)[0]}


@case("mamba_layer", "chunk")
def _mamba_layer(options, x, A_log, D, **given):
    states = {"state_width": A_log.shape[1], "dt_rank": 3}
    mixer = layer(Mamba, 1, width=x.shape[-1], **states, **options)
    value, gate = jnp.split(given["in_proj.weight"].T, 2, axis=1)
    assign(mixer.value.kernel, value, mixer.gate.kernel, gate)
    assign_linear(given, x_proj=mixer.selection, dt_proj=mixer.dt, out_proj=mixer.output)
    assign(mixer.dt.bias, given["dt_proj.bias"], mixer.log_decay, A_log.T, mixer.skip, D)
    assign(mixer.local.taps, given["conv1d.weight"][:, 0, ::-1].T)
    assign(mixer.convolution_bias, given["conv1d.bias"])
    return {"o": mixer(x)[0]}


# Our angles of rotary positions are fp32.
@case("retnet_layer", "chunk", tolerance=1e-6)
def _retnet_layer(options, x, **given):
    mixer = layer(Retention, 2, width=x.shape[-1], **options)
    names = {"q_proj": mixer.query, "k_proj": mixer.key, "v_proj": mixer.value}
    names |= {"g_proj": mixer.gate, "out_proj": mixer.output}
    assign_linear(given, **{f"m.{name}": ours for name, ours in names.items()})
    mixer.norm.epsilon = 1e-20  # as in the fixture: the norm cancels the factors of the scores
    return {"o": mixer(x, positions=jnp.tile(jnp.arange(x.shape[1]), (x.shape[0], 1)))[0]}


def _mamba2(options, x, *, groups, A_log, D, **given):
    heads, width = len(D), x.shape[-1]
    inner = given["norm.weight"].shape[0]
    states = (given["conv1d.bias"].shape[0] - inner) // (2 * groups)
    sizes = {"expansion": inner // width, "state_width": states, "groups": groups}
    mixer = layer(Mamba2, heads, width=width, **sizes, **options)
    cuts = np.cumsum([inner, inner, 2 * groups * states])
    gate, value, shared, dt = jnp.split(given["in_proj.weight"].T, cuts, axis=1)
    assign(mixer.gate.kernel, gate, mixer.value.kernel, value)
    assign(mixer.shared.kernel, shared, mixer.dt.kernel, dt, mixer.dt_bias, given["dt_bias"])
    assign(mixer.local.taps, given["conv1d.weight"][:, 0, ::-1].T)
    assign(mixer.convolution_bias, given["conv1d.bias"])
    assign(mixer.log_decay, A_log, mixer.skip, D)
    assign(mixer.norm_scale, given["norm.weight"])
    assign_linear(given, out_proj=mixer.output)
    return {"o": mixer(x)[0]}


case("mamba2_layer", "chunk")(functools.partial(_mamba2, groups=1))
case("mamba2_groups_layer", "chunk")(functools.partial(_mamba2, groups=2))


@case("linformer_layer")
def _linformer_layer(options, x, **given):
    width, (length, compressed) = x.shape[-1], given["proj_k"].shape
    sizes = {"width": width, "length": length, "compressed": compressed}
    mixer = layer(Linformer, 2, direction="bidirectional", **sizes)
    parts = [given[f"to_{name}.weight"].T for name in "qkv"]
    assign(mixer.projection.kernel, jnp.concatenate(parts, axis=1))
    assign(mixer.combine_keys, given["proj_k"].T, mixer.combine_values, given["proj_v"].T)
    assign_linear(given, to_out=mixer.output)
    assign(mixer.output.bias, given["to_out.bias"])
    return {"o": mixer(x)[0]}


@case("forgetting_layer", "blockwise")
def _forgetting_layer(options, x, **given):
    parts = {"qk_norm": True, "output_gate": True, "bias": False}
    mixer = layer(ForgettingAttention, 2, width=x.shape[-1], form=options["form"], **parts)
    names = {"q_proj": mixer.query, "k_proj": mixer.key, "v_proj": mixer.value}
    assign_linear(given, **names, f_proj=mixer.forget, g_proj=mixer.gate, o_proj=mixer.output)
    assign(mixer.forget.bias, given["f_proj.bias"])
    for name, norm in (("q", mixer.query_norm), ("k", mixer.key_norm)):
        assign(norm.scale, given[f"{name}_norm.weight"].reshape(2, -1))
        norm.epsilon = 1e-5  # as published; ours is 1e-6
    return {"o": mixer(x)[0]}


@case("longformer_layer")
def _longformer_layer(options, x, **given):
    width = x.shape[-1]
    sizes = {"width": width, "window": 4, "num_global": 2, "direction": "bidirectional"}
    mixer = layer(Longformer, 2, **sizes)
    for i, name in enumerate(("query", "key", "value")):
        for ours, end in ((getattr(mixer, name), ""), (mixer.global_projections[i], "_global")):
            weight, bias = (given[f"m.{name}{end}.{part}"] for part in ("weight", "bias"))
            assign(ours.kernel, weight.T, ours.bias, bias)
    assign(mixer.output.kernel, jnp.eye(width))
    return {"o": mixer(x)[0]}


@functools.cache
def fixture(name):
    """Inputs, outputs, cotangents of outputs and gradients of inputs, in float64."""
    with np.load(FOLDER / "fixtures" / f"{name}.npz") as file:
        arrays = {key: x.astype(np.float64) for key, x in file.items()}
    outputs = {n: arrays.pop(n) for n in list(arrays) if f"c_{n}" in arrays}
    cotangents = {n: arrays.pop(f"c_{n}") for n in outputs}
    gradients = {n: arrays.pop(n) for n in list(arrays) if n.startswith("d_")}
    return arrays, outputs, cotangents, gradients


def options_of(form):
    if form == "blockwise":
        return {"form": form, "block_size": CHUNK}
    if form in ("", "softmax parallel"):
        return {"form": "parallel"} if form else {}
    return {"form": form, "chunk_size": CHUNK}


def errors(name):
    """Relative RMS error of each output in each form, and of each gradient in the first form."""
    arrays, outputs, cotangents, gradients = fixture(name)
    function, (first, *others), _ = CASES[name]
    inputs = {n: arrays[n] for n in arrays if f"d_{n}" in gradients}

    def run(inputs, arrays, cotangents):
        def of(form, inputs):
            return function(options_of(form), **arrays | inputs)

        found, pullback = jax.vjp(functools.partial(of, first), inputs)
        return {first: found} | {form: of(form, inputs) for form in others}, pullback(cotangents)[0]

    options = {"xla_backend_optimization_level": 0}
    with jax.enable_x64(True):
        found, found_gradients = jax.jit(run, compiler_options=options)(inputs, arrays, cotangents)
    rows = {f"{n} {form}": (o[n], outputs[n]) for form, o in found.items() for n in outputs}
    rows |= {f"d_{n} {first}": (found_gradients[n], gradients[f"d_{n}"]) for n in inputs}
    return {n: contract.relative_rms(*row) for n, row in rows.items()}


def test_every_fixture_has_a_case_and_a_source():
    fixtures = {path.stem for path in (FOLDER / "fixtures").iterdir()}
    sources = json.loads((FOLDER / "sources.json").read_text())["fixtures"]
    assert fixtures == CASES.keys() == sources.keys()
    for source in sources.values():
        assert len(source["commit"]) == 40 and {"repository", "file", "function"} < source.keys()


@pytest.mark.parametrize("name", CASES)
def test_published_code_has_the_same_outputs_and_gradients(name):
    found = errors(name)
    wrong = {n: x for n, x in found.items() if not x <= CASES[name].tolerance}
    assert not wrong
