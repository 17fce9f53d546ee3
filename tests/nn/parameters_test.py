"""What parameters declare, and what optimizers and shardings make of it.

`tests/training/shipped_configs_test.py` does so for every shipped config.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.layers.linear import BlockDiagonal, Embed, Linear, flops_of_weights
from linear_transformer.nn.logical_axes import RULES
from linear_transformer.nn.mixers.registry import MIXERS
from linear_transformer.nn.parameters import (
    Declaration,
    declarations,
    embedding,
    kernel,
    spread,
    vector,
)
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.sharding import placement
from linear_transformer.sharding.mesh import AXES
from linear_transformer.training.optimizers import OptimizerConfig, make_optimizer

OPTIONS = {
    "linear": {"convolution": 4},
    "linformer": {"direction": "bidirectional", "length": 16},
    "convolution": {"direction": "bidirectional"},
    "flash_quad": {"divisor": 16},
    "longformer": {"direction": "bidirectional"},
    "bigbird": {"direction": "bidirectional"},
    "nystromformer": {"direction": "bidirectional"},
    "sinkhorn": {"direction": "bidirectional", "length": 128},
    "rfa": {"gate": True, "learn_scale": True},
    "mamba3": {"rank": 2},
    "rwkv7": {"value_residual": True},
}
# Kernels that devices do not share: what all heads read, and the few features of a low rank.
WHOLE = {
    "gla": {"forget/down"},
    "kda": {"dt/down", "gate/down"},
    "gdn2": {"dt/down", "gate/down"},
    "mamba2": {"shared"},
    "rwkv6": {"decay/down", *(f"mix/{n}/{part}" for n in range(5) for part in ("down", "up"))},
    "rwkv7": {"decay/down", "rate/down", "gate/down", "residual/down"},
    "sinkhorn": {"sort_hidden"},
    "mamba3": {"shared", "angle"},
    "log_linear_mamba2": {"shared"},
}
MESH = AbstractMesh((1, 2, 1, 4), AXES)


def pure(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def by_name(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def language_model(**options):
    given = {"vocab_size": 64, "width": 32, "num_layers": 2, "num_heads": 4, "pattern": ("gla",)}
    given |= {"mixers": {"gla": {}}, "feed_forward_width": 64, "max_positions": 16}
    config = LanguageModelConfig(**given | options)
    return nnx.eval_shape(lambda: LanguageModel(config, rngs=ParameterRngs(0)))


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_declare_their_parameters(name):
    """An axis for each of an array's, no two of them over the same axis of a mesh."""
    options = OPTIONS.get(name, {})
    mixer = nnx.eval_shape(lambda: MIXERS[name](32, 4, rngs=ParameterRngs(0), **options))
    shapes, declared = by_name(pure(mixer)), by_name(declarations(mixer))
    assert shapes.keys() == declared.keys()
    for parameter, x in declared.items():
        assert len(x.axes) == shapes[parameter].ndim, parameter
        over = [RULES[axis] for axis in x.axes if axis]
        assert len(set(over)) == len(over), parameter
    whole = {
        parameter.removesuffix("/kernel")
        for parameter, x in declared.items()
        if x.group == "matrix" and "tensor" not in [RULES[axis] for axis in x.axes if axis]
    }
    assert whole == WHOLE.get(name, set())


def test_a_parameter_that_declares_nothing_is_an_error():
    class Layer(nnx.Module):
        def __init__(self):
            self.inner = nnx.List([Linear(2, 2, axes=(None, None), rngs=nnx.Rngs(0))])
            self.inner[0].gain = nnx.Param(jnp.ones(2))

    with pytest.raises(ValueError, match="parameter inner/0/gain declares nothing"):
        declarations(Layer())
    with pytest.raises(ValueError, match="parameter inner/0/gain declares nothing"):
        flops_of_weights(Layer())


def test_mistakes():
    with pytest.raises(ValueError, match="group is 'matrices'; choose one of matrix, vector"):
        kernel("embed", "heads", group="matrices")
    with pytest.raises(ValueError, match="axes have 'head'; choose of rows, time"):
        vector("head")


