"""Our operations with the arguments of published ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from linear_transformer.nn.mixers.mlstm import running_maximum
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
from linear_transformer.ops.sparse_softmax import (
    block_sparse_attention,
    neighbours,
    with_global_queries,
)
from tests.references.cases import ALL, CHUNK, SCAN, SOFTMAX, case, fixture


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


@case("bigbird")
def _bigbird(options, q, k, v, random_blocks):
    random = fixture("bigbird")[0]["random_blocks"].astype(int)  # not traced
    heads, count = len(random), random.shape[1] + 2
    lists = np.full((heads, count, count + 3), -1)
    lists[:, :, :3] = neighbours(count, 1)
    lists[:, 1:-1, 3 : 3 + random.shape[2]] = random
    # Published: the last block is global too.
    lists[:, :, -1] = count - 1
    lists[:, -1, :count] = np.arange(count)
    given = {"num_global": q.shape[1] // count}
    o = block_sparse_attention(q, k, v, lists, block_size=given["num_global"], **given)
    return {"o": with_global_queries(o, q, k, v, **given)}


@case("hedgehog")
def _hedgehog(options, x):
    return {"o": feature_maps.signed_softmax(x)}


@case("dpfp")
def _dpfp(options, x):
    return {"o": feature_maps.dpfp(x, nu=2)}
