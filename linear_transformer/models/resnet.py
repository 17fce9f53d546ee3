"""Residual networks for images, with attention between their blocks.

The networks follow He et al. 2016 (arXiv:1512.03385), with the stride of a bottleneck in its 3 x 3
convolution.  A module of efficient attention (Shen et al. 2021, arXiv:1812.01243), or the non-local
module that it replaces, may follow any block.

Deviation: the norms are GroupNorms of 32 groups (Wu & He 2018, arXiv:1803.08494) instead of the
papers' BatchNorms, so that the logits of an image do not depend on other images in training.  The
number of parameters is the same.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.config import schema
from linear_transformer.config.schema import POSITIVE, Range
from linear_transformer.errors import ConfigError
from linear_transformer.models.model import Model
from linear_transformer.nn.layers.efficient_attention_2d import EfficientAttention2D, NonLocal2D
from linear_transformer.nn.layers.linear import Head, Linear, flops_of_weights
from linear_transformer.nn.parameters import kernel, vector

Features = Float[Array, "B _ _ _"]  # rows, columns and channels, which layers change
Size = tuple[int, int]  # rows and columns of an image
Layers = tuple[tuple[int, int, int], ...]  # kernel size, output channels and stride


def _basic(width: int, stride: int) -> Layers:
    return (3, width, stride), (3, width, 1)


def _bottleneck(width: int, stride: int) -> Layers:
    return (1, width, 1), (3, width, stride), (1, 4 * width, 1)


BLOCKS = {"basic": _basic, "bottleneck": _bottleneck}
STEMS = {"photograph": (7, 2), "thumbnail": (3, 1)}  # kernel size and stride
ATTENTIONS = {"efficient": EfficientAttention2D, "non_local": NonLocal2D}
_EPSILON = 1e-5
_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Configuration of `ResNet`.

    Attributes:
      num_classes: number of classes E.
      image_channels: number of channels of the images.
      stage_blocks: number of blocks of each stage; each stage but the first halves the image and
        doubles the width.  (3, 4, 6, 3) with the block "bottleneck" is ResNet-50.
      block: a name in BLOCKS.
      width: channels of the first stage; the bottleneck's outputs are four times as wide.
      stem: "photograph", a 7 x 7 convolution and a max-pooling, both with stride 2; or "thumbnail",
        a 3 x 3 convolution with stride 1, for images of some 30 pixels.
      norm_groups: number of groups of each norm.
      attention: module behind each block of `attention_after`, a name in ATTENTIONS.
      attention_after: indices of blocks, counted from 1 over all stages.
      dtype: dtype of the activations; parameters are fp32.
    """

    num_classes: int = schema.by_data()
    image_channels: int = schema.by_data()
    stage_blocks: tuple[int, ...]
    block: str
    width: int
    stem: str
    norm_groups: int = 32
    attention: str = "efficient"
    attention_after: tuple[int, ...] = ()
    dtype: str = "float32"

    CHOICES: ClassVar[Mapping[str, Any]] = {
        "block": BLOCKS,
        "stem": STEMS,
        "attention": ATTENTIONS,
        "dtype": schema.DTYPES,
    }
    RANGES: ClassVar[Mapping[str, Range]] = dict.fromkeys(
        ("num_classes", "image_channels", "width", "norm_groups", "stage_blocks"), POSITIVE
    )

    def __post_init__(self):
        schema.check(self, "model")
        if self.width % self.norm_groups:
            raise ConfigError(
                f"config.model.width ({self.width}) is not a multiple of "
                f"config.model.norm_groups ({self.norm_groups})"
            )
        if not self.stage_blocks:
            raise ConfigError(
                f"config.model.stage_blocks is {self.stage_blocks}; every stage needs a block"
            )
        blocks = range(1, sum(self.stage_blocks) + 1)
        for number in self.attention_after:
            if number not in blocks:
                raise ConfigError(
                    f"config.model.attention_after names block {number}; there are {len(blocks)}, "
                    "counted from 1"
                )
        if len(set(self.attention_after)) < len(self.attention_after):
            raise ConfigError(
                f"config.model.attention_after is {self.attention_after}; one module a block"
            )


