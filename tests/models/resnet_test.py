"""The ResNets: published sizes, blocks against their equations, attention where it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.papers.shen2021 import fashion_mnist, imagenet
from linear_transformer.compile import compiled_program
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.models import resnet
from linear_transformer.models.resnet import ResNet, ResNetConfig
from linear_transformer.nn.layers.efficient_attention_2d import EfficientAttention2D, NonLocal2D
from linear_transformer.nn.parameters import declarations
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.training.optimizers import OptimizerConfig, make_optimizer
from tests.ops.contract import relative_rms

SMALL = {
    "num_classes": 5,
    "image_channels": 2,
    "stage_blocks": (1, 2),
    "block": "basic",
    "width": 8,
    "stem": "thumbnail",
    "norm_groups": 4,
}
PHOTOGRAPHS = {"num_classes": 1000, "image_channels": 3, "width": 64, "stem": "photograph"}


def make(**changes):
    return ResNet(ResNetConfig(**SMALL | changes), rngs=nnx.Rngs(0))


def shapes(**choices):
    config = ResNetConfig(**choices)
    return nnx.eval_shape(lambda: ResNet(config, rngs=ParameterRngs(0)))


@jax.jit
def call(model, x):
    return model(x)


def images(rows=8, columns=6, seed=0):
    return jax.random.normal(jax.random.key(seed), (3, rows, columns, 2))


@pytest.mark.parametrize(
    ("blocks", "kind", "parameters", "multiply_adds"),
    [
        ((2, 2, 2, 2), "basic", 11_689_512, 1.814e9),
        ((3, 4, 6, 3), "basic", 21_797_672, 3.664e9),
        ((3, 4, 6, 3), "bottleneck", 25_557_032, 4.089e9),
        ((3, 4, 23, 3), "bottleneck", 44_549_160, 7.801e9),
    ],
    ids=["ResNet-18", "ResNet-34", "ResNet-50", "ResNet-101"],
)
def test_published_sizes(blocks, kind, parameters, multiply_adds):
    """As in torchvision: GroupNorm has the parameters of BatchNorm."""
    model = shapes(stage_blocks=blocks, block=kind, **PHOTOGRAPHS)
    assert model.flops_per_image((224, 224)) == pytest.approx(2 * multiply_adds, rel=1e-3)
    assert model.num_parameters == parameters


def variant(module, name, num_classes, image_channels):
    config = module.get_config(name)
    return config, configuration.build(
        ResNetConfig,
        config.model,
        "model",
        num_classes=num_classes,
        image_channels=image_channels,
    )


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet50", {}),
        ("one_module", {1024: EfficientAttention2D}),
        ("two_modules", {512: EfficientAttention2D, 1024: EfficientAttention2D}),
        ("non_local", {1024: NonLocal2D}),
    ],
)
def test_rows_of_the_paper(name, modules):
    """ResNet-50 and modules with keys of D / 2 and values of D: 3 D^2 weights, 3 D biases."""
    config, model_config = variant(imagenet, name, 1000, 3)
    model = nnx.eval_shape(lambda: ResNet(model_config, rngs=ParameterRngs(0)))
    attention = [x for x in model.layers if isinstance(x, EfficientAttention2D)]
    assert {x.reprojection.out_features: type(x) for x in attention} == modules
    added = sum(3 * D * D + 3 * D for D in modules)
    assert model.num_parameters == 25_557_032 + added
    graphdef, parameters = nnx.split(model)
    image = jnp.zeros((2, 224, 224, 3))
    logits = jax.eval_shape(lambda p, x: nnx.merge(graphdef, p)(x), parameters, image)
    assert logits.shape == (2, 1000)
    optimizer = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
    make_optimizer(optimizer, config.num_steps, declarations(model))


@pytest.mark.parametrize("attention", [EfficientAttention2D, NonLocal2D])
def test_flops_of_attention(attention):
    """The formula against the compiled program's matmuls."""
    module = attention(16, heads=2, rngs=nnx.Rngs(0))
    program = call.lower(module, jnp.zeros((1, 6, 8, 16))).compile()
    counted = compiled_program.cost(program.as_text()).flops
    assert module.flops((6, 8)) == (pytest.approx(counted, rel=1e-3), (6, 8))


def test_attention_sees_what_it_should():
    """res3 ends with 28 x 28 pixels and res4 with 14 x 14."""
    _, model_config = variant(imagenet, "two_modules", 1000, 3)
    seen = []

    class Watched(EfficientAttention2D):
        def __call__(self, x_BYXD):
            seen.append(x_BYXD.shape[1:])
            return super().__call__(x_BYXD)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.ATTENTIONS, "efficient", Watched)
        nnx.eval_shape(
            lambda: ResNet(model_config, rngs=ParameterRngs(0))(jnp.zeros((1, 224, 224, 3)))
        )
    assert seen == [(28, 28, 512), (14, 14, 1024)]


