"""Draws docs/convolution_as_attention.png: nine attention heads that are a 3 x 3 convolution.

    python -m docs.convolution_as_attention

Softmax attention with one head for each shift of the kernel, and scores that are quadratic in the
relative position, is a convolution up to exp(-sharpness): Cordonnier, Loukas and Jaggi 2020, "On
the Relationship between Self-Attention and Convolutional Layers" (arXiv:1911.03584), theorem 1.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from linear_transformer.ops.softmax import softmax_attention

PICTURE = pathlib.Path(__file__).with_suffix(".png")


def shifts(size: int) -> np.ndarray:
    """The K * K shifts (rows, columns) of a K x K kernel, in the kernel's order."""
    return np.stack(np.meshgrid(*[np.arange(size) - size // 2] * 2, indexing="ij"), -1).reshape(
        -1, 2
    )


def _scores(pixels: np.ndarray, query_pixels: np.ndarray, size: int, sharpness: float):
    """Queries (T, H, 3) and keys (S, 3): q.k = a (2 p_k.(p_q + D) - |p_k|^2)."""
    targets = query_pixels[:, None] + shifts(size)
    queries = sharpness * np.concatenate([2 * targets, -np.ones_like(targets[..., :1])], -1)
    return queries, np.concatenate([pixels, np.sum(pixels**2, -1, keepdims=True)], -1)


def _grid(height: int, width: int) -> np.ndarray:
    """Coordinates of all pixels, (height * width, 2), around 0 to keep the scores small."""
    axes = [np.arange(n) - (n - 1) / 2 for n in (height, width)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def attention_layer(image: np.ndarray, kernel: np.ndarray, sharpness: float) -> np.ndarray:
    """Multi-head attention with the parameters of the theorem.

    Args:
      image: (height, width, channels); zeros are padded around it, as for the convolution.
      kernel: (K, K, channels, outputs), K odd.
      sharpness: a, the factor on the squared distance.

    Returns:
      (height, width, outputs).
    """
    (height, width, channels), size = image.shape, kernel.shape[0]
    reach = size // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0))).reshape(-1, channels)
    pixels = _grid(height + 2 * reach, width + 2 * reach)
    queries, keys = _scores(pixels, _grid(height, width), size, sharpness)
    heads = size * size
    o_BTHV = softmax_attention(
        jnp.asarray(queries)[None],
        jnp.broadcast_to(jnp.asarray(keys)[:, None], (len(keys), heads, 3))[None],
        jnp.broadcast_to(jnp.asarray(padded)[:, None], (len(padded), heads, channels))[None],
        direction="bidirectional",
        scale=1.0,
    )
    output = jnp.einsum("thv,hvo->to", o_BTHV[0], kernel.reshape(heads, channels, -1))
    return np.asarray(output).reshape(height, width, -1)


def convolution(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The same in XLA's convolution, (height, width, outputs), padded with zeros."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return np.asarray(
        jax.lax.conv_general_dilated(
            jnp.asarray(image)[None], jnp.asarray(kernel), (1, 1), "SAME", None, None, dimensions
        )[0]
    )


def draw() -> matplotlib.figure.Figure:
    """Left, where the heads of one pixel look; right, the distance from the convolution."""
    rng = np.random.default_rng(0)
    image, kernel = rng.standard_normal((12, 12, 3)), rng.standard_normal((3, 3, 3, 4))
    figure = matplotlib.figure.Figure(figsize=(11, 4.4), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1, 1, 1.25))

    pixels = _grid(7, 7)
    for part, sharpness in ((left, 0.3), (middle, 3.0)):
        queries, keys = _scores(pixels, np.zeros((1, 2)), 3, sharpness)
        weights = np.asarray(jax.nn.softmax(queries[0] @ keys.T, axis=-1)).reshape(9, 7, 7)
        part.suptitle(f"Nine heads, seen from the centre (a = {sharpness})", fontsize=10)
        for axes, weight in zip(part.subplots(3, 3).flat, weights, strict=True):
            axes.imshow(weight, vmin=0, vmax=1, cmap="Blues")
            axes.plot(3, 3, "r+")
            axes.set(xticks=[], yticks=[])

    sharpnesses = np.linspace(0.5, 30, 60)
    exact = convolution(image, kernel)
    errors = [np.max(np.abs(attention_layer(image, kernel, a) - exact)) for a in sharpnesses]
    axes = right.subplots()
    axes.semilogy(sharpnesses, errors, label="largest difference, fp64")
    axes.semilogy(sharpnesses, errors[0] * np.exp(-(sharpnesses - 0.5)), "k:", label="∝ exp(-a)")
    axes.set(xlabel="sharpness a", title="Attention and 3 x 3 convolution")
    axes.title.set_fontsize(10)
    axes.legend()
    return figure


if __name__ == "__main__":
    with jax.enable_x64(True):
        draw().savefig(PICTURE, dpi=110)
