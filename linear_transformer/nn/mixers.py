"""The table of mixers: the names that a layer pattern may use."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.cosformer import CosFormer
from linear_transformer.nn.delta_net import DeltaNet
from linear_transformer.nn.diag_attention import DiagAttention
from linear_transformer.nn.efficient_attention import EfficientAttention
from linear_transformer.nn.gated_attention_unit import Flash, FlashQuad
from linear_transformer.nn.gated_delta_net import GatedDeltaNet
from linear_transformer.nn.gated_linear_attention import GatedLinearAttention
from linear_transformer.nn.hgrn2 import HGRN2
from linear_transformer.nn.kimi_delta_attention import KimiDeltaAttention
from linear_transformer.nn.lightning import LightningAttention
from linear_transformer.nn.linear_attention import LinearAttention
from linear_transformer.nn.linformer import Linformer
from linear_transformer.nn.lion import Lion
from linear_transformer.nn.local_convolution import LocalConvolution
from linear_transformer.nn.lru import LRU
from linear_transformer.nn.lsh_attention import LSHAttention
from linear_transformer.nn.mamba import Mamba
from linear_transformer.nn.mamba2 import Mamba2
from linear_transformer.nn.mlstm import MLSTM
from linear_transformer.nn.parallel import Parallel
from linear_transformer.nn.performer import Performer
from linear_transformer.nn.random_feature_attention import RandomFeatureAttention
from linear_transformer.nn.rectified_attention import RectifiedAttention
from linear_transformer.nn.retnet import Retention
from linear_transformer.nn.rwkv6 import RWKV6
from linear_transformer.nn.rwkv7 import RWKV7
from linear_transformer.nn.softmax_attention import SoftmaxAttention

# Arguments of every mixer that the model sets itself.
RESERVED = ("width", "heads", "output_scale", "depth", "dtype", "rngs")


def _parallel(
    width: int,
    heads: int,
    *,
    branches: dict[str, dict[str, Any]] | None = None,
    output_scale: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Parallel:
    """Mixers of this table with their options: {"diag": {...}, "norm": {...}}, also the default."""
    branches = {"diag": {}, "norm": {}} if branches is None else branches
    given = {"output_scale": output_scale, "dtype": jnp.dtype(dtype), "rngs": rngs}
    mixers = {}
    for name, options in branches.items():
        check_options(name, options)
        mixers[name] = MIXERS[name](width, heads, **given, **options)
    return Parallel(mixers)


MIXERS: dict[str, Callable[..., nnx.Module]] = {
    "linear": LinearAttention,
    "softmax": SoftmaxAttention,
    "diag": DiagAttention,
    "norm": functools.partial(  # NormAttention (Qin et al. 2022), as in TransNormer T1
        LinearAttention,
        feature_map="elu",
        normalize=False,
        output_norm="simplermsnorm",
        lrpe=True,
    ),
    "parallel": _parallel,
    "flash": Flash,
    "flash_quad": FlashQuad,
    "rela": RectifiedAttention,
    "lsh": LSHAttention,
    "linformer": Linformer,  # bidirectional only
    "convolution": LocalConvolution,  # bidirectional only
    "efficient": EfficientAttention,
    "performer": Performer,
    "cosformer": CosFormer,
    "rfa": RandomFeatureAttention,
    "retnet": Retention,
    "lightning": LightningAttention,
    "lightning_lrpe": functools.partial(LightningAttention, lrpe=True),  # of the first layer
    "mamba2": Mamba2,
    "mlstm": MLSTM,
    "gla": GatedLinearAttention,
    "hgrn2": HGRN2,
    "rwkv6": RWKV6,
    "lion": Lion,
    "mamba": Mamba,
    "lru": LRU,
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "delta_product": functools.partial(GatedDeltaNet, steps=2, negative_eigenvalues=True),
    "kda": KimiDeltaAttention,
    "rwkv7": RWKV7,
}


# Options that bound the length of an input.
_LONGEST = {"cosformer": "max_length", "linformer": "length"}


def make_mixer(name: str, width: int, heads: int, *, depth: float, **given: Any) -> nnx.Module:
    """A mixer of the table in layer l of L; `depth`, l / L, is for those that start by it."""
    if "depth" in _arguments(name):
        given["depth"] = depth
    return MIXERS[name](width, heads, **given)


def mixer_options(name: str) -> set[str]:
    """Names of the options of a mixer of the table."""
    return _arguments(name).keys() - {"self", *RESERVED}


def longest_input(name: str, options: dict[str, Any]) -> tuple[str, int] | None:
    """The option of a mixer that bounds the length of its input, and its value; None without."""
    option = _LONGEST.get(name)
    if option is None:
        return None
    return option, options.get(option, _arguments(name)[option].default)


def _arguments(name: str) -> Mapping[str, inspect.Parameter]:
    make = MIXERS[name]
    if isinstance(make, functools.partial):
        make = make.func
    if isinstance(make, type):  # a module's own signature is its metaclass's
        make = make.__init__
    return inspect.signature(make).parameters


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises a ValueError that names the mixer or the option that does not exist."""
    if name not in MIXERS:
        raise ValueError(f"{name}: no such mixer; choose one of {', '.join(MIXERS)}")
    for option in options:
        if option not in mixer_options(name):
            raise ValueError(f"{name}.{option}: no such option")