@pytest.mark.parametrize("scan_layers", [False, True])
def test_kernels_and_embeddings_decay(scan_layers):
    model = language_model(positions="learned", tied=False, scan_layers=scan_layers)
    declared = by_name(declarations(model))
    decayed = {name for name, x in declared.items() if x.weight_decay}
    named = {name for name in declared if name.split("/")[-1] in ("kernel", "embedding")}
    assert decayed == named < declared.keys()


def test_muon_has_the_matrices_without_embeddings_and_heads():
    model = language_model(tied=False, scan_layers=True)
    declared, parameters = declarations(model), pure(model)
    optimizer = make_optimizer(OptimizerConfig(name="muon", weight_decay=0.1), 10, declared)
    states = jax.eval_shape(optimizer.init, parameters).inner_states
    held = {
        group: {name.partition("/mu/")[2] for name in by_name(states[group]) if "/mu/" in name}
        for group in ("muon", "adam")
    }
    kernels = {name for name in by_name(parameters) if name.endswith("/kernel")}
    assert held["muon"] == kernels - {"head/kernel"}
    assert held["adam"] == by_name(parameters).keys() - held["muon"]
    assert {"head/kernel", "embedding/embedding"} < held["adam"]


def test_which_axis_is_split_over_what():
    """Scanned layers have an axis in front; moments lie in the optimizer's state."""
    arrays = {
        "table": ((256, 64), embedding("vocabulary", "embed")),
        "query": ((2, 64, 128), kernel("embed", "heads")),
        "bias": ((2, 128), vector("heads")),
        "down": ((256, 64), kernel("feed_forward", "embed")),
        "other": ((64, 100), vector(None, None)),
        "small": ((8, 8), vector(None, None)),
        "odd": ((66, 63), kernel("heads", "embed")),
        "few": ((64, 2), kernel("embed", "vocabulary")),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, (shape, _) in arrays.items()}
    declared = {name: metadata["declaration"] for name, (_, metadata) in arrays.items()}
    state = ({"mu": {"layers": tree}}, jax.ShapeDtypeStruct((), np.int32))
    moments, count = placement.specs(MESH, state, {"layers": declared})
    assert {name: tuple(spec) for name, spec in moments["mu"]["layers"].items()} == {
        "table": ("tensor", "fsdp"),
        "query": (None, "fsdp", "tensor"),
        "bias": (None, "tensor"),
        "down": ("tensor", "fsdp"),
        "other": (None, "fsdp"),
        "small": (None, None),
        "odd": ("fsdp", None),
        "few": (None, None),
    }
    assert count == PartitionSpec()


def test_declarations_are_metadata_of_the_model():
    """They survive that a model is taken apart and put together, as the training step does."""
    model = language_model(scan_layers=True)
    model = nnx.merge(nnx.graphdef(model), pure(model))
    declared = by_name(declarations(model))
    assert declared["stack/blocks/0/mixer/query/kernel"] == Declaration(
        ("embed", "heads"), "matrix", weight_decay=True, per_token=True
    )
    assert declared["stack/blocks/0/mixer_norm/scale"].axes == ("embed",)
    assert declared.keys() == by_name(pure(model)).keys()


@pytest.mark.parametrize("layer", ["linear", "block diagonal", "embed", "spread"])
def test_gradients_of_bfloat16_are_sums_in_fp32(layer):
    """16,384 ones: a sum in bf16 stops growing at 256 times its terms."""
    x, given = jnp.ones((64, 256, 1, 1), jnp.bfloat16), {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    module = {
        "linear": Linear(1, 1, axes=(None, None), **given),
        "block diagonal": BlockDiagonal(1, 1, **given),
        "embed": Embed(2, 1, **given),
        "spread": nnx.Param(jnp.ones(1)),
    }[layer]
    graphdef, weights = nnx.split(module)

    def outputs(weights):
        module = nnx.merge(graphdef, weights)
        if layer == "spread":
            return x + spread(module[...], x)
        return module(x.astype(int) if layer == "embed" else x)

    y, pullback = jax.vjp(outputs, weights)
    sums = jax.tree.leaves(pullback(jnp.ones_like(y))[0])
    assert y.dtype == jnp.bfloat16
    assert all(jnp.max(x) == 64 * 256 for x in sums)
