"""Our layers with the parameters of published ones."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

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
from linear_transformer.nn.mixers.nystromformer import Nystromformer
from linear_transformer.nn.mixers.retnet import Retention
from linear_transformer.nn.mixers.rg_lru import RGLRU
from linear_transformer.nn.mixers.rwkv6 import RWKV6
from linear_transformer.nn.mixers.rwkv7 import RWKV7
from tests.references.cases import case


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
