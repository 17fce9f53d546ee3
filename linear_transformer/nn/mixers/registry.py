"""Registry of mixers by name: the mechanisms of all mixers of this folder."""

import importlib
import inspect
import pkgutil
import typing
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
from linear_transformer.nn.mixers.base import Mixer, parameters
from linear_transformer.nn.mixers.mechanism import Mechanism
from linear_transformer.nn.mixers.parallel import Parallel

# Arguments of every mixer that the model sets, not a config.
RESERVED = ("width", "heads", "output_scale", "depth", "dtype", "rngs")


def _decorated() -> Iterator[Mechanism]:
    """Yields the mechanisms of all mixers of this folder."""
    for module in pkgutil.iter_modules(mixers.__path__, f"{mixers.__name__}."):
        if module.name != __name__:
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name:
                    yield from vars(value).get("mechanisms", ())


def _parallel(
    width: int,
    heads: int,
    *,
    branches: dict[str, dict[str, Any]] | None = None,
    output_scale: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Parallel:
    """Makes mixers of this registry that run in parallel.

    Args:
      branches: options of each mixer by its name; None is {"diag": {}, "norm": {}}.
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
for _mechanism in (*_decorated(), PARALLEL):
    if _mechanism.name in MIXERS:
        raise ValueError(f"two mechanisms have the name {_mechanism.name!r}")
    MIXERS[_mechanism.name] = _mechanism

# Ranges of numeric options by name, the same in all mixers; other integers are positive.
_RANGES = {
    **dict.fromkeys(("temperature", "scale"), POSITIVE),
    **dict.fromkeys(("epsilon", "convolution", "max_phase"), NOT_NEGATIVE),
    **dict.fromkeys(("r_min", "r_max"), UP_TO_ONE),
    "seed": SEED,
}
# Meanings of options that many mixers share; the docstring of a mixer overrides them.
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
    """Makes a mixer by name; `depth`, l / L for layer l of L, goes to mixers that take it."""
    mechanism = MIXERS[name]
    if mechanism.uses_depth:
        given["depth"] = depth
    return mechanism(width, heads, **given)


def mixer_options(name: str) -> dict[str, inspect.Parameter]:
    """Returns the options of a mixer by name, with their types and the mechanism's defaults."""
    make, defaults = MIXERS[name].mixer, MIXERS[name].defaults
    known = parameters(make) if isinstance(make, type) else inspect.signature(make).parameters
    return {
        option: parameter.replace(default=defaults.get(option, parameter.default))
        for option, parameter in known.items()
        if option not in ("self", *RESERVED)
    }


def option_meanings(name: str) -> dict[str, str]:
    """Returns the meanings of a mixer's options by name, from its docstring or `_MEANINGS`."""
    return {**_MEANINGS, **meanings(MIXERS[name].mixer)}


def feed_forward_ratio(pattern: Sequence[str], gated: bool) -> int | float:
    """Feed-forward width over model width for the mixers of a layer pattern."""
    usual = 8 / 3 if gated else 4
    ratios = {MIXERS[name].feed_forward_ratio for name in pattern}
    ratio = ratios.pop() if len(ratios) == 1 else None
    return usual if ratio is None else ratio


def longest_input(name: str, options: Mapping[str, Any]) -> tuple[str, int] | None:
    """Returns the option that bounds a mixer's input length, and its value; None if unbounded."""
    mechanism = MIXERS[name]
    option = mechanism.length_option
    if option is None or not mechanism.limits_length:
        return None
    return option, options.get(option, of_default(name, option))


def of_default(name: str, option: str) -> Any:
    """Returns the default of a mixer's option; None if the option is required."""
    default = mixer_options(name)[option].default
    return None if default is inspect.Parameter.empty else default


def check_options(name: str, options: Mapping[str, Any], key: str = "config.model.mixers") -> None:
    """Checks names, types and ranges of a mixer's options.

    Args:
      name: name of a mixer.
      options: options of the mixer by name.
      key: config key of the section with the options, for the message.

    Raises:
      ConfigError: the mixer or an option is unknown, or an option has a wrong type or range.
    """
    if name not in MIXERS:
        raise unknown(f"{key}.{name}", MIXERS)
    known = mixer_options(name)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"{key}.{name}.{option}", known)
        hint = known[option].annotation
        check_type(value, hint, f"{key}.{name}.{option}")
        is_integer = int in (hint, *typing.get_args(hint))
        if option in _RANGES or is_integer:
            check_range(value, _RANGES.get(option, POSITIVE), f"{key}.{name}.{option}")