def _strided(size: Size, stride: int) -> Size:
    rows, columns = (-(-n // stride) for n in size)
    return rows, columns


class ConvNorm(nnx.Module):
    """Square convolution without bias, and a norm; a 1 x 1 convolution is a matmul."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        config: ResNetConfig,
        *,
        stride: int = 1,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(config.dtype)
        given = {"use_bias": False, "dtype": dtype, "kernel_init": _INIT, "rngs": rngs}
        self.stride = stride
        self.step = stride if size == 1 else 1  # a matmul has no stride
        if size == 1:
            self.conv = Linear(inputs, outputs, axes=(None, None), **given)
        else:
            self.conv = nnx.Conv(
                inputs,
                outputs,
                (size, size),
                strides=stride,
                padding=size // 2,
                kernel_metadata=kernel(None, None, None, None),
                **given,
            )
        self.norm = nnx.GroupNorm(
            outputs,
            config.norm_groups,
            epsilon=_EPSILON,
            scale_init=nnx.initializers.constant(scale),
            scale_metadata=vector(None),
            bias_metadata=vector(None),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x_BYXD: Features) -> Features:
        return self.norm(self.conv(x_BYXD[:, :: self.step, :: self.step]))

    def flops(self, size: Size) -> tuple[int, Size]:
        """Returns the FLOPs for an image of this size, and the size of the output."""
        size = _strided(size, self.stride)
        return flops_of_weights(self) * math.prod(size), size


class ResidualBlock(nnx.Module):
    """Residual block `relu(shortcut(x) + branch(x))`, with a branch that starts at zero.

    The zero is from Goyal et al. 2017, section 5.1.  The shortcut is the identity, or a 1 x 1
    convolution if the shape changes.
    """

    def __init__(
        self,
        inputs: int,
        layers: Layers,
        config: ResNetConfig,
        *,
        rngs: nnx.Rngs,
    ):
        widths = (inputs, *(outputs for _, outputs, _ in layers))
        strides = math.prod(stride for _, _, stride in layers)
        self.branch = nnx.List(
            ConvNorm(
                widths[i],
                outputs,
                size,
                config,
                stride=stride,
                scale=float(i + 1 < len(layers)),
                rngs=rngs,
            )
            for i, (size, outputs, stride) in enumerate(layers)
        )
        self.shortcut = (
            None
            if (inputs, 1) == (widths[-1], strides)
            else ConvNorm(inputs, widths[-1], 1, config, stride=strides, rngs=rngs)
        )

    def __call__(self, x_BYXD: Features) -> Features:
        y_BYXD = x_BYXD
        for layer in self.branch[:-1]:
            y_BYXD = jax.nn.relu(layer(y_BYXD))
        y_BYXD = self.branch[-1](y_BYXD)
        return jax.nn.relu(y_BYXD + (x_BYXD if self.shortcut is None else self.shortcut(x_BYXD)))

    def flops(self, size: Size) -> tuple[int, Size]:
        total, _ = (0, size) if self.shortcut is None else self.shortcut.flops(size)
        for layer in self.branch:
            flops, size = layer.flops(size)
            total += flops
        return total, size


class ResNet(Model):
    """Residual network: stem, residual blocks with optional attention, mean pooling, and logits."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        size, stride = STEMS[c.stem]
        self.stem = ConvNorm(c.image_channels, c.width, size, c, stride=stride, rngs=rngs)
        self.pools = stride > 1
        self.layers = nnx.List()
        inputs, number = c.width, 0
        for stage, blocks in enumerate(c.stage_blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers = BLOCKS[c.block](c.width * 2**stage, stride)
                self.layers.append(ResidualBlock(inputs, layers, c, rngs=rngs))
                _, inputs, _ = layers[-1]
                number += 1
                if number in c.attention_after:
                    self.layers.append(ATTENTIONS[c.attention](inputs, dtype=dtype, rngs=rngs))
        self.head = Head(
            inputs,
            c.num_classes,
            kernel_init=nnx.initializers.normal(0.01),  # as in Goyal et al. 2017
            dtype=dtype,
            rngs=rngs,
        )

    def flops_per_image(self, size: Size) -> int:
        """FLOPs of one image in the forward pass, without norms, pooling and activations.

        A multiply-add counts as two.
        """
        total, size = self.stem.flops(size)
        if self.pools:
            size = _strided(size, 2)
        for layer in self.layers:
            flops, size = layer.flops(size)
            total += flops
        return total + flops_of_weights(self.head)

    def __call__(self, images_BYXC: Float[Array, "B Y X C"]) -> Float[Array, "B E"]:
        """Returns logits (B, E) in fp32 for images of any size, scaled to about unit variance."""
        x_BYXD = jax.nn.relu(self.stem(images_BYXC))
        if self.pools:
            padding = ((1, 1), (1, 1))  # the annotations of Flax know only names of paddings
            x_BYXD = nnx.max_pool(x_BYXD, (3, 3), (2, 2), padding)  # pyright: ignore[reportArgumentType]
        for layer in self.layers:
            x_BYXD = layer(x_BYXD)
        return self.head(jnp.mean(x_BYXD, axis=(1, 2)))
