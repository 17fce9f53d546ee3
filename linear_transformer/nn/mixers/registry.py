"""The mixers by name: all that the files of this folder list in `MECHANISMS`."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from linear_transformer.config.schema import (
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    UP_TO_ONE,
    check_range,
    check_type,
    meanings,
    unknown,
)
from linear_transformer.nn import mixers
from linear_transformer.nn.mixers.base import Mixer
from linear_transformer.nn.mixers.mechanism import Mechanism
from linear_transformer.nn.mixers.parallel import Parallel

# Arguments of every mixer that the model sets itself.
RESERVED = ("width", "heads", "output_scale", "depth", "dtype", "rngs")


def _listed() -> Iterator[Mechanism]:
    """The mechanisms of all files of this folder, file by file."""
    for module in pkgutil.iter_modules(mixers.__path__, f"{mixers.__name__}."):
        if module.name != __name__:
            yield from getattr(importlib.import_module(module.name), "MECHANISMS", ())


def _parallel(
    width: int,
    heads: int,
    *,
    branches: dict[str, dict[str, Any]] | None = None,
    output_scale: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Parallel:
    """Mixers of this table side by side.

    Args:
      branches: mixers with their options; None is {"diag": {}, "norm": {}}.
    """
    branches = {"diag": {}, "norm": {}} if branches is None else branches
    given = {"output_scale": output_scale, "dtype": jnp.dtype(dtype), "rngs": rngs}
    parts = {}
    for name, options in branches.items():
        check_options(name, options, "config.model.mixers.parallel.branches")
        parts[name] = MIXERS[name](width, heads, **given, **options)
    return Parallel(parts)


PARALLEL = Mechanism(
    name="parallel",
    mixer=_parallel,
    meaning="mixers side by side: the sum of their outputs",
    source="Qin et al. 2022, arXiv:2210.10340, table 12",
)
MIXERS: dict[str, Mechanism] = {}
for _mechanism in (*_listed(), PARALLEL):
    if _mechanism.name in MIXERS:
        raise ValueError(f"two mechanisms have the name {_mechanism.name!r}")
    MIXERS[_mechanism.name] = _mechanism

# Numbers that the options of all mixers may have, by their names.
_POSITIVE = (
    *("key_width", "state_width", "value_expansion", "expansion", "features", "groups", "steps"),
    *("gate_rank", "decay_rank", "rate_rank", "mix_rank", "dt_rank", "compressed", "size"),
    *("chunk_size", "block_size", "window", "cache_capacity", "max_length", "length"),
    *("rounds", "buckets", "divisor", "temperature", "scale"),
)
_RANGES = {
    **dict.fromkeys(_POSITIVE, POSITIVE),
    **dict.fromkeys(("epsilon", "convolution", "max_phase"), NOT_NEGATIVE),
    **dict.fromkeys(("r_min", "r_max"), UP_TO_ONE),
    "seed": SEED,
}
# Options that mean the same in all mixers, where a docstring has no more to say of them.
_MEANINGS = {
    "bias": "whether the projections have biases",
    "key_width": "features of queries and keys per head; None is width / heads",
    "expansion": "features inside the unit over the model's width",
    "epsilon": "what is added to denominators",
    "seed": "of the random projections",
    "orthogonal": "whether the random projections are orthogonal in blocks of the key width",
    "rotary": "rotary positions of queries and keys",
    "form": 'how the same function is computed; "auto" chooses',
    "chunk_size": "tokens that are computed at a time; None chooses",
}


def make_mixer(name: str, width: int, heads: int, *, depth: float, **given: Any) -> Mixer:
    """A mixer of the table in layer l of L; `depth`, l / L, is for those that start by it."""
    mechanism = MIXERS[name]
    if mechanism.knows_depth:
        given["depth"] = depth
    return mechanism(width, heads, **given)


def mixer_options(name: str) -> dict[str, inspect.Parameter]:
    """The options of a mixer of the table, with their types and defaults in it."""
    make, defaults = MIXERS[name].mixer, MIXERS[name].defaults
    if isinstance(make, type):  # a module's own signature is its metaclass's
        make = make.__init__
    return {
        option: parameter.replace(default=defaults.get(option, parameter.default))
        for option, parameter in inspect.signature(make).parameters.items()
        if option not in ("self", *RESERVED)
    }


def option_meanings(name: str) -> dict[str, str]:
    """What the docstring of a mixer says of its options, by their names."""
    return _MEANINGS | meanings(MIXERS[name].mixer)


def feed_forward_ratio(pattern: Sequence[str], gated: bool) -> int | float:
    """Width of the feed-forward over the model's that goes with the mixers of a pattern."""
    usual = 8 / 3 if gated else 4
    ratios = {MIXERS[name].feed_forward_ratio for name in pattern}
    ratio = ratios.pop() if len(ratios) == 1 else None
    return usual if ratio is None else ratio


def longest_input(name: str, options: Mapping[str, Any]) -> tuple[str, int] | None:
    """The option of a mixer that bounds the length of its input, and its value; None without."""
    mechanism = MIXERS[name]
    option = mechanism.length_option
    if option is None or not mechanism.limits_length:
        return None
    return option, options.get(option, of_default(name, option))


def of_default(name: str, option: str) -> Any:
    """The default of an option of a mixer; None where it has to be given."""
    default = mixer_options(name)[option].default
    return None if default is inspect.Parameter.empty else default


def check_options(name: str, options: Mapping[str, Any], key: str = "config.model.mixers") -> None:
    """Checks names, types and ranges of a mixer's options.

    Args:
      name: in the table of mixers.
      options: of the mixer, by name.
      key: of the table that has the options, for the message.

    Raises:
      ConfigError: names the mixer or the option, and says what is allowed.
    """
    if name not in MIXERS:
        raise unknown(f"{key}.{name}", MIXERS)
    known = mixer_options(name)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"{key}.{name}.{option}", known)
        check_type(value, known[option].annotation, f"{key}.{name}.{option}")
        if option in _RANGES:
            check_range(value, _RANGES[option], f"{key}.{name}.{option}")
