"""Pretrained bidirectional Mamba that labels each byte of a text with its kind of content.

The weights are from the Python package typeseg 0.2.7 (Apache 2.0): 6 layers, width 256, 16 state
entries per channel, 35 labels.  The model checks `ops.selective_scan` on real weights in both
directions; `tests/models/bidirectional_mamba_test.py` fetches the weights.
"""

import io
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.ops.selective_scan import selective_scan

EPSILON = 1e-6  # of the layer norms
LEAST_DT = 1e-4
NOT_ASCII = 128  # row of the embedding for all bytes from 128 on

Parameters = Mapping[str, Array]


def load(npz: bytes) -> Parameters:
    """Loads the arrays of an npz file, given as bytes, by Flax paths such as "Dense_0/kernel"."""
    with np.load(io.BytesIO(npz)) as arrays:
        return {name.replace("__", "/"): jnp.asarray(arrays[name]) for name in arrays}


def content_logits(
    parameters: Parameters,
    bytes_BT: Int[Array, "B T"],
    *,
    form: str = "auto",
    chunk_size: int | None = None,
) -> Float[Array, "B T E"]:
    """Returns logits of the labels of every byte; `selective_scan` documents the options."""
    x_BTD = parameters["Embed_0/embedding"][jnp.minimum(bytes_BT, NOT_ASCII)]
    layers = len({name.split("/")[0] for name in parameters if "MambaBlock" in name})
    for layer in range(layers):
        prefix = f"CheckpointMambaBlock1D_{layer}/"
        block = {
            name.removeprefix(prefix): array
            for name, array in parameters.items()
            if name.startswith(prefix)
        }
        x_BTD = x_BTD + _block(block, x_BTD, form=form, chunk_size=chunk_size)
    return _dense(parameters, "Dense_0", _layer_norm(parameters, x_BTD))


def _dense(parameters, name, x):
    return x @ parameters[f"{name}/kernel"] + parameters[f"{name}/bias"]


def _layer_norm(parameters, x):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + EPSILON)
    return x * parameters["LayerNorm_0/scale"] + parameters["LayerNorm_0/bias"]


def _block(parameters, x_BTD, **options):
    """Applies Mamba's block with a centred convolution, and the same weights in both directions."""
    u, z = jnp.split(_dense(parameters, "Dense_0", _layer_norm(parameters, x_BTD)), 2, axis=-1)
    u = lax.conv_general_dilated(
        u,
        parameters["Conv_0/kernel"],
        window_strides=(1,),
        padding="SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=u.shape[-1],
    )
    u = jax.nn.silu(u + parameters["Conv_0/bias"])
    a_ND = -jnp.exp(parameters["A_log"]).T
    width = a_ND.shape[0]
    selected = _dense(parameters, "Dense_1", u)
    dt, b, c = jnp.split(selected, [selected.shape[-1] - 2 * width, selected.shape[-1] - width], -1)
    dt = jax.nn.softplus(_dense(parameters, "Dense_2", dt)) + LEAST_DT
    y = sum(
        selective_scan(u, dt, a_ND, b, c, direction=direction, **options)[0]
        for direction in ("causal", "anticausal")
    )
    y = y + 2 * u * parameters["D"]  # once in each direction
    return _dense(parameters, "Dense_3", y * jax.nn.silu(z))
