"""Memory check of an experiment, from its config alone.

Sizes are compared with the memory before anything is read, allocated or compiled.  The sizes are
lower bounds: an experiment that is refused cannot fit; one that passes may still not fit.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from linear_transformer.errors import ConfigError
from linear_transformer.runtime import accelerators
from linear_transformer.types import Device

_GIB = 2**30
_BLOCK = 10_000  # bytes that the Python objects of a layer take, for any width
_CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")  # the memory limit of a container
# Mixer options that are one dimension of a matrix; the other dimension is the model width or more.
_SIDES = (
    *("key_width", "state_width", "expansion", "features", "slots", "steps", "rank", "convolution"),
    *("query_heads", "value_width", "value_expansion"),
    *("gate_rank", "decay_rank", "rate_rank", "mix_rank", "dt_rank", "value_rank", "size"),
)
# Other widths that a matrix connects with the model width.
_WIDTHS = (
    *("embedding_width", "num_outputs"),
    *("token_width", "index_width", "channel_width", "elapsed_width"),
)


class Need(NamedTuple):
    """Memory requirement in bytes, with the config keys that it follows from."""

    what: str
    keys: tuple[str, ...]
    size: int


def check(config: ml_collections.ConfigDict, devices: Sequence[Device]) -> None:
    """Compares the memory that a config needs with that of the devices and of this machine.

    Args:
      config: a resolved config (`experiment.resolve`).
      devices: devices over which the parameters may be sharded.

    Raises:
      ConfigError: a size exceeds the memory; the message names the keys and the bytes.
    """
    of_devices = sum(map(_memory, devices))
    for needs, memory, where in (
        (_parameters(config.model), of_devices, f"{len(devices)} x {devices[0].device_kind}"),
        (_batch(config.data), _host_memory(), "this machine"),
    ):
        for what, keys, size in needs:
            if size > memory:
                values = ", ".join(f"config.{key}={_value(config, key)}" for key in keys)
                raise ConfigError(
                    f"{values}: {what} of {size:,} bytes ({size // _GIB:,} GiB) or more; the "
                    f"memory of {where} is {memory / _GIB:,.0f} GiB"
                )


def _parameters(model: ml_collections.ConfigDict) -> Iterator[Need]:
    """Yields the sizes of the fp32 parameters, without gradients."""
    what = "parameters"
    width_key = "width" if "width" in model else "hidden"
    width = model[width_key]
    layer_keys = [k for k in ("num_layers", "encoder_layers", "decoder_layers") if k in model]
    layers = sum(model[key] for key in layer_keys) or sum(model.get("stage_blocks", ()))
    keys = tuple(f"model.{key}" for key in (width_key, *layer_keys))
    square = 0 if "convolution" in model.get("pattern", ()) else 4 * width**2
    yield Need(what, keys, layers * max(square, _BLOCK))
    if hidden := model.get("feed_forward_width"):
        yield Need(what, (*keys, "model.feed_forward_width"), layers * 8 * width * hidden)
    for key in _WIDTHS:
        if other := model.get(key):
            yield Need(what, (f"model.{width_key}", f"model.{key}"), 4 * width * other)
    if memories := len(set(model.get("memory_layers", ()))):
        sizes = ("model.width", "model.memory_keys", "model.memory_layers")
        yield Need(what, sizes, 4 * memories * width * model.memory_keys**2)
    if rows := model.get("max_positions"):
        yield Need(what, ("model.width", "model.max_positions"), 4 * width * rows)
    for mixer, options in model.get("mixers", {}).items():
        for option in _SIDES:
            if side := options.get(option):
                key = f"model.mixers.{mixer}.{option}"
                yield Need(what, (key, "model.width"), 4 * width * side)


def _batch(data: ml_collections.ConfigDict) -> Iterator[Need]:
    """Yields the sizes of a batch (4 bytes per number) and of the data set's integer options."""
    keys = [key for key in ("batch_size", "sequence_length", "max_frames") if key in data]
    numbers = math.prod(data[key] for key in keys)
    if "image_size" in data:
        keys, numbers = [*keys, "image_size"], numbers * data.image_size**2
    yield Need("a batch", tuple(f"data.{key}" for key in keys), 4 * numbers)
    for option, value in data.get("options", {}).items():
        if type(value) is int:
            yield Need("the options", (f"data.options.{option}",), 8 * value)


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def _memory(device: Device) -> int | float:
    """Returns the memory of a device in bytes; infinity if it is unknown."""
    if device.platform == "cpu":
        return _host_memory() / jax.device_count()
    accelerator = accelerators.find(device.device_kind)
    if accelerator is not None:
        return accelerator.memory
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)


def _host_memory() -> int | float:
    """Returns the memory of this machine, or of its container if that is less, in bytes."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # some systems lack these names
        return math.inf
    limit = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical
