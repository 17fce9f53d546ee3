"""Attention can be a convolution: the construction of Cordonnier, Loukas and Jaggi 2020, exactly.

"On the Relationship between Self-Attention and Convolutional Layers", theorem 1 and lemma 2: one
head for each shift D of a K x K kernel, with the quadratic encoding, attends to the pixel at q + D,

    A_qk = softmax_k(-a |p_k - p_q - D|^2) = softmax_k(a (2 p_k.(p_q + D) - |p_k|^2)),

so its scores are plain inner products of three features of the query and of the key.  The values
are the pixels, and each head's part of the output matrix is the kernel's matrix at its shift.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from docs.convolution_as_attention import attention_layer, convolution, shifts
from linear_transformer.ops.softmax import softmax_attention

HEIGHT, WIDTH, CHANNELS, OUTPUTS = 7, 9, 3, 4


@pytest.fixture(autouse=True)
def _fp64():
    with jax.enable_x64(True):
        yield


@functools.cache
def example(size):
    rng = np.random.default_rng(size)
    image = rng.standard_normal((HEIGHT, WIDTH, CHANNELS))
    kernel = rng.standard_normal((size, size, CHANNELS, OUTPUTS))
    return image, kernel


def loops(image, kernel):
    """The definition: y[i, j] = sum_D W_D^T x[i + D_1, j + D_2], with zeros outside."""
    reach = kernel.shape[0] // 2
    y = np.zeros((HEIGHT, WIDTH, OUTPUTS))
    for i, j, a, b in np.ndindex(HEIGHT, WIDTH, *kernel.shape[:2]):
        row, column = i + a - reach, j + b - reach
        if 0 <= row < HEIGHT and 0 <= column < WIDTH:
            y[i, j] += image[row, column] @ kernel[a, b]
    return y


def error(size, sharpness):
    image, kernel = example(size)
    return np.max(np.abs(attention_layer(image, kernel, sharpness) - loops(image, kernel)))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution_is_the_definition(size):
    np.testing.assert_allclose(convolution(*example(size)), loops(*example(size)), atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
def test_attention_is_the_convolution(size):
    """The nearest wrong pixels keep a weight of exp(-a) each; then only rounding is left."""
    errors = [error(size, sharpness) for sharpness in (1, 4, 8, 16, 24)]
    assert all(late < early for early, late in itertools.pairwise(errors))
    for before, after, gap in ((errors[1], errors[2], 4), (errors[2], errors[3], 8)):
        np.testing.assert_allclose(np.log(before / after), gap, rtol=0.1)
    assert errors[-1] < 1e-8


def test_one_head_shifts_the_image():
    """With values of one pixel each, the head of a shift reads exactly that neighbour."""
    image, _ = example(3)
    for shift in shifts(3):
        kernel = np.zeros((3, 3, CHANNELS, CHANNELS))
        kernel[shift[0] + 1, shift[1] + 1] = np.eye(CHANNELS)
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        rows, columns = (
            slice(1 + s, 1 + s + n) for s, n in zip(shift, (HEIGHT, WIDTH), strict=True)
        )
        found = attention_layer(image, kernel, 24.0)
        np.testing.assert_allclose(found, padded[rows, columns], atol=1e-8)


def test_content_attention_is_not_a_convolution():
    """The negative control: without the encoding all pixels look alike."""
    image, _ = example(3)
    pixels = jnp.asarray(image).reshape(1, HEIGHT * WIDTH, 1, CHANNELS)
    zeros = jnp.zeros((1, HEIGHT * WIDTH, 1, 3))
    mean = softmax_attention(zeros, zeros, pixels, direction="bidirectional")
    np.testing.assert_allclose(mean[0, 0, 0], image.mean((0, 1)), atol=1e-12)
    assert error(3, 1e-9) > 0.5
