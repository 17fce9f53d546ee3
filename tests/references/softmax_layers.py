"""Our layers of attention to chosen tokens, with the parameters of published ones."""

import functools

import jax.numpy as jnp
import numpy as np

from linear_transformer.nn.mixers.diag_attention import DiagAttention
from linear_transformer.nn.mixers.rectified_attention import RectifiedAttention
from linear_transformer.nn.mixers.sinkhorn import SinkhornAttention
from linear_transformer.nn.mixers.sparse_transformer import SparseTransformer
from linear_transformer.nn.mixers.synthesizer import Synthesizer
from tests.references.cases import CHUNK, case, fixture
from tests.references.layers import assign, assign_linear, layer


def _rela(options, x, *, direction, **given):
    mixer = layer(RectifiedAttention, 2, width=x.shape[-1], direction=direction)
    for name, ours in (("qkv_map", mixer.projection), ("o_map", mixer.output)):
        assign(ours.kernel, given[f"{name}/W_0_0"], ours.bias, given[f"{name}/b_0"])
    assign(mixer.norm.scale, given["post/scale"], mixer.norm.gate, given["post/gate"])
    mixer.norm.epsilon = 1e-8  # as published; ours is 1e-6
    return {"o": mixer(x)[0]}


for _direction in ("causal", "bidirectional"):
    case(f"rela_{_direction}")(functools.partial(_rela, direction=_direction))


def _diag(options, x, *, scores, norm, **given):
    width, heads = x.shape[-1], 2
    sizes = {"width": width, "block_size": CHUNK}
    mixer = layer(DiagAttention, heads, scores=scores, output_norm=norm, lrpe=True, **sizes)
    # Published: the pairs that rotate are neighbours.
    pairs = np.arange(width).reshape(heads, -1, 2).swapaxes(1, 2)
    for name, ours in (("q", mixer.query), ("k", mixer.key), ("v", mixer.value)):
        order = np.arange(width) if name == "v" else pairs.ravel()
        weight, bias = (given[f"{name}_proj.{part}"][order] for part in ("weight", "bias"))
        assign(ours.kernel, weight.T, ours.bias, bias)
    assign_linear(given, out_proj=mixer.output)
    assign(mixer.output.bias, given["out_proj.bias"])
    lrpe = mixer.lrpe
    assert lrpe is not None
    assign(lrpe.reflection, given["urpe.v"][pairs[0].ravel()])
    assign(lrpe.frequencies, given["urpe.theta"].ravel())
    return {"o": mixer(x)[0]}


# Our angles of positions are fp32.
for _scores, _norm in (("relu", "simplermsnorm"), ("softmax", None)):
    _given = {"scores": _scores, "norm": _norm}
    case(f"transnormer_diag_{_scores}", tolerance=1e-6)(functools.partial(_diag, **_given))


def places(x):
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])


def _synthesizer(options, x, *, variant, direction, **given):
    _, heads, key_width = given["value.kernel"].shape
    width = x.shape[-1]
    if variant == "dense":
        keys = given["dense_syn_len.kernel"].T[:, None]
    else:
        keys = given["random2"].transpose(2, 0, 1)
    sizes = {"width": width, "length": len(keys)}
    mixer = layer(Synthesizer, heads, variant=variant, direction=direction, **sizes)
    if variant == "dense":
        assign(mixer.query.kernel, given["dense_syn.kernel"].reshape(width, width))
        assign(mixer.query.bias, given["dense_syn.bias"].ravel())
    else:
        assign(mixer.query, given["random1"].swapaxes(0, 1))
    assign(mixer.keys, keys * key_width**0.5)  # published: scores without a scale
    assign(mixer.value.kernel, given["value.kernel"].reshape(width, width))
    assign(mixer.value.bias, given["value.bias"].ravel())
    assign(mixer.output.kernel, given["out.kernel"].reshape(width, width))
    assign(mixer.output.bias, given["out.bias"])
    return {"o": mixer(x, positions=places(x))[0]}


for _variant, _direction in (("dense", "causal"), ("random", "bidirectional")):
    _given = {"variant": _variant, "direction": _direction}
    case(f"synthesizer_{_variant}")(functools.partial(_synthesizer, **_given))