def group_norm(x, norm, groups):
    """Wu & He 2018, equations 1 to 3, in NumPy: mean and variance of each image and group."""
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean = parts.mean(axis=(1, 3), keepdims=True)
    variance = parts.var(axis=(1, 3), keepdims=True)
    normal = ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return normal * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])


def convolve(x, kernel, stride):
    """A square convolution with zeros around the image, as a sum of products."""
    size = kernel.shape[0]
    half = size // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    rows, columns = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            window = padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            y += window[:, :rows, :columns] @ kernel[i, j]
    return y


def layer(x, module, stride, groups):
    kernel = np.asarray(module.conv.kernel[...], np.float64)
    kernel = kernel if kernel.ndim == 4 else kernel[None, None]
    return group_norm(convolve(x, kernel, stride), module.norm, groups)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)], ids=["even", "odd"])
def test_model_against_numpy(kind, size):
    """Every layer, with scales that are not 0 or 1, on even and odd images."""
    model = make(block=kind)
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(nnx.state(model, nnx.Param))
    leaves = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    nnx.update(model, jax.tree.unflatten(tree, leaves))
    groups = SMALL["norm_groups"]
    x = np.asarray(images(*size), np.float64)
    expected = np.maximum(layer(x, model.stem, 1, groups), 0)
    for number, block in enumerate(model.layers):
        stride = 2 if number == 1 else 1
        where = {"basic": 0, "bottleneck": 1}[kind]  # the stride is that of this layer
        y = expected
        for position, module in enumerate(block.branch):
            y = layer(y, module, stride if position == where else 1, groups)
            if position + 1 < len(block.branch):
                y = np.maximum(y, 0)
        if block.shortcut is not None:
            expected = layer(expected, block.shortcut, stride, groups)
        expected = np.maximum(expected + y, 0)
    head = (np.asarray(x[...], np.float64) for x in (model.head.kernel, model.head.bias))
    kernel, bias = head
    expected = expected.mean(axis=(1, 2)) @ kernel + bias
    assert relative_rms(np.asarray(call(model, images(*size))), expected) < 1e-5


def test_blocks_start_as_their_shortcuts():
    model = make(stage_blocks=(2,))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 5, 5, 8)))
    for block in model.layers:
        np.testing.assert_array_equal(call(block, x), x)


@pytest.mark.parametrize("attention", ["efficient", "non_local"])
def test_attention_follows_its_block(attention):
    """It reaches every pixel: the gradient of one output pixel is nowhere 0."""
    model = make(attention=attention, attention_after=(1, 3))
    kinds = [type(x).__name__.removesuffix("2D") for x in model.layers]
    name = {"efficient": "EfficientAttention", "non_local": "NonLocal"}[attention]
    block = "ResidualBlock"
    assert kinds == [block, name, block, block, name]
    x = jnp.abs(jax.random.normal(jax.random.key(0), (1, 6, 6, 8)))  # the block's relu passes it

    def corner(layers):
        def value(x):
            for layer in layers:
                x = layer(x)
            return jnp.sum(x[0, 0, 0])

        return np.abs(jax.jit(jax.grad(value))(x)).sum(-1)

    assert np.all(corner(model.layers[:2]) > 0)
    assert np.any(corner(model.layers[:1]) == 0)
    assert jax.eval_shape(model, images()).shape == (3, 5)


def test_activations_in_bfloat16():
    model, exact = make(dtype="bfloat16", attention_after=(2,)), make(attention_after=(2,))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    logits = call(model, images())
    assert logits.dtype == jnp.float32
    assert 0 < relative_rms(np.asarray(logits), np.asarray(call(exact, images()))) < 0.1


MISTAKES = {
    "block": ({"block": "x"}, r"config\.model\.block is 'x'; choose one of basic, bottleneck"),
    "stem": ({"stem": "x"}, r"config\.model\.stem is 'x'"),
    "attention": ({"attention": "x"}, r"config\.model\.attention is 'x'"),
    "dtype": ({"dtype": "int8"}, r"config\.model\.dtype is 'int8'"),
    "width": ({"width": 0}, r"config\.model\.width is 0; it must be positive"),
    "groups": ({"norm_groups": 3}, r"width \(8\) is not a multiple of .*norm_groups \(3\)"),
    "no stage": ({"stage_blocks": ()}, r"config\.model\.stage_blocks is \(\)"),
    "no block": ({"stage_blocks": (1, 0)}, r"config\.model\.stage_blocks is \(1, 0\)"),
    "number": ({"attention_after": (4,)}, r"attention_after names block 4; there are 3"),
    "from 1": ({"attention_after": (0,)}, r"attention_after names block 0"),
    "twice": ({"attention_after": (1, 1)}, r"attention_after is \(1, 1\); one module a block"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_name_the_key(mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=message) as raised:
        ResNetConfig(**SMALL | changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("module", [imagenet, fashion_mnist])
def test_unknown_variants_are_named(module):
    with pytest.raises(ConfigError, match=r"three_modules: the variants are .*non_local"):
        module.get_config("three_modules")