def sparse(x, heads, query, key, value, output, **options):
    """The Sparse Transformer, without biases."""
    mixer = layer(SparseTransformer, heads, width=x.shape[-1], bias=False, **options)
    assign(mixer.query.kernel, query, mixer.key.kernel, key, mixer.value.kernel, value)
    assign(mixer.output.kernel, output)
    return mixer


@case("sparse_strided")
def _sparse_strided(options, x, wq, wk, wv):
    mixer = sparse(x, 4, wq, wk, wv, jnp.eye(x.shape[-1]), pattern="strided", block_size=4)
    return {"o": mixer(x)[0]}


@case("sparse_fixed")
def _sparse_fixed(options, x, **given):
    width, size, summary = x.shape[-1], 5, 2

    def joined(name):
        return [given[f"{part}.{name}.kernel"] for part in ("near", "far")]

    projections = [
        jnp.concatenate([w.reshape(width, -1) for w in joined(name)], axis=1)
        for name in ("query", "key", "value")
    ]
    near, far = (w.reshape(-1, width) for w in joined("out"))
    given = {"pattern": "fixed", "block_size": size}
    only_near = jnp.concatenate([near, jnp.zeros_like(far)])
    only_far = jnp.concatenate([jnp.zeros_like(near), far])
    o_near = sparse(x, 4, *projections, only_near, summary=summary, **given)(x)[0]
    # Published: the first token of a block is a summary too.  With all places moved by size - 1 it
    # is the last of a block, next to the others.
    moved = jnp.pad(x, ((0, 0), (size - 1, 0), (0, 0)))
    segments = jnp.minimum(places(moved) // (size - 1), 1)
    mixer = sparse(x, 4, *projections, only_far, summary=summary + 1, **given)
    return {"o": o_near + mixer(moved, segment_ids=segments)[0][:, size - 1 :]}


@case("sparse_fixed_layout")
def _sparse_fixed_layout(options):
    time = len(fixture("sparse_fixed_layout")[1]["visible"])
    # Zero scores weigh all tokens that a query sees alike, and each value names its token.
    zero, name = jnp.zeros((time, 2 * time)), jnp.tile(jnp.eye(time), (1, 2))
    x = jnp.pad(jnp.eye(time), ((0, 0), (0, time)))[None]
    kernels = [jnp.concatenate([w, jnp.zeros_like(w)]) for w in (zero, zero, name)]
    given = {"pattern": "fixed", "block_size": 6, "summary": 2}
    mixer = sparse(x, 2, *kernels, jnp.eye(2 * time), **given)
    near, far = jnp.split(mixer(x)[0][0], 2, axis=1)
    return {"visible": ((near > 0) | (far > 0)).astype(x.dtype)}


@case("sinkhorn")
def _sinkhorn(options, x, to_q, to_kv, sort, **given):
    width, (heads, _, blocks) = x.shape[-1], sort.shape
    sizes = {"width": width, "length": x.shape[1], "block_size": CHUNK, "iterations": 5}
    mixer = layer(SinkhornAttention, heads, direction="bidirectional", **sizes)
    for ours in (mixer.query, mixer.key, mixer.value):
        ours.bias.set_value(jnp.zeros(width))
    assign(mixer.query.kernel, to_q.T, mixer.key.kernel, to_kv.T, mixer.value.kernel, to_kv.T)
    assign_linear(given, to_out=mixer.output)
    assign(mixer.output.bias, given["to_out.bias"])
    # The published network reads the sums of queries and keys, not of the input.
    sums = [jnp.reshape(w.T, (width, heads, -1)) for w in (to_q, to_kv)]
    hidden = jnp.einsum("dhk,hkg->dhg", jnp.concatenate(sums, axis=-1), sort)
    hidden = hidden.reshape(width, heads * blocks)
    assign(mixer.sort_hidden.kernel, jnp.pad(hidden, ((0, 0), (0, width - heads * blocks))))
    mixer.sort_hidden.bias.set_value(jnp.zeros(width))
    # Its result is the exponential of the logits, after the ReLU.
    mixer.sort = lambda y: jnp.log(y[..., : heads * blocks] + 1e-6)
    return {"o": mixer(x)[0]}
